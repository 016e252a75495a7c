//! Time steps of a sampler, in f64, and the coefficients that [`denoise_step`] takes for each.
//!
//! Flow matching: at sigma the latent is `(1 - sigma) x0 + sigma noise`, the model's time step is
//! 1000 sigma, and a shift bends the way from 1 to 0 towards the noisy end:
//! `sigma' = shift sigma / (1 + (shift - 1) sigma)`.
//!
//! # Solvers
//!
//! A step of any [`Solver`] is one launch of [`denoise_step`] over the latent, the tensors that the
//! solver remembers ([`Schedule::states`]) and the velocity; the latent and the states are read and
//! written in place. [`Schedule::rows`] has the numbers, so a loop need not know the solver, and
//! [`Sampler`](crate::sampler::Sampler) is that loop.
//!
//! # Other programs' sigmas
//!
//! [`Schedule::euler`], [`Schedule::unipc`] and [`Schedule::dpm_solver`] go evenly from 1 to 0 and
//! shift once. diffusers' schedulers differ from that and from each other; the functions
//! `diffusers_*` have their numbers, for those who compare or whose model was tuned on them:
//!
//! - [`Schedule::diffusers_euler`]: its scheduler shifts the ends of its range when it is made, and
//!   all sigmas again when steps are set. **The shift is applied twice** to what is near the end:
//!   with shift 5 the last sigma is 0.0244 where one shift of the same 0.001 gives 0.005.
//! - [`Schedule::diffusers_unipc`]: shifts once. Its even way leads to 0.001, and 0 stands in that
//!   one's place. The formulas take ln(1 - sigma), so a first sigma of 1 is lowered to 0.999999.
//! - [`Schedule::diffusers_dpm_solver`]: begins its range at 0.999 for the same reason; the shift
//!   makes 0.9998 of it (shift 5).
//!
//! Here sigma 1 is exact: the formulas are used in the form whose limit is a number.
//!
//! [`denoise_step`]: crate::ops::denoise_step::denoise_step

use crate::error::{Error, Result};
use crate::ops::denoise_step::rows::{self, Rows};

mod multistep;

use multistep::Around;

/// Solvers that remember divide by how far they came: below this, digits of it are lost.
const LEAST_GROWTH: f64 = 1e-9;
/// The most steps and frames that are counted out: far above what anyone takes.
const MOST: usize = 1_000_000;
/// Shifts that leave digits of a sigma that is shifted twice in f32: its error at 1 grows as 1 / shift^2.
const SHIFTS: std::ops::RangeInclusive<f64> = 0.01..=1000.0;

/// Time steps of the training schedule: what a model calls sigma 1.
const TRAIN_STEPS: f64 = 1000.0;

/// One evaluation of the model and the step that it serves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// What the model is told: 1000 sigma, which some of diffusers' tables round down.
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
    ///
    /// That is multistep sampling of a latent consistency model too ([`Solver::LCM`]).
    Renoise,
    /// DPM-Solver++ 2M (Lu et al., arXiv 2211.01095, algorithm 2), the midpoint form: second order
    /// with the clean latent of the step before. The first and the last step are of first order.
    /// One state.
    DpmSolver,
    /// UniPC (Zhao et al., arXiv 2302.04867), "bh2" of second order with the corrector: the step of
    /// [`Solver::DpmSolver`], corrected at the next evaluation of the model, which costs none of its
    /// own. The first and the last step are of first order. Two states.
    UniPc,
}

impl Solver {
    /// A latent consistency model (Luo et al., arXiv 2310.04378) under flow matching: to the clean
    /// latent, and back with fresh noise, which is [`Solver::Renoise`]. The paper's scalings c_skip
    /// and c_out make a prediction of the clean latent that is x itself at sigma 0; `x - sigma v` is,
    /// without them.
    pub const LCM: Solver = Solver::Renoise;

