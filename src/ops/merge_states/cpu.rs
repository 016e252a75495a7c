//! Merging row by row, in f32; rows in parallel.

use std::array::from_fn;

use rayon::prelude::*;

use super::{Shape, State};
use crate::dtype::Float;
use crate::tensor::ViewMut;

pub(super) fn merge_states<T: Float>(
    a: &State<'_>,
    b: &State<'_>,
    shape: Shape,
    out: &mut ViewMut<'_>,
    lse: &mut ViewMut<'_>,
) {
    let Shape { rows, heads, dim } = shape;
    let out_strides: [usize; 2] = from_fn(|i| out.strides()[i]);
    let lse_stride = lse.strides()[0];
    let sides = [a, b].map(|s| {
        let strides = (s.out.strides()[0], s.out.strides()[1], s.lse.strides()[0]);
        (s.out.host::<T>(), s.lse.host::<f32>(), strides)
    });
    let read = |side: usize, row: usize, head: usize| {
        let (out, lse, (out_row, out_head, lse_row)) = sides[side];
        (
            &out[row * out_row + head * out_head..][..dim],
            lse[row * lse_row + head],
        )
    };
    let merge = |row: usize, out: &mut [T], lse: &mut [f32]| {
        for (head, lse) in lse[..heads].iter_mut().enumerate() {
            let out = &mut out[head * out_strides[1]..][..dim];
            *lse = merge_row(read(0, row, head), read(1, row, head), out);
        }
    };
    let (out, lse) = (out.host::<T>(), lse.host::<f32>());
    // Whole rows can be handed to threads where they do not interleave, which they do only in views
    // that someone made transposed.
    let apart = out_strides[0] >= (heads - 1) * out_strides[1] + dim && lse_stride >= heads;
    if apart && rows > 1 {
        out.par_chunks_mut(out_strides[0])
            .zip(lse.par_chunks_mut(lse_stride))
            .take(rows)
            .with_min_len(16)
            .enumerate()
            .for_each(|(row, (out, lse))| merge(row, out, lse));
    } else {
        for row in 0..rows {
            merge(row, &mut out[row * out_strides[0]..], &mut lse[row * lse_stride..]);
        }
    }
}

fn merge_row<T: Float>((a, lse_a): (&[T], f32), (b, lse_b): (&[T], f32), out: &mut [T]) -> f32 {
    match (lse_a.is_infinite(), lse_b.is_infinite()) {
        (true, true) => {
            out.fill(T::from_f32(0.0));
            f32::NEG_INFINITY
        }
        (true, false) => {
            out.copy_from_slice(b);
            lse_b
        }
        (false, true) => {
            out.copy_from_slice(a);
            lse_a
        }
        (false, false) => {
            let max = lse_a.max(lse_b);
            let (w_a, w_b) = ((lse_a - max).exp(), (lse_b - max).exp());
            let sum = w_a + w_b;
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                *out = T::from_f32((w_a * a.to_f32() + w_b * b.to_f32()) / sum);
            }
            max + sum.ln()
        }
    }
}
