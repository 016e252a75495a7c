//! Attention of a batch of streams over packed pages.

mod cpu;
mod gpu;
mod lanes;
pub mod reference;
mod sm90;

use crate::device::DeviceKind;
use crate::dtype::{DType, with_float};
use crate::error::Result;
use crate::ops::check::{Check, ensure};
use crate::paging::{Context, KvPages, PageShape};
use crate::rope::Rope3d;
use crate::tensor::{View, ViewMut};

const OP: &str = "attention";

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

/// Which kernel computes attention, on a GPU and on the SIMT device.
///
/// [`Kernel::Auto`] is right everywhere but in tests and measurements. The last four are other ways to
/// build [`Kernel::Sm90`], for bf16 of head dim 128, kept to be measured beside it (`docs/attention.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Kernel {
    /// The fastest that takes the arguments on this device.
    #[default]
    Auto,
    /// `mma.sync` and `cp.async`: any card from compute capability 8.0 on, any page size.
    Sm80,
    /// `wgmma` and the copy engine: compute capability 9.0; pages of a multiple of 8 tokens, or one page
    /// a stream.
    Sm90,
    /// As `Sm90`, without an order between warpgroups.
    Sm90Free,
    /// As `Sm90`, two warpgroups whose softmax runs beside their own products.
    Sm90Overlapped,
    /// As `Sm90`, without pages and segments: stream s attends to all of page s, whatever its context
    /// says, which has one page in one segment.
    Sm90Plain,
    /// `Sm90Overlapped`, without pages and segments.
    Sm90OverlappedPlain,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Kernel; 7] = [
        Kernel::Auto,
        Kernel::Sm80,
        Kernel::Sm90,
        Kernel::Sm90Free,
        Kernel::Sm90Overlapped,
        Kernel::Sm90Plain,
        Kernel::Sm90OverlappedPlain,
    ];

    /// The name in lower case, as in `packforcing bench attention --kernel`.
    pub const fn name(self) -> &'static str {
        match self {
            Kernel::Auto => "auto",
            Kernel::Sm80 => "sm80",
            Kernel::Sm90 => "sm90",
            Kernel::Sm90Free => "sm90-free",
            Kernel::Sm90Overlapped => "sm90-overlapped",
            Kernel::Sm90Plain => "sm90-plain",
            Kernel::Sm90OverlappedPlain => "sm90-overlapped-plain",
        }
    }
}

/// What the arguments agree on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    streams: usize,
    tokens: usize,
    q_heads: usize,
    kv_heads: usize,
    page_tokens: usize,
    dim: usize,
}

/// Softmax attention of every stream over its own segments, in one pass and without the matrix of
/// logits (Dao, *FlashAttention-2*, arXiv 2307.08691):
///
/// `out[s, i, h] = sum_j softmax_j(scale (R(segment(j)) q[s, i, h]) . k_j + bias_j) v_j`
///
/// with j over the keys of stream s, in the kv head that query head h belongs to: `q_heads /
/// kv_heads` neighbours share one. `R` turns the temporal pairs of the query ahead by the segment's
/// rotation, in frames, so that stored keys never have to move. `bias_j` is the segment's
/// `key_bias`, and where its `slot_bias` is set (and [`KvPages::slot_bias`] is there) the bias of the
/// key's slot as well; natural log.
///
/// `out` has the shape and dtype of `q`. `lse`, where wanted, is f32 `[streams, tokens, q_heads]`:
/// the natural log of the sum of the exponentiated logits, what [`merge_states`] needs. A stream that
/// attends to nothing (no keys, or a bias of -inf on all of them) gets `out` 0 and `lse` -inf. The
/// CPU takes f32, f16 and bf16 and any head dim that the rope has, and computes in f32; kernels take
/// f16 and bf16, head dims 64 and 128 and rows on 16-byte boundaries, round the turned query and the
/// probabilities to the dtype and add up in f32.
///
/// The result has the same bits on every run of one device, in any order of the pages, and whatever the
/// other streams of the batch are; with any page size, too, that the same [`Kernel`] takes.
///
/// [`merge_states`]: crate::ops::merge_states::merge_states
///
/// ```
/// use packforcing::ops::attention::{Attention, attention};
/// use packforcing::paging::{Context, KvPages, Segment};
/// use packforcing::{Device, Rope3d, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let device = Device::cpu();
/// // Two keys in page 1 of a pool of two pages; a query of zeros weighs them alike.
/// let q = Tensor::zeros(&device, packforcing::DType::F32, &[1, 1, 1, 4])?;
/// let k = Tensor::zeros(&device, packforcing::DType::F32, &[2, 1, 2, 4])?;
/// let v: Vec<f32> = (0..16).map(|i| i as f32).collect();
/// let v = Tensor::from_slice(&device, &v, &[2, 1, 2, 4])?;
/// let args = Attention {
///     q: q.view(),
///     kv: KvPages { k: k.view(), v: v.view(), slot_bias: None },
///     context: &Context::from_host(&device, (2, 2), &[vec![Segment::new(vec![1], 2)]])?,
///     rope: &Rope3d::new([2, 0, 0], 10_000.0)?,
///     scale: 0.5,
/// };
/// let mut out = Tensor::zeros(&device, packforcing::DType::F32, &[1, 1, 1, 4])?;
/// attention(&args, &mut out.view_mut(), None)?;
/// assert_eq!(out.to_vec::<f32>()?, [10.0, 11.0, 12.0, 13.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// No query; shapes, dtypes or devices that do not agree; a head dim other than the rope's; a context for fewer
/// streams, for a larger pool or for pages of another size; a scale that is not finite; what the
/// device does not take (above); whatever the device reports.
pub fn attention(args: &Attention<'_>, out: &mut ViewMut<'_>, lse: Option<&mut ViewMut<'_>>) -> Result<()> {
    let device = args.q.device();
    Check { op: OP, device }.some("q", args.q.elements() > 0)?;
    run(args, out, lse)
}

