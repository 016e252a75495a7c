//! The CPU: parts in parallel, every sum in the order of `kernels/guidance.cu`.

use rayon::prelude::*;

use super::{Guidance, GuidanceWeights, MOMENTS, PART, Plan};
use crate::dtype::{Float, with_float};
use crate::ops::denoise_step::layout::Layout;
use crate::tensor::View;

/// Threads of the kernel's block, each with sums of its own.
const THREADS: usize = 256;
/// Variances below this share of the squares are what rounding leaves of a constant.
const CONSTANT: f64 = 1.0 / (1u64 << 46) as f64;

type Moments = [f64; MOMENTS];

pub(super) fn guidance(args: &Guidance<'_>, plan: &Plan, weights: &mut GuidanceWeights) {
    let samples = weights.samples();
    let parts: Vec<Moments> = (0..samples * plan.parts)
        .into_par_iter()
        .map(|i| part(args, plan, i / plan.parts, i % plan.parts))
        .collect();
    let mut view = weights.weights.view_mut();
    for (parts, weights) in parts.chunks(plan.parts).zip(view.host::<f32>().chunks_mut(2)) {
        let mut sums = [[0.0; THREADS]; MOMENTS];
        for (i, part) in parts.iter().enumerate() {
            for (sums, x) in sums.iter_mut().zip(part) {
                sums[i % THREADS] += x;
            }
        }
        weights.copy_from_slice(&numbers(args, sums.map(tree), (plan.sample_rows * plan.inner) as f64));
    }
}

/// The weights of a sample of n elements.
fn numbers(args: &Guidance<'_>, [c, u, cc, cu, uu]: Moments, n: f64) -> [f32; 2] {
    let star = match args.zero_star {
        true if uu == 0.0 => 0.0,
        true => cu / uu,
        false => 1.0,
    };
    let (a, b) = (args.scale, (1.0 - args.scale) * star);
    let mut factor = 1.0;
    if args.rescale != 0.0 {
        // n - 1 times the variances and the covariance.
        let mut var_c = cc - c * c / n;
        let (cov, var_u) = (cu - c * u / n, uu - u * u / n);
        if var_c <= CONSTANT * cc {
            var_c = 0.0;
        }
        let var_g = a * a * var_c + 2.0 * a * b * cov + b * b * var_u;
        let constant = var_g <= CONSTANT * (a * a * cc + b * b * uu);
        // Not a number is not below anything, and goes on.
        if !constant {
            factor = args.rescale * (var_c / var_g).sqrt() + (1.0 - args.rescale);
        }
    }
    [(factor * a) as f32, (factor * b) as f32]
}

/// The moments of one part of a sample.
fn part(args: &Guidance<'_>, plan: &Plan, sample: usize, part: usize) -> Moments {
    let end = (plan.sample_rows * plan.inner).min((part + 1) * PART);
    let range = part * PART..end;
    let (mut c, mut u) = ([0.0f32; PART], [0.0f32; PART]);
    let first = sample * plan.sample_rows;
    gather(&args.cond, plan.cond, plan, first, range.clone(), &mut c);
    gather(&args.uncond, plan.uncond, plan, first, range.clone(), &mut u);
    let mut sums = [[0.0; THREADS]; MOMENTS];
    let pairs = c[..range.len()].chunks(4).zip(u[..range.len()].chunks(4));
    for (group, (c, u)) in pairs.enumerate() {
        let t = group % THREADS;
        for (&c, &u) in c.iter().zip(u) {
            let (c, u) = (f64::from(c), f64::from(u));
            sums[0][t] += c;
            sums[1][t] += u;
            sums[2][t] += c * c;
            sums[3][t] += c * u;
            sums[4][t] += u * u;
        }
    }
    sums.map(tree)
}

/// Widens the elements `range` of the sample that begins in row `first`.
fn gather(view: &View<'_>, layout: Layout, plan: &Plan, first: usize, range: std::ops::Range<usize>, out: &mut [f32]) {
    let mut e = range.start;
    while e < range.end {
        let (row, inner) = (first + e / plan.inner, e % plan.inner);
        let count = (plan.inner - inner).min(range.end - e);
        let at = row / plan.frames * layout.outer + row % plan.frames * layout.frame + inner;
        let to = &mut out[e - range.start..][..count];
        with_float!(view.dtype(), T => widen(&view.host::<T>()[at..], to), else unreachable!("checked"));
        e += count;
    }
}

fn widen<T: Float>(from: &[T], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_f32();
    }
}

/// The threads' sums, halved until one is left.
fn tree(mut sums: [f64; THREADS]) -> f64 {
    let mut stride = THREADS / 2;
    while stride > 0 {
        for t in 0..stride {
            sums[t] += sums[t + stride];
        }
        stride /= 2;
    }
    sums[0]
}
