//! The packed cache, attended to with candle tensors.

use candle_core::{DType, Tensor};
use packforcing::cache::{Pass, Qkv};
use packforcing::ops::append_kv;

use crate::error::Result;
use crate::views::with_views;

/// RMSNorm of queries and keys over all heads of a token, fused into [`attend_with`]: weights in the
/// tokens' dtype, of `heads * dim` elements.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// Of the queries. `[q_heads * dim]`
    pub q_weight: &'a Tensor,
    /// Of the keys. `[kv_heads * dim]`
    pub k_weight: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

/// Attention of one layer over the packed history and the block itself: [`Pass::attend`] with candle
/// tensors. Queries and keys come normed, not rotated, `[streams, tokens, heads, dim]`; the output,
/// new memory of candle's, has the shape and dtype of `q`.
///
/// # Errors
///
/// As [`Pass::attend`], and tensors that [`with_views`] does not take.
pub fn attend(pass: &mut Pass<'_, '_>, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let device = pass.device().clone();
    let out = Tensor::zeros(q.shape(), q.dtype(), q.device())?;
    with_views(
        &device,
        "attend",
        [("q", q), ("k", k), ("v", v)],
        [("out", &out)],
        |[q, k, v], [mut out]| pass.attend(layer, q, k, v, &mut out),
    )?;
    Ok(out)
}

/// As [`attend`], with the norm of queries and keys fused in, and the natural-log LSE beside the
/// output, f32 `[streams, tokens, q_heads]`.
///
/// # Errors
///
/// As [`Pass::attend_with`], and tensors that [`with_views`] does not take.
pub fn attend_with(
    pass: &mut Pass<'_, '_>,
    layer: usize,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    norm: Option<Norm<'_>>,
) -> Result<(Tensor, Tensor)> {
    let device = pass.device().clone();
    let (out, lse) = outputs(q)?;
    // Without a norm two views more are opened, and not used.
    let (q_weight, k_weight) = norm.map_or((q, k), |n| (n.q_weight, n.k_weight));
    with_views(
        &device,
        "attend_with",
        [
            ("q", q),
            ("k", k),
            ("v", v),
            ("norm.q_weight", q_weight),
            ("norm.k_weight", k_weight),
        ],
        [("out", &out), ("lse", &lse)],
        |[q, k, v, q_weight, k_weight], [mut out, mut lse]| {
            let norm = norm.map(|n| append_kv::Norm {
                q_weight,
                k_weight,
                eps: n.eps,
            });
            pass.attend_with(layer, &Qkv { q, k, v, norm }, &mut out, Some(&mut lse))
        },
    )?;
    Ok((out, lse))
}

/// Hands in one layer's compressed tokens, where the model makes them: [`Pass::hand_in`] with candle
/// tensors, keys normed, not rotated, `[streams, mid_tokens, kv_heads, dim]`.
///
/// # Errors
///
/// As [`Pass::hand_in`], and tensors that [`with_views`] does not take.
pub fn hand_in(pass: &mut Pass<'_, '_>, layer: usize, k: &Tensor, v: &Tensor) -> Result<()> {
    let device = pass.device().clone();
    with_views(&device, "hand_in", [("k", k), ("v", v)], [], |[k, v], []| {
        pass.hand_in(layer, k, v)
    })
}

/// New memory for attention of `q` and its LSE.
pub(crate) fn outputs(q: &Tensor) -> Result<(Tensor, Tensor)> {
    let rows = &q.dims()[..q.rank().saturating_sub(1)];
    Ok((
        Tensor::zeros(q.shape(), q.dtype(), q.device())?,
        Tensor::zeros(rows, DType::F32, q.device())?,
    ))
}
