//! One step of any solver: linear combinations of terms, with coefficients per frame, and noise.

use crate::device::Device;
use crate::error::Result;
use crate::tensor::{Tensor, View, ViewMut};

/// `outputs x (terms + noise) x frames` numbers in device memory.
#[derive(Debug)]
pub struct Coefficients {
    pub(crate) rows: Tensor, // f32 [outputs, terms + 1, frames]
}

impl Coefficients {
    /// Rounds host numbers to f32. `rows[output][term][frame]`, the last term is the noise.
    pub fn new(device: &Device, rows: &[Vec<Vec<f64>>]) -> Result<Coefficients> {
        let _ = (device, rows);
        unimplemented!()
    }
}

/// Where normal noise comes from: Philox 4x32-10 by element, the same numbers on every device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    /// The key.
    pub seed: u64,
    /// The counter of the first four elements; a draw of n elements uses up `n.div_ceil(4)`.
    pub offset: u64,
}

/// Arguments of [`denoise_step`].
#[derive(Debug, Clone)]
pub struct DenoiseStep<'a> {
    /// What is combined, each of its own float dtype, all of one shape.
    pub terms: Vec<View<'a>>,
    /// This many outputs, the first ones, are read too: they are terms before `terms`.
    pub in_place: usize,
    /// Which dimension of the shape is frames.
    pub frame_axis: usize,
    /// The numbers.
    pub coefficients: &'a Coefficients,
    /// The noise, where a coefficient asks for it.
    pub noise: Option<Noise>,
}

/// `out_j = sum_k c[j][k][frame] term_k + c[j][last][frame] noise`
pub fn denoise_step(args: &DenoiseStep<'_>, outputs: &mut [ViewMut<'_>]) -> Result<()> {
    let _ = (args, outputs);
    unimplemented!()
}
