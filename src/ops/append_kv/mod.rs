//! RMSNorm, rotation and the write into pages, in one pass.

use crate::error::Result;
use crate::paging::{KvPagesMut, PageLists};
use crate::rope::Rope3d;
use crate::tensor::{View, ViewMut};
use crate::units::Grid;

/// Where tokens stand: token (t, r, c) of the grid at `start + step * (t, r, c)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lattice {
    /// Tokens along time, rows, columns.
    pub grid: Grid,
    /// Position of token (0, 0, 0): time, row, column.
    pub start: [f64; 3],
    /// Distance of neighbours along time, rows, columns.
    pub step: [f64; 3],
}

impl Lattice {
    /// Every token at its own index.
    pub fn whole(grid: Grid) -> Lattice {
        Lattice {
            grid,
            start: [0.0; 3],
            step: [1.0; 3],
        }
    }
}

/// RMSNorm over all heads of a token: weights in the tokens' dtype, `[heads * dim]`.
#[derive(Debug, Clone)]
pub struct Norm<'a> {
    /// Of the queries. `[q_heads * dim]`
    pub q_weight: View<'a>,
    /// Of the keys. `[kv_heads * dim]`
    pub k_weight: View<'a>,
    /// Added to the mean square.
    pub eps: f32,
}

/// Arguments of [`append_kv`].
#[derive(Debug, Clone)]
pub struct AppendKv<'a> {
    /// Queries, neither normed nor rotated; `None` where only keys and values are written.
    /// `[streams, tokens, q_heads, dim]`
    pub q: Option<View<'a>>,
    /// Keys, neither normed nor rotated. `[streams, tokens, kv_heads, dim]`
    pub k: View<'a>,
    /// Values. `[streams, tokens, kv_heads, dim]`
    pub v: View<'a>,
    /// The norm of queries and keys, where the model has one.
    pub norm: Option<Norm<'a>>,
    /// How positions turn queries and keys.
    pub rope: &'a Rope3d,
    /// Where the tokens stand.
    pub lattice: Lattice,
    /// Added to every time of a stream, in frames, f32. `[streams]`
    pub origins: Option<View<'a>>,
    /// The pages that each stream's tokens fill, in order.
    pub pages: &'a PageLists,
}

/// Norms and rotates queries and keys, writes keys and values into their pages and zeroes the rest
/// of the last page.
pub fn append_kv(args: &AppendKv<'_>, q_out: Option<&mut ViewMut<'_>>, kv: &mut KvPagesMut<'_>) -> Result<()> {
    let _ = (args, q_out, kv);
    unimplemented!()
}
