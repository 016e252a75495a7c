//! The launches for CUDA and SIMT.

use super::{Guidance, GuidanceWeights, MOMENTS, Plan};
use crate::device::Launch;
use crate::error::Result;
use crate::ffi;
use crate::ops::denoise_step::layout::{aligned, tag};

const THREADS: usize = 256; // as in guidance.cu

pub(super) fn guidance(args: &Guidance<'_>, plan: &Plan, weights: &mut GuidanceWeights) -> Result<()> {
    let samples = weights.samples();
    let (out, mut partial) = (weights.weights.view_mut(), weights.partial.view_mut());
    let strides = |layout: super::Layout| [layout.outer as i64, layout.frame as i64];
    let params = ffi::GuidanceParams {
        cond: args.cond.address(),
        uncond: args.uncond.address(),
        partial: partial.address(),
        weights: out.address(),
        cond_strides: strides(plan.cond),
        uncond_strides: strides(plan.uncond),
        frames: plan.frames as i64,
        inner: plan.inner as i64,
        sample_rows: plan.sample_rows as i64,
        parts: plan.parts as i64,
        scale: args.scale,
        rescale: args.rescale,
        cond_dtype: tag(args.cond.dtype()),
        uncond_dtype: tag(args.uncond.dtype()),
        zero_star: args.zero_star.into(),
        reserved: 0,
    };
    let wide =
        plan.inner.is_multiple_of(4) && aligned(&args.cond, plan.cond, 4) && aligned(&args.uncond, plan.uncond, 4);
    let kernel = if wide {
        "guidance_moments_vec4"
    } else {
        "guidance_moments_any"
    };
    let device = out.device().clone();
    let shared = MOMENTS * THREADS * size_of::<f64>();
    device.launch(&Launch {
        module: "guidance",
        kernel,
        grid: [samples * plan.parts, 1, 1],
        threads: THREADS,
        shared,
        params: &params,
        memory: &[args.cond.span(), args.uncond.span(), partial.reborrow().span()],
    })?;
    device.launch(&Launch {
        module: "guidance",
        kernel: "guidance_weights",
        grid: [samples, 1, 1],
        threads: THREADS,
        shared,
        params: &params,
        memory: &[partial.view().span(), out.span()],
    })
}
