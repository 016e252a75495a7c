//! Time steps of a sampler, in f64, and the coefficients that [`denoise_step`] takes for each.
//!
//! Flow matching: at sigma the latent is `(1 - sigma) x0 + sigma noise`, the model's time step is
//! 1000 sigma, and a shift bends the way from 1 to 0 towards the noisy end:
//! `sigma' = shift sigma / (1 + (shift - 1) sigma)`.
//!
//! [`denoise_step`]: crate::ops::denoise_step::denoise_step

use crate::error::{Error, Result};
use crate::ops::denoise_step::rows::{self, Rows};

/// The most steps and frames that are counted out: far above what anyone takes.
const MOST: usize = 1_000_000;
/// Shifts that leave digits of a sigma that is shifted twice in f32: its error at 1 grows as 1 / shift^2.
const SHIFTS: std::ops::RangeInclusive<f64> = 0.01..=1000.0;

/// Time steps of the training schedule: what a model calls sigma 1.
const TRAIN_STEPS: f64 = 1000.0;

/// One evaluation of the model and the step that it serves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// What the model is told: 1000 sigma.
    pub timestep: f64,
    /// Noise in the latent that the model sees, 0 to 1.
    pub sigma: f64,
    /// Noise after the step; 0 after the last.
    pub sigma_next: f64,
}

impl Step {
    /// Euler's step for this many frames; terms x, v.
    pub fn euler(&self, frames: usize) -> Rows {
        rows::euler(&vec![self.sigma; frames], &vec![self.sigma_next; frames])
    }

    /// To the clean latent and, but for the last step, back to `sigma_next` with fresh noise;
    /// terms x, v.
    pub fn renoise(&self, frames: usize) -> Rows {
        rows::renoise(&vec![self.sigma; frames], &vec![self.sigma_next; frames])
    }

    /// The clean latent as this step sees it; terms x, v.
    pub fn x0(&self, frames: usize) -> Rows {
        rows::x0(&vec![self.sigma; frames])
    }
}

/// How a latent goes from one sigma to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Solver {
    /// Along the velocity.
    Euler,
    /// To the clean latent, and back with fresh noise: what few-step models are trained for.
    Renoise,
}

/// The steps from noise to a clean latent.
///
/// ```
/// use packforcing::schedule::Schedule;
/// # fn main() -> packforcing::Result<()> {
/// let schedule = Schedule::few_step(&[1000.0, 750.0, 500.0, 250.0], 5.0)?;
/// let timesteps: Vec<f64> = schedule.steps().iter().map(|s| s.timestep.round()).collect();
/// assert_eq!(timesteps, [1000.0, 938.0, 833.0, 625.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    steps: Vec<Step>,
    solver: Solver,
}

impl Schedule {
    /// Euler's method in `steps` steps, as Wan samples: sigma falls evenly from 1 to 0 and is
    /// shifted once. Wan2.1 takes 50 steps, and shift 3 for 480p, 5 for 720p.
    ///
    /// # Errors
    ///
    /// No steps or more than a million, a shift that is not between 0.01 and 1000.
    pub fn euler(steps: usize, shift: f64) -> Result<Schedule> {
        const OP: &str = "Schedule::euler";
        check_steps(OP, steps)?;
        check_shift(OP, shift)?;
        let even = |i: usize| (steps - i) as f64 / steps as f64;
        // Rounding may carry a shifted 1 past 1.
        let sigma = |i| shifted(even(i), shift).min(1.0);
        Ok(Schedule::of((0..steps).map(sigma), Solver::Euler))
    }

    /// The numbers of diffusers' `FlowMatchEulerDiscreteScheduler` (0.38), to the bit. They end
    /// in a small sigma before 0 that is shifted twice, and are rounded to f32 on the way.
    ///
    /// # Errors
    ///
    /// As [`Schedule::euler`].
    pub fn diffusers_euler(steps: usize, shift: f64) -> Result<Schedule> {
        const OP: &str = "Schedule::diffusers_euler";
        check_steps(OP, steps)?;
        check_shift(OP, shift)?;
        let ends = |t: f32| {
            let (sigma, shift) = (t / TRAIN_STEPS as f32, shift as f32);
            f64::from(shift * sigma / (1.0 + (shift - 1.0) * sigma)) * TRAIN_STEPS
        };
        let (first, last) = (ends(TRAIN_STEPS as f32), ends(1.0));
        let width = (last - first) / (steps.max(2) - 1) as f64;
        let sigma = |i: usize| {
            let t = if i > 0 && i + 1 == steps {
                last
            } else {
                first + i as f64 * width
            };
            shifted(t / TRAIN_STEPS, shift) as f32
        };
        let mut schedule = Schedule::of((0..steps).map(|i| sigma(i).into()), Solver::Euler);
        for step in &mut schedule.steps {
            step.timestep = (step.sigma as f32 * TRAIN_STEPS as f32).into();
        }
        Ok(schedule)
    }

