//! What one step learns from.

use candle_core::{DType, Device, Tensor};

use super::TrainConfig;
use crate::attention::Layout;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::weights::RandomWeights;

/// A clip to learn from.
#[derive(Debug, Clone)]
pub struct ShortClip {
    /// f32, pixels or latents of about -1 to 1. `[channels, frames, rows, columns]`
    pub frames: Tensor,
    /// What it is made of. `[tokens, context_dim]`, as many tokens in every clip
    pub context: Tensor,
}

/// Where clips come from.
pub trait Clips {
    /// A clip for this number, always the same; any number is taken. All clips have one size.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being read.
    fn clip(&self, number: u64) -> Result<ShortClip>;
}

/// Latents around a block of every clip of the batch, each `[batch, channels, frames, rows, columns]`.
pub(super) struct Sample {
    pub sink: Vec<Tensor>,
    pub mids: Vec<Tensor>,
    pub recent: Vec<Tensor>,
    /// `[batch, tokens, context_dim]`
    pub context: Tensor,
}

impl Sample {
    pub fn layout(&self, versions: usize) -> Layout {
        Layout {
            sink: self.sink.len(),
            mid: self.mids.len(),
            recent: self.recent.len(),
            versions,
        }
    }
}

pub(super) struct Batch {
    pub sample: Sample,
    /// The clean block. `[batch, channels, frames, rows, columns]`
    pub target: Tensor,
    /// Noise and noise levels (`[batch, 1, 1, 1, 1]`) of each version of it.
    pub versions: Vec<(Tensor, Tensor)>,
    /// The history of the newest recent block, where the model is to make it.
    pub made: Option<Sample>,
    /// Noise for each of the steps that make it.
    pub made_noise: Vec<Tensor>,
}

/// Numbers of the blocks of one clip's history.
struct Choice {
    sink: Vec<usize>,
    mids: Vec<usize>,
    recent: Vec<usize>,
}

impl Choice {
    /// The history of the newest recent block, with so many blocks before the recent ones.
    fn of_newest(&self, more: usize) -> Choice {
        let first = self.recent.first().map_or(0, |first| first - more);
        Choice {
            sink: self.sink.clone(),
            mids: self.mids.clone(),
            recent: (first..first + more + self.recent.len().saturating_sub(1)).collect(),
        }
    }
}

impl Batch {
    /// The batch of a part of a step: clips, places and noise by the seed and the part's number.
    pub fn draw(config: &TrainConfig, number: u64, clips: &impl Clips, device: &Device) -> Result<Batch> {
        let mut rng = Rng::new(config.seed, number);
        let drawn: Vec<ShortClip> = (0..config.batch)
            .map(|_| clips.clip(rng.bits()))
            .collect::<Result<_>>()?;
        let blocks = blocks(config, &drawn)?;

        // The same place in every clip: one layout for the batch.
        let current = if rng.uniform() < FIRST { 0 } else { rng.below(blocks) };
        let sink = config.sink.min(current);
        let recent = config.recent.min(current - sink);
        let makes =
            recent > 0 && number / config.parts as u64 >= config.self_made_after && rng.uniform() < config.self_made;
        // What it makes had one block more in its recent history, which is not there a second time, compressed.
        let more = usize::from(makes && current - recent > sink);
        let old = sink..current - recent - more;
        let most = config.selected.min(old.len());
        let count = if rng.uniform() < ALL { most } else { rng.below(most + 1) };
        let choices: Vec<Choice> = (0..config.batch)
            .map(|_| Choice {
                sink: (0..sink).collect(),
                mids: rng.choose(old.clone(), count),
                recent: (current - recent..current).collect(),
            })
            .collect();
        let mut random = RandomWeights::new(rng.bits(), DType::F32, device)?;
        let levels: Vec<f64> = (0..config.batch)
            .map(|_| config.history_noise * rng.uniform())
            .collect();
        let levels = column(&levels, device)?;
        let mut gather = |choices: &[Choice]| sample(config, &drawn, choices, &levels, &mut random, device);
        let sample = gather(&choices)?;
        let made = match makes {
            true => Some(gather(&choices.iter().map(|c| c.of_newest(more)).collect::<Vec<_>>())?),
            false => None,
        };
        let target = block(config, &drawn, &vec![current; config.batch], device)?;
        let shifted = |u: f64| config.shift * u / (1.0 + (config.shift - 1.0) * u);
        let versions = (0..config.versions).map(|version| {
            // One from each of equal parts of the levels.
            let mut level = || shifted((version as f64 + rng.uniform()) / config.versions as f64);
            let sigmas: Vec<f64> = (0..config.batch).map(|_| level()).collect();
            Ok((random.normal(target.dims(), 1.0)?, column(&sigmas, device)?))
        });
        let versions = versions.collect::<Result<_>>()?;
        let steps = if makes { 1 + rng.below(2) } else { 0 };
        Ok(Batch {
            sample,
            versions,
            made,
            made_noise: (0..steps)
                .map(|_| random.normal(target.dims(), 1.0))
                .collect::<Result<_>>()?,
            target,
        })
    }
}

