//! [`attention_by`] over pages in segments, or over one page that holds everything.

use packforcing::ops::attention::{Attention, Kernel, attention_by};
use packforcing::paging::{Context, KvPages, Segment};
use packforcing::{DType, Device, Rope3d, Tensor};

use super::{Numbers, PAGE_TOKENS, WAN_DIM, WAN_HEADS, numbers, some};
use crate::case::{Call, Case, Results, Work, tell};
use crate::error::{Error, Result};
use crate::random::Random;

/// Segments of Wan's context: the sink, sixteen compressed blocks, the recent and the current block.
pub const WAN_SEGMENTS: usize = 19;
/// From so many keys on a context has [`WAN_SEGMENTS`] unless told otherwise.
const MANY_KEYS: usize = 8_192;

/// A shape of attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Queries.
    pub queries: usize,
    /// Keys, of all segments together.
    pub keys: usize,
    /// Heads of the queries, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub dim: usize,
    /// Of queries, keys, values and result.
    pub dtype: DType,
    /// Tokens of a page; not looked at where `contiguous`.
    pub page_tokens: usize,
    /// Segments; `None`: 19 from 8,192 keys on, else one.
    pub segments: Option<usize>,
    /// A pool of one page with all keys, one segment, no rotation and no bias: what others call contiguous.
    pub contiguous: bool,
    /// Which kernel; on the CPU there is only [`Kernel::Auto`].
    pub kernel: Kernel,
    /// Decides numbers, order of pages, rotations and biases.
    pub seed: u64,
}

impl Default for Shape {
    /// A Wan block over its whole packed context.
    fn default() -> Shape {
        Shape {
            queries: 6_240,
            keys: 27_872,
            heads: WAN_HEADS,
            kv_heads: WAN_HEADS,
            dim: WAN_DIM,
            dtype: DType::BF16,
            page_tokens: PAGE_TOKENS,
            segments: None,
            contiguous: false,
            kernel: Kernel::Auto,
            seed: 0,
        }
    }
}

impl Shape {
    /// Tokens of each segment. Four and more stand in Wan's proportions: 12,480 of 27,872 keys in
    /// the oldest, 6,240 in each of the two newest, and the compressed blocks share what is left.
    ///
    /// # Errors
    ///
    /// No keys, or fewer than segments.
    pub fn segment_tokens(&self) -> Result<Vec<usize>> {
        some(&[("keys", self.keys)])?;
        let default = if self.keys < MANY_KEYS || self.contiguous {
            1
        } else {
            WAN_SEGMENTS
        };
        let segments = self.segments.unwrap_or(default);
        if segments == 0 || segments > self.keys || (self.contiguous && segments > 1) {
            let expected = if self.contiguous {
                "1 where keys are contiguous".into()
            } else {
                format!("1 to {}, as there are keys", self.keys)
            };
            return Err(Error::shape("segments", expected, segments));
        }
        let share = |of: usize| (self.keys as u128 * of as u128 / 27_872) as usize;
        let (oldest, newest) = (share(12_480), share(6_240));
        let left = self.keys - oldest - 2 * newest;
        if segments < 4 || newest == 0 || left < segments - 3 {
            return Ok(even(self.keys, segments));
        }
        let middle = even(left, segments - 3);
        Ok([&[oldest], middle.as_slice(), &[newest; 2]].concat())
    }

    /// Operations that count: two products over every pair of a query and a key.
    pub fn flops(&self) -> f64 {
        [self.queries, self.keys, self.heads, self.dim]
            .iter()
            .fold(4.0, |n, &extent| n * extent as f64)
    }

