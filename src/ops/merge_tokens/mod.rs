//! Merging the tokens of an old block into few: mean pooling over time, rows and columns.

mod cpu;
mod gpu;
pub mod reference;

use crate::device::DeviceKind;
use crate::dtype::{DType, with_float};
use crate::error::Result;
use crate::ops::check::{Check, ensure};
use crate::paging::{KvPagesMut, PageLists, PageShape};
use crate::rope::Rope3d;
use crate::units::Grid;

const OP: &str = "merge_tokens";

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
    ///
    /// ```
    /// use packforcing::Grid;
    /// use packforcing::ops::merge_tokens::{MeanPool, Remainder};
    /// let pool = MeanPool { cell: [2, 4, 4], remainder: Remainder::Drop };
    /// let merged = pool.output(Grid { frames: 4, rows: 30, cols: 52 });
    /// assert_eq!(merged.extents(), [2, 7, 13]);
    /// ```
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

    /// Whether merged tokens of a grid stand for different numbers of tokens.
    pub fn uneven(&self, grid: Grid) -> bool {
        let rest = |(n, cell): (usize, usize)| n.checked_rem(cell).unwrap_or(0) > 0;
        self.remainder == Remainder::Keep && grid.extents().into_iter().zip(self.cell).any(rest)
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

/// Extents that the checks found.
struct Shape {
    batch: usize,
    heads: usize,
    dim: usize,
    page_tokens: usize,
    /// Tokens of a source block along time, rows, columns.
    grid: [usize; 3],
    /// The same, of the merged tokens.
    out: [usize; 3],
    /// Pages of each dest list that are written.
    used_pages: usize,
}

impl Shape {
    fn merged(&self) -> usize {
        self.out.iter().product()
    }
}

/// Pools whole blocks of keys and values into few tokens, from pages to other pages of one pool.
///
/// Token (t, r, c) of a block lies at slot `i % page_tokens` of page `source[block][i / page_tokens]`
/// with `i = (t * rows + r) * cols + c`, its key rotated at (t, r, c). A merged token stands for the
/// tokens of one cell, and lies in `dest` in the same order over the grid [`MeanPool::output`]:
///
/// - its value is the mean of the cell's values;
/// - its key is the mean of the cell's keys, each turned back at its own position, turned to the
///   centroid, the (fractional) mean of the cell's positions. Averaging keys as they are rotated would
///   shrink them;
/// - where `kv.slot_bias` is there, `ln n` for a cell of n tokens, for every head: proportional
///   attention adds it to the logits.
///
/// Slots past the merged tokens in the last page that is touched become 0 in keys, values and bias.
/// Means are taken in f32 in a fixed order. Dtypes: f32, f16, bf16.
///
/// `dest` pages must be disjoint from `source` pages, and none may stand twice in `dest`; a source
/// page may be shared. Host devices check it; a GPU cannot, and the merged tokens are then undefined.
///
/// ```
/// use packforcing::ops::merge_tokens::{MeanPool, MergeTokens, Remainder, merge_tokens};
/// use packforcing::paging::{KvPagesMut, PageLists};
/// use packforcing::{DType, Device, Grid, Rope3d, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let cpu = Device::cpu();
/// // Two frames of one token with one head of 8, in page 0; they become one token in page 1.
/// let mut k = Tensor::zeros(&cpu, DType::F32, &[2, 1, 2, 8])?;
/// let values = [[1.0f32; 8], [3.0; 8], [0.0; 8], [0.0; 8]].concat();
/// let mut v = Tensor::from_slice(&cpu, &values, &[2, 1, 2, 8])?;
/// merge_tokens(
///     &MergeTokens {
///         source: &PageLists::from_host(&cpu, 2, &[vec![0]])?,
///         dest: &PageLists::from_host(&cpu, 2, &[vec![1]])?,
///         grid: Grid { frames: 2, rows: 1, cols: 1 },
///         pool: MeanPool { cell: [2, 1, 1], remainder: Remainder::Drop },
///         rope: &Rope3d::wan(8),
///     },
///     &mut KvPagesMut { k: k.view_mut(), v: v.view_mut(), slot_bias: None },
/// )?;
/// assert_eq!(v.view().select(0, 1)?.to_vec::<f32>()?, [[2.0; 8], [0.0; 8]].concat());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Pages that do not agree; a rope of another head dim; a cell with an extent of 0; a grid that makes no
/// cell; lists of another number of blocks, too short or of a larger pool; on host devices a dest page
/// that is a source page or another dest page. Where kernels run: heads and rows that are not on 16-byte
/// boundaries, cell extents above `8192 / dim` (64 for 128), more than 65,535 blocks. Nothing has been
/// written then. Later: whatever the device reports.
pub fn merge_tokens(args: &MergeTokens<'_>, kv: &mut KvPagesMut<'_>) -> Result<()> {
    let device = kv.k.device();
    Check { op: OP, device }.some("source", args.source.streams() > 0)?;
    run(args, kv)
}

/// [`merge_tokens`], where no block is none too few.
pub(crate) fn run(args: &MergeTokens<'_>, kv: &mut KvPagesMut<'_>) -> Result<()> {
    let shape = checked(args, kv)?;
    if shape.batch == 0 {
        return Ok(());
    }
    match kv.k.device().kind() {
        DeviceKind::Cpu => {
            with_float!(kv.k.dtype(), T => cpu::run::<T>(args, &shape, kv), else unreachable!("checked"));
            Ok(())
        }
        DeviceKind::Simt | DeviceKind::Cuda | DeviceKind::CudaDouble => gpu::run(args, &shape, kv),
    }
}

fn checked(args: &MergeTokens<'_>, kv: &KvPagesMut<'_>) -> Result<Shape> {
    let check = Check {
        op: OP,
        device: kv.k.device(),
    };
    check.dtype(
        "kv.k",
        kv.k.dtype(),
        &[DType::F32, DType::F16, DType::BF16],
        "f32, f16, bf16",
    )?;
    let paged = PageShape::of(OP, &kv.view())?;
    ensure!(
        check,
        args.rope.dim() == paged.dim,
        "rope",
        format!("a rotation of head dim {}", paged.dim),
        format!("one of {}", args.rope.dim())
    );
    let cell = args.pool.cell;
    ensure!(
        check,
        !cell.contains(&0),
        "pool.cell",
        "extents of at least 1",
        format!("{cell:?}")
    );
    let grid = args.grid.extents();
    let tokens = grid
        .iter()
        .try_fold(1usize, |n, &extent| n.checked_mul(extent))
        .filter(|&n| {
            n <= (i32::MAX as usize).saturating_sub(paged.page_tokens) && grid.iter().all(|&n| n <= i32::MAX as usize)
        });
    let Some(tokens) = tokens else {
        return check.fail("grid", "fewer than 2^31 tokens", format!("{grid:?}"));
    };
    let out = args.pool.output(args.grid).extents();
    let merged: usize = out.iter().product();
    ensure!(
        check,
        merged > 0,
        "grid",
        format!("at least one cell of {cell:?}, remainder {:?}", args.pool.remainder),
        format!("{grid:?}")
    );

    let batch = args.source.streams();
    let source_pages = tokens.div_ceil(paged.page_tokens);
    let used_pages = merged.div_ceil(paged.page_tokens);
    check.page_lists("source", args.source, paged.pages, (batch, source_pages))?;
    check.page_lists("dest", args.dest, paged.pages, (batch, used_pages))?;
    ensure!(
        check,
        args.dest.streams() == batch,
        "dest",
        format!("{batch} lists, as source has"),
        args.dest.streams().to_string()
    );

    let shape = Shape {
        batch,
        heads: paged.heads,
        dim: paged.dim,
        page_tokens: paged.page_tokens,
        grid,
        out,
        used_pages,
    };
    if check.device.kind() != DeviceKind::Cpu {
        gpu::checked(&check, args, &shape, kv)?;
    }
    if check.device.is_host() {
        let mut taken = vec![false; paged.pages];
        for list in args.source.view().host::<i32>().chunks_exact(args.source.length()) {
            list[..source_pages]
                .iter()
                .for_each(|&page| taken[page as usize] = true);
        }
        check.distinct_pages("dest", args.dest, (batch, used_pages), &mut taken)?;
    }
    Ok(shape)
}
