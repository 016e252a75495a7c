//! The CPU: pieces of rows in parallel, widened to f32, summed, rounded back.

use rayon::prelude::*;

use super::layout::Layout;
use super::{DenoiseStep, MAX_OUTPUTS, Plan};
use crate::dtype::{DType, Float, bf16, f16, with_float};
use crate::tensor::{View, ViewMut};

/// Elements that are summed at once: what the first cache holds of terms and sums.
const PIECE: usize = 1024;

/// A part of an output.
enum Out<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    BF16(&'a mut [bf16]),
}

/// Elements of one row, in all outputs.
struct Piece<'a> {
    row: usize,
    start: usize,
    outputs: Vec<Out<'a>>,
}

pub(super) fn denoise_step(args: &DenoiseStep<'_>, plan: &Plan, outputs: &mut [ViewMut<'_>]) {
    let numbers = args.coefficients.rows.view();
    let numbers = numbers.host::<f32>();
    let in_place = args.in_place;
    let noise = args
        .noise
        .map(|noise| args.noise_base.map_or(noise, |base| base.plus(noise)));
    let weights = args.guidance.map(|weights| {
        let (numbers, rows) = (weights.view(), plan.sample_rows(weights));
        (numbers.host::<f32>(), rows)
    });
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    for (output, layout) in outputs.iter_mut().zip(&plan.outputs) {
        match output.dtype() {
            DType::F32 => split(output.host::<f32>(), *layout, plan, Out::F32, &mut pieces),
            DType::F16 => split(output.host::<f16>(), *layout, plan, Out::F16, &mut pieces),
            _ => split(output.host::<bf16>(), *layout, plan, Out::BF16, &mut pieces),
        }
    }
    pieces.into_par_iter().for_each(|mut piece| {
        let frame = piece.row % plan.frames;
        let length = piece.outputs[0].len();
        let number = |output: usize, term: usize| {
            let terms = plan.terms.len();
            let c = numbers[(output * (terms + 1) + term) * plan.frames + frame];
            match weights {
                Some((weights, rows)) if (terms - 2..terms).contains(&term) => {
                    c * weights[piece.row / rows * 2 + term + 2 - terms]
                }
                _ => c,
            }
        };
        let mut buffer = [0.0f32; PIECE];
        let mut sums = [[0.0f32; PIECE]; MAX_OUTPUTS];
        let (x, outputs) = (&mut buffer[..length], piece.outputs.len());
        let mut add = |x: &[f32], term: usize| {
            for (output, sums) in sums[..outputs].iter_mut().enumerate() {
                let c = number(output, term);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum += c * x;
                }
            }
        };
        for term in 0..plan.terms.len() {
            match term.checked_sub(in_place) {
                None => piece.outputs[term].read(x),
                Some(t) => {
                    let layout = plan.terms[term];
                    let at = piece.row / plan.frames * layout.outer + frame * layout.frame + piece.start;
                    read(&args.terms[t], at, x);
                }
            }
            add(x, term);
        }
        if let Some(noise) = noise {
            noise.fill((piece.row * plan.inner + piece.start) as u64, x);
            add(x, plan.terms.len());
        }
        for (output, sums) in piece.outputs.iter_mut().zip(&sums) {
            output.write(sums);
        }
    });
}

/// Cuts an output into pieces and hands each to the piece of the same place.
fn split<'a, T>(
    data: &'a mut [T],
    layout: Layout,
    plan: &Plan,
    wrap: impl Fn(&'a mut [T]) -> Out<'a>,
    pieces: &mut Vec<Piece<'a>>,
) {
    let row_pieces = plan.inner.div_ceil(PIECE);
    let rows = plan.outer * plan.frames;
    if pieces.is_empty() {
        pieces.extend((0..rows * row_pieces).map(|i| Piece {
            row: i / row_pieces,
            start: i % row_pieces * PIECE,
            outputs: Vec::with_capacity(MAX_OUTPUTS),
        }));
    }
    // Rows do not overlap, but their order in memory may be any.
    let mut order: Vec<(usize, usize)> = (0..rows)
        .map(|row| (row / plan.frames * layout.outer + row % plan.frames * layout.frame, row))
        .collect();
    order.sort_unstable();
    let (mut rest, mut taken) = (data, 0);
    for (at, row) in order {
        let (mine, behind) = rest.split_at_mut(at - taken).1.split_at_mut(plan.inner);
        (rest, taken) = (behind, at + plan.inner);
        for (i, part) in mine.chunks_mut(PIECE).enumerate() {
            pieces[row * row_pieces + i].outputs.push(wrap(part));
        }
    }
}

fn read(term: &View<'_>, at: usize, x: &mut [f32]) {
    with_float!(term.dtype(), T => widen(&term.host::<T>()[at..], x), else unreachable!("checked"));
}

fn widen<T: Float>(from: &[T], x: &mut [f32]) {
    for (x, from) in x.iter_mut().zip(from) {
        *x = from.to_f32();
    }
}

fn round<T: Float>(to: &mut [T], x: &[f32]) {
    for (to, &x) in to.iter_mut().zip(x) {
        *to = T::from_f32(x);
    }
}

impl Out<'_> {
    fn len(&self) -> usize {
        match self {
            Out::F32(data) => data.len(),
            Out::F16(data) => data.len(),
            Out::BF16(data) => data.len(),
        }
    }

    fn read(&self, x: &mut [f32]) {
        match self {
            Out::F32(data) => widen(data, x),
            Out::F16(data) => widen(data, x),
            Out::BF16(data) => widen(data, x),
        }
    }

    fn write(&mut self, x: &[f32]) {
        match self {
            Out::F32(data) => round(data, x),
            Out::F16(data) => round(data, x),
            Out::BF16(data) => round(data, x),
        }
    }
}
