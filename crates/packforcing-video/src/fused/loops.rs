//! Loops over f32 slices, compiled for the widest vectors that the CPU has.

/// Numbers that are summed side by side.
const LANES: usize = 16;
/// 3 / 2 of 2^23: added to a small number it leaves its whole part in the lowest bits.
const WHOLE: f32 = 12_582_912.0;
/// ln 2 in two parts, the first of few bits.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// sqrt(2 / pi)
const SLOPE: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

fn widest<R>(run: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(run)
}

/// Within two units of the last place, 0 below -87.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let bound = x.clamp(-87.0, 88.0);
    let shifted = bound * std::f32::consts::LOG2_E + WHOLE;
    let whole = shifted - WHOLE;
    let rest = bound - whole * LN_2[0] - whole * LN_2[1];
    // Taylor's series; rest is at most half of ln 2.
    let mut sum = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * rest + factor;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    if x < -87.0 { 0.0 } else { sum * power }
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Sum of `term` over two slices of one length.
#[inline(always)]
fn total(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a.remainder().iter().zip(b.remainder());
    let rest: f32 = rest.map(|(&a, &b)| term(a, b)).sum();
    for (a, b) in a.zip(b) {
        for i in 0..LANES {
            sums[i] += term(a[i], b[i]);
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
fn largest(a: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; LANES];
    let chunks = a.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    for chunk in chunks {
        for i in 0..LANES {
            most[i] = if chunk[i] > most[i] { chunk[i] } else { most[i] };
        }
    }
    most.iter().fold(rest, |m, &x| m.max(x))
}

/// `out = f(a, b)`, number by number.
#[inline(always)]
fn each(out: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) {
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = f(a, b);
    }
}

/// Twice `x` where there is one slice only.
pub(super) fn gelu(out: &mut [f32], x: &[f32]) {
    widest(|| {
        each(out, x, x, |x, _| {
            0.5 * x * (1.0 + tanh(SLOPE * x * (1.0 + CUBE * x * x)))
        });
    });
}

pub(super) fn gelu_back(out: &mut [f32], x: &[f32], gradient: &[f32]) {
    widest(|| {
        each(out, x, gradient, |x, gradient| {
            let t = tanh(SLOPE * x * (1.0 + CUBE * x * x));
            let inner = SLOPE * (1.0 + 3.0 * CUBE * x * x);
            gradient * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
        });
    });
}

pub(super) fn softmax(out: &mut [f32], x: &[f32], width: usize) {
    widest(|| {
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let most = largest(x);
            each(out, x, x, |x, _| exp(x - most));
            let part = 1.0 / total(out, out, |e, _| e);
            out.iter_mut().for_each(|e| *e *= part);
        }
    });
}

/// `y` is the softmax.
pub(super) fn softmax_back(out: &mut [f32], y: &[f32], gradient: &[f32], width: usize) {
    widest(|| {
        let rows = y.chunks_exact(width).zip(gradient.chunks_exact(width));
        for (out, (y, gradient)) in out.chunks_exact_mut(width).zip(rows) {
            let mean = total(y, gradient, |y, g| y * g);
            each(out, y, gradient, |y, g| y * (g - mean));
        }
    });
}

/// One row, by its own root of the mean square, less its mean first where it is centered; gives what it was
/// multiplied by.
#[inline(always)]
fn norm_row(out: &mut [f32], x: &[f32], centered: bool, eps: f32) -> f32 {
    let part = 1.0 / x.len() as f32;
    let mean = if centered { part * total(x, x, |x, _| x) } else { 0.0 };
    let variance = part * total(x, x, |x, _| (x - mean) * (x - mean));
    let factor = 1.0 / (variance + eps).sqrt();
    each(out, x, x, |x, _| (x - mean) * factor);
    factor
}

pub(super) fn norm(out: &mut [f32], x: &[f32], width: usize, centered: bool, eps: f32) {
    widest(|| {
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            norm_row(out, x, centered, eps);
        }
    });
}

pub(super) fn norm_back(out: &mut [f32], x: &[f32], gradient: &[f32], width: usize, centered: bool, eps: f32) {
    widest(|| {
        let part = 1.0 / width as f32;
        let rows = x.chunks_exact(width).zip(gradient.chunks_exact(width));
        for (out, (x, gradient)) in out.chunks_exact_mut(width).zip(rows) {
            let factor = norm_row(out, x, centered, eps);
            let along = part * total(out, gradient, |n, g| n * g);
            let mean = if centered {
                part * total(gradient, gradient, |g, _| g)
            } else {
                0.0
            };
            for (out, &g) in out.iter_mut().zip(gradient) {
                *out = factor * (g - mean - *out * along);
            }
        }
    });
}

