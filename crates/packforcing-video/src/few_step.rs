//! Videos of published few-step weights, block by block, with a history that they were not trained with.
//!
//! Such weights have seen 21 latent frames at once. Every kind of memory here stays inside of that: what a block attends to,
//! its own frames among it, is never more.

use std::collections::VecDeque;

use candle_core::{DType, Tensor};
use packforcing::cache::{CacheBytes, Compression, PackConfig, PackedKvCache, Policy, Selection};
use packforcing::ops::denoise_step::{Coefficients, Noise};
use packforcing::schedule::Schedule;
use packforcing::{Blocks, Frames, Grid};
use packforcing_candle::denoise_step;
use serde::{Deserialize, Serialize};

use crate::attention::{FullHistory, Packed};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::{Context, Model};
use crate::recipe::Recipe;

/// What a block attends to of those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// The first 9 frames, the 6 of any age that answer the block most, the newest 3; all whole. Deep sinks were found to work
    /// on these very weights (Deep Forcing, arXiv 2512.05081).
    #[default]
    Whole,
    /// The first 9 frames, six blocks of any age at a frame's place each, in cells of [3, 4, 4] tokens and what those leave,
    /// the newest 3 frames. Nobody has tried these weights on averages.
    Mean,
    /// The newest frames, as many as the family's own code keeps, at the places where they stand in the video.
    Window,
    /// The same with the family's sink, or with the first block where it has none.
    SinkWindow,
}

/// How a video is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FewStepConfig {
    /// Whose weights these are.
    pub recipe: Recipe,
    /// What blocks attend to.
    pub memory: Memory,
    /// Rows and columns of the latent, an eighth of the picture's.
    pub size: [usize; 2],
    /// Old blocks that are kept to select from, no less than are selected; the oldest leaves first.
    pub archive: usize,
    /// Decides all noise.
    pub seed: u64,
}

impl FewStepConfig {
    /// Bytes that the history of a video takes up at most, for a model of these sizes in this dtype, before it is there.
    ///
    /// # Errors
    ///
    /// Sizes that the model does not take.
    pub fn cache_bytes(&self, model: &Config, dtype: DType) -> Result<CacheBytes> {
        let [rows, cols] = self.size;
        let grid = model.tokens([self.recipe.block_frames(), rows, cols])?;
        Ok(match pack_config(model, dtype, self, grid)? {
            Some(packed) => packed.bytes(),
            None => {
                let kept = self.recipe.cache_frames().saturating_sub(self.recipe.block_frames());
                CacheBytes {
                    whole: 2 * model.layers * model.width() * kept * grid.rows * grid.cols * dtype.size_in_bytes(),
                    current: 0,
                    archive: 0,
                    tables: 0,
                }
            }
        })
    }

    /// The same with as large an archive as these bytes allow for the whole history, for a video of so many blocks: never less
    /// than what is selected of it.
    ///
    /// # Errors
    ///
    /// As [`FewStepConfig::cache_bytes`].
    pub fn with_largest_archive(
        &self,
        model: &Config,
        dtype: DType,
        bytes: usize,
        blocks: usize,
    ) -> Result<FewStepConfig> {
        let with = |archive: usize| FewStepConfig {
            archive,
            ..self.clone()
        };
        // Of the first to fail: more blocks never take less.
        let (mut fits, mut fails) = (0, blocks + 1);
        while fits + 1 < fails {
            let middle = fits + (fails - fits) / 2;
            match with(middle).cache_bytes(model, dtype)?.total() <= bytes {
                true => fits = middle,
                false => fails = middle,
            }
        }
        Ok(with(fits))
    }

