//! Softmax attention, whole or with queries that see some of the keys.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor};

use super::{SoftmaxBack, numbers, softmax, takes};

/// Logits that are there at once, at most; what has more is made in strips of queries. 256 MB.
pub(crate) const LOGITS: usize = 1 << 26;

/// `[batch, tokens, heads, dim]` over keys and values of the same layout; the mask is added to the logits.
pub(crate) fn softmax_attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    attention_in_strips(q, k, v, mask, LOGITS)
}

fn attention_in_strips(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, logits: usize) -> Result<Tensor> {
    let (batch, tokens, heads, _) = q.dims4()?;
    let of_query = batch * heads * k.dim(1)?;
    let strip = (logits / of_query.max(1)).clamp(1, tokens.max(1));
    let [q, k] = [q.to_dtype(DType::F32)?, k.to_dtype(DType::F32)?];
    let (q, k, v) = (by_heads(&scaled(&q)?)?, by_heads(&k)?, by_heads(v)?);
    let part = |first: usize| {
        let count = strip.min(tokens - first);
        let mask = mask.map(|mask| mask.narrow(0, first, count)).transpose()?;
        let weights = weights(&q.narrow(2, first, count)?.contiguous()?, &k, mask.as_ref())?;
        weights.to_dtype(v.dtype())?.matmul(&v)
    };
    let out = match strip >= tokens {
        true => part(0)?,
        false => Tensor::cat(&(0..tokens).step_by(strip).map(part).collect::<Result<Vec<_>>>()?, 2)?,
    };
    out.transpose(1, 2)
}

/// Some queries and the keys that they see.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    pub queries: Range<usize>,
    pub keys: Vec<Range<usize>>,
}

/// As [`softmax_attention`], where each query stands in one sight. Sights come in the queries' order; ranges of keys
/// are the same or apart, and each is seen by somebody.
///
/// Candle's way back from a part is a whole tensor of zeros with the part in it, for every part: on the CPU in f32
/// the way back is a walk of its own.
pub(crate) fn sighted_attention(q: &Tensor, k: &Tensor, v: &Tensor, sights: &[Sight]) -> Result<Tensor> {
    if ![q, k, v].into_iter().all(takes) {
        let each = sights.iter().map(|sight| {
            let (q, k, v) = (part(q, &sight.queries)?, seen(k, sight)?, seen(v, sight)?);
            softmax_attention(&q, &k, &v, None)
        });
        return Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 1);
    }
    let [q, k, v] = [q.contiguous()?, k.contiguous()?, v.contiguous()?];
    let (plain_q, plain_k, plain_v) = (scaled(&q.detach())?, k.detach(), v.detach());
    let mut all = Vec::with_capacity(sights.len());
    let mut outs = Vec::with_capacity(sights.len());
    for sight in sights {
        let (q, k) = (
            by_heads(&part(&plain_q, &sight.queries)?)?,
            by_heads(&seen(&plain_k, sight)?)?,
        );
        let weights = weights(&q, &k, None)?;
        outs.push(weights.matmul(&by_heads(&seen(&plain_v, sight)?)?)?);
        all.push(weights);
    }
    let out = by_tokens(&outs)?;
    let op = Sighted {
        sights: sights.to_vec(),
        weights: all,
        out,
    };
    q.apply_op3(&k, &v, op)
}

fn part(x: &Tensor, tokens: &Range<usize>) -> Result<Tensor> {
    x.narrow(1, tokens.start, tokens.len())
}

fn seen(x: &Tensor, sight: &Sight) -> Result<Tensor> {
    let parts = sight.keys.iter().map(|keys| part(x, keys));
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)
}

/// Queries are fewer than logits.
fn scaled(q: &Tensor) -> Result<Tensor> {
    q * (q.dim(D::Minus1)? as f64).sqrt().recip()
}

fn by_heads(x: &Tensor) -> Result<Tensor> {
    x.transpose(1, 2)?.contiguous()
}

/// One behind the other, and back.
fn by_tokens(parts: &[Tensor]) -> Result<Tensor> {
    Tensor::cat(parts, 2)?.transpose(1, 2)?.contiguous()
}

/// Of scaled queries in f32, `[batch, heads, queries, keys]`: logits of 16 bits would be several times less exact than
/// the kernels' are.
fn weights(q: &Tensor, k: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let logits = q.matmul(&k.t()?)?;
    let logits = match mask {
        Some(mask) => logits.broadcast_add(mask)?,
        None => logits,
    };
    softmax(&logits)
}

