//! Sampling: block after block, from noise over a bounded history.

use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use packforcing::Blocks;
use packforcing::cache::{Compression, PackConfig, PackedKvCache, Policy, Selection};
use packforcing::ops::denoise_step::{Coefficients, Noise};
use packforcing::schedule::Schedule;
use packforcing_candle::{denoise_step, hand_in};
use serde::{Deserialize, Serialize};

use crate::attention::{FullHistory, Packed, SelfAttention};
use crate::compressor::Pooled;
use crate::error::{Error, Result};
use crate::model::Context;
use crate::train::{Checkpoint, Description};

/// What a block sees of the blocks before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum History {
    /// The sink, the best of the compressed blocks, the recent ones.
    #[default]
    Packed,
    /// As many of the newest blocks as the packed history has whole ones.
    Window,
    /// The sink and the recent blocks.
    SinkWindow,
    /// All of them, whole. It grows with the video.
    Full,
}

/// What becomes of old blocks of a packed history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// What the checkpoint's compressor, trained with the model, makes of them.
    #[default]
    Learned,
    /// Means over cells of tokens, as many as the compressor would make.
    Mean,
    /// Similar tokens merged, as many as the compressor would make.
    Match,
}

/// How a video is sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleConfig {
    /// Rows and columns of the latent.
    pub size: [usize; 2],
    /// Frames of a block.
    pub block_frames: usize,
    /// What blocks see.
    pub history: History,
    /// What becomes of old blocks.
    pub packing: Packing,
    /// Whole blocks from the beginning.
    pub sink: usize,
    /// Newest whole blocks.
    pub recent: usize,
    /// Compressed blocks that are attended to.
    pub selected: usize,
    /// Compressed blocks that are kept to select from; the oldest leaves first.
    pub archive: usize,
    /// Denoising steps of a block, by Euler.
    pub steps: usize,
    /// Of the noise levels, as in training.
    pub shift: f64,
    /// Decides all noise.
    pub seed: u64,
}

impl SampleConfig {
    /// What a checkpoint was trained for.
    pub fn of(description: &Description) -> SampleConfig {
        let train = &description.train;
        SampleConfig {
            size: description.size,
            block_frames: train.block_frames,
            history: History::Packed,
            packing: Packing::Learned,
            sink: train.sink,
            recent: train.recent,
            selected: train.selected,
            archive: 64,
            steps: 8,
            shift: train.shift,
            seed: 1,
        }
    }
}

/// Where the time of a video went, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Attention over the history and the block, in all passes, with writing the block's keys and values.
    pub attention: f64,
    /// Scoring and choosing blocks: what the first pass of a block takes in attention beyond its later ones.
    pub selection: f64,
    /// Making an old block small: the compressor, and what the commit pass takes in the cache beyond other passes.
    pub merging: f64,
    /// Denoising steps.
    pub steps: f64,
    /// Everything else in the model.
    pub model: f64,
}

enum Store {
    Packed(PackedKvCache),
    Full(FullHistory),
}

/// A video on its way.
pub struct Generator<'m> {
    checkpoint: &'m Checkpoint,
    config: SampleConfig,
    context: Context,
    schedule: Schedule,
    store: Store,
    device: packforcing::Device,
    blocks: usize,
    times: Times,
}