    /// Bytes that a block is made with besides weights and history, about: what a layer works with at its most, and the keys
    /// and values of the prompt. `switches`: the prompt may change in mid video, where the newest frames go through once more.
    ///
    /// # Errors
    ///
    /// Sizes that the model does not take.
    pub fn work_bytes(&self, model: &Config, dtype: DType, switches: bool) -> Result<usize> {
        let [rows, cols] = self.size;
        let absolute = matches!(self.memory, Memory::Window | Memory::SinkWindow);
        let frames = match switches && absolute {
            true => self.recipe.cache_frames(),
            false => self.recipe.block_frames(),
        };
        let grid = model.tokens([frames, rows, cols])?;
        let (tokens, size) = (grid.tokens().0, dtype.size_in_bytes());
        let (width, heads) = (model.width(), model.heads);
        // Streams of the layer in its own dtype and in f32, the feed-forward network twice, logits of the prompt and their
        // exponentials.
        let layer = tokens * (width * (6 * size + 4 * 4) + 2 * model.ffn_dim * size);
        let strips = |keys: usize| 2 * 4 * (tokens * heads * keys).min(crate::fused::LOGITS);
        let seen = match self.memory {
            Memory::Whole | Memory::Mean => 0,
            Memory::Window | Memory::SinkWindow => self.recipe.cache_frames() * grid.rows * grid.cols,
        };
        // Keys and values of the history and the block side by side, by tokens and by heads, keys in f32.
        let joined = seen * width * (4 * size + 4);
        let of_layers = |tokens: usize| 2 * model.layers * tokens * width * size;
        // Of the old prompt and the new one, and of the frames' new keys beside the old ones.
        let prompts = of_layers(model.context_len) * (1 + usize::from(switches));
        let anew = if switches && absolute { of_layers(tokens) } else { 0 };
        Ok(layer + joined + prompts + anew + strips(seen.max(model.context_len)))
    }

    /// Old blocks that there is room for: as many as were asked for, and no less than are selected of them.
    pub fn archived(&self) -> usize {
        self.archive.max(self.selected())
    }

    /// Old blocks that a block attends to.
    fn selected(&self) -> usize {
        match self.memory {
            Memory::Whole => SELECTED.div_ceil(self.recipe.block_frames()),
            // Each at a frame's place.
            Memory::Mean => SELECTED,
            Memory::Window | Memory::SinkWindow => 0,
        }
    }

    /// Frames from the beginning that a window keeps.
    fn sink_frames(&self) -> usize {
        match self.memory {
            Memory::SinkWindow => self.recipe.sink_frames().max(self.recipe.block_frames()),
            _ => 0,
        }
    }
}

/// Noise that comes from elsewhere, f32.
#[derive(Debug, Clone)]
pub struct GivenNoise {
    /// What the video begins as, `[channels, frames, rows, columns]`.
    pub start: Tensor,
    /// What blocks are noised with between their steps, `[blocks, steps - 1, channels, frames of a block, rows, columns]`.
    pub fresh: Tensor,
}

impl GivenNoise {
    /// Whether it is that of a video of so many blocks.
    ///
    /// # Errors
    ///
    /// Other shapes, fewer blocks, numbers that are not finite.
    pub fn check(&self, model: &Config, config: &FewStepConfig, blocks: usize) -> Result<()> {
        let (frames, [rows, cols]) = (config.recipe.block_frames(), config.size);
        let refuse = |argument, expected: String, got: &Tensor| {
            Err(Error::argument(argument, expected, format!("{:?}", got.dims())))
        };
        let start = matches!(self.start.dims(), &[c, f, r, w] if [c, r, w] == [model.channels, rows, cols] && f >= blocks * frames);
        if !start {
            let expected = format!("[{}, {} or more, {rows}, {cols}]", model.channels, blocks * frames);
            return refuse("start", expected, &self.start);
        }
        let mut steps = 0;
        for first in [true, false] {
            steps = steps.max(config.recipe.schedule(first)?.steps().len() - 1);
        }
        let one = [model.channels, frames, rows, cols];
        let fresh = matches!(self.fresh.dims(), &[b, s, ref rest @ ..] if b >= blocks && s >= steps && *rest == one);
        if !fresh && steps > 0 {
            let expected = format!(
                "[{blocks} or more, {steps} or more, {}, {frames}, {rows}, {cols}]",
                one[0]
            );
            return refuse("fresh", expected, &self.fresh);
        }
        for (argument, numbers) in [("start", &self.start), ("fresh", &self.fresh)] {
            let zeros = (numbers.to_dtype(DType::F32)? * 0.0)?.sum_all()?.to_scalar::<f32>()?;
            if zeros != 0.0 {
                return Err(Error::argument(argument, "finite numbers", "others among them"));
            }
        }
        Ok(())
    }
}

