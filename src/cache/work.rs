//! The device memory that a block works in: tables that the host uploads when a block begins, and
//! what selection writes on the device. Reserved once, for the largest batch.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::match_tokens::Matching;
use crate::paging::{Context, PageLists};
use crate::tensor::Tensor;

use super::config::{Compression, PackConfig, Selection};

/// Chunks that a stream's queries are summed in.
const QUERY_CHUNKS: usize = 16;

pub(crate) struct Work {
    /// The context without chosen blocks, one for all layers.
    pub draft: Context,
    /// The whole context, for each layer that chooses.
    pub contexts: Vec<Context>,
    /// Pages of the current blocks.
    pub current: PageLists,
    /// Pages of their compressed forms.
    pub mid: PageLists,
    /// Slot rows of their compressed forms. i32 [streams]
    pub rows: Tensor,
    /// Time of the current blocks' first frame. f32 [streams]
    pub origins: Tensor,
    /// Slot rows to choose from, in time order. i32 [streams, archive]
    pub candidates: Tensor,
    /// How many there are. i32 [streams]
    pub counts: Tensor,
    /// Segments of the draft before the chosen blocks. i32 [streams]
    pub prefix: Tensor,
    /// Scores, made or given. f32 [choices, streams, archive]
    pub scores: Tensor,
    /// What was chosen. i32 [choices, streams, selected]
    pub chosen: Tensor,
    /// Partial sums of the queries. f32 [streams, chunks, q_heads, dim]
    pub query_sums: Tensor,
    /// Rotated queries. [streams, tokens, q_heads, dim]
    pub queries: Tensor,
    /// Where blocks are matched.
    pub matching: Option<Matching>,
}

/// How many choices of blocks a pass makes.
pub(crate) fn choices(config: &PackConfig) -> usize {
    match config.selection {
        Selection::PerLayer => config.layers,
        Selection::Shared => 1,
    }
}

/// The tensors of [`Work`], in the order of its fields.
pub(crate) fn shapes(c: &PackConfig) -> [(DType, Vec<usize>); 9] {
    let (streams, archive, heads) = (c.streams, c.archive.0, c.heads);
    [
        (DType::I32, vec![streams]),
        (DType::F32, vec![streams]),
        (DType::I32, vec![streams, archive]),
        (DType::I32, vec![streams]),
        (DType::I32, vec![streams]),
        (DType::F32, vec![choices(c), streams, archive]),
        (DType::I32, vec![choices(c), streams, c.selected.0]),
        (DType::F32, vec![streams, QUERY_CHUNKS, heads.query, heads.dim]),
        (c.dtype, vec![streams, c.block_tokens().0, heads.query, heads.dim]),
    ]
}

impl Work {
    pub fn new(device: &Device, c: &PackConfig) -> Result<Work> {
        let pool = (c.pool_pages().0, c.page_tokens);
        let context = |(segments, pages)| Context::new(device, pool, c.streams, pages, segments);
        let lists = |length| PageLists::new(device, pool.0, c.streams, length);
        let shapes = shapes(c);
        let tensor = |i: usize| Tensor::zeros(device, shapes[i].0, &shapes[i].1);
        Ok(Work {
            draft: context(c.draft_capacity())?,
            contexts: (0..choices(c))
                .map(|_| context(c.context_capacity()))
                .collect::<Result<_>>()?,
            current: lists(c.block_pages().0)?,
            mid: lists(c.mid_pages().0)?,
            rows: tensor(0)?,
            origins: tensor(1)?,
            candidates: tensor(2)?,
            counts: tensor(3)?,
            prefix: tensor(4)?,
            scores: tensor(5)?,
            chosen: tensor(6)?,
            query_sums: tensor(7)?,
            queries: tensor(8)?,
            matching: match c.compression {
                Compression::Match { how, .. } => {
                    Some(Matching::new(device, how, c.block, &c.rope, (c.streams, c.heads.kv))?)
                }
                _ => None,
            },
        })
    }

    /// Bytes of device memory that it has reserved.
    pub fn bytes(&self) -> usize {
        let tensors = [
            &self.rows,
            &self.origins,
            &self.candidates,
            &self.counts,
            &self.prefix,
            &self.scores,
            &self.chosen,
            &self.query_sums,
            &self.queries,
        ];
        let contexts = self.contexts.iter().chain([&self.draft]).map(Context::bytes);
        let lists = [&self.current, &self.mid].map(PageLists::bytes);
        let matching = self.matching.as_ref().map(Matching::bytes);
        contexts
            .chain(lists)
            .chain(tensors.map(Tensor::bytes))
            .chain(matching)
            .sum()
    }
}