impl<'m> Generator<'m> {
    /// An empty video on the checkpoint's device; `context` is `[1, tokens, context_dim]`.
    ///
    /// # Errors
    ///
    /// Sizes and counts that make no sense, a context of another shape, memory for the cache.
    pub fn new(checkpoint: &'m Checkpoint, context: &Tensor, config: &SampleConfig) -> Result<Generator<'m>> {
        let model = &checkpoint.model;
        let device = packforcing_candle::device(model.device())?;
        let store = match config.history {
            History::Full => Store::Full(FullHistory::new(&model.config().rope()?, grid(checkpoint, config)?)),
            _ => Store::Packed(PackedKvCache::new(&device, &pack_config(checkpoint, config)?)?),
        };
        Ok(Generator {
            checkpoint,
            context: model.context(context)?,
            schedule: Schedule::euler(config.steps, config.shift)?,
            store,
            device,
            blocks: 0,
            times: Times::default(),
            config: config.clone(),
        })
    }

    /// Takes a block that is there already, f32 `[channels, frames, rows, columns]`: the beginning of a clip.
    ///
    /// # Errors
    ///
    /// Another shape, memory.
    pub fn append(&mut self, clean: &Tensor) -> Result<()> {
        let clean = self.block_of(clean)?;
        self.run(None, Some(&clean))?;
        Ok(())
    }

    /// Takes a block that this configuration has made in an earlier run, as [`Generator::next_block`] would have
    /// left it: the blocks that follow are the same, to the bit.
    ///
    /// # Errors
    ///
    /// As [`Generator::append`].
    pub fn replay(&mut self, made: &Tensor) -> Result<()> {
        let made = self.block_of(made)?;
        let start = self.start()?;
        self.run(Some((&start, 1)), Some(&made))?;
        Ok(())
    }

    /// Makes the next block, f32 `[channels, frames, rows, columns]`.
    ///
    /// # Errors
    ///
    /// Memory, and what a device reports.
    pub fn next_block(&mut self) -> Result<Tensor> {
        let start = self.start()?;
        let made = self.run(Some((&start, self.config.steps)), None)?;
        Ok(made.squeeze(0)?)
    }

    /// Blocks so far, with those that were appended.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of the history's keys and values and of what the cache works with.
    pub fn cache_bytes(&self) -> usize {
        match &self.store {
            Store::Packed(cache) => cache.bytes(),
            Store::Full(full) => full.bytes(),
        }
    }

    /// Tokens that the next block will see, its own among them.
    pub fn context_tokens(&self) -> usize {
        match &self.store {
            Store::Packed(cache) => cache.context_tokens().0,
            Store::Full(full) => {
                let kept = full.layer(0).and_then(|kv| kv.0.dim(1).ok()).unwrap_or(0);
                kept + full.grid().tokens().0
            }
        }
    }

    /// Tokens of a block as the model makes it.
    pub fn block_tokens(&self) -> usize {
        match &self.store {
            Store::Packed(cache) => cache.config().block_tokens().0,
            Store::Full(full) => full.grid().tokens().0,
        }
    }

    /// Tokens of a compressed block; none where blocks are not compressed.
    pub fn mid_tokens(&self) -> Option<usize> {
        match &self.store {
            Store::Packed(cache) => {
                let left = cache.config().mid_tokens();
                (left < cache.config().block_tokens()).then_some(left.0)
            }
            Store::Full(_) => None,
        }
    }

    /// Where the time went so far.
    pub fn times(&self) -> Times {
        self.times
    }

    /// `[channels, frames, rows, columns]` as the batch of one that it has to be.
    fn block_of(&self, block: &Tensor) -> Result<Tensor> {
        let [rows, cols] = self.config.size;
        let model = self.checkpoint.model.config();
        let expected = [model.channels, self.config.block_frames, rows, cols];
        if block.dims() != expected {
            let got = format!("{:?}", block.dims());
            return Err(Error::argument("block", format!("{expected:?}"), got));
        }
        let device = self.checkpoint.model.device();
        Ok(block.to_dtype(DType::F32)?.to_device(device)?.unsqueeze(0)?)
    }

    /// Noise of this block, the same whatever came before.
    fn start(&self) -> Result<Tensor> {
        let [rows, cols] = self.config.size;
        let shape = (
            1,
            self.checkpoint.model.config().channels,
            self.config.block_frames,
            rows,
            cols,
        );
        let zeros = Tensor::zeros(shape, DType::F32, self.checkpoint.model.device())?;
        let numbers = Coefficients::new(&self.device, &[vec![vec![0.0], vec![1.0]]])?;
        let noise = Noise {
            seed: self.config.seed,
            // As far apart as a block of any size needs.
            offset: (self.blocks as u64) << 32,
        };
        Ok(denoise_step(&self.device, &[&zeros], 0, &numbers, Some(noise))?.swap_remove(0))
    }

    /// So many denoising steps from a start, then the commit pass on what came out, or on what is given.
    fn run(&mut self, start: Option<(&Tensor, usize)>, given: Option<&Tensor>) -> Result<Tensor> {
        let begun = Instant::now();
        let (model, context, schedule, device) = (&self.checkpoint.model, &self.context, &self.schedule, &self.device);
        let mut attended: Vec<Duration> = Vec::new();
        let mut steps = Duration::ZERO;
        let mut merging = Duration::ZERO;
        let mut denoise = |pass: &mut dyn FnMut(&Tensor, f64) -> Result<Tensor>| -> Result<Option<Tensor>> {
            let Some((start, count)) = start else { return Ok(None) };
            let mut x = start.clone();
            for step in &schedule.steps()[..count] {
                let v = pass(&x, step.timestep)?;
                let now = Instant::now();
                let numbers = Coefficients::new(device, &[step.euler(1)])?;
                x = denoise_step(device, &[&x, &v], 0, &numbers, None)?.swap_remove(0);
                steps += now.elapsed();
            }
            Ok(Some(x))
        };
        let clean = match &mut self.store {
            Store::Packed(cache) => {
                let mut block = cache.begin()?;
                let made = denoise(&mut |x, timestep| {
                    let mut pass = block.denoise_pass()?;
                    let mut timed = Timed::new(Packed(&mut pass));
                    let v = velocity(model, context, x, timestep, &mut timed)?;
                    attended.push(timed.taken);
                    Ok(v)
                })?;
                let clean = clean_block(given, made)?;
                let mut pass = block.commit_pass()?;
                let mut timed = Timed::new(Packed(&mut pass));
                velocity(model, context, &clean, 0.0, &mut timed)?;
                attended.push(timed.taken);
                let now = Instant::now();
                if self.config.history == History::Packed && self.config.packing == Packing::Learned {
                    let mids = self.checkpoint.compressor.keys_and_values(model, &clean, &Pooled)?;
                    for (layer, (k, v)) in mids.iter().enumerate() {
                        hand_in(&mut pass, layer, k, v)?;
                    }
                }
                block.commit()?;
                merging += now.elapsed();
                clean
            }
            Store::Full(full) => {
                let made = denoise(&mut |x, timestep| {
                    let mut timed = Timed::new(full.denoise_pass());
                    let v = velocity(model, context, x, timestep, &mut timed)?;
                    attended.push(timed.taken);
                    Ok(v)
                })?;
                let clean = clean_block(given, made)?;
                let mut timed = Timed::new(full.commit_pass());
                velocity(model, context, &clean, 0.0, &mut timed)?;
                attended.push(timed.taken);
                let now = Instant::now();
                full.commit()?;
                merging += now.elapsed();
                clean
            }
        };
        self.blocks += 1;
        self.times.add(&attended, steps, merging, begun.elapsed());
        Ok(clean)
    }
}

impl Times {
    fn add(&mut self, attended: &[Duration], steps: Duration, merging: Duration, all: Duration) {
        let passes: Vec<f64> = attended.iter().map(Duration::as_secs_f64).collect();
        let mut attention: f64 = passes.iter().sum();
        let (mut selection, mut merging) = (0.0, merging.as_secs_f64());
        let model = all.as_secs_f64() - attention - merging - steps.as_secs_f64();
        if let [first, later @ .., last] = passes.as_slice()
            && !later.is_empty()
        {
            let plain = later.iter().sum::<f64>() / later.len() as f64;
            selection = (first - plain).max(0.0);
            let more = (last - plain).max(0.0);
            merging += more;
            attention -= selection + more;
        }
        self.attention += attention;
        self.selection += selection;
        self.merging += merging;
        self.steps += steps.as_secs_f64();
        self.model += model;
    }
}

fn clean_block(given: Option<&Tensor>, made: Option<Tensor>) -> Result<Tensor> {
    let missing = || Error::argument("block", "one that is given or made", "none");
    given.cloned().or(made).ok_or_else(missing)
}

fn velocity(
    model: &crate::Model,
    context: &Context,
    x: &Tensor,
    timestep: f64,
    attention: &mut impl SelfAttention,
) -> Result<Tensor> {
    let timesteps = Tensor::new(&[timestep as f32], x.device())?;
    model.velocity(x, &timesteps, context, attention)
}

fn grid(checkpoint: &Checkpoint, config: &SampleConfig) -> Result<packforcing::Grid> {
    let [rows, cols] = config.size;
    checkpoint.model.config().tokens([config.block_frames, rows, cols])
}

fn pack_config(checkpoint: &Checkpoint, config: &SampleConfig) -> Result<PackConfig> {
    let model = checkpoint.model.config();
    let [rows, cols] = config.size;
    let block = grid(checkpoint, config)?;
    let mid = checkpoint
        .compressor
        .config()
        .grid(model, [config.block_frames, rows, cols])?;
    let cell = [block.frames / mid.frames, block.rows / mid.rows, block.cols / mid.cols];
    let (sink, recent, selected, archive) = match config.history {
        History::Window => (0, config.sink + config.recent, 0, 0),
        History::SinkWindow => (config.sink, config.recent, 0, 0),
        _ => (config.sink, config.recent, config.selected, config.archive),
    };
    let compression = match (config.history, config.packing) {
        (History::Window | History::SinkWindow, _) => Compression::None,
        (_, Packing::Learned) => Compression::External(mid),
        (_, Packing::Mean) => Compression::mean_pool(cell),
        (_, Packing::Match) => Compression::matching(cell),
    };
    let dtype = packforcing_candle::dtype(checkpoint.model.dtype());
    let dtype =
        dtype.ok_or_else(|| Error::argument("dtype", "f32, f16 or bf16", format!("{:?}", checkpoint.model.dtype())))?;
    let built = PackConfig::builder()
        .layers(model.layers)
        .heads(model.cache_heads())
        .dtype(dtype)
        .block(block)
        .sink(Blocks(sink))
        .recent(Blocks(recent))
        .selected(Blocks(selected))
        .archive(Blocks(archive))
        .compression(compression)
        .selection(Selection::PerLayer)
        .policy(Policy::Top)
        .rope(model.rope()?);
    Ok(built.build()?)
}

/// Attention, and how long it took.
struct Timed<A> {
    inner: A,
    taken: Duration,
}

impl<A> Timed<A> {
    fn new(inner: A) -> Timed<A> {
        Timed {
            inner,
            taken: Duration::ZERO,
        }
    }
}

impl<A: SelfAttention> SelfAttention for Timed<A> {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> candle_core::Result<Tensor> {
        let now = Instant::now();
        let out = self.inner.attend(layer, q, k, v);
        self.taken += now.elapsed();
        out
    }
}
