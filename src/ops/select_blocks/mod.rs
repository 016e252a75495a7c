//! Choosing the compressed blocks that a block attends to, and laying its context out.

use crate::error::Result;
use crate::paging::{Context, KvPages, PageLists};
use crate::tensor::{View, ViewMut};

/// Arguments of [`sum_keys`].
#[derive(Debug, Clone)]
pub struct SumKeys<'a> {
    /// The pool.
    pub kv: KvPages<'a>,
    /// Pages of each block. One list a block.
    pub pages: &'a PageLists,
    /// Row of `sums` that each block fills, i32. `[blocks]`
    pub rows: View<'a>,
    /// Keys of each block.
    pub tokens: usize,
}

/// `sums[rows[b], h] = sum_j k_j[h]` over the keys of block b, as stored. f32 `[rows, kv_heads, dim]`
pub fn sum_keys(args: &SumKeys<'_>, sums: &mut ViewMut<'_>) -> Result<()> {
    let _ = (args, sums);
    unimplemented!()
}

/// Where the scores of candidates come from.
#[derive(Debug)]
pub enum Scores<'a> {
    /// `score[m] = sum_h (sum_i q_i[h]) . key_sums[m, h]`
    Dot {
        /// Queries, as attention gets them. `[streams, tokens, q_heads, dim]`
        q: View<'a>,
        /// What [`sum_keys`] made, f32. `[slots, kv_heads, dim]`
        key_sums: View<'a>,
        /// Room for partial sums of the queries, f32. `[streams, chunks, q_heads, dim]`
        query_sums: ViewMut<'a>,
        /// Where the scores go, f32. `[streams, max_candidates]`
        scores: ViewMut<'a>,
    },
    /// Scores of the caller's, f32. `[streams, max_candidates]`
    Given(View<'a>),
}

/// What all chosen blocks have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockShape {
    /// Keys.
    pub tokens: usize,
    /// Packed time that it takes up, in frames.
    pub frames: f32,
    /// Added to its logits, natural log.
    pub key_bias: f32,
    /// Whether its slots have biases.
    pub slot_bias: bool,
}

/// Arguments of [`select_blocks`].
#[derive(Debug)]
pub struct SelectBlocks<'a> {
    /// Scores, given or to be made.
    pub scores: Scores<'a>,
    /// Slots of the candidates, in time order, i32. `[streams, max_candidates]`
    pub candidates: View<'a>,
    /// Candidates in use, i32. `[streams]`
    pub counts: View<'a>,
    /// Pages of each slot. One list a slot.
    pub slot_pages: &'a PageLists,
    /// What a chosen block is.
    pub shape: BlockShape,
    /// How many are chosen at most.
    pub selected: usize,
    /// The context without chosen blocks.
    pub draft: &'a Context,
    /// Segments of the draft that stand before the chosen blocks (the sink), i32. `[streams]`
    pub draft_prefix: View<'a>,
}

/// Chooses the best blocks of each stream (ties: the earlier one), puts them in time order between
/// the draft's prefix and the rest, packed to the right, and writes the whole context. `chosen`
/// becomes the candidates' indices, then -1, i32 `[streams, selected]`.
pub fn select_blocks(args: &mut SelectBlocks<'_>, chosen: &mut ViewMut<'_>, context: &mut Context) -> Result<()> {
    let _ = (args, chosen, context);
    unimplemented!()
}