/// [`attention`] by this kernel, for tests and measurements.
///
/// # Errors
///
/// As [`attention`]; a kernel other than [`Kernel::Auto`] on the CPU; what the kernel does not take, by the name
/// of the argument.
pub fn attention_by(
    kernel: Kernel,
    args: &Attention<'_>,
    out: &mut ViewMut<'_>,
    lse: Option<&mut ViewMut<'_>>,
) -> Result<()> {
    let check = Check {
        op: OP,
        device: args.q.device(),
    };
    check.some("q", args.q.elements() > 0)?;
    ensure!(
        check,
        kernel == Kernel::Auto || check.device.kind() != DeviceKind::Cpu,
        "kernel",
        "auto on the cpu",
        kernel.name()
    );
    run_by(kernel, args, out, lse)
}

/// [`attention`], where no query is none too few.
pub(crate) fn run(args: &Attention<'_>, out: &mut ViewMut<'_>, lse: Option<&mut ViewMut<'_>>) -> Result<()> {
    run_by(Kernel::Auto, args, out, lse)
}

fn run_by(kernel: Kernel, args: &Attention<'_>, out: &mut ViewMut<'_>, lse: Option<&mut ViewMut<'_>>) -> Result<()> {
    let shape = check(args, out, lse.as_deref())?;
    if shape.streams * shape.tokens * shape.q_heads == 0 {
        return Ok(());
    }
    match out.device().kind() {
        DeviceKind::Cpu => {
            with_float!(args.q.dtype(), T => cpu::attention::<T>(args, shape, out, lse), else unreachable!("checked"));
            Ok(())
        }
        DeviceKind::Simt | DeviceKind::Cuda | DeviceKind::CudaDouble => gpu::attention(kernel, args, shape, out, lse),
    }
}

/// All that is refused, before anything is written.
pub(crate) fn check(args: &Attention<'_>, out: &ViewMut<'_>, lse: Option<&ViewMut<'_>>) -> Result<Shape> {
    let Attention {
        q,
        kv,
        context,
        rope,
        scale,
    } = args;
    let check = Check {
        op: OP,
        device: out.device(),
    };
    check.dtype(
        "q",
        q.dtype(),
        &[DType::F32, DType::F16, DType::BF16],
        "f32, f16 and bf16",
    )?;
    let &[streams, tokens, q_heads, dim] = q.shape() else {
        return check.fail("q", "[streams, tokens, q_heads, dim]", format!("{:?}", q.shape()));
    };
    check.tensor("q", q, q.dtype(), &[streams, tokens, q_heads, dim])?;
    let pages = PageShape::of(OP, kv)?;
    ensure!(
        check,
        q_heads.is_multiple_of(pages.heads),
        "q",
        format!("a multiple of {} heads, those of kv.k", pages.heads),
        q_heads.to_string()
    );
    let pool = [pages.pages, pages.heads, pages.page_tokens, dim];
    check.tensor("kv.k", &kv.k, q.dtype(), &pool)?;
    ensure!(
        check,
        rope.dim() == dim,
        "rope",
        format!("one of head dim {dim}"),
        format!("one of head dim {}", rope.dim())
    );
    ensure!(check, scale.is_finite(), "scale", "a finite number", scale.to_string());
    ensure!(
        check,
        context.device() == check.device,
        "context",
        format!("one on {}", check.device),
        format!("one on {}", context.device())
    );
    ensure!(
        check,
        context.page_tokens() == pages.page_tokens && context.pool_pages() <= pages.pages,
        "context",
        format!("one over {} pages of {} tokens", pages.pages, pages.page_tokens),
        format!("{} pages of {}", context.pool_pages(), context.page_tokens())
    );
    ensure!(
        check,
        streams <= context.streams(),
        "context",
        format!("one of at least {streams} streams"),
        context.streams().to_string()
    );
    check.tensor("out", out, q.dtype(), q.shape())?;
    if let Some(lse) = lse {
        check.tensor("lse", lse, DType::F32, &[streams, tokens, q_heads])?;
    }
    let shape = Shape {
        streams,
        tokens,
        q_heads,
        kv_heads: pages.heads,
        page_tokens: pages.page_tokens,
        dim,
    };
    if check.device.kind() != DeviceKind::Cpu {
        gpu::taken(args, shape, out, check.device)?;
    }
    Ok(shape)
}