/// Attention that was computed, and what its way back needs.
struct Sighted {
    sights: Vec<Sight>,
    weights: Vec<Tensor>,
    out: Tensor,
}

impl CustomOp3 for Sighted {
    fn name(&self) -> &'static str {
        "sighted-attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.out.storage_and_layout();
        match &*storage {
            candle_core::Storage::Cpu(storage) => {
                let out = numbers(storage, layout)?.to_vec();
                Ok((CpuStorage::F32(out), layout.shape().clone()))
            }
            _ => candle_core::bail!("not on the CPU"),
        }
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (q, k, v) = (scaled(&q.detach())?, k.detach(), v.detach());
        let mut of_q = Vec::with_capacity(self.sights.len());
        let (mut of_k, mut of_v) = (Parts::default(), Parts::default());
        for (sight, weights) in self.sights.iter().zip(&self.weights) {
            let gradient = by_heads(&part(gradient, &sight.queries)?)?;
            let (keys, values) = (by_heads(&seen(&k, sight)?)?, by_heads(&seen(&v, sight)?)?);
            let of_weights = gradient.matmul(&values.t()?)?;
            let of_logits = weights.apply_op2_no_bwd(&of_weights, &SoftmaxBack)?;
            of_q.push(of_logits.matmul(&keys)?);
            let queries = by_heads(&part(&q, &sight.queries)?)?;
            of_k.add(sight, &of_logits.t()?.matmul(&queries)?)?;
            of_v.add(sight, &weights.t()?.matmul(&gradient)?)?;
        }
        let of_q = scaled(&by_tokens(&of_q)?)?;
        Ok((Some(of_q), Some(of_k.whole()?), Some(of_v.whole()?)))
    }
}

/// Gradients of ranges of keys, by heads.
#[derive(Default)]
struct Parts(Vec<(Range<usize>, Tensor)>);

impl Parts {
    /// Adds what the keys of a sight get, one behind the other.
    fn add(&mut self, sight: &Sight, all: &Tensor) -> Result<()> {
        let mut from = 0;
        for keys in &sight.keys {
            let more = all.narrow(2, from, keys.len())?;
            match self.0.iter_mut().find(|(there, _)| there == keys) {
                Some((_, sum)) => *sum = (&*sum + more)?,
                None => self.0.push((keys.clone(), more.contiguous()?)),
            }
            from += keys.len();
        }
        Ok(())
    }

