//! Block after block: noise, a few denoising steps, the commit pass, the shift.
//!
//! The model is the caller's, behind [`Denoiser`]; memory is reserved once, and the history stays
//! bounded however long the video grows.

use crate::cache::{Block, PagePool, Pass, Stream};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::denoise_step::Noise;
use crate::sampler::Sampler;
use crate::schedule::Schedule;
use crate::tensor::{Tensor, View, ViewMut};

/// The time step of a clean latent.
const CLEAN: f64 = 0.0;

/// What a model is given in one pass.
#[derive(Debug)]
pub struct Input<'a> {
    /// The block's latent, in the shape of [`RolloutConfig::latent`].
    pub latent: View<'a>,
    /// Time step, 1000 sigma; 0 in the commit pass.
    pub timestep: f64,
    /// Number of the block in the video, from 0.
    pub block: usize,
    /// Whether this is the commit pass, on the clean latent. Its velocity is not used.
    pub commits: bool,
}

/// A model that predicts the velocity of a block of latents.
pub trait Denoiser {
    /// What can go wrong in it.
    type Error: From<Error>;

    /// Writes the velocity (noise minus clean latent) of the current block. Every layer attends
    /// through `pass`, once.
    ///
    /// # Errors
    ///
    /// Its own; the block is then dropped and the video as before it.
    fn velocity(
        &mut self,
        input: &Input<'_>,
        pass: &mut Pass<'_, '_>,
        velocity: &mut ViewMut<'_>,
    ) -> Result<(), Self::Error>;
}

/// What a [`Rollout`] makes.
#[derive(Debug, Clone)]
pub struct RolloutConfig {
    /// Shape of one block's latent, for example `[channels, frames, rows, columns]`.
    pub latent: Vec<usize>,
    /// Which dimension of it is frames.
    pub frame_axis: usize,
    /// What latent and velocity are kept as.
    pub dtype: DType,
    /// The denoising steps, of any solver.
    pub schedule: Schedule,
    /// Decides all noise. Block n draws the same noise in every run, whatever came before it.
    pub seed: u64,
    /// Streams of the cache that the model attends to as one batch: 1, or 2 with guidance.
    pub streams: usize,
}

/// A video on its way.
///
/// ```
/// use packforcing::cache::{Heads, PackConfig, PagePool, Pass};
/// use packforcing::rollout::{Denoiser, Input, Rollout, RolloutConfig};
/// use packforcing::schedule::Schedule;
/// use packforcing::{DType, Device, Error, Grid, Tensor, ViewMut};
///
/// /// A model whose video is all zeros, and that attends to prove it.
/// struct Zeros(Tensor);
///
/// impl Denoiser for Zeros {
///     type Error = Error;
///     fn velocity(&mut self, input: &Input<'_>, pass: &mut Pass<'_, '_>, velocity: &mut ViewMut<'_>) -> Result<(), Error> {
///         let mut out = Tensor::zeros(self.0.device(), DType::F32, self.0.shape())?;
///         pass.attend(0, self.0.view(), self.0.view(), self.0.view(), &mut out.view_mut())?;
///         // v = (x - x0) / sigma with x0 = 0
///         let sigma = (input.timestep / 1000.0).max(1e-9) as f32;
///         let x: Vec<f32> = input.latent.to_vec()?;
///         velocity.copy_from_slice(&x.iter().map(|x| x / sigma).collect::<Vec<f32>>())
///     }
/// }
///
/// # fn main() -> Result<(), Error> {
/// let device = Device::cpu();
/// let grid = Grid { frames: 2, rows: 4, cols: 4 };
/// let cache = PackConfig::builder()
///     .layers(1)
///     .heads(Heads { query: 1, kv: 1, dim: 16 })
///     .dtype(DType::F32)
///     .block(grid)
///     .build()?;
/// let config = RolloutConfig {
///     latent: vec![3, 2, 8, 8],
///     frame_axis: 1,
///     dtype: DType::F32,
///     schedule: Schedule::few_step(&[1000.0, 750.0, 500.0, 250.0], 5.0)?,
///     seed: 1,
///     streams: 1,
/// };
/// let mut video = Rollout::new(&PagePool::new(&device, &cache)?, config)?;
/// let mut model = Zeros(Tensor::zeros(&device, DType::F32, &[1, 32, 1, 16])?);
/// for _ in 0..3 {
///     let block: Vec<f32> = video.next_block(&mut model)?.to_vec()?;
///     assert!(block.iter().all(|x| x.abs() < 1e-5));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Rollout {
    pool: PagePool,
    streams: Vec<Stream>,
    config: RolloutConfig,
    sampler: Sampler,
    velocity: Tensor,
}

