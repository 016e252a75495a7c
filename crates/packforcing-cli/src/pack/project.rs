//! Patches become queries, keys and values, by numbers that are fixed before the video begins.
//!
//! A token is a patch of 8 x 8 pixels of brightness with the 4 x 4 of each colour plane under it.
//!
//! *Queries and keys.* 64 features: the 32 lowest coefficients of the patch's cosine transform
//! (zigzag order) and all 16 of each colour plane. Each is compressed to `sign(c) sqrt|c|`, so that
//! a bright patch is not all brightness. Their mean over some frames of the clip is subtracted:
//! what all patches share would make the sums of all blocks nearly parallel, and blocks are
//! selected by such sums. Then they are weighted: head 0 looks at brightness, head 1 at colour. A
//! fixed random rotation of the 64 spreads every feature over the pairs that position turns, and
//! leaves angles between patches as they are. The result is scaled to one length, so that the logit
//! of two patches at one place is `SHARPNESS` times the cosine between them. Keys are the queries:
//! like attracts like.
//!
//! *Values* are the pixels: head 0 the 64 of brightness, head 1 the 16 + 16 of colour and zeros,
//! each as (byte - 128) / 128. What attention returns is a picture again.

use std::f64::consts::PI;

use packforcing::Grid;

use super::random::Random;
use crate::media::clip::{PATCH, Picture};

/// Heads of queries, keys and values.
pub const HEADS: usize = 2;
/// Numbers of a head: the pixels of a patch.
pub const DIM: usize = 64;
/// Numbers of a token.
pub const WIDTH: usize = HEADS * DIM;
/// Logit of a patch with itself, for each head.
const SHARPNESS: [f64; HEADS] = [18.0, 18.0];
/// Weight of features of brightness and of colour, for each head.
const WEIGHTS: [[f64; 2]; HEADS] = [[1.0, 0.5], [0.5, 1.5]];
/// Seed of the rotations of the features.
const SEED: u64 = 0x7061_636b;

/// Features of brightness; those of each colour plane are [`COLOUR`].
const BRIGHT: usize = 32;
const COLOUR: usize = 16;

/// The tokens of a block, or of any run of frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens {
    /// Queries, which are the keys too. `[tokens, HEADS, DIM]`
    pub qk: Vec<f32>,
    /// Values. `[tokens, HEADS, DIM]`
    pub v: Vec<f32>,
}

/// The projections.
pub struct Projector {
    /// `[HEADS][DIM][DIM]`, orthonormal rows.
    mix: Vec<f32>,
    /// Cosine transforms along one side of 8 and of 4, `[frequency][pixel]`.
    cosines: [Vec<f32>; 2],
    zigzag: Vec<(usize, usize)>,
    /// Mean features of a patch.
    centre: [f32; DIM],
}

impl Projector {
    /// Features are told from their mean over `examples`, or from zero where there are none.
    pub fn new(examples: &[Picture]) -> Projector {
        let mut random = Random::new(SEED);
        let mix = (0..HEADS).flat_map(|_| rotation(&mut random)).collect();
        let mut zigzag: Vec<_> = (0..PATCH * PATCH).map(|i| (i / PATCH, i % PATCH)).collect();
        zigzag.sort_by_key(|&(v, u)| (u + v, if (u + v) % 2 == 0 { u } else { v }));
        zigzag.truncate(BRIGHT);
        let mut projector = Projector {
            mix,
            cosines: [cosines(PATCH), cosines(PATCH / 2)],
            zigzag,
            centre: [0.0; DIM],
        };
        let mut sum = [0.0f64; DIM];
        let mut count = 0.0f64;
        for values in examples.iter().flat_map(patches) {
            let features = projector.features(&values);
            sum.iter_mut().zip(features).for_each(|(sum, x)| *sum += f64::from(x));
            count += 1.0;
        }
        projector.centre = sum.map(|sum| (sum / count.max(1.0)) as f32);
        projector
    }

    /// The tokens of these frames, in the order of a block: frame, row, column.
    pub fn tokens(&self, frames: &[Picture]) -> Tokens {
        let count: usize = frames.iter().map(|f| f.rows * f.cols).sum();
        let mut tokens = Tokens {
            qk: Vec::with_capacity(count * WIDTH),
            v: Vec::with_capacity(count * WIDTH),
        };
        for values in frames.iter().flat_map(patches) {
            self.queries(&values, &mut tokens.qk);
            tokens.v.extend(values);
        }
        tokens
    }

