//! Views as `[outer, frames, inner]`: what steps and guidance take.

use crate::dtype::DType;
use crate::error::Result;
use crate::ffi;
use crate::ops::check::{AnyView, Check, ensure};
use crate::tensor::View;

/// Kernels count elements in 32 bits.
pub(crate) const MAX_ELEMENTS: usize = 1 << 31;

/// Strides of a view seen as `[outer, frames, inner]`; inner elements lie one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub outer: usize,
    pub frame: usize,
}

pub(crate) fn layout(
    check: &Check<'_>,
    argument: &'static str,
    view: &impl AnyView,
    shape: &[usize],
    frame_axis: usize,
) -> Result<Layout> {
    check.dtype(
        argument,
        view.dtype(),
        &[DType::F32, DType::F16, DType::BF16],
        "f32, f16, bf16",
    )?;
    ensure!(
        check,
        view.device() == check.device && view.shape() == shape,
        argument,
        format!("{shape:?} on {}", check.device),
        view.describe()
    );
    let strides = view.strides();
    let inner = fold(&shape[frame_axis + 1..], &strides[frame_axis + 1..]);
    let outer = fold(&shape[..frame_axis], &strides[..frame_axis]);
    // A stride of 0 is that of no dimension at all, or of one that repeats an element.
    let alone = shape[frame_axis + 1..].iter().product::<usize>() <= 1;
    match outer.filter(|_| inner == Some(1) || (inner == Some(0) && alone)) {
        Some(outer) => Ok(Layout {
            outer,
            frame: strides[frame_axis],
        }),
        None => check.fail(
            argument,
            format!("dimensions before {frame_axis} that lie like one, dimensions after it that are contiguous"),
            view.describe(),
        ),
    }
}

/// The stride of dimensions seen as one, if they lie so: 0 where there is one element.
fn fold(shape: &[usize], strides: &[usize]) -> Option<usize> {
    let mut dims = shape.iter().zip(strides).rev().filter(|(n, _)| **n != 1);
    let Some((&n, &stride)) = dims.next() else {
        return Some(0);
    };
    let mut reach = n * stride;
    for (&n, &s) in dims {
        if s != reach && n != 0 {
            return None;
        }
        reach = n * s;
    }
    Some(stride)
}

/// Whether every run of `lanes` elements can be moved as vectors of at most 16 bytes.
pub(crate) fn aligned(view: &View<'_>, layout: Layout, lanes: usize) -> bool {
    let bytes = (lanes * view.dtype().bytes()).min(16);
    let step = bytes / view.dtype().bytes();
    view.address().is_multiple_of(bytes as u64)
        && layout.outer.is_multiple_of(step)
        && layout.frame.is_multiple_of(step)
}

pub(crate) fn tag(dtype: DType) -> i32 {
    (match dtype {
        DType::F16 => ffi::PF_DTYPE_F16,
        DType::BF16 => ffi::PF_DTYPE_BF16,
        _ => ffi::PF_DTYPE_F32,
    }) as i32
}
