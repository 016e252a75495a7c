//! RMSNorm, rotation and the write into pages, in one pass.

mod cpu;
mod gpu;
pub mod reference;

use crate::device::DeviceKind;
use crate::dtype::{DType, with_float};
use crate::error::Result;
use crate::ops::check::{Check, ensure};
use crate::paging::{KvPagesMut, PageLists, PageShape};
use crate::rope::Rope3d;
use crate::tensor::{View, ViewMut};
use crate::units::Grid;

const OP: &str = "append_kv";

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

/// RMSNorm over all heads of a token, `x / sqrt(mean(x^2) + eps) * weight`: the mean runs over
/// `heads * dim` values, as Wan has it. Weights are in the tokens' dtype.
#[derive(Debug, Clone)]
pub struct Norm<'a> {
    /// Of the queries; not looked at where there are none. `[q_heads * dim]`
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
    /// The pages that each stream's tokens fill, in order; lists past `streams` are not looked at.
    pub pages: &'a PageLists,
}

/// Extents that the checks found.
struct Shape {
    streams: usize,
    tokens: usize,
    q_heads: usize,
    kv_heads: usize,
    dim: usize,
    page_tokens: usize,
    /// Pages that a stream's tokens touch.
    used_pages: usize,
}

/// Norms and rotates queries and keys, writes queries to `q_out` and keys and values into their
/// pages, and zeroes what is left of the last page.
///
/// Token i of a stream goes to slot `i % page_tokens` of the page `pages[stream][i / page_tokens]`,
/// for every head. Slots past the tokens in the last page that is touched become 0 in keys and values;
/// pages beyond it, and `kv.slot_bias`, are left alone. Values are copied.
///
/// Dtypes: f32, f16, bf16, one for all but the origins. Norm and rotation are computed in f32 from
/// angles in f64, and the result is rounded to the dtype **once**: a model that rounds between the
/// norm and the rotation differs by that rounding.
///
/// The op writes pages in place: no page may stand twice in the lists, in one stream or in two. Host
/// devices check it; a GPU cannot, and leaves one of the writes in each slot.
///
/// ```
/// use packforcing::ops::append_kv::{AppendKv, Lattice, append_kv};
/// use packforcing::paging::{KvPagesMut, PageLists};
/// use packforcing::{DType, Device, Grid, Rope3d, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let cpu = Device::cpu();
/// // One stream of 1 x 1 x 3 tokens, one head of 8, into pages of two tokens.
/// let x = Tensor::from_f32(&cpu, DType::F32, &[1.0; 3 * 8], &[1, 3, 1, 8])?;
/// let mut k = Tensor::zeros(&cpu, DType::F32, &[4, 1, 2, 8])?;
/// let mut v = Tensor::zeros(&cpu, DType::F32, &[4, 1, 2, 8])?;
/// let pages = PageLists::from_host(&cpu, 4, &[vec![3, 0]])?;
/// append_kv(
///     &AppendKv {
///         q: None,
///         k: x.view(),
///         v: x.view(),
///         norm: None,
///         rope: &Rope3d::wan(8),
///         lattice: Lattice::whole(Grid { frames: 1, rows: 1, cols: 3 }),
///         origins: None,
///         pages: &pages,
///     },
///     None,
///     &mut KvPagesMut { k: k.view_mut(), v: v.view_mut(), slot_bias: None },
/// )?;
/// // The third token opens the second page of the list, page 0; the slot after it is zero.
/// assert_eq!(v.view().select(0, 0)?.to_vec::<f32>()?, [[1.0; 8], [0.0; 8]].concat());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// No token; shapes, dtypes or devices that do not agree; `q_out` without `q` or the reverse; a rope of another
/// head dim; a lattice of another number of tokens or with positions that are not finite; an eps that
/// is negative or not finite; page lists that are too few, too short or of a larger pool; on host
/// devices a page that is listed twice. Where kernels run: a head dim above 128, heads and rows that
/// are not on 16-byte boundaries, more than `4 * (512 / n)` heads, n being the 16-byte vectors of a head (128 heads of
/// 128 in bf16, 64 in f32), more than 65,535 streams. Nothing has been written then. Later: whatever
/// the device reports.
pub fn append_kv(args: &AppendKv<'_>, q_out: Option<&mut ViewMut<'_>>, kv: &mut KvPagesMut<'_>) -> Result<()> {
    let device = args.k.device();
    Check { op: OP, device }.some("k", args.k.elements() > 0)?;
    run(args, q_out, kv)
}