/// `a` by one row of `rows` for each run of as many rows of `a`.
pub(super) fn mul_rows(out: &mut [f32], a: &[f32], rows: &[f32], width: usize) {
    widest(|| join_rows(out, a, rows, width, |a, row| a * row));
}

/// `a` and one row of `rows` for each run of as many rows of `a`.
pub(super) fn add_rows(out: &mut [f32], a: &[f32], rows: &[f32], width: usize) {
    widest(|| join_rows(out, a, rows, width, |a, row| a + row));
}

/// Adds a row to all of them.
pub(super) fn add_row(rows: &mut [f32], row: &[f32]) {
    widest(|| {
        for to in rows.chunks_exact_mut(row.len()) {
            to.iter_mut().zip(row).for_each(|(to, &add)| *to += add);
        }
    });
}

#[inline(always)]
fn join_rows(out: &mut [f32], a: &[f32], rows: &[f32], width: usize, f: impl Fn(f32, f32) -> f32) {
    let run = a.len() / (rows.len() / width);
    let runs = a.chunks_exact(run).zip(rows.chunks_exact(width));
    for (out, (a, row)) in out.chunks_exact_mut(run).zip(runs) {
        for (out, a) in out.chunks_exact_mut(width).zip(a.chunks_exact(width)) {
            each(out, a, row, &f);
        }
    }
}

/// Adds, for each run of rows, `a b` to one row of `out`.
pub(super) fn sum_products(out: &mut [f32], a: &[f32], b: &[f32], width: usize) {
    widest(|| sum_runs(out, a, b, width, |a, b| a * b));
}

/// Adds, for each run of rows, `a` to one row of `out`.
pub(super) fn sum_rows(out: &mut [f32], a: &[f32], width: usize) {
    widest(|| sum_runs(out, a, a, width, |a, _| a));
}

#[inline(always)]
fn sum_runs(out: &mut [f32], a: &[f32], b: &[f32], width: usize, term: impl Fn(f32, f32) -> f32) {
    let run = a.len() / (out.len() / width);
    let runs = a.chunks_exact(run).zip(b.chunks_exact(run));
    for (out, (a, b)) in out.chunks_exact_mut(width).zip(runs) {
        for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
            for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *out += term(a, b);
            }
        }
    }
}

/// Turns pairs of neighbours of `[batch, tokens, heads, dim]` by the cosines and sines of their tokens,
/// `[tokens, dim / 2]`; back where the sign is -1.
pub(super) fn rotate(out: &mut [f32], x: &[f32], angles: [&[f32]; 2], heads: usize, dim: usize, sign: f32) {
    let [cos, sin] = angles;
    widest(|| {
        let all = out
            .chunks_exact_mut(heads * cos.len() * 2)
            .zip(x.chunks_exact(heads * cos.len() * 2));
        for (out, x) in all {
            let tokens = out.chunks_exact_mut(heads * dim).zip(x.chunks_exact(heads * dim));
            let turns = cos.chunks_exact(dim / 2).zip(sin.chunks_exact(dim / 2));
            for ((out, x), (cos, sin)) in tokens.zip(turns) {
                for (out, x) in out.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
                    let pairs = out.chunks_exact_mut(2).zip(x.chunks_exact(2));
                    for ((out, x), (&cos, &sin)) in pairs.zip(cos.iter().zip(sin)) {
                        let sin = sign * sin;
                        out[0] = x[0] * cos - x[1] * sin;
                        out[1] = x[1] * cos + x[0] * sin;
                    }
                }
            }
        }
    });
}

pub(super) fn join(to: &mut [f32], from: &[f32], f: impl Fn(f32, f32) -> f32) {
    widest(|| to.iter_mut().zip(from).for_each(|(to, &from)| *to = f(*to, from)));
}

pub(super) fn join_two(to: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32) {
    widest(|| {
        for ((to, &a), &b) in to.iter_mut().zip(a).zip(b) {
            *to = f(*to, a, b);
        }
    });
}

pub(super) fn square_sum(x: &[f32]) -> f64 {
    let part = |x: &[f32]| f64::from(total(x, x, |x, _| x * x));
    // Short parts: a long sum in f32 would lose what is small.
    widest(|| x.chunks(1024).map(part).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_good_to_the_last_bits() {
        for i in -87_000..=88_000 {
            let x = i as f32 / 1000.0;
            let (got, truth) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / truth - 1.0).abs() < 3e-7, "{x}: {got:e} and {truth:e}");
        }
        assert_eq!((exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        for i in -2000..=2000 {
            let x = i as f32 / 100.0;
            let off = f64::from(tanh(x)) - f64::from(x).tanh();
            assert!(off.abs() < 3e-7, "{x}: {off:e}");
        }
    }
}