enum Store {
    Packed(PackedKvCache),
    /// With the newest clean blocks, as far back as a change of the prompt needs them.
    Absolute(FullHistory, VecDeque<Tensor>),
}

/// Frames of sink, selection and newest blocks of the packed kinds.
const SINK: usize = 9;
const SELECTED: usize = 6;
const NEWEST: usize = 3;
/// Tokens that become one: frames, rows, columns.
const CELL: [usize; 3] = [3, 4, 4];

/// A video on its way.
pub struct FewStep<'m> {
    model: &'m Model,
    context: Context,
    config: FewStepConfig,
    given: Option<GivenNoise>,
    store: Store,
    device: packforcing::Device,
    blocks: usize,
}

impl<'m> FewStep<'m> {
    /// An empty video on the model's device; `context` are text embeddings, `[1, tokens, context_dim]`.
    ///
    /// # Errors
    ///
    /// A recipe whose sampler is not here, sizes that the model does not take, memory for the cache.
    pub fn new(model: &'m Model, context: &Tensor, config: &FewStepConfig) -> Result<FewStep<'m>> {
        config.recipe.schedule(true)?;
        let [rows, cols] = config.size;
        let grid = model.config().tokens([config.recipe.block_frames(), rows, cols])?;
        let device = packforcing_candle::device(model.device())?;
        let store = match pack_config(model.config(), model.dtype(), config, grid)? {
            Some(packed) => Store::Packed(PackedKvCache::new(&device, &packed)?),
            None => {
                let rope = model.config().rope()?;
                let (sink, frames) = (config.sink_frames(), config.recipe.cache_frames());
                Store::Absolute(FullHistory::window(&rope, grid, sink, frames), VecDeque::new())
            }
        };
        Ok(FewStep {
            model,
            context: model.context(context)?,
            config: config.clone(),
            given: None,
            store,
            device,
            blocks: 0,
        })
    }

    /// The same with noise that comes from elsewhere, for as many blocks as it reaches.
    pub fn with_noise(mut self, noise: GivenNoise) -> FewStep<'m> {
        self.given = Some(noise);
        self
    }

    /// Goes on with another prompt: `context` are its embeddings, as of [`FewStep::new`].
    ///
    /// Where the newest frames are kept at their own places, they go through the model once more, so that their keys are those of
    /// the new prompt, as LongLive (arXiv 2509.22622) does it. A packed history stays as it is: the new prompt speaks through
    /// the new blocks alone.
    ///
    /// # Errors
    ///
    /// Embeddings of another shape, memory, and what a device reports.
    pub fn switch_prompt(&mut self, context: &Tensor) -> Result<()> {
        let context = self.model.context(context)?;
        if let Store::Absolute(history, clean) = &mut self.store
            && !clean.is_empty()
        {
            let newest = Tensor::cat(&Vec::from_iter(clean.iter()), 2)?;
            let (made, frames) = (newest.dim(2)?, history.rewritten());
            let newest = newest.narrow(2, made - frames, frames)?.contiguous()?;
            let commit = Tensor::new(&[self.config.recipe.commit_timestep() as f32], self.model.device())?;
            self.model
                .velocity(&newest, &commit, &context, history.rewrite_pass())?;
            history.commit()?;
        }
        self.context = context;
        Ok(())
    }

