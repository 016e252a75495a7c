//! Merging by the kernel.

use super::{OP, Shape, State};
use crate::device::Launch;
use crate::error::Result;
use crate::ffi;
use crate::ops::check::{Check, ensure, kernel_of, strides};
use crate::tensor::ViewMut;

const THREADS: usize = 256; // as in merge_states.cu

pub(super) fn merge_states(
    a: &State<'_>,
    b: &State<'_>,
    shape: Shape,
    out: &mut ViewMut<'_>,
    lse: &mut ViewMut<'_>,
) -> Result<()> {
    let device = &out.device().clone();
    let check = Check { op: OP, device };
    check.aligned_rows("a.out", &a.out, a.out.address())?;
    check.aligned_rows("b.out", &b.out, b.out.address())?;
    check.aligned_rows("out", out, out.address())?;
    let lane = 16 / out.dtype().bytes();
    ensure!(
        check,
        shape.dim.is_multiple_of(lane),
        "out",
        format!("rows of whole 16 bytes, a multiple of {lane} elements"),
        shape.dim.to_string()
    );
    let blocks = (shape.rows * shape.heads * (shape.dim / lane)).div_ceil(THREADS);
    for (extent, most) in [
        (blocks, i32::MAX as usize),
        (shape.heads, 1 << 30),
        (shape.dim, 1 << 30),
    ] {
        ensure!(
            check,
            extent <= most,
            "out",
            format!("extents of at most {most}"),
            extent.to_string()
        );
    }
    let [a_lse_stride] = strides(&a.lse);
    let [b_lse_stride] = strides(&b.lse);
    let [lse_stride] = strides(lse);
    let params = ffi::MergeStatesParams {
        a_out: a.out.address(),
        a_lse: a.lse.address(),
        b_out: b.out.address(),
        b_lse: b.lse.address(),
        out: out.address(),
        lse: lse.address(),
        a_strides: strides(&a.out),
        b_strides: strides(&b.out),
        out_strides: strides(out),
        a_lse_stride,
        b_lse_stride,
        lse_stride,
        rows: shape.rows as i64,
        heads: shape.heads as i32,
        dim: shape.dim as i32,
    };
    device.launch(&Launch {
        module: "merge_states",
        kernel: kernel_of!("merge_states", out.dtype()),
        grid: [blocks, 1, 1],
        threads: THREADS,
        shared: 0,
        params: &params,
        memory: &[
            a.out.span(),
            a.lse.span(),
            b.out.span(),
            b.lse.span(),
            out.span(),
            lse.span(),
        ],
    })
}