    /// The steps of a few-step model: the time steps that it was trained on, each shifted, with
    /// fresh noise in between. The paper's are 1000, 750, 500, 250 with shift 5.
    ///
    /// # Errors
    ///
    /// No time step, time steps that do not fall or lie outside (0, 1000], a shift that is not
    /// between 0.01 and 1000.
    pub fn few_step(base_timesteps: &[f64], shift: f64) -> Result<Schedule> {
        const OP: &str = "Schedule::few_step";
        check_shift(OP, shift)?;
        let inside = base_timesteps
            .iter()
            .all(|t| (0.0..=TRAIN_STEPS).contains(t) && *t > 0.0);
        if base_timesteps.is_empty() || !inside || !falls(base_timesteps) {
            return Err(Error::argument(
                OP,
                "base_timesteps",
                "one or more numbers that fall from at most 1000 to above 0",
                format!("{base_timesteps:?}"),
            ));
        }
        let sigmas = base_timesteps.iter().map(|t| shifted(t / TRAIN_STEPS, shift).min(1.0));
        Ok(Schedule::of(sigmas, Solver::Renoise))
    }

    /// Any sigmas, from the first step's to what is left after the last, usually 0.
    ///
    /// # Errors
    ///
    /// Fewer than two, sigmas that do not fall or lie outside 0 to 1.
    pub fn from_sigmas(sigmas: &[f64], solver: Solver) -> Result<Schedule> {
        let inside = sigmas.iter().all(|s| (0.0..=1.0).contains(s));
        let Some((&last, before)) = sigmas
            .split_last()
            .filter(|(_, b)| !b.is_empty() && inside && falls(sigmas))
        else {
            return Err(Error::argument(
                "Schedule::from_sigmas",
                "sigmas",
                "two or more numbers that fall from at most 1 to at least 0",
                format!("{sigmas:?}"),
            ));
        };
        let mut schedule = Schedule::of(before.iter().copied(), solver);
        if let Some(step) = schedule.steps.last_mut() {
            step.sigma_next = last;
        }
        Ok(schedule)
    }

    fn of(sigmas: impl Iterator<Item = f64>, solver: Solver) -> Schedule {
        let sigmas: Vec<f64> = sigmas.chain([0.0]).collect();
        let step = |pair: &[f64]| Step {
            timestep: TRAIN_STEPS * pair[0],
            sigma: pair[0],
            sigma_next: pair[1],
        };
        let steps = sigmas.windows(2).map(step).collect();
        Schedule { steps, solver }
    }

    /// The steps, the noisiest first.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How a latent goes from one sigma to the next.
    pub fn solver(&self) -> Solver {
        self.solver
    }

    /// What [`denoise_step`](crate::ops::denoise_step::denoise_step) takes to make one step of this
    /// schedule for so many frames: one output; terms x, v.
    ///
    /// # Errors
    ///
    /// A step that the schedule does not have, more than a million frames.
    pub fn rows(&self, step: usize, frames: usize) -> Result<Vec<Rows>> {
        let Some(step) = self.steps.get(step) else {
            return Err(Error::argument(
                "Schedule::rows",
                "step",
                format!("a number below {}", self.steps.len()),
                step.to_string(),
            ));
        };
        if frames > MOST {
            return Err(Error::argument(
                "Schedule::rows",
                "frames",
                format!("at most {MOST}"),
                frames.to_string(),
            ));
        }
        Ok(vec![match self.solver {
            Solver::Euler => step.euler(frames),
            Solver::Renoise => step.renoise(frames),
        }])
    }
}

fn shifted(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

/// Whether every number is below the one before it.
fn falls(numbers: &[f64]) -> bool {
    numbers.windows(2).all(|pair| pair[1] < pair[0])
}

fn check_steps(op: &'static str, steps: usize) -> Result<()> {
    if (1..=MOST).contains(&steps) {
        return Ok(());
    }
    Err(Error::argument(op, "steps", format!("1 to {MOST}"), steps.to_string()))
}

fn check_shift(op: &'static str, shift: f64) -> Result<()> {
    if SHIFTS.contains(&shift) {
        return Ok(());
    }
    Err(Error::argument(
        op,
        "shift",
        "a number from 0.01 to 1000",
        shift.to_string(),
    ))
}