    /// Makes the next block: clean latents, f32 `[channels, frames, rows, columns]`.
    ///
    /// # Errors
    ///
    /// Given noise that has come to its end, memory, and what a device reports.
    pub fn next_block(&mut self) -> Result<Tensor> {
        let schedule = self.config.recipe.schedule(self.blocks == 0)?;
        let draw = Draw {
            model: self.model,
            config: &self.config,
            given: self.given.as_ref(),
            device: &self.device,
            block: self.blocks,
        };
        let (model, context) = (self.model, &self.context);
        let told = |timestep: f64| Tensor::new(&[timestep as f32], model.device());
        let commit = told(self.config.recipe.commit_timestep())?;
        let mut x = draw.start()?;
        match &mut self.store {
            Store::Packed(cache) => {
                let mut block = cache.begin()?;
                for step in 0..schedule.steps().len() {
                    let timestep = told(schedule.steps()[step].timestep)?;
                    let mut pass = block.denoise_pass()?;
                    let v = model.velocity(&x, &timestep, context, &mut Packed(&mut pass))?;
                    x = draw.step(&schedule, step, &x, &v)?;
                }
                let mut pass = block.commit_pass()?;
                model.velocity(&x, &commit, context, &mut Packed(&mut pass))?;
                block.commit()?;
            }
            Store::Absolute(history, clean) => {
                for step in 0..schedule.steps().len() {
                    let timestep = told(schedule.steps()[step].timestep)?;
                    let v = model.velocity(&x, &timestep, context, history.denoise_pass())?;
                    x = draw.step(&schedule, step, &x, &v)?;
                }
                model.velocity(&x, &commit, context, history.commit_pass())?;
                history.commit()?;
                clean.push_back(x.clone());
                if clean.len()
                    > self
                        .config
                        .recipe
                        .cache_frames()
                        .div_ceil(self.config.recipe.block_frames())
                {
                    clean.pop_front();
                }
            }
        }
        self.blocks += 1;
        Ok(x.squeeze(0)?)
    }

    /// Blocks so far.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of the history's keys and values and of what the cache works with.
    pub fn cache_bytes(&self) -> usize {
        match &self.store {
            Store::Packed(cache) => cache.bytes(),
            Store::Absolute(history, _) => history.bytes(),
        }
    }
}

/// The packed cache of a kind of memory; none where positions stay those of the video.
fn pack_config(model: &Config, dtype: DType, config: &FewStepConfig, grid: Grid) -> Result<Option<PackConfig>> {
    let blocks = |frames: usize| frames.div_ceil(grid.frames);
    // Cells as long as a block at most.
    let cell = [CELL[0].min(grid.frames), CELL[1], CELL[2]];
    let (compression, frames) = match config.memory {
        Memory::Whole => (Compression::None, grid.frames),
        Memory::Mean => (Compression::mean_pool(cell), 1),
        Memory::Window | Memory::SinkWindow => return Ok(None),
    };
    let ours = packforcing_candle::dtype(dtype);
    let ours = ours.ok_or_else(|| Error::argument("dtype", "f32, f16 or bf16", format!("{dtype:?}")))?;
    let built = PackConfig::builder()
        .layers(model.layers)
        .heads(model.cache_heads())
        .dtype(ours)
        .block(grid)
        .sink(Blocks(blocks(SINK)))
        .recent(Blocks(blocks(NEWEST)))
        .selected(Blocks(config.selected()))
        .archive(Blocks(config.archived()))
        .mid_frames(Frames(frames))
        .compression(compression)
        .selection(Selection::PerLayer)
        .policy(Policy::Top)
        .rope(model.rope()?);
    Ok(Some(built.build()?))
}

/// Where the noise of a block comes from.
struct Draw<'a> {
    model: &'a Model,
    config: &'a FewStepConfig,
    given: Option<&'a GivenNoise>,
    device: &'a packforcing::Device,
    block: usize,
}

