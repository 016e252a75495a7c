//! Training on short clips, with histories laid out as sampling lays them out.
//!
//! A step draws a block of a clip and a history for it: the sink whole, some of the older blocks compressed, with
//! gaps between them, the recent ones whole, all packed to the right. The history is noisy, and now and then
//! its newest block is one that the model itself has made, so that it learns to mend what it will do wrong.
//! The loss is flow matching's on the one block. Everything that a step draws follows from the seed and its number:
//! a run that is resumed goes on as if it had never stopped, to the bit.

mod batch;
mod checkpoint;
mod optimizer;

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::attention::Window;
use crate::compressor::{Compressor, CompressorConfig, Pooled};
use crate::config::{Config, Prediction};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::weights::{RandomWeights, Weights};

pub use batch::{Clips, ShortClip};
pub use checkpoint::{Checkpoint, Description, differences};

use batch::{Batch, Sample};
use optimizer::{Gradients, Parameter};

/// How a model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Decides everything that is random.
    pub seed: u64,
    /// Steps of the whole run, which the learning rate falls over.
    pub steps: u64,
    /// Threads of a step, each with clips and a layout of its own; their gradients are averaged. Part of what is
    /// trained, not of the machine that does it.
    pub parts: usize,
    /// Clips in a part.
    pub batch: usize,
    /// Noise levels of the one block that is learned of each clip: its history is computed once for all.
    pub versions: usize,
    /// Frames of a block.
    pub block_frames: usize,
    /// Whole blocks from the beginning.
    pub sink: usize,
    /// Most compressed blocks.
    pub selected: usize,
    /// Newest whole blocks.
    pub recent: usize,
    /// Largest learning rate.
    pub learning_rate: f64,
    /// Steps until it is reached.
    pub warm_up: u64,
    /// Of the weights of linear layers.
    pub weight_decay: f64,
    /// Largest L2 norm of all gradients together.
    pub clip_norm: f64,
    /// How much of the averaged weights a step keeps, once there were enough steps.
    pub ema: f64,
    /// Of the noise levels: `s u / (1 + (s - 1) u)` of a uniform u.
    pub shift: f64,
    /// Largest standard deviation of the noise on the history.
    pub history_noise: f64,
    /// How often the newest block of the history is one that the model made.
    pub self_made: f64,
    /// Steps before it makes any.
    pub self_made_after: u64,
}

impl Default for TrainConfig {
    fn default() -> TrainConfig {
        TrainConfig {
            seed: 1,
            steps: 16_000,
            parts: 2,
            batch: 4,
            versions: 3,
            block_frames: 4,
            sink: 1,
            selected: 4,
            recent: 1,
            learning_rate: 1e-3,
            warm_up: 200,
            weight_decay: 0.01,
            clip_norm: 1.0,
            ema: 0.999,
            shift: 3.0,
            history_noise: 0.1,
            self_made: 0.5,
            self_made_after: 3000,
        }
    }
}

impl TrainConfig {
    fn check(&self) -> Result<()> {
        let refuse = |expected: &str, got: String| Err(Error::argument("train", expected, got));
        if [self.parts, self.batch, self.versions, self.block_frames].contains(&0) || self.steps == 0 {
            return refuse(
                "parts, a batch, versions, steps and frames of a block above 0",
                format!("{self:?}"),
            );
        }
        let numbers = [
            self.learning_rate,
            self.weight_decay,
            self.clip_norm,
            self.history_noise,
            self.shift,
        ];
        if numbers.iter().any(|n| !n.is_finite() || *n < 0.0) || self.shift <= 0.0 || self.clip_norm <= 0.0 {
            return refuse(
                "finite numbers from 0, a shift and a norm above it",
                format!("{self:?}"),
            );
        }
        if !(0.0..=1.0).contains(&self.self_made) || !(0.0..1.0).contains(&self.ema) {
            return refuse("self_made from 0 to 1, ema from 0 to below 1", format!("{self:?}"));
        }
        Ok(())
    }