    /// How many tensors of the latent's shape it remembers from step to step.
    pub fn states(self) -> usize {
        match self {
            Solver::Euler | Solver::Renoise => 0,
            Solver::DpmSolver => 1,
            Solver::UniPc => 2,
        }
    }
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
        Schedule::even("Schedule::euler", steps, shift, Solver::Euler)
    }

    /// [`Solver::UniPc`] on the sigmas of [`Schedule::euler`]. Other sigmas:
    /// [`Schedule::diffusers_unipc`], [`Schedule::from_sigmas`].
    ///
    /// # Errors
    ///
    /// As [`Schedule::euler`].
    pub fn unipc(steps: usize, shift: f64) -> Result<Schedule> {
        Schedule::even("Schedule::unipc", steps, shift, Solver::UniPc)
    }

    /// [`Solver::DpmSolver`] on the sigmas of [`Schedule::euler`]. Other sigmas:
    /// [`Schedule::diffusers_dpm_solver`], [`Schedule::from_sigmas`].
    ///
    /// # Errors
    ///
    /// As [`Schedule::euler`].
    pub fn dpm_solver(steps: usize, shift: f64) -> Result<Schedule> {
        Schedule::even("Schedule::dpm_solver", steps, shift, Solver::DpmSolver)
    }

    /// [`Solver::LCM`] on the sigmas of [`Schedule::euler`].
    ///
    /// # Errors
    ///
    /// As [`Schedule::euler`].
    pub fn lcm(steps: usize, shift: f64) -> Result<Schedule> {
        Schedule::even("Schedule::lcm", steps, shift, Solver::LCM)
    }

    fn even(op: &'static str, steps: usize, shift: f64, solver: Solver) -> Result<Schedule> {
        check_steps(op, steps)?;
        check_shift(op, shift)?;
        let sigmas: Vec<f64> = (0..steps)
            // Rounding may carry a shifted 1 past 1.
            .map(|i| shifted((steps - i) as f64 / steps as f64, shift).min(1.0))
            .collect();
        check_apart(op, &sigmas, shift)?;
        Ok(Schedule::of(sigmas.into_iter(), solver))
    }

    /// The numbers of diffusers' `FlowMatchEulerDiscreteScheduler` (0.38), to the bit. They end
    /// in a small sigma before 0 that is **shifted twice**, and are rounded to f32 on the way; the
    /// [module](self#other-programs-sigmas) says more. [`Schedule::euler`] shifts once.
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

    /// The numbers of diffusers' `UniPCMultistepScheduler` (0.38) with flow sigmas, to the bit of
    /// f32: evenly from 1 towards 0.001, shifted once, with 0 for the last. A first sigma of 1 is
    /// 0.999999, as the scheduler needs a finite ln(1 - sigma). Time steps are whole numbers,
    /// rounded down. [`Schedule::unipc`] needs neither.
    ///
    /// # Errors
    ///
    /// As [`Schedule::euler`].
    pub fn diffusers_unipc(steps: usize, shift: f64) -> Result<Schedule> {
        const TINY: f64 = 1e-6;
        let sigma = |even: f64| {
            let sigma = shifted(even, shift);
            sigma - if (sigma - 1.0).abs() < TINY { TINY } else { 0.0 }
        };
        Schedule::diffusers("Schedule::diffusers_unipc", (steps, shift), Solver::UniPc, |i| {
            sigma(even_to_last(i, steps))
        })
    }

    /// The numbers of diffusers' `DPMSolverMultistepScheduler` (0.38) with flow sigmas, to the bit
    /// of f32: evenly from 0.999, so that ln(1 - sigma) is finite, to 0, shifted once. Time steps
    /// are whole numbers, rounded down. [`Schedule::dpm_solver`] begins at 1.
    ///
    /// # Errors
    ///
    /// As [`Schedule::euler`].
    pub fn diffusers_dpm_solver(steps: usize, shift: f64) -> Result<Schedule> {
        Schedule::diffusers(
            "Schedule::diffusers_dpm_solver",
            (steps, shift),
            Solver::DpmSolver,
            // The scheduler counts up from 1 and turns the list around.
            |i| shifted(1.0 - even_to_last(steps as f64 - i, steps), shift),
        )
    }

    /// Sigmas rounded to f32, time steps to whole numbers.
    fn diffusers(
        op: &'static str,
        (steps, shift): (usize, f64),
        solver: Solver,
        sigma: impl Fn(f64) -> f64,
    ) -> Result<Schedule> {
        check_steps(op, steps)?;
        check_shift(op, shift)?;
        let wide: Vec<f64> = (0..steps).map(|i| sigma(i as f64)).collect();
        let narrow: Vec<f64> = wide.iter().map(|&s| f64::from(s as f32)).collect();
        check_apart(op, &narrow, shift)?;
        let mut schedule = Schedule::of(narrow.into_iter(), solver);
        for (step, sigma) in schedule.steps.iter_mut().zip(wide) {
            step.timestep = (TRAIN_STEPS * sigma).trunc();
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
        check_timesteps(OP, "base_timesteps", base_timesteps)?;
        let sigmas = base_timesteps.iter().map(|t| shifted(t / TRAIN_STEPS, shift).min(1.0));
        Ok(Schedule::of(sigmas, Solver::Renoise))
    }

    /// The steps of a few-step model that is told its time steps as they are, as CausVid's (arXiv 2412.07772) is: 1000, 757
    /// and 522 with shift 8. A step's sigma is the nearest of the 1,000 of training, `shifted(1 - i / 1000)`.
    ///
    /// # Errors
    ///
    /// As [`Schedule::few_step`]; time steps that are too near one another for sigmas of their own.
    pub fn few_step_as_told(timesteps: &[f64], shift: f64) -> Result<Schedule> {
        const OP: &str = "Schedule::few_step_as_told";
        check_shift(OP, shift)?;
        check_timesteps(OP, "timesteps", timesteps)?;
        let trained: Vec<f64> = (0..TRAIN_STEPS as usize)
            .map(|i| shifted(1.0 - i as f64 / TRAIN_STEPS, shift).min(1.0))
            .collect();
        let nearest = |t: f64| {
            let off = |sigma: &f64| (TRAIN_STEPS * sigma - t).abs();
            let best = trained.iter().min_by(|a, b| off(a).total_cmp(&off(b)));
            best.copied().unwrap_or(1.0)
        };
        let sigmas: Vec<f64> = timesteps.iter().map(|t| nearest(*t)).collect();
        check_apart(OP, &sigmas, shift)?;
        let mut schedule = Schedule::of(sigmas.into_iter(), Solver::Renoise);
        for (step, timestep) in schedule.steps.iter_mut().zip(timesteps) {
            step.timestep = *timestep;
        }
        Ok(schedule)
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
        let apart = |pair: &[f64]| multistep::growth(pair[0], pair[1]) >= LEAST_GROWTH;
        if solver.states() > 0 && !sigmas.windows(2).all(apart) {
            return Err(Error::argument(
                "Schedule::from_sigmas",
                "sigmas",
                format!("steps over which ln(1 / sigma - 1) grows by {LEAST_GROWTH} or more"),
                format!("{sigmas:?}"),
            ));
        }
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
    /// schedule for so many frames. Outputs are x and the states, all in place; terms are x, the
    /// states, v.
    ///
    /// The first step does not depend on what the states hold, as long as it is finite.
    ///
    /// # Errors
    ///
    /// A step that the schedule does not have, more than a million frames.
    pub fn rows(&self, step: usize, frames: usize) -> Result<Vec<Rows>> {
        let Some(now) = self.steps.get(step) else {
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
        Ok(match self.solver {
            Solver::Euler => vec![now.euler(frames)],
            Solver::Renoise => vec![now.renoise(frames)],
            Solver::DpmSolver => multistep::dpm_solver(self.around(step), frames),
            Solver::UniPc => {
                let before = step.checked_sub(1).map(|before| self.around(before));
                multistep::unipc(self.around(step), before, frames)
            }
        })
    }

    /// What [`denoise_step`](crate::ops::denoise_step::denoise_step) takes to begin: outputs x, which
    /// becomes noise, and the states, which become 0; no terms.
    pub fn start_rows(&self, frames: usize) -> Vec<Rows> {
        let states = std::iter::repeat_n(0.0, self.states());
        std::iter::once(1.0)
            .chain(states)
            .map(|c| vec![vec![c; frames]])
            .collect()
    }

    /// How many tensors of the latent's shape the solver remembers from step to step.
    pub fn states(&self) -> usize {
        self.solver.states()
    }

    /// The sigmas around a step that is there. Both ends are of first order: nothing is known before
    /// the first, and the last often ends at sigma 0, where lambda is infinite.
    fn around(&self, step: usize) -> Around {
        let inner = step > 0 && step + 1 < self.steps.len();
        Around {
            before: inner.then(|| self.steps[step - 1].sigma),
            now: self.steps[step].sigma,
            next: self.steps[step].sigma_next,
        }
    }
}

fn shifted(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

/// Number `i` of an even way from 1 to the last training step in so many steps.
fn even_to_last(i: f64, steps: usize) -> f64 {
    let last = 1.0 / TRAIN_STEPS;
    if i == steps as f64 {
        last
    } else {
        1.0 + i * ((last - 1.0) / steps as f64)
    }
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

fn check_timesteps(op: &'static str, argument: &'static str, timesteps: &[f64]) -> Result<()> {
    let inside = timesteps.iter().all(|t| (0.0..=TRAIN_STEPS).contains(t) && *t > 0.0);
    if !timesteps.is_empty() && inside && falls(timesteps) {
        return Ok(());
    }
    Err(Error::argument(
        op,
        argument,
        "one or more numbers that fall from at most 1000 to above 0",
        format!("{timesteps:?}"),
    ))
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

/// Steps that go down: a shift that is too large or too small leaves sigmas that are one number.
fn check_apart(op: &'static str, sigmas: &[f64], shift: f64) -> Result<()> {
    if falls(sigmas) && sigmas.last().is_some_and(|&s| s > 0.0) {
        return Ok(());
    }
    let expected = format!("a shift under which {} sigmas fall", sigmas.len());
    Err(Error::argument(op, "shift", expected, shift.to_string()))
}