/// How often the block is the first of its clip, besides by chance.
const FIRST: f64 = 0.05;
/// How often there are as many compressed blocks as there can be, as in a long video.
const ALL: f64 = 0.7;

/// Blocks of every clip of a batch.
fn blocks(config: &TrainConfig, clips: &[ShortClip]) -> Result<usize> {
    let shape = clips.first().map_or(&[][..], |c| c.frames.dims());
    let &[_, frames, _, _] = shape else {
        return Err(Error::argument(
            "clip",
            "[channels, frames, rows, columns]",
            format!("{shape:?}"),
        ));
    };
    if let Some(other) = clips.iter().find(|c| c.frames.dims() != shape) {
        return Err(Error::argument(
            "clip",
            format!("{shape:?}, as the others"),
            format!("{:?}", other.frames.dims()),
        ));
    }
    let least = config.block_frames * (config.sink + config.recent + 1);
    if frames < least {
        let expected = format!("{least} frames or more: the sink, recent blocks and one to learn");
        return Err(Error::argument("clip", expected, frames.to_string()));
    }
    Ok(frames / config.block_frames)
}

/// Numbers, one a clip, as `[batch, 1, 1, 1, 1]`.
fn column(numbers: &[f64], device: &Device) -> Result<Tensor> {
    let narrow: Vec<f32> = numbers.iter().map(|&n| n as f32).collect();
    Ok(Tensor::from_vec(narrow, (numbers.len(), 1, 1, 1, 1), device)?)
}

/// One block of every clip.
fn block(config: &TrainConfig, clips: &[ShortClip], numbers: &[usize], device: &Device) -> Result<Tensor> {
    let frames = config.block_frames;
    let each = clips
        .iter()
        .zip(numbers)
        .map(|(clip, n)| clip.frames.narrow(1, n * frames, frames));
    let each: Vec<Tensor> = each.collect::<candle_core::Result<_>>()?;
    Ok(Tensor::stack(&each, 0)?.to_device(device)?)
}

/// The history, noisy.
fn sample(
    config: &TrainConfig,
    clips: &[ShortClip],
    choices: &[Choice],
    levels: &Tensor,
    random: &mut RandomWeights,
    device: &Device,
) -> Result<Sample> {
    let mut all = |of: fn(&Choice) -> &[usize]| -> Result<Vec<Tensor>> {
        let count = choices.first().map_or(0, |c| of(c).len());
        (0..count)
            .map(|i| {
                let numbers: Vec<usize> = choices.iter().map(|c| of(c)[i]).collect();
                let clean = block(config, clips, &numbers, device)?;
                let noise = random.normal(clean.dims(), 1.0)?;
                Ok((clean + noise.broadcast_mul(levels)?)?)
            })
            .collect()
    };
    let contexts: Vec<&Tensor> = clips.iter().map(|c| &c.context).collect();
    Ok(Sample {
        sink: all(|c| &c.sink)?,
        mids: all(|c| &c.mids)?,
        recent: all(|c| &c.recent)?,
        context: Tensor::stack(&contexts, 0)?.to_device(device)?,
    })
}
