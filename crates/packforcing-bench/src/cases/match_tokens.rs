//! [`match_tokens`] with one destination a cell and everything else merged, and [`unmerge_tokens`].

use packforcing::ops::match_tokens::{
    MatchTokens, Matching, Merges, Metric, SoftMatch, UnmergeTokens, match_tokens, unmerge_tokens,
};
use packforcing::paging::KvPagesMut;
use packforcing::{DType, Device, Rope3d, Tensor};

use super::{Numbers, merge_tokens, page_lists};
use crate::case::{Call, Case, Results, Work, tell};
use crate::error::Result;
use crate::random::Random;

/// A shape of `match_tokens` and `unmerge_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Shape {
    /// As for `merge_tokens`; a cell's first token is a destination.
    pub blocks: merge_tokens::Shape,
    /// By what tokens are alike.
    pub metric: Metric,
}

impl Shape {
    /// `match_tokens` on this device. Every key is multiplied with every destination's; all keys
    /// and values are read, those of the destinations written.
    ///
    /// # Errors
    ///
    /// A shape that makes no case; what the op refuses comes with the first call.
    pub fn case(&self, device: &Device) -> Result<Case> {
        let merge_tokens::Shape {
            blocks,
            grid,
            cell,
            heads,
            dim,
            dtype,
            page_tokens,
            seed,
        } = self.blocks;
        let (tokens, cells) = self.blocks.counts()?;
        let lengths = [tokens.div_ceil(page_tokens), cells.div_ceil(page_tokens)];
        let pages = blocks.saturating_mul(lengths[0] + lengths[1]);
        let pool = [pages, heads, page_tokens, dim];
        let mut random = Random::new(seed);
        let [k, v] = [
            Numbers::new(&mut random, "blocks", &pool)?,
            Numbers::new(&mut random, "blocks", &pool)?,
        ];
        let work = Work {
            flops: 2.0 * (blocks * tokens) as f64 * (cells * heads * dim) as f64,
            bytes: 2 * blocks * (tokens + cells) * heads * dim * dtype.bytes(),
        };
        let how = SoftMatch {
            metric: self.metric,
            ..SoftMatch::strided(cell)
        };
        let rope = Rope3d::wan(dim);
        Case::new("match_tokens", device, work, work.bytes, || {
            let (mut k, mut v) = (k.tensor(device, dtype)?, v.tensor(device, dtype)?);
            let mut bias = Tensor::zeros(device, DType::F32, &pool[..3])?;
            let lists = page_lists(&mut random, device, blocks, &lengths)?;
            let mut matching = Matching::new(device, how, grid, &rope, (blocks, heads))?;
            let call = move |results: Results<'_>| {
                let args = MatchTokens {
                    source: &lists[0],
                    dest: &lists[1],
                    merges: Merges::Top(usize::MAX),
                    weighted: false,
                };
                let mut kv = KvPagesMut {
                    k: k.view_mut(),
                    v: v.view_mut(),
                    slot_bias: Some(bias.view_mut()),
                };
                match_tokens(&args, &mut matching, &mut kv)?;
                tell(
                    results,
                    &[("similarity", matching.similarity()), ("map", matching.map())],
                )
            };
            Ok(Box::new(call) as Call)
        })
    }

    /// `unmerge_tokens` on this device, along a random map, as keys of noise give one. Merged tokens
    /// and the map are read, all tokens written.
    ///
    /// # Errors
    ///
    /// A shape that makes no case; what the op refuses comes with the first call.
    pub fn unmerge_case(&self, device: &Device) -> Result<Case> {
        let merge_tokens::Shape {
            blocks,
            heads,
            dim,
            dtype,
            seed,
            ..
        } = self.blocks;
        let (tokens, cells) = self.blocks.counts()?;
        let maps = match self.metric {
            Metric::MeanOverHeads => 1,
            Metric::PerHead => heads,
        };
        let out_shape = [blocks, tokens, heads, dim];
        let numbers = super::numbers("blocks", &out_shape)?;
        let entries = super::numbers("blocks", &[blocks, maps, tokens])?;
        let mut random = Random::new(seed);
        let x = Numbers::new(&mut random, "blocks", &[blocks, cells, heads, dim])?;
        let map: Vec<i32> = (0..entries).map(|_| random.index(cells) as i32).collect();
        let moved = (x.data.len() + numbers) * dtype.bytes() + 4 * entries;
        Case::new("unmerge_tokens", device, Work::bytes(moved), moved, || {
            let x = x.tensor(device, dtype)?;
            let map = Tensor::from_slice(device, &map, &[blocks, maps, tokens])?;
            let mut out = Tensor::zeros(device, dtype, &out_shape)?;
            let call = move |results: Results<'_>| {
                let args = UnmergeTokens {
                    x: x.view(),
                    map: map.view(),
                };
                unmerge_tokens(&args, &mut out.view_mut())?;
                tell(results, &[("out", out.view())])
            };
            Ok(Box::new(call) as Call)
        })
    }
}