/// [`append_kv`], where no token is none too few.
pub(crate) fn run(args: &AppendKv<'_>, q_out: Option<&mut ViewMut<'_>>, kv: &mut KvPagesMut<'_>) -> Result<()> {
    let shape = checked(args, q_out.as_deref(), kv)?;
    if shape.streams == 0 || shape.tokens == 0 {
        return Ok(());
    }
    match args.k.device().kind() {
        DeviceKind::Cpu => {
            with_float!(args.k.dtype(), T => cpu::run::<T>(args, &shape, q_out, kv), else unreachable!("checked"));
            Ok(())
        }
        DeviceKind::Simt | DeviceKind::Cuda | DeviceKind::CudaDouble => gpu::run(args, &shape, q_out, kv),
    }
}

fn checked(args: &AppendKv<'_>, q_out: Option<&ViewMut<'_>>, kv: &KvPagesMut<'_>) -> Result<Shape> {
    let check = Check {
        op: OP,
        device: args.k.device(),
    };
    let dtype = args.k.dtype();
    check.dtype("k", dtype, &[DType::F32, DType::F16, DType::BF16], "f32, f16, bf16")?;
    let paged = PageShape::of(OP, &kv.view())?;
    let (kv_heads, dim, page_tokens) = (paged.heads, paged.dim, paged.page_tokens);
    check.tensor("kv.k", &kv.k, dtype, &[paged.pages, kv_heads, page_tokens, dim])?;
    ensure!(
        check,
        args.rope.dim() == dim,
        "rope",
        format!("a rotation of head dim {dim}"),
        format!("one of {}", args.rope.dim())
    );

    let Lattice { grid, start, step } = args.lattice;
    let tokens = grid
        .extents()
        .iter()
        .try_fold(1usize, |n, &extent| n.checked_mul(extent))
        .filter(|&n| {
            n <= (i32::MAX as usize).saturating_sub(page_tokens)
                && grid.extents().iter().all(|&n| n <= i32::MAX as usize)
        });
    let Some(tokens) = tokens else {
        return check.fail("lattice.grid", "fewer than 2^31 tokens", format!("{grid:?}"));
    };
    ensure!(
        check,
        start.iter().chain(&step).all(|x| x.is_finite()),
        "lattice",
        "finite positions",
        format!("start {start:?}, step {step:?}")
    );
    let streams = args.k.shape().first().copied().unwrap_or(0);
    check.tensor("k", &args.k, dtype, &[streams, tokens, kv_heads, dim])?;
    check.tensor("v", &args.v, dtype, &[streams, tokens, kv_heads, dim])?;

    let q_heads = match (&args.q, q_out) {
        (None, None) => 0,
        (Some(q), Some(out)) => {
            let heads = q.shape().get(2).copied().unwrap_or(0);
            ensure!(
                check,
                heads > 0,
                "q",
                "[streams, tokens, q_heads, dim], at least 1 head",
                format!("{q:?}")
            );
            check.tensor("q", q, dtype, &[streams, tokens, heads, dim])?;
            check.tensor("q_out", out, dtype, &[streams, tokens, heads, dim])?;
            heads
        }
        (Some(_), None) => return check.fail("q_out", "a tensor for the queries", "none"),
        (None, Some(_)) => return check.fail("q_out", "none, as q is", "a tensor"),
    };
    if let Some(norm) = &args.norm {
        if args.q.is_some() {
            check.tensor("norm.q_weight", &norm.q_weight, dtype, &[q_heads * dim])?;
        }
        check.tensor("norm.k_weight", &norm.k_weight, dtype, &[kv_heads * dim])?;
        let sound = norm.eps.is_finite() && norm.eps >= 0.0;
        ensure!(
            check,
            sound,
            "norm.eps",
            "a finite number, 0 or above",
            norm.eps.to_string()
        );
    }
    if let Some(origins) = &args.origins {
        check.tensor("origins", origins, DType::F32, &[streams])?;
    }
    let used_pages = tokens.div_ceil(page_tokens);
    check.page_lists("pages", args.pages, paged.pages, (streams, used_pages))?;

    let shape = Shape {
        streams,
        tokens,
        q_heads,
        kv_heads,
        dim,
        page_tokens,
        used_pages,
    };
    if check.device.kind() != DeviceKind::Cpu {
        gpu::checked(&check, args, &shape, q_out, kv)?;
    }
    if check.device.is_host() {
        let mut taken = vec![false; paged.pages];
        check.distinct_pages("pages", args.pages, (streams, used_pages), &mut taken)?;
    }
    Ok(shape)
}
