//! [`merge_tokens`]: mean pooling of whole blocks.

use packforcing::ops::merge_tokens::{MeanPool, MergeTokens, Remainder, merge_tokens};
use packforcing::paging::KvPagesMut;
use packforcing::{DType, Device, Grid, Rope3d, Tensor};

use super::{Numbers, PAGE_TOKENS, WAN_BLOCK, WAN_CELL, WAN_DIM, WAN_HEADS, page_lists, some, tokens};
use crate::case::{Call, Case, Results, Work, tell};
use crate::error::{Error, Result};
use crate::random::Random;

/// A shape of `merge_tokens`, and of `match_tokens`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Blocks that are merged in one call.
    pub blocks: usize,
    /// Tokens of a block.
    pub grid: Grid,
    /// What a merged token stands for: frames, rows, columns. Tokens of cells that are not full are
    /// left out of a mean.
    pub cell: [usize; 3],
    /// Heads of keys and values.
    pub heads: usize,
    /// Numbers of a head.
    pub dim: usize,
    /// Of keys and values.
    pub dtype: DType,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Decides numbers and the order of pages.
    pub seed: u64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            blocks: 1,
            grid: WAN_BLOCK,
            cell: WAN_CELL,
            heads: WAN_HEADS,
            dim: WAN_DIM,
            dtype: DType::BF16,
            page_tokens: PAGE_TOKENS,
            seed: 0,
        }
    }
}

impl Shape {
    /// Tokens of a block, and how many full cells there are.
    pub(super) fn counts(&self) -> Result<(usize, usize)> {
        let Shape { grid, cell, .. } = self;
        let tokens = tokens(*grid)?;
        some(&[
            ("blocks", self.blocks),
            ("heads", self.heads),
            ("dim", self.dim),
            ("page_tokens", self.page_tokens),
            ("cell", cell[0].min(cell[1]).min(cell[2])),
        ])?;
        let cells = (grid.frames / cell[0]) * (grid.rows / cell[1]) * (grid.cols / cell[2]);
        if cells == 0 {
            let expected = format!("one that fits into {} x {} x {}", grid.frames, grid.rows, grid.cols);
            return Err(Error::shape("cell", expected, format!("{cell:?}")));
        }
        Ok((tokens, cells))
    }

    /// The case on this device. What falls into cells is read, what they become is written.
    ///
    /// # Errors
    ///
    /// A shape that makes no case; what the op refuses comes with the first call.
    pub fn case(&self, device: &Device) -> Result<Case> {
        let &Shape {
            blocks,
            grid,
            cell,
            heads,
            dim,
            dtype,
            page_tokens,
            ..
        } = self;
        let (tokens, cells) = self.counts()?;
        let lengths = [tokens.div_ceil(page_tokens), cells.div_ceil(page_tokens)];
        let pages = blocks.saturating_mul(lengths[0] + lengths[1]);
        let pool = [pages, heads, page_tokens, dim];
        let mut random = Random::new(self.seed);
        let [k, v] = [
            Numbers::new(&mut random, "blocks", &pool)?,
            Numbers::new(&mut random, "blocks", &pool)?,
        ];
        let read = cells * cell.iter().product::<usize>();
        let moved = 2 * blocks * (read + cells) * heads * dim * dtype.bytes();
        Case::new("merge_tokens", device, Work::bytes(moved), moved, || {
            let (mut k, mut v) = (k.tensor(device, dtype)?, v.tensor(device, dtype)?);
            let mut bias = Tensor::zeros(device, DType::F32, &pool[..3])?;
            let lists = page_lists(&mut random, device, blocks, &lengths)?;
            let rope = Rope3d::wan(dim);
            let call = move |results: Results<'_>| {
                let args = MergeTokens {
                    source: &lists[0],
                    dest: &lists[1],
                    grid,
                    pool: MeanPool {
                        cell,
                        remainder: Remainder::Drop,
                    },
                    rope: &rope,
                };
                let mut kv = KvPagesMut {
                    k: k.view_mut(),
                    v: v.view_mut(),
                    slot_bias: Some(bias.view_mut()),
                };
                merge_tokens(&args, &mut kv)?;
                drop(kv);
                tell(results, &[("k", k.view()), ("v", v.view()), ("slot_bias", bias.view())])
            };
            Ok(Box::new(call) as Call)
        })
    }
}
