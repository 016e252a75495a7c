//! [`append_kv`] with norm and rotation.

use packforcing::ops::append_kv::{AppendKv, Lattice, Norm, append_kv};
use packforcing::paging::KvPagesMut;
use packforcing::{DType, Device, Grid, Rope3d, Tensor};

use super::{Numbers, PAGE_TOKENS, WAN_BLOCK, WAN_DIM, WAN_HEADS, page_lists, some, tokens};
use crate::case::{Call, Case, Results, Work, tell};
use crate::error::Result;
use crate::random::Random;

/// A shape of `append_kv`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Streams, a block of each.
    pub streams: usize,
    /// Tokens of a block.
    pub grid: Grid,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub dim: usize,
    /// Of everything.
    pub dtype: DType,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Decides numbers and the order of pages.
    pub seed: u64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            streams: 1,
            grid: WAN_BLOCK,
            heads: WAN_HEADS,
            kv_heads: WAN_HEADS,
            dim: WAN_DIM,
            dtype: DType::BF16,
            page_tokens: PAGE_TOKENS,
            seed: 0,
        }
    }
}

impl Shape {
    /// The case on this device. Each value is read once and written once.
    ///
    /// # Errors
    ///
    /// A shape that makes no case; what the op refuses comes with the first call.
    pub fn case(&self, device: &Device) -> Result<Case> {
        let &Shape {
            streams,
            grid,
            heads,
            kv_heads,
            dim,
            dtype,
            page_tokens,
            ..
        } = self;
        let tokens = tokens(grid)?;
        some(&[
            ("streams", streams),
            ("heads", heads),
            ("kv_heads", kv_heads),
            ("dim", dim),
            ("page_tokens", page_tokens),
        ])?;
        let mut random = Random::new(self.seed);
        let q = Numbers::new(&mut random, "heads", &[streams, tokens, heads, dim])?;
        let [k, v] = [
            Numbers::new(&mut random, "kv_heads", &[streams, tokens, kv_heads, dim])?,
            Numbers::new(&mut random, "kv_heads", &[streams, tokens, kv_heads, dim])?,
        ];
        let [q_weight, k_weight] = [
            Numbers::new(&mut random, "heads", &[heads * dim])?,
            Numbers::new(&mut random, "kv_heads", &[kv_heads * dim])?,
        ];
        let list = tokens.div_ceil(page_tokens);
        let pool = [streams * list, kv_heads, page_tokens, dim];
        super::numbers("page_tokens", &pool)?;
        let moved = 2 * (q.data.len() + k.data.len() + v.data.len()) * dtype.bytes();
        Case::new("append_kv", device, Work::bytes(moved), moved, || {
            let make = |numbers: &Numbers| numbers.tensor(device, dtype);
            let (q, k, v) = (make(&q)?, make(&k)?, make(&v)?);
            let (q_weight, k_weight) = (make(&q_weight)?, make(&k_weight)?);
            let zeros = |shape: &[usize]| Tensor::zeros(device, dtype, shape);
            let (mut q_out, mut k_pages, mut v_pages) = (zeros(q.shape())?, zeros(&pool)?, zeros(&pool)?);
            let lists = page_lists(&mut random, device, streams, &[list])?;
            let rope = Rope3d::wan(dim);
            let call = move |results: Results<'_>| {
                let args = AppendKv {
                    q: Some(q.view()),
                    k: k.view(),
                    v: v.view(),
                    norm: Some(Norm {
                        q_weight: q_weight.view(),
                        k_weight: k_weight.view(),
                        eps: 1e-6,
                    }),
                    rope: &rope,
                    lattice: Lattice::whole(grid),
                    origins: None,
                    pages: &lists[0],
                };
                let mut kv = KvPagesMut {
                    k: k_pages.view_mut(),
                    v: v_pages.view_mut(),
                    slot_bias: None,
                };
                append_kv(&args, Some(&mut q_out.view_mut()), &mut kv)?;
                drop(kv);
                let written = [("q_out", q_out.view()), ("k", k_pages.view()), ("v", v_pages.view())];
                tell(results, &written)
            };
            Ok(Box::new(call) as Call)
        })
    }
}
