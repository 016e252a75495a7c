//! Merging the tokens of an old block into few: mean pooling over time, rows and columns.

use crate::error::Result;
use crate::paging::{KvPagesMut, PageLists};
use crate::rope::Rope3d;
use crate::units::Grid;

/// What becomes of rows, columns and frames that do not fill a cell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Remainder {
    /// They are left out, as the paper's shapes have it.
    #[default]
    Drop,
    /// They make smaller cells.
    Keep,
}

/// Cells of mean pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MeanPool {
    /// Tokens of a cell along time, rows, columns.
    pub cell: [usize; 3],
    /// What becomes of tokens that do not fill a cell.
    pub remainder: Remainder,
}

impl MeanPool {
    /// The grid of merged tokens.
    pub fn output(&self, grid: Grid) -> Grid {
        let along = |n: usize, cell: usize| match self.remainder {
            Remainder::Drop => n / cell.max(1),
            Remainder::Keep => n.div_ceil(cell.max(1)),
        };
        let [frames, rows, cols] = grid.extents();
        Grid {
            frames: along(frames, self.cell[0]),
            rows: along(rows, self.cell[1]),
            cols: along(cols, self.cell[2]),
        }
    }
}

/// Arguments of [`merge_tokens`].
#[derive(Debug, Clone)]
pub struct MergeTokens<'a> {
    /// Pages of whole blocks, keys rotated with time 0 at the block's first frame. One list a block.
    pub source: &'a PageLists,
    /// Pages that the merged tokens fill. One list a block; disjoint from `source`.
    pub dest: &'a PageLists,
    /// Tokens of a whole block.
    pub grid: Grid,
    /// The cells.
    pub pool: MeanPool,
    /// How positions turned the keys.
    pub rope: &'a Rope3d,
}

/// Pools keys (turned back, averaged, turned to the centroid of their cell) and values, writes the
/// log of each cell's size to `kv.slot_bias` where there is one, and zeroes the rest of the last
/// page.
pub fn merge_tokens(args: &MergeTokens<'_>, kv: &mut KvPagesMut<'_>) -> Result<()> {
    let _ = (args, kv);
    unimplemented!()
}
