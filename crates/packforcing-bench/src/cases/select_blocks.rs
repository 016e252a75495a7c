//! [`select_blocks`] by scores that it makes, and [`sum_keys`] of a compressed block.

use packforcing::ops::select_blocks::{
    BlockShape, Scores, SelectBlocks, SumKeys, query_chunks, select_blocks, sum_keys,
};
use packforcing::paging::{Context, KvPages, PageLists, Segment};
use packforcing::{DType, Device, Tensor};

use super::{Numbers, PAGE_TOKENS, WAN_BLOCK, WAN_DIM, WAN_HEADS, page_lists, some};
use crate::case::{Call, Case, Results, Work, tell};
use crate::error::{Error, Result};
use crate::random::Random;

/// Of lists that name as many.
const MOST_PAGES: usize = 1 << 24;

/// A shape of `select_blocks`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Queries, and tokens of a whole block.
    pub queries: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub dim: usize,
    /// Of the queries.
    pub dtype: DType,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Compressed blocks to choose from.
    pub candidates: usize,
    /// How many are chosen.
    pub selected: usize,
    /// Tokens of a compressed block.
    pub mid_tokens: usize,
    /// Decides numbers and the order of pages.
    pub seed: u64,
}

impl Default for Shape {
    /// Two minutes of Wan blocks, of which 116 are compressed.
    fn default() -> Shape {
        Shape {
            queries: WAN_BLOCK.tokens().0,
            heads: WAN_HEADS,
            kv_heads: WAN_HEADS,
            dim: WAN_DIM,
            dtype: DType::BF16,
            page_tokens: PAGE_TOKENS,
            candidates: 116,
            selected: 16,
            mid_tokens: 182,
            seed: 0,
        }
    }
}

impl Shape {
    /// The case on this device. Queries and key sums are read; what is written is small.
    ///
    /// # Errors
    ///
    /// A shape that makes no case; what the op refuses comes with the first call.
    pub fn case(&self, device: &Device) -> Result<Case> {
        let &Shape {
            queries,
            heads,
            kv_heads,
            dim,
            dtype,
            page_tokens,
            candidates,
            selected,
            mid_tokens,
            ..
        } = self;
        some(&[
            ("queries", queries),
            ("heads", heads),
            ("kv_heads", kv_heads),
            ("dim", dim),
            ("page_tokens", page_tokens),
            ("candidates", candidates),
            ("selected", selected),
            ("mid_tokens", mid_tokens),
        ])?;
        let (whole, mid) = (queries.div_ceil(page_tokens), mid_tokens.div_ceil(page_tokens));
        // Sink, recent and current blocks whole, and every candidate.
        let fixed = 4 * whole;
        let pages = candidates.checked_mul(mid).and_then(|n| n.checked_add(fixed));
        let pages = pages.filter(|&n| n <= MOST_PAGES);
        let expected = || format!("a pool of at most {MOST_PAGES} pages");
        let pages = pages.ok_or_else(|| Error::shape("candidates", expected(), candidates))?;
        let room = selected.min(candidates);
        let mut random = Random::new(self.seed);
        let order = random.order(pages);
        let run = |first: usize, blocks: usize, rotation: f32| Segment {
            rotation,
            ..Segment::new(
                order[first * whole..(first + blocks) * whole].to_vec(),
                blocks * whole * page_tokens,
            )
        };
        let draft = vec![run(0, 2, 12.0), run(2, 1, 4.0), run(3, 1, 0.0)];
        let slots: Vec<Vec<u32>> = order[fixed..].chunks(mid).map(<[u32]>::to_vec).collect();
        let in_order: Vec<i32> = (0..candidates as i32).collect();
        let chunks = query_chunks(queries);
        let q = Numbers::new(&mut random, "queries", &[1, queries, heads, dim])?;
        let key_sums = Numbers::new(&mut random, "candidates", &[candidates, kv_heads, dim])?;
        let read = q.data.len() * dtype.bytes() + key_sums.data.len() * 4;
        let pool = (pages, page_tokens);
        Case::new("select_blocks", device, Work::bytes(read), read, || {
            let (q, key_sums) = (q.tensor(device, dtype)?, key_sums.tensor(device, DType::F32)?);
            let mut query_sums = Tensor::zeros(device, DType::F32, &[1, chunks, heads, dim])?;
            let mut scores = Tensor::zeros(device, DType::F32, &[1, candidates])?;
            let in_order = Tensor::from_slice(device, &in_order, &[1, candidates])?;
            let counts = Tensor::from_slice(device, &[candidates as i32], &[1])?;
            let prefix = Tensor::from_slice(device, &[1i32], &[1])?;
            let slot_pages = PageLists::from_host(device, pages, &slots)?;
            let draft = Context::from_host(device, pool, std::slice::from_ref(&draft))?;
            let mut chosen = Tensor::zeros(device, DType::I32, &[1, room])?;
            let mut context = Context::new(device, pool, 1, fixed + mid * room, 3 + room)?;
            let call = move |results: Results<'_>| {
                let mut args = SelectBlocks {
                    scores: Scores::Dot {
                        q: q.view(),
                        key_sums: key_sums.view(),
                        query_sums: query_sums.view_mut(),
                        scores: scores.view_mut(),
                    },
                    candidates: in_order.view(),
                    counts: counts.view(),
                    slot_pages: &slot_pages,
                    shape: BlockShape {
                        tokens: mid_tokens,
                        frames: 4.0,
                        key_bias: 0.0,
                        slot_bias: false,
                    },
                    selected: room,
                    draft: &draft,
                    draft_prefix: prefix.view(),
                };
                select_blocks(&mut args, &mut chosen.view_mut(), &mut context)?;
                drop(args);
                tell(results, &[("scores", scores.view()), ("chosen", chosen.view())])
            };
            Ok(Box::new(call) as Call)
        })
    }
}