    /// The learning rate of a step: up to its largest in a line, then down by a cosine to a tenth.
    fn rate(&self, step: u64) -> f64 {
        if step < self.warm_up {
            return self.learning_rate * (step + 1) as f64 / self.warm_up as f64;
        }
        let left = self.steps.saturating_sub(self.warm_up).max(1) as f64;
        let done = ((step - self.warm_up) as f64 / left).min(1.0);
        self.learning_rate * (0.55 + 0.45 * (std::f64::consts::PI * done).cos())
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Its number, from 0.
    pub step: u64,
    /// Mean squared error of the velocity, bounded where noise is low.
    pub loss: f64,
    /// L2 norm of all gradients, before it was clipped.
    pub gradient: f64,
}

/// A model in training.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use packforcing_video::train::{Clips, ShortClip, TrainConfig, Trainer};
/// use packforcing_video::{CompressorConfig, Config, Result};
///
/// struct Grey;
/// impl Clips for Grey {
///     fn clip(&self, number: u64) -> Result<ShortClip> {
///         let level = (number % 3) as f32 * 0.5 - 0.5;
///         Ok(ShortClip {
///             frames: Tensor::full(level, (3, 12, 8, 8), &Device::Cpu)?,
///             context: Tensor::zeros((1, 16), DType::F32, &Device::Cpu)?,
///         })
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let config = TrainConfig { batch: 1, steps: 2, ..TrainConfig::default() };
/// let mut trainer = Trainer::new(&Config::tiny(3), &CompressorConfig::tiny(), &config, &Device::Cpu)?;
/// let report = trainer.step(&Grey)?;
/// assert!(report.loss.is_finite() && trainer.done() == 1);
/// # Ok(())
/// # }
/// ```
pub struct Trainer {
    config: TrainConfig,
    parameters: Vec<Parameter>,
    /// Of the tracked weights.
    tracked: Pair,
    /// The same memory, untracked.
    plain: Pair,
    done: u64,
    device: Device,
}

/// What is trained together.
struct Pair {
    model: Model,
    compressor: Compressor,
}

impl Pair {
    fn new(model: &Config, compressor: &CompressorConfig, weights: &mut impl Weights) -> Result<Pair> {
        Ok(Pair {
            model: Model::new(model, weights)?,
            compressor: Compressor::new(compressor, model, weights)?,
        })
    }

    /// The clean latents of versions of the sample's block, each noisy and with its noise levels,
    /// `[batch, 1, 1, 1, 1]`.
    fn predict(&self, sample: &Sample, versions: &[(&Tensor, &Tensor)]) -> Result<Vec<Tensor>> {
        let model = &self.model;
        let Some((first, _)) = versions.first() else {
            return Ok(Vec::new());
        };
        let (batch, channels, frames, rows, cols) = first.dims5()?;
        let latent = [frames, rows, cols];
        let (grid, mid) = (
            model.config().tokens(latent)?,
            self.compressor.config().grid(model.config(), latent)?,
        );
        let count = sample.mids.len();
        let mids = match count {
            0 => Vec::new(),
            _ => {
                let all = Tensor::stack(&sample.mids, 1)?.reshape((batch * count, channels, frames, rows, cols))?;
                let tokens = self.compressor.tokens(model, &all, &Pooled)?;
                model.keys_and_values(&tokens.reshape((batch, count * mid.tokens().0, ()))?)?
            }
        };
        let layout = sample.layout(versions.len());
        let mut window = Window::new(&model.config().rope()?, grid, mid, layout, &mids, first.device())?;
        let history = sample.sink.iter().chain(&sample.recent);
        let past = frames * (layout.sink + layout.recent);
        let whole: Vec<&Tensor> = history.chain(versions.iter().map(|v| v.0)).collect();
        let mut timesteps = vec![Tensor::zeros((batch, past), DType::F32, first.device())?];
        for (_, sigmas) in versions {
            let all = sigmas.reshape((batch, 1))?.broadcast_as((batch, frames))?;
            timesteps.push((all * 1000.0)?);
        }
        if past == 0 {
            timesteps.remove(0);
        }
        let context = model.context(&sample.context)?;
        let all = model.predict(
            &Tensor::cat(&whole, 2)?,
            &Tensor::cat(&timesteps, 1)?,
            &context,
            &mut window,
        )?;
        let each = versions.iter().enumerate().map(|(i, (noisy, sigmas))| {
            let now = all.narrow(2, past + i * frames, frames)?;
            match model.config().prediction {
                Prediction::Clean => Ok(now),
                Prediction::Velocity => Ok((*noisy - now.broadcast_mul(sigmas)?)?),
            }
        });
        each.collect()
    }

    /// The one version at the same noise level in every clip.
    fn predict_at(&self, sample: &Sample, noisy: &Tensor, sigma: f64) -> Result<Tensor> {
        let sigmas = Tensor::full(sigma as f32, (noisy.dim(0)?, 1, 1, 1, 1), noisy.device())?;
        let versions = self.predict(sample, &[(noisy, &sigmas)])?;
        Ok(Tensor::cat(&versions, 0)?)
    }
}

/// Weights that become parameters on their way to the model.
struct Recorded<'a, W> {
    from: &'a mut W,
    parameters: Vec<Parameter>,
}

impl<W: Weights> Weights for Recorded<'_, W> {
    fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let var = Var::from_tensor(&self.from.get(name, shape)?)?;
        let tensor = var.as_tensor().clone();
        self.parameters.push(Parameter::new(name, var)?);
        Ok(tensor)
    }
}

/// The memory of parameters, untracked.
struct Plain<'a>(&'a [Parameter]);

impl Weights for Plain<'_> {
    fn get(&mut self, name: &str, _shape: &[usize]) -> Result<Tensor> {
        let found = self.0.iter().find(|p| p.name == name);
        let expected = || Error::argument("weights", "a parameter of the model", name);
        Ok(found.ok_or_else(expected)?.weight.as_detached_tensor())
    }
}

