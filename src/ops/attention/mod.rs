//! Attention of a batch of streams over packed pages.

use crate::error::Result;
use crate::paging::{Context, KvPages};
use crate::rope::Rope3d;
use crate::tensor::{View, ViewMut};

/// Arguments of [`attention`].
#[derive(Debug, Clone)]
pub struct Attention<'a> {
    /// Queries, rotated at their place in their block. `[streams, tokens, q_heads, dim]`
    pub q: View<'a>,
    /// Keys and values of the pool; `q_heads` is a multiple of their heads.
    pub kv: KvPages<'a>,
    /// What each stream attends to.
    pub context: &'a Context,
    /// How a segment's rotation turns the temporal pairs of the query.
    pub rope: &'a Rope3d,
    /// Of the logits, before any bias; usually `1 / sqrt(dim)`.
    pub scale: f32,
}

/// `out[s, i, h] = sum_j softmax_j(scale (R(segment(j)) q[s, i, h]) . k_j + bias_j) v_j`
pub fn attention(args: &Attention<'_>, out: &mut ViewMut<'_>, lse: Option<&mut ViewMut<'_>>) -> Result<()> {
    let _ = (args, out, lse);
    unimplemented!()
}
