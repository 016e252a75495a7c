//! [`denoise_step`]: x in f32, stepped in place along velocities of any float dtype.

use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, denoise_step, rows};
use packforcing::ops::guidance::{GuidanceWeights, guidance};
use packforcing::{DType, Device};

use super::{Numbers, WAN_LATENTS, guided, some};
use crate::case::{Call, Case, Results, Work, tell};
use crate::error::Result;
use crate::random::Random;

/// What a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Solver {
    /// `x + (s' - s) v`.
    #[default]
    Euler,
    /// `(1 - s') x0 + s' noise`, with fresh noise.
    Renoise,
}

/// A shape of `denoise_step` and, but for solver and guidance, of `guidance`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Channels, frames, rows and columns of the latents.
    pub latents: [usize; 4],
    /// Of the velocities; x is f32.
    pub dtype: DType,
    /// What the step computes.
    pub solver: Solver,
    /// Whether it takes two velocities and weights of guidance.
    pub guided: bool,
    /// Decides the numbers.
    pub seed: u64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            latents: WAN_LATENTS,
            dtype: DType::BF16,
            solver: Solver::Euler,
            guided: false,
            seed: 0,
        }
    }
}

impl Shape {
    pub(super) fn check(&self) -> Result<()> {
        let [channels, frames, rows, cols] = self.latents;
        some(&[
            ("channels", channels),
            ("frames", frames),
            ("rows", rows),
            ("cols", cols),
        ])
    }

    /// The case on this device. x is read and written, velocities are read.
    ///
    /// # Errors
    ///
    /// A shape that makes no case; what the op refuses comes with the first call.
    pub fn case(&self, device: &Device) -> Result<Case> {
        self.check()?;
        let &Shape { latents, dtype, .. } = self;
        let frames = latents[1];
        let mut random = Random::new(self.seed);
        let [x, v, u] = [
            Numbers::new(&mut random, "channels", &latents)?,
            Numbers::new(&mut random, "channels", &latents)?,
            Numbers::new(&mut random, "channels", &latents)?,
        ];
        let sigma = |s: f64| vec![s; frames];
        let (mut made, noise) = match self.solver {
            Solver::Euler => (rows::euler(&sigma(0.9), &sigma(0.8)), None),
            Solver::Renoise => {
                let noise = Noise { seed: 1, offset: 0 };
                (rows::renoise(&sigma(0.9), &sigma(0.8)), Some(noise))
            }
        };
        let velocities = if self.guided {
            made = rows::weighted(made);
            2
        } else {
            1
        };
        let moved = x.data.len() * (2 * 4 + velocities * dtype.bytes());
        let made = [made];
        Case::new("denoise_step", device, Work::bytes(moved), moved, || {
            let mut x = x.tensor(device, DType::F32)?;
            let (v, u) = (v.tensor(device, dtype)?, u.tensor(device, dtype)?);
            let coefficients = Coefficients::new(device, &made)?;
            let weights = match self.guided {
                true => {
                    let mut weights = GuidanceWeights::new(device, &latents, 1)?;
                    guidance(&guided(v.view(), u.view()), &mut weights)?;
                    Some(weights)
                }
                false => None,
            };
            let call = move |results: Results<'_>| {
                let mut terms = vec![v.view()];
                if weights.is_some() {
                    terms.push(u.view());
                }
                let args = DenoiseStep {
                    terms,
                    in_place: 1,
                    frame_axis: 1,
                    coefficients: &coefficients,
                    noise,
                    noise_base: None,
                    guidance: weights.as_ref(),
                };
                denoise_step(&args, &mut [x.view_mut()])?;
                tell(results, &[("x", x.view())])
            };
            Ok(Box::new(call) as Call)
        })
    }
}