impl Draw<'_> {
    /// Draw number `number` of a block, each as far from the next as a block of any size needs.
    fn noise(&self, number: usize) -> Noise {
        Noise {
            seed: self.config.seed,
            offset: ((self.block as u64) << 40) + ((number as u64) << 34),
        }
    }

    /// `[1, channels, frames, rows, columns]`
    fn start(&self) -> Result<Tensor> {
        let ([rows, cols], frames) = (self.config.size, self.config.recipe.block_frames());
        let shape = (1, self.model.config().channels, frames, rows, cols);
        if let Some(given) = self.given {
            let part = given.start.narrow(1, self.block * frames, frames);
            let part = part.and_then(|part| part.to_dtype(DType::F32)?.to_device(self.model.device())?.unsqueeze(0));
            let part = part.map_err(|e| self.ended("start", e))?;
            return match part.dims5()? == shape {
                true => Ok(part.contiguous()?),
                false => Err(Error::argument(
                    "start",
                    format!("{shape:?} of a block"),
                    format!("{:?}", part.dims()),
                )),
            };
        }
        let zeros = Tensor::zeros(shape, DType::F32, self.model.device())?;
        let numbers = Coefficients::new(self.device, &[vec![vec![0.0], vec![1.0]]])?;
        Ok(denoise_step(self.device, &[&zeros], 0, &numbers, Some(self.noise(0)))?.swap_remove(0))
    }

    /// To the clean latent, and back with fresh noise but for the last step.
    fn step(&self, schedule: &Schedule, number: usize, x: &Tensor, v: &Tensor) -> Result<Tensor> {
        let step = &schedule.steps()[number];
        let last = number + 1 == schedule.steps().len();
        match self.given.filter(|_| !last) {
            None => {
                let numbers = Coefficients::new(self.device, &[step.renoise(1)])?;
                let noise = self.noise(number + 1);
                Ok(denoise_step(self.device, &[x, v], 0, &numbers, Some(noise))?.swap_remove(0))
            }
            Some(given) => {
                let fresh = given.fresh.get(self.block).and_then(|block| {
                    let fresh = block.get(number)?.to_dtype(DType::F32)?;
                    fresh.to_device(x.device())?.unsqueeze(0)
                });
                let fresh = fresh.map_err(|e| self.ended("fresh", e))?;
                if fresh.dims() != x.dims() {
                    let expected = format!("{:?} of a block", x.dims());
                    return Err(Error::argument("fresh", expected, format!("{:?}", fresh.dims())));
                }
                let clean = (x - (v * step.sigma)?)?;
                Ok(((clean * (1.0 - step.sigma_next))? + (fresh * step.sigma_next)?)?)
            }
        }
    }

    fn ended(&self, argument: &'static str, error: candle_core::Error) -> Error {
        Error::argument(argument, format!("noise for block {}", self.block), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_as_large_as_memory_allows() {
        let (model, dtype) = (Config::wan2_1_t2v_1_3b(), DType::BF16);
        let config = FewStepConfig {
            recipe: Recipe::SelfForcing,
            memory: Memory::Whole,
            size: [60, 104],
            archive: 0,
            seed: 0,
        };
        let bytes = |archive: usize| {
            let with = FewStepConfig {
                archive,
                ..config.clone()
            };
            with.cache_bytes(&model, dtype).expect("sizes").total()
        };
        let largest = |bytes: usize| {
            config
                .with_largest_archive(&model, dtype, bytes, 40)
                .expect("sizes")
                .archive
        };
        for archive in [3, 12, 39] {
            assert_eq!(largest(bytes(archive)), archive);
            assert_eq!(largest(bytes(archive + 1) - 1), archive);
        }
        // A block is 4680 tokens of 30 layers, and some tables: 0.86 GB.
        let block = 4680 * 30 * 2 * 1536 * 2;
        assert!((block..block + block / 100).contains(&(bytes(13) - bytes(12))));
        assert_eq!(largest(usize::MAX), 40);
        // What is selected is always there.
        assert!(largest(0) <= 2 && bytes(0) == bytes(2));
    }
}