impl Rollout {
    /// An empty video in this pool.
    ///
    /// # Errors
    ///
    /// A latent without elements or with another number of frames than the cache's block, a dtype
    /// without fractions, more streams than the pool was made for, memory that the device does not
    /// have.
    pub fn new(pool: &PagePool, config: RolloutConfig) -> Result<Rollout> {
        const OP: &str = "Rollout::new";
        let device = pool.device();
        let frames = pool.config().block().frames;
        let elements = config
            .latent
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .unwrap_or(0);
        if elements == 0 || config.latent.get(config.frame_axis) != Some(&frames) {
            let expected = format!("elements, and {frames} frames in dimension {}", config.frame_axis);
            return Err(Error::argument(OP, "latent", expected, format!("{:?}", config.latent)));
        }
        if !config.dtype.is_float() {
            return Err(Error::argument(OP, "dtype", "f32, f16 or bf16", config.dtype.name()));
        }
        let most = pool.config().streams();
        if !(1..=most).contains(&config.streams) {
            let expected = format!("1 to {most}, what the pool was made for");
            return Err(Error::argument(OP, "streams", expected, config.streams.to_string()));
        }
        let velocity = Tensor::zeros(device, config.dtype, &config.latent)?;
        Ok(Rollout {
            pool: pool.clone(),
            streams: (0..config.streams).map(|_| pool.stream()).collect::<Result<_>>()?,
            sampler: Sampler::new(&velocity, config.frame_axis, config.schedule.clone())?,
            velocity,
            config,
        })
    }

    /// Makes the next block: its clean latent, which stays valid until the next call. An error
    /// leaves the video as before; the same call can be made again.
    ///
    /// # Errors
    ///
    /// The model's, or one of the cache.
    pub fn next_block<D: Denoiser>(&mut self, model: &mut D) -> Result<View<'_>, D::Error> {
        let number = self.blocks();
        let mut block = self.pool.begin(&mut self.streams)?;
        let mut noise = self.config.noise(number);
        let mut draw = || {
            let drawn = noise;
            noise = noise.after(self.config.latent.iter().product());
            drawn
        };

        self.sampler.start(draw())?;
        for (number, step) in self.config.schedule.steps().iter().enumerate() {
            predict(
                &mut block,
                model,
                self.sampler.latent(),
                step.timestep,
                &mut self.velocity,
            )?;
            self.sampler.step(number, self.velocity.view(), draw())?;
        }
        predict(&mut block, model, self.sampler.latent(), CLEAN, &mut self.velocity)?;
        block.commit()?;
        Ok(self.sampler.latent().view())
    }

    /// Blocks made so far.
    pub fn blocks(&self) -> usize {
        self.streams.first().map_or(0, Stream::blocks)
    }

    /// The streams of the cache, for what they hold.
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// Forgets the video; the next block is block 0, with the same noise as before.
    pub fn reset(&mut self) {
        self.streams.iter_mut().for_each(Stream::reset);
    }
}

impl RolloutConfig {
    /// The noise of one block: its first draw, and one for each step.
    fn noise(&self, block: usize) -> Noise {
        let elements: usize = self.latent.iter().product();
        let draws = (self.schedule.steps().len() + 1) as u64;
        let offset = (elements.div_ceil(4) as u64)
            .wrapping_mul(draws)
            .wrapping_mul(block as u64);
        Noise {
            seed: self.seed,
            offset,
        }
    }
}

/// One pass of the model: the commit pass where the latent is clean.
fn predict<D: Denoiser>(
    block: &mut Block<'_>,
    model: &mut D,
    latent: &Tensor,
    timestep: f64,
    velocity: &mut Tensor,
) -> Result<(), D::Error> {
    let commits = timestep == CLEAN;
    let input = Input {
        latent: latent.view(),
        timestep,
        block: block.number(),
        commits,
    };
    let mut pass = if commits {
        block.commit_pass()?
    } else {
        block.denoise_pass()?
    };
    model.velocity(&input, &mut pass, &mut velocity.view_mut())
}