    fn whole(mut self) -> Result<Tensor> {
        self.0.sort_by_key(|(keys, _)| keys.start);
        let parts: Vec<Tensor> = self.0.into_iter().map(|(_, part)| part).collect();
        by_tokens(&parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fused::tests::{hold, normal};

    #[test]
    fn strips_are_the_whole() {
        let (q, k, v) = (
            normal(1, &[2, 9, 3, 8]),
            normal(2, &[2, 11, 3, 8]),
            normal(3, &[2, 11, 3, 8]),
        );
        let mask = normal(4, &[9, 11]);
        let [q, k, v, mask] = [&q, &k, &v, &mask].map(|x| x.as_tensor());
        let whole = softmax_attention(q, k, v, Some(mask)).expect("attention");
        // Strips of one, two, and four queries, the last of them shorter.
        for logits in [1, 2 * 2 * 3 * 11, 4 * 2 * 3 * 11] {
            let strips = attention_in_strips(q, k, v, Some(mask), logits).expect("attention");
            let off = (&strips - &whole).and_then(|x| x.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>());
            assert!(off.expect("a number") < 1e-6, "{logits}");
        }
    }

    #[test]
    fn sights_are_attention_over_what_they_see() {
        let (q, k, v) = (
            normal(1, &[2, 9, 2, 8]),
            normal(2, &[2, 11, 2, 8]),
            normal(3, &[2, 11, 2, 8]),
        );
        let sight = |queries, keys: &[Range<usize>]| Sight {
            queries,
            keys: keys.to_vec(),
        };
        let sights = [
            sight(0..3, std::slice::from_ref(&(0..3))),
            sight(3..6, &[0..3, 9..11, 3..6]),
            sight(6..9, &[0..3, 9..11, 6..9]),
        ];
        // The same by a mask over everything.
        let mask = (0..9 * 11).map(|i| {
            let (query, key) = (i / 11, i % 11);
            let own = sights.iter().find(|s| s.queries.contains(&query));
            let sees = own.is_some_and(|s| s.keys.iter().any(|keys| keys.contains(&key)));
            if sees { 0.0 } else { f32::NEG_INFINITY }
        });
        let mask = Tensor::from_iter(mask, q.device())
            .and_then(|m| m.reshape((9, 11)))
            .expect("a mask");
        hold(
            "sights",
            &[q.clone(), k.clone(), v.clone()],
            [&|| sighted_attention(&q, &k, &v, &sights)?.sqr(), &|| {
                softmax_attention(&q, &k, &v, Some(&mask))?.sqr()
            }],
        );
        // In another dtype by candle's own ops.
        let narrow = |t: &Tensor| t.to_dtype(DType::BF16).expect("numbers");
        let (a, b) = (
            sighted_attention(&narrow(&q), &narrow(&k), &narrow(&v), &sights),
            sighted_attention(&q, &k, &v, &sights),
        );
        let off = a.and_then(|a| (a.to_dtype(DType::F32)? - b?)?.abs()?.max_all()?.to_scalar::<f32>());
        assert!(off.expect("a number") < 0.05);
    }

    /// Weights and results of 16 bits are as far from the formula as rounding takes them, logits add nothing.
    #[test]
    fn logits_are_not_rounded_to_16_bits() {
        let inputs = [1, 2, 3].map(|seed| {
            let x = normal(seed, &[1, 200, 2, 64]);
            (x.as_tensor() * 2.0)
                .and_then(|x| x.to_dtype(DType::BF16))
                .expect("numbers")
        });
        let wide = inputs.clone().map(|x| x.to_dtype(DType::F32).expect("numbers"));
        let attend = |[q, k, v]: &[Tensor; 3]| softmax_attention(q, k, v, None).expect("attention");
        let (got, right) = (attend(&inputs).to_dtype(DType::F32).expect("numbers"), attend(&wide));
        let norm = |x: &Tensor| {
            x.sqr()
                .and_then(|x| x.sum_all()?.to_scalar::<f32>())
                .expect("a number")
                .sqrt()
        };
        let off = norm(&(&got - &right).expect("one shape")) / norm(&right);
        assert!(off < 2.5e-3, "{off:e}");
    }

    /// Candle's product on the CPU is wrong where one side is the same for a whole batch (stride 0) and the other a
    /// batch or transposed (candle issue 3744, PR 3758): what is multiplied here is neither, however it comes in.
    #[test]
    fn views_of_any_strides_multiply_as_their_copies_do() {
        let turned = |seed| {
            let x = normal(seed, &[6, 3, 2, 8]);
            x.as_detached_tensor().transpose(0, 1).expect("two dimensions")
        };
        let spread = |seed| {
            let x = normal(seed, &[1, 6, 1, 8]).as_detached_tensor();
            x.broadcast_as((3, 6, 2, 8)).expect("a batch")
        };
        let copy = |x: &Tensor| x.force_contiguous().expect("a copy");
        let same = |name: &str, a: Result<Tensor>, b: Result<Tensor>| {
            let off = a.and_then(|a| (a - b?)?.to_dtype(DType::F32)?.abs()?.max_all()?.to_scalar::<f32>());
            assert_eq!(off.expect(name), 0.0, "{name}");
        };
        let sights = [Sight {
            queries: 0..6,
            keys: vec![0..2, 2..6],
        }];
        for dtype in [DType::F32, DType::BF16] {
            let [q, k, v] = [turned(1), spread(2), spread(3)].map(|x| x.to_dtype(dtype).expect("numbers"));
            // A dtype that is there already keeps the strides.
            if dtype == DType::F32 {
                assert!(!q.is_contiguous() && !k.is_contiguous());
            }
            for [q, k, v] in [[&q, &k, &v], [&k, &q, &v], [&k, &v, &q]] {
                let [a, b, c] = [q, k, v].map(copy);
                same(
                    "attention",
                    softmax_attention(q, k, v, None),
                    softmax_attention(&a, &b, &c, None),
                );
                same(
                    "sights",
                    sighted_attention(q, k, v, &sights),
                    sighted_attention(&a, &b, &c, &sights),
                );
            }
            let weight = spread(4)
                .narrow(0, 0, 1)
                .and_then(|w| w.squeeze(0)?.narrow(1, 0, 1)?.squeeze(1));
            let weight = weight.and_then(|w| w.to_dtype(dtype)).expect("a matrix");
            let bias = Tensor::zeros(6, dtype, q.device()).expect("zeros");
            same(
                "linear",
                crate::fused::linear(&q, &weight, &bias),
                crate::fused::linear(&copy(&q), &copy(&weight), &bias),
            );
        }
    }
}