impl Trainer {
    /// A model with random weights of the seed.
    ///
    /// # Errors
    ///
    /// Sizes and numbers that make no sense, memory.
    pub fn new(
        model: &Config,
        compressor: &CompressorConfig,
        config: &TrainConfig,
        device: &Device,
    ) -> Result<Trainer> {
        let mut random = RandomWeights::new(config.seed, DType::F32, device)?;
        Trainer::from_weights(model, compressor, config, &mut random, device)
    }

    fn from_weights(
        model: &Config,
        compressor: &CompressorConfig,
        config: &TrainConfig,
        weights: &mut impl Weights,
        device: &Device,
    ) -> Result<Trainer> {
        config.check()?;
        let mut recorded = Recorded {
            from: weights,
            parameters: Vec::new(),
        };
        let tracked = Pair::new(model, compressor, &mut recorded)?;
        let parameters = recorded.parameters;
        Ok(Trainer {
            config: config.clone(),
            plain: Pair::new(model, compressor, &mut Plain(&parameters))?,
            tracked,
            parameters,
            done: 0,
            device: device.clone(),
        })
    }

    /// Steps made so far, in earlier runs too.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// How it is trained.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Numbers that are trained.
    pub fn numbers(&self) -> usize {
        self.parameters.iter().map(|p| p.weight.elem_count()).sum()
    }

    /// One step.
    ///
    /// # Errors
    ///
    /// Clips that are too short or do not fit, and a loss that is not finite: the weights are as they were.
    pub fn step(&mut self, clips: &(impl Clips + Sync)) -> Result<Report> {
        let (step, parts) = (self.done, self.config.parts);
        let this = &*self;
        let done: Vec<Result<(f64, Gradients)>> = std::thread::scope(|scope| {
            let part = |number| scope.spawn(move || this.part(number, clips));
            let first = step * parts as u64;
            let threads: Vec<_> = (first..first + parts as u64).map(part).collect();
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        });
        // In the order of their numbers: sums of floats depend on it.
        let (mut loss, mut gradients) = (0.0, Gradients::default());
        for part in done {
            let (l, g) = part?;
            loss += l / parts as f64;
            gradients.add(g, 1.0 / parts as f64)?;
        }
        let gradient = gradients.norm()?;
        if !loss.is_finite() || !gradient.is_finite() {
            let got = format!("{loss}, gradients of norm {gradient}, at step {step}");
            return Err(Error::argument("loss", "a finite number", got));
        }
        optimizer::update(&mut self.parameters, &gradients, &self.config, step, gradient)?;
        self.done += 1;
        Ok(Report { step, loss, gradient })
    }

    /// Loss and gradients of one part of a step; `number` counts those of all steps.
    fn part(&self, number: u64, clips: &impl Clips) -> Result<(f64, Gradients)> {
        let config = &self.config;
        let mut batch = Batch::draw(config, number, clips, &self.device)?;
        if let Some(made) = &batch.made {
            // From noise, as in sampling, in one or two steps.
            let mut x = self.plain.predict_at(made, &batch.made_noise[0], 1.0)?;
            for noise in &batch.made_noise[1..] {
                let noisy = ((x * (1.0 - MADE_SIGMA))? + (noise * MADE_SIGMA)?)?;
                x = self.plain.predict_at(made, &noisy, MADE_SIGMA)?;
            }
            if let Some(newest) = batch.sample.recent.last_mut() {
                *newest = x.detach();
            }
        }
        let clean = &batch.target;
        let noisy = batch.versions.iter().map(|(noise, sigmas)| {
            let noisy = clean.broadcast_mul(&(1.0 - sigmas)?)? + noise.broadcast_mul(sigmas)?;
            Ok((noisy?, sigmas))
        });
        let noisy: Vec<(Tensor, &Tensor)> = noisy.collect::<Result<_>>()?;
        let noisy: Vec<(&Tensor, &Tensor)> = noisy.iter().map(|(noisy, sigmas)| (noisy, *sigmas)).collect();
        let predicted = self.tracked.predict(&batch.sample, &noisy)?;
        // The error of the velocity is that of the clean latent by sigma: without a bound all but clean
        // samples, from which there is least to learn, would be nearly all of the loss.
        let losses = predicted.iter().zip(&noisy).map(|(x, (_, sigmas))| {
            let off = (x - clean)?.broadcast_div(&sigmas.maximum(LEAST_SIGMA)?)?;
            Ok(off.sqr()?.mean_all()?)
        });
        let losses = losses.collect::<Result<Vec<_>>>()?;
        let loss = Tensor::stack(&losses, 0)?.mean_all()?;
        let gradients = Gradients::of(&self.parameters, &loss.backward()?);
        Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
    }
}

/// Below this noise level errors of the clean latent are all weighed alike. The last of eight Euler steps with shift 3
/// begins here.
const LEAST_SIGMA: f64 = 0.3;

/// The noise level of the second step, where the model makes a block of the history in two.
const MADE_SIGMA: f64 = 0.75;
