//! A latent on its way through a [`Schedule`], whatever the solver keeps beside it.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::denoise_step::{Coefficients, DenoiseStep, Noise, denoise_step};
use crate::schedule::Schedule;
use crate::tensor::{Tensor, View, ViewMut};

/// The latent, the solver's states (in f32) and the numbers of every step, in device memory.
///
/// Guidance, outputs of one's own or a captured graph want [`denoise_step`] itself; this is the
/// plain loop over [`Schedule::rows`].
///
/// ```
/// use packforcing::ops::denoise_step::Noise;
/// use packforcing::sampler::Sampler;
/// use packforcing::schedule::Schedule;
/// use packforcing::{DType, Device, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let cpu = Device::cpu();
/// let mut noise = Noise { seed: 1, offset: 0 };
/// let mut sampler = Sampler::new(&Tensor::zeros(&cpu, DType::F32, &[2, 8])?, 0, Schedule::unipc(10, 5.0)?)?;
/// sampler.start(noise)?;
/// for step in 0..sampler.schedule().steps().len() {
///     // A model that knows that the clean latent is 3: v = (x - 3) / sigma.
///     let sigma = sampler.schedule().steps()[step].sigma as f32;
///     let v: Vec<f32> = sampler.latent().to_vec::<f32>()?.iter().map(|x| (x - 3.0) / sigma).collect();
///     noise = noise.after(16);
///     sampler.step(step, Tensor::from_slice(&cpu, &v, &[2, 8])?.view(), noise)?;
/// }
/// assert!(sampler.latent().to_vec::<f32>()?.iter().all(|x| (x - 3.0).abs() < 1e-5));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Sampler {
    schedule: Schedule,
    frame_axis: usize,
    latent: Tensor,
    states: Vec<Tensor>,
    start: Coefficients,
    steps: Vec<Coefficients>,
    /// The step that comes next; 0 may come at any time.
    next: usize,
}

impl Sampler {
    /// Memory for a latent like this one: its device, dtype and shape.
    ///
    /// # Errors
    ///
    /// A frame axis that the shape does not have, no elements, a dtype without fractions, memory
    /// that the device does not have.
    pub fn new(like: &Tensor, frame_axis: usize, schedule: Schedule) -> Result<Sampler> {
        const OP: &str = "Sampler::new";
        let (device, shape) = (like.device(), like.shape());
        let frames = shape.get(frame_axis).copied().unwrap_or(0);
        if frames == 0 || like.elements() == 0 {
            let expected = format!("a dimension of {shape:?}, and elements");
            return Err(Error::argument(OP, "frame_axis", expected, frame_axis.to_string()));
        }
        if !like.dtype().is_float() {
            return Err(Error::argument(OP, "like", "f32, f16 or bf16", like.dtype().name()));
        }
        let steps = (0..schedule.steps().len()).map(|step| Coefficients::new(device, &schedule.rows(step, frames)?));
        Ok(Sampler {
            frame_axis,
            latent: Tensor::zeros(device, like.dtype(), shape)?,
            states: (0..schedule.states())
                .map(|_| Tensor::zeros(device, DType::F32, shape))
                .collect::<Result<_>>()?,
            start: Coefficients::new(device, &schedule.start_rows(frames))?,
            steps: steps.collect::<Result<_>>()?,
            next: 0,
            schedule,
        })
    }

    /// Turns the latent into noise and forgets what the solver kept.
    ///
    /// # Errors
    ///
    /// Whatever the device reports.
    pub fn start(&mut self, noise: Noise) -> Result<()> {
        let args = DenoiseStep {
            terms: Vec::new(),
            in_place: 0,
            frame_axis: self.frame_axis,
            coefficients: &self.start,
            noise: Some(noise),
            noise_base: None,
            guidance: None,
        };
        denoise_step(&args, &mut written(&mut self.latent, &mut self.states))?;
        self.next = 0;
        Ok(())
    }

    /// Makes one step along the model's velocity of the latent as it is. Steps come in their order,
    /// from 0; the noise is drawn where the solver asks for it.
    ///
    /// # Errors
    ///
    /// A step that the schedule does not have; [`Error::Order`] for one that is not the next, which
    /// would use what the solver kept of another; a velocity of another shape or device than the latent,
    /// whatever the device reports.
    pub fn step(&mut self, step: usize, velocity: View<'_>, noise: Noise) -> Result<()> {
        let Some(coefficients) = self.steps.get(step) else {
            let expected = format!("a number below {}", self.steps.len());
            return Err(Error::argument("Sampler::step", "step", expected, step.to_string()));
        };
        if step != 0 && step != self.next {
            let reason = format!("step {step} came, and step {} is next", self.next);
            return Err(Error::Order {
                op: "Sampler::step",
                reason,
            });
        }
        let args = DenoiseStep {
            terms: vec![velocity],
            in_place: 1 + self.states.len(),
            frame_axis: self.frame_axis,
            coefficients,
            noise: coefficients.noisy().then_some(noise),
            noise_base: None,
            guidance: None,
        };
        denoise_step(&args, &mut written(&mut self.latent, &mut self.states))?;
        self.next = step + 1;
        Ok(())
    }

    /// The latent as it is now.
    pub fn latent(&self) -> &Tensor {
        &self.latent
    }

    /// The latent to write, for a start of one's own after [`Sampler::start`].
    pub fn latent_mut(&mut self) -> &mut Tensor {
        &mut self.latent
    }

    /// The steps.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}

fn written<'a>(latent: &'a mut Tensor, states: &'a mut [Tensor]) -> Vec<ViewMut<'a>> {
    std::iter::once(latent.view_mut())
        .chain(states.iter_mut().map(Tensor::view_mut))
        .collect()
}