    /// The compressed coefficients of a patch, given by its values.
    fn features(&self, values: &[f32; WIDTH]) -> [f32; DIM] {
        let bright = transform(&values[..DIM], &self.cosines[0], PATCH);
        let mut features = [0.0f32; DIM];
        for (feature, &(v, u)) in features.iter_mut().zip(&self.zigzag) {
            *feature = bright[v * PATCH + u];
        }
        for plane in 0..2 {
            let pixels = &values[DIM + plane * COLOUR..][..COLOUR];
            let colour = transform(pixels, &self.cosines[1], PATCH / 2);
            features[BRIGHT + plane * COLOUR..][..COLOUR].copy_from_slice(&colour);
        }
        features.map(|x| x.signum() * x.abs().sqrt())
    }

    /// Appends the query of a patch, given by its values, for each head.
    fn queries(&self, values: &[f32; WIDTH], out: &mut Vec<f32>) {
        let features = self.features(values);
        for head in 0..HEADS {
            let weight = |i: usize| WEIGHTS[head][usize::from(i >= BRIGHT)] as f32;
            let weighted: [f32; DIM] = std::array::from_fn(|i| (features[i] - self.centre[i]) * weight(i));
            let norm = weighted.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-3);
            // q . k / sqrt(DIM) = SHARPNESS cos
            let gain = (SHARPNESS[head] * (DIM as f64).sqrt()).sqrt() as f32 / norm;
            let mix = &self.mix[head * DIM * DIM..][..DIM * DIM];
            out.extend(mix.chunks_exact(DIM).map(|row| gain * dot(row, &weighted)));
        }
    }
}

/// The values of a frame's patches, row by row.
fn patches(frame: &Picture) -> impl Iterator<Item = [f32; WIDTH]> {
    (0..frame.rows * frame.cols).map(|patch| values(frame, patch / frame.cols, patch % frame.cols))
}

/// The pixels of a patch, about zero.
fn values(frame: &Picture, row: usize, col: usize) -> [f32; WIDTH] {
    let mut values = [0.0; WIDTH];
    let mut cut = |plane: &[f32], side: usize, at: usize| {
        let width = side * frame.cols;
        for (i, value) in values[at..at + side * side].iter_mut().enumerate() {
            let pixel = plane[(row * side + i / side) * width + col * side + i % side];
            *value = (pixel - 128.0) / 128.0;
        }
    };
    cut(&frame.y, PATCH, 0);
    cut(&frame.u, PATCH / 2, DIM);
    cut(&frame.v, PATCH / 2, DIM + COLOUR);
    values
}

