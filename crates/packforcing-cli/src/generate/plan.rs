//! What a video will take, by part, before anything is loaded.

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use packforcing_video::few_step::{FewStepConfig, Memory};
use packforcing_video::picture::{PictureBytes, Taehv, Vae};
use packforcing_video::{Config, Recipe};

use super::files::Files;
use super::{Decoder, FPS, Remembered, SCALE, Shape};
use crate::output::say;
use crate::process;

/// Of what is free, what a plan takes at most: its sums are not exact.
const SHARE: f64 = 0.9;

/// Parts of a model that all videos have in common.
pub struct Weights<'c> {
    pub config: &'c Config,
    pub dtype: DType,
    pub transformer: usize,
    pub pictures: Option<PictureBytes>,
    /// Whether the prompt changes in mid video.
    pub switches: bool,
}

/// Bytes by part, and the video that they are for.
#[derive(Debug, Clone)]
pub struct Plan {
    pub few_step: FewStepConfig,
    /// Multiply-adds by which a frame of latents becomes pictures.
    pub decoding: f64,
    parts: Vec<(&'static str, usize)>,
}

impl Plan {
    /// A plan for one memory, with the archive that was asked for or the largest that so many free bytes allow.
    pub fn new(shape: &Shape, recipe: Recipe, memory: Remembered, weights: &Weights, free: usize) -> Result<Plan> {
        let Weights {
            config,
            dtype,
            transformer,
            pictures,
            switches,
        } = *weights;
        let few_step = FewStepConfig {
            memory: memory.into(),
            ..shape.few_step(recipe)
        };
        let pictures = pictures.unwrap_or(PictureBytes {
            weights: 0,
            kept: 0,
            work: 0,
        });
        let work = few_step.work_bytes(config, dtype, switches)?.max(pictures.work);
        let rest = transformer + pictures.weights + pictures.kept + work;
        let few_step = match shape.archive {
            Some(_) => few_step,
            None => {
                let history = ((free as f64 * SHARE) as usize).saturating_sub(rest);
                let (_, blocks) = shape.frames_and_blocks(recipe);
                few_step.with_largest_archive(config, dtype, history, blocks)?
            }
        };
        let history = few_step.cache_bytes(config, dtype)?;
        let parts = vec![
            ("transformer", transformer),
            ("history", history.total() - history.archive),
            ("archive", history.archive),
            ("decoder", pictures.weights),
            ("frames that it keeps", pictures.kept),
            ("work", work),
        ];
        let numbers = (pictures.weights / dtype.size_in_bytes()) as f64;
        let [rows, cols] = few_step.size;
        let each = match shape.decoder {
            Decoder::Vae => VAE_USES,
            Decoder::Preview => PREVIEW_USES,
        };
        Ok(Plan {
            decoding: numbers * each * (rows * cols) as f64,
            few_step,
            parts,
        })
    }

    pub fn total(&self) -> usize {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// A line for each part.
    pub fn tell(&self) {
        for (what, bytes) in &self.parts {
            let blocks = match *what {
                "archive" if *bytes > 0 => format!(", {} blocks to select from", self.few_step.archived()),
                _ => String::new(),
            };
            say!("  {what:<22} {:8.3} GB{blocks}", gb(*bytes));
        }
    }

    /// Refuses what has no room.
    pub fn fits(&self, free: usize) -> Result<()> {
        ensure!(
            self.total() <= free,
            "about {:.2} GB are wanted and {:.2} GB are free: a smaller --size, fewer blocks in the --archive, --memory window or \
             --decoder preview take less (`packforcing inspect` tells each part)",
            gb(self.total()),
            gb(free)
        );
        Ok(())
    }

    /// What lies outside of what the weights were trained at, and the setting that mends it.
    pub fn warnings(&self, blocks: usize) -> Vec<String> {
        let recipe = self.few_step.recipe;
        let (frames, placed) = (blocks * recipe.block_frames(), recipe.placed_frames());
        let mut all = Vec::new();
        match self.few_step.memory {
            Memory::Window | Memory::SinkWindow if frames > placed => all.push(format!(
                "this memory keeps frames at their own places in the video, and {recipe} was trained at the first {placed} frames of \
                 latents ({:.0} s), of {frames} here: --memory whole never leaves them",
                (4 * placed - 3) as f64 / FPS as f64
            )),
            Memory::Whole | Memory::Mean if recipe.cache_frames() < IN_SIGHT => all.push(format!(
                "{recipe} was trained with {} frames in sight, and this memory shows {IN_SIGHT}: --memory sink-window is its own",
                recipe.cache_frames()
            )),
            _ => {}
        }
        if self.few_step.memory == Memory::Mean {
            all.push("nobody has tried these weights on averages: --memory whole has none".into());
        }
        all
    }
}

/// How often each number of an autoencoder's file is multiplied for one place of a latent: of Wan2.1's 126.9 million by 6.8e12 in
/// all at 60 x 104, of taew2_1's 11.3 million by 0.27e12.
const VAE_USES: f64 = 8.6;
const PREVIEW_USES: f64 = 3.8;

/// Frames that the packed memories show a block, its own among them.
const IN_SIGHT: usize = 21;

/// Of making pictures, where the files are there.
pub fn pictures(shape: &Shape, files: &Files, dtype: DType) -> Result<Option<PictureBytes>> {
    let [width, height] = shape.size;
    let latent = [height / SCALE, width / SCALE];
    Ok(match (shape.decoder, &files.preview) {
        (Decoder::Vae, _) if files.vae.is_empty() => None,
        (Decoder::Vae, _) => Some(Vae::bytes(&files.vae, latent, dtype)?),
        (Decoder::Preview, Some(file)) => Some(Taehv::bytes(&[file], latent, dtype)?),
        (Decoder::Preview, None) => None,
    })
}

/// Bytes that are free where a model will be; what no system tells is taken for enough.
pub fn free(device: &Device) -> Result<usize> {
    if device.is_cpu() {
        return Ok(process::available_bytes().map_or(usize::MAX / 2, |bytes| bytes as usize));
    }
    let device = packforcing_candle::device(device)?;
    Ok(match device.as_cuda() {
        Some(cuda) => cuda.context().mem_get_info()?.0,
        None => usize::MAX / 2,
    })
}

pub fn gb(bytes: usize) -> f64 {
    bytes as f64 / 1e9
}
