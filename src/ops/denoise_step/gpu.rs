//! The launch for CUDA and SIMT.

use smallvec::SmallVec;

use super::layout::{aligned, tag};
use super::{DenoiseStep, Plan};
use crate::device::{Launch, Span};
use crate::error::Result;
use crate::ffi;
use crate::tensor::{View, ViewMut};

const THREADS: usize = 256;

pub(super) fn denoise_step(args: &DenoiseStep<'_>, plan: &Plan, outputs: &mut [ViewMut<'_>]) -> Result<()> {
    let numbers = args.coefficients.rows.view();
    let written: SmallVec<[View<'_>; 2]> = outputs.iter().map(ViewMut::view).collect();
    let terms = || written[..args.in_place].iter().chain(&args.terms);
    let mut params = ffi::DenoiseStepParams {
        coefficients: numbers.address(),
        outer: plan.outer as i64,
        frames: plan.frames as i64,
        inner: plan.inner as i64,
        seed: args.noise.map_or(0, |n| n.seed),
        offset: args.noise.map_or(0, |n| n.offset),
        noise_base: args.noise_base.map_or(0, |base| base.numbers.address()),
        guidance: args.guidance.map_or(0, |weights| weights.view().address()),
        sample_rows: args.guidance.map_or(0, |weights| plan.sample_rows(weights)) as i64,
        term_count: plan.terms.len() as i32,
        output_count: plan.outputs.len() as i32,
        noise: args.noise.is_some().into(),
        ..bytemuck::Zeroable::zeroed()
    };
    for (k, (term, layout)) in terms().zip(&plan.terms).enumerate() {
        params.terms[k] = term.address();
        params.term_strides[k] = [layout.outer as i64, layout.frame as i64];
        params.term_dtypes[k] = tag(term.dtype());
    }
    for (j, (output, layout)) in written.iter().zip(&plan.outputs).enumerate() {
        params.outputs[j] = output.address();
        params.output_strides[j] = [layout.outer as i64, layout.frame as i64];
        params.output_dtypes[j] = tag(output.dtype());
    }
    let views = || terms().zip(&plan.terms).chain(written.iter().zip(&plan.outputs));
    let fits =
        |lanes: usize| plan.inner.is_multiple_of(lanes) && views().all(|(view, layout)| aligned(view, *layout, lanes));
    let (kernel, lanes) = if fits(8) {
        ("denoise_step_vec8", 8)
    } else if fits(4) {
        ("denoise_step_vec4", 4)
    } else {
        ("denoise_step_any", 4)
    };
    let mut memory: SmallVec<[Span; 12]> = args.terms.iter().map(View::span).collect();
    memory.extend(outputs.iter().map(ViewMut::span));
    memory.push(numbers.span());
    memory.extend(args.noise_base.map(|base| base.numbers.view().span()));
    memory.extend(args.guidance.map(|weights| weights.view().span()));
    numbers.device().launch(&Launch {
        module: "denoise_step",
        kernel,
        grid: [plan.elements().div_ceil(lanes).div_ceil(THREADS), 1, 1],
        threads: THREADS,
        shared: 0,
        params: &params,
        memory: &memory,
    })
}