/// A shape of `sum_keys`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SumShape {
    /// Blocks in one call.
    pub blocks: usize,
    /// Tokens of a compressed block.
    pub mid_tokens: usize,
    /// Heads of keys.
    pub heads: usize,
    /// Numbers of a head.
    pub dim: usize,
    /// Of the keys.
    pub dtype: DType,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Decides numbers and the order of pages.
    pub seed: u64,
}

impl Default for SumShape {
    fn default() -> SumShape {
        SumShape {
            blocks: 1,
            mid_tokens: 182,
            heads: WAN_HEADS,
            dim: WAN_DIM,
            dtype: DType::BF16,
            page_tokens: PAGE_TOKENS,
            seed: 0,
        }
    }
}

impl SumShape {
    /// The case on this device. Keys are read once, sums written.
    ///
    /// # Errors
    ///
    /// A shape that makes no case; what the op refuses comes with the first call.
    pub fn case(&self, device: &Device) -> Result<Case> {
        let &SumShape {
            blocks,
            mid_tokens,
            heads,
            dim,
            dtype,
            page_tokens,
            ..
        } = self;
        some(&[
            ("blocks", blocks),
            ("mid_tokens", mid_tokens),
            ("heads", heads),
            ("dim", dim),
            ("page_tokens", page_tokens),
        ])?;
        let list = mid_tokens.div_ceil(page_tokens);
        let pool = [blocks.saturating_mul(list), heads, page_tokens, dim];
        let mut random = Random::new(self.seed);
        let k = Numbers::new(&mut random, "blocks", &pool)?;
        let rows: Vec<i32> = (0..blocks as i32).collect();
        let sums_shape = [blocks, heads, dim];
        let moved = blocks * heads * dim * (mid_tokens * dtype.bytes() + 4);
        Case::new("sum_keys", device, Work::bytes(moved), moved, || {
            let k = k.tensor(device, dtype)?;
            let lists = page_lists(&mut random, device, blocks, &[list])?;
            let rows = Tensor::from_slice(device, &rows, &[blocks])?;
            let mut sums = Tensor::zeros(device, DType::F32, &sums_shape)?;
            let call = move |results: Results<'_>| {
                let args = SumKeys {
                    kv: KvPages {
                        k: k.view(),
                        v: k.view(),
                        slot_bias: None,
                    },
                    pages: &lists[0],
                    rows: rows.view(),
                    tokens: mid_tokens,
                };
                sum_keys(&args, &mut sums.view_mut())?;
                tell(results, &[("sums", sums.view())])
            };
            Ok(Box::new(call) as Call)
        })
    }
}
