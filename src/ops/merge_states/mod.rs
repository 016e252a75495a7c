//! Two attention results over disjoint keys into one.

mod cpu;
mod gpu;
pub mod reference;

use crate::device::DeviceKind;
use crate::dtype::{DType, with_float};
use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{View, ViewMut};

const OP: &str = "merge_states";

/// An attention result that can be merged.
#[derive(Debug, Clone)]
pub struct State<'a> {
    /// `[rows, heads, dim]`
    pub out: View<'a>,
    /// f32, natural log. `[rows, heads]`
    pub lse: View<'a>,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    heads: usize,
    dim: usize,
}

/// Merges `a` and `b`, attention of the same queries over disjoint keys, into attention over all of
/// them, `out` and `lse`:
///
/// `out = (a e^lse_a + b e^lse_b) / (e^lse_a + e^lse_b)`, `lse = ln(e^lse_a + e^lse_b)`
///
/// (the split-softmax identity of Milakov and Gimelshein, *Online normalizer calculation for
/// softmax*, arXiv 1805.02867). A side whose LSE is -inf, or +inf as FlashAttention 2 writes it, saw no
/// keys: the other one comes out bit for bit. Where both are, `out` is 0 and `lse` -inf. That is how a context of two dtypes, or one
/// spread over two devices, is put together. f32, f16 and bf16 on every device, computed in f32;
/// kernels want rows on 16-byte boundaries and of whole 16 bytes.
///
/// ```
/// use packforcing::ops::merge_states::{State, merge_states};
/// use packforcing::{DType, Device, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let device = Device::cpu();
/// let (a, b) = (
///     Tensor::from_slice(&device, &[1.0f32, 2.0], &[1, 1, 2])?,
///     Tensor::from_slice(&device, &[3.0f32, 4.0], &[1, 1, 2])?,
/// );
/// let lse = Tensor::zeros(&device, DType::F32, &[1, 1])?;
/// let mut merged = Tensor::zeros(&device, DType::F32, &[1, 1, 2])?;
/// let mut merged_lse = Tensor::zeros(&device, DType::F32, &[1, 1])?;
/// merge_states(
///     &State { out: a.view(), lse: lse.view() },
///     &State { out: b.view(), lse: lse.view() },
///     &mut merged.view_mut(),
///     &mut merged_lse.view_mut(),
/// )?;
/// assert_eq!(merged.to_vec::<f32>()?, [2.0, 3.0]);
/// assert_eq!(merged_lse.to_vec::<f32>()?, [2f32.ln()]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Shapes, dtypes or devices that do not agree; rows that the device does not take (above); whatever
/// the device reports.
pub fn merge_states(a: &State<'_>, b: &State<'_>, out: &mut ViewMut<'_>, lse: &mut ViewMut<'_>) -> Result<()> {
    let check = Check {
        op: OP,
        device: out.device(),
    };
    let dtype = out.dtype();
    let taken = [DType::F32, DType::F16, DType::BF16];
    check.dtype("out", dtype, &taken, "f32, f16 and bf16")?;
    let &[rows, heads, dim] = out.shape() else {
        return check.fail("out", "[rows, heads, dim]", format!("{:?}", out.shape()));
    };
    check.tensor("a.out", &a.out, dtype, &[rows, heads, dim])?;
    check.tensor("b.out", &b.out, dtype, &[rows, heads, dim])?;
    check.tensor("a.lse", &a.lse, DType::F32, &[rows, heads])?;
    check.tensor("b.lse", &b.lse, DType::F32, &[rows, heads])?;
    check.tensor("lse", lse, DType::F32, &[rows, heads])?;
    let shape = Shape { rows, heads, dim };
    check.some("out", rows * heads * dim > 0)?;
    match out.device().kind() {
        DeviceKind::Cpu => {
            with_float!(dtype, T => cpu::merge_states::<T>(a, b, shape, out, lse), else unreachable!("checked"));
            Ok(())
        }
        DeviceKind::Simt | DeviceKind::Cuda | DeviceKind::CudaDouble => gpu::merge_states(a, b, shape, out, lse),
    }
}