/// The picture whose patches these values are, `[rows * cols, HEADS, DIM]`.
pub fn picture(values: &[f32], grid: Grid, full_range: bool) -> Picture {
    let mut picture = Picture::grey(grid.rows, grid.cols, full_range);
    for (patch, values) in values.chunks_exact(WIDTH).enumerate() {
        let (row, col) = (patch / grid.cols, patch % grid.cols);
        let paste = |plane: &mut [f32], side: usize, at: usize| {
            let width = side * grid.cols;
            for (i, value) in values[at..at + side * side].iter().enumerate() {
                plane[(row * side + i / side) * width + col * side + i % side] = 128.0 + 128.0 * value;
            }
        };
        paste(&mut picture.y, PATCH, 0);
        paste(&mut picture.u, PATCH / 2, DIM);
        paste(&mut picture.v, PATCH / 2, DIM + COLOUR);
    }
    picture
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The orthonormal cosine transform (II) of `n` numbers, `[frequency][pixel]`.
fn cosines(n: usize) -> Vec<f32> {
    let entry = |u: usize, x: usize| {
        let gain = if u == 0 { 1.0 } else { 2.0 } / n as f64;
        gain.sqrt() * (PI * (2 * x + 1) as f64 * u as f64 / (2 * n) as f64).cos()
    };
    (0..n * n).map(|i| entry(i / n, i % n) as f32).collect()
}

/// The transform of a square of `n x n` pixels, `[row frequency][column frequency]`.
fn transform(pixels: &[f32], cosines: &[f32], n: usize) -> Vec<f32> {
    let along_rows: Vec<f32> = (0..n * n)
        .map(|i| dot(&pixels[i / n * n..][..n], &cosines[i % n * n..][..n]))
        .collect();
    let entry = |v: usize, u: usize| (0..n).map(|y| cosines[v * n + y] * along_rows[y * n + u]).sum();
    (0..n * n).map(|i| entry(i / n, i % n)).collect()
}

/// A random rotation (or reflection) of DIM numbers: normal rows, made orthonormal one by one.
fn rotation(random: &mut Random) -> Vec<f32> {
    let mut rows: Vec<[f64; DIM]> = Vec::with_capacity(DIM);
    while rows.len() < DIM {
        let mut row: [f64; DIM] = std::array::from_fn(|_| random.normal());
        // Twice is enough against rounding.
        for other in rows.iter().chain(&rows) {
            let along: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
        }
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
        rows.push(row);
    }
    rows.into_iter().flatten().map(|x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64) -> Picture {
        let mut random = Random::new(seed);
        let mut picture = Picture::grey(4, 5, false);
        for plane in [&mut picture.y, &mut picture.u, &mut picture.v] {
            plane
                .iter_mut()
                .for_each(|x| *x = (random.uniform() * 256.0).floor() as f32);
        }
        picture
    }

    #[test]
    fn values_are_the_picture() {
        let frame = noise(1);
        let tokens = Projector::new(&[]).tokens(std::slice::from_ref(&frame));
        let grid = Grid {
            frames: 1,
            rows: 4,
            cols: 5,
        };
        assert_eq!(picture(&tokens.v, grid, false), frame);
    }

    #[test]
    fn like_attracts_like() {
        let tokens = Projector::new(&[noise(3)]).tokens(&[noise(1), noise(1), noise(2)]);
        let logit = |i: usize, j: usize, head: usize| {
            let part = |t: usize| &tokens.qk[t * WIDTH + head * DIM..][..DIM];
            f64::from(dot(part(i), part(j))) / (DIM as f64).sqrt()
        };
        for (head, sharpness) in SHARPNESS.iter().enumerate() {
            for i in 0..20 {
                assert!((logit(i, i, head) - sharpness).abs() < 1e-4);
                assert!((logit(i, i + 20, head) - sharpness).abs() < 1e-4);
                assert!(logit(i, i + 40, head) < 0.7 * sharpness);
            }
        }
    }

    #[test]
    fn a_flat_grey_patch_is_finite() {
        let grey = [Picture::grey(4, 4, false)];
        for examples in [&grey[..], &[]] {
            let tokens = Projector::new(examples).tokens(&grey);
            assert!(tokens.qk.iter().chain(&tokens.v).all(|x| x.is_finite()));
        }
    }

    #[test]
    fn what_all_share_does_not_count() {
        let flat = |brightness: f32| {
            let mut picture = Picture::grey(4, 4, false);
            picture.y.fill(brightness);
            picture
        };
        let frames = [flat(200.0), flat(240.0)];
        let cosine = |examples: &[Picture], head: usize| {
            let qk = Projector::new(examples).tokens(&frames).qk;
            let part = |t: usize| &qk[t * WIDTH + head * DIM..][..DIM];
            f64::from(dot(part(0), part(16))) / ((DIM as f64).sqrt() * SHARPNESS[head])
        };
        for head in 0..HEADS {
            // Two of one kind beside each other; opposites about their mean.
            assert!((cosine(&[], head) - 1.0).abs() < 1e-3);
            assert!((cosine(&frames, head) + 1.0).abs() < 1e-3);
        }
    }

    #[test]
    fn transforms_and_rotations_keep_lengths() {
        let pixels: Vec<f32> = (0..64).map(|i| ((i * 37) % 64) as f32).collect();
        let length = |x: &[f32]| dot(x, x).sqrt();
        let transformed = transform(&pixels, &cosines(8), 8);
        assert!((length(&transformed) / length(&pixels) - 1.0).abs() < 1e-5);
        let rows = rotation(&mut Random::new(3));
        for (i, a) in rows.chunks(DIM).enumerate() {
            for (j, b) in rows.chunks(DIM).enumerate() {
                assert!((dot(a, b) - f32::from(i == j)).abs() < 1e-5);
            }
        }
    }
}