    /// The case on this device.
    ///
    /// # Errors
    ///
    /// A shape that makes no case; what the op refuses comes with the first call.
    pub fn case(&self, device: &Device) -> Result<Case> {
        let &Shape { dtype, dim, kernel, .. } = self;
        some(&[
            ("queries", self.queries),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("dim", dim),
            ("page_tokens", self.page_tokens),
        ])?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of {} heads", self.heads);
            return Err(Error::shape("kv_heads", expected, self.kv_heads));
        }
        let lengths = self.segment_tokens()?;
        let page_tokens = if self.contiguous { self.keys } else { self.page_tokens };
        let pages: usize = lengths.iter().map(|n| n.div_ceil(page_tokens)).sum();
        let pool = [pages, self.kv_heads, page_tokens, dim];
        let kv_numbers = numbers("keys", &pool)?;

        let mut random = Random::new(self.seed);
        let order = random.order(pages);
        let mut next = 0;
        let segments: Vec<Segment> = lengths
            .iter()
            .map(|&tokens| {
                let first = next;
                next += tokens.div_ceil(page_tokens);
                Segment {
                    // Up to two minutes of blocks away.
                    rotation: if self.contiguous { 0.0 } else { 480.0 * random.uniform() },
                    // As merged tokens have, by how many they stand for.
                    key_bias: if self.contiguous {
                        0.0
                    } else {
                        32f32.ln() * random.uniform()
                    },
                    ..Segment::new(order[first..next].to_vec(), tokens)
                }
            })
            .collect();
        let q_shape = [1, self.queries, self.heads, dim];
        let q = Numbers::new(&mut random, "queries", &q_shape)?;
        let [k, v] = [
            Numbers::new(&mut random, "keys", &pool)?,
            Numbers::new(&mut random, "keys", &pool)?,
        ];
        let bytes = 2 * (q.data.len() + kv_numbers) * dtype.bytes();
        Case::new("attention", device, Work::flops(self.flops()), bytes, || {
            let (q, k, v) = (
                q.tensor(device, dtype)?,
                k.tensor(device, dtype)?,
                v.tensor(device, dtype)?,
            );
            let mut out = Tensor::zeros(device, dtype, &q_shape)?;
            let context = Context::from_host(device, (pages, page_tokens), std::slice::from_ref(&segments))?;
            let rope = Rope3d::wan(dim);
            let call = move |results: Results<'_>| {
                let args = Attention {
                    q: q.view(),
                    kv: KvPages {
                        k: k.view(),
                        v: v.view(),
                        slot_bias: None,
                    },
                    context: &context,
                    rope: &rope,
                    scale: (dim as f32).powf(-0.5),
                };
                attention_by(kernel, &args, &mut out.view_mut(), None)?;
                tell(results, &[("out", out.view())])
            };
            Ok(Box::new(call) as Call)
        })
    }
}

/// Parts that differ by one at most, longer ones first.
fn even(whole: usize, parts: usize) -> Vec<usize> {
    (0..parts)
        .map(|i| whole / parts + usize::from(i < whole % parts))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_wans_context() {
        let tokens = Shape::default().segment_tokens().unwrap();
        let wan: Vec<usize> = [12_480].into_iter().chain([182; 16]).chain([6_240; 2]).collect();
        assert_eq!(tokens, wan);
        assert_eq!(Shape::default().flops(), 4.0 * 6_240.0 * 27_872.0 * 1_536.0);
    }

    #[test]
    fn segments_hold_all_keys_and_none_is_empty() {
        for keys in [1, 2, 5, 19, 20, 153, 1_000, 8_191, 8_192, 100_003] {
            for segments in [None, Some(1), Some(2), Some(4), Some(19), Some(keys)] {
                let shape = Shape {
                    keys,
                    segments,
                    ..Shape::default()
                };
                if segments.is_some_and(|n| n > keys) {
                    assert!(shape.segment_tokens().is_err());
                    continue;
                }
                let tokens = shape.segment_tokens().unwrap();
                assert_eq!(tokens.iter().sum::<usize>(), keys);
                assert!(tokens.iter().all(|&n| n > 0) && segments.is_none_or(|n| n == tokens.len()));
            }
        }
    }
}
