//! A film, block by block: latents, pictures, frames in a file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use clap::ValueEnum;
use packforcing_video::few_step::{FewStep, GivenNoise};
use packforcing_video::picture::{Taehv, TaehvDecoder, Vae, VaeDecoder};
use packforcing_video::{Config, Model, Recipe};

use super::plan::{Plan, gb};
use super::{FPS, Remembered, SCALE, Shape, frames_of};
use crate::media::ffmpeg::Mp4Writer;
use crate::media::tensor;
use crate::output::say;
use crate::{process, progress};

/// What frames come from.
enum Pictures<'m> {
    Vae(VaeDecoder<'m>),
    Preview(TaehvDecoder<'m>),
}

impl Pictures<'_> {
    fn decode(&mut self, latents: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Pictures::Vae(decoder) => decoder.decode(latents)?,
            Pictures::Preview(decoder) => decoder.decode(latents)?,
        })
    }
}

/// A film's name with a memory's in it: `film.mp4` and `film.window.mp4`.
pub fn beside(out: &Path, memory: Remembered) -> PathBuf {
    let name = memory.to_possible_value().map(|value| value.get_name().to_string());
    let ending = out
        .extension()
        .map_or_else(|| "mp4".into(), |end| end.to_string_lossy().into_owned());
    out.with_extension(format!("{}.{ending}", name.unwrap_or_default()))
}

/// What every film of a prompt has in common.
pub struct Made<'m> {
    pub model: &'m Model,
    /// Embeddings, `[1, tokens, width]`, each from a block on.
    pub prompts: Vec<(usize, Tensor)>,
    pub decoder: AnyDecoder<'m>,
    pub noise: Option<GivenNoise>,
    pub shape: &'m Shape,
    pub recipe: Recipe,
}

pub enum AnyDecoder<'m> {
    Vae(&'m Vae),
    Preview(&'m Taehv),
}

impl Made<'_> {
    /// Frames of the first block, and of every other.
    pub fn blocks(&self) -> (usize, usize) {
        let latents = self.recipe.block_frames();
        (frames_of(latents), 4 * latents)
    }

    /// What will be made, and on a CPU how long it will take.
    pub fn tell(&self, device: &Device, config: &Config, plan: &Plan) -> Result<()> {
        let [width, height] = self.shape.size;
        let (wanted, blocks) = self.shape.frames_and_blocks(self.recipe);
        let latents = self.recipe.block_frames();
        say!(
            "video     {} s, {wanted} frames of {width} x {height} at {FPS} a second: {blocks} blocks of {latents} frames of latents",
            wanted as f64 / FPS as f64
        );
        if device.is_cpu() {
            let grid = config.tokens([latents, height / SCALE, width / SCALE])?;
            let seen = grid.rows * grid.cols * self.recipe.cache_frames();
            let passes = self.recipe.schedule(false)?.steps().len() + 1;
            let all = multiply_adds(config, grid.tokens().0, seen) * (passes * blocks) as f64;
            let all = all + plan.decoding * (blocks * latents) as f64;
            let about = time(Duration::from_secs_f64(all / rate()?));
            say!("time      {about} or more, by a product that was timed");
        }
        Ok(())
    }

    /// Makes a film, block by block; `begun` is when the first frames began to be waited for.
    pub fn film(&self, plan: &Plan, out: &Path, begun: Instant) -> Result<()> {
        let [width, height] = self.shape.size;
        let (wanted, blocks) = self.shape.frames_and_blocks(self.recipe);
        for warning in plan.warnings(blocks) {
            eprintln!("warning: {warning}");
        }
        process::forget_peak();
        let [(_, first), then @ ..] = &self.prompts[..] else {
            return Ok(());
        };
        let mut video = FewStep::new(self.model, first, &plan.few_step)?;
        if let Some(noise) = &self.noise {
            video = video.with_noise(noise.clone());
        }
        let mut pictures = match self.decoder {
            AnyDecoder::Vae(vae) => Pictures::Vae(vae.decoder()),
            AnyDecoder::Preview(preview) => Pictures::Preview(preview.decoder()),
        };
        let mut film = Mp4Writer::create(out, (width, height), FPS)?;
        let bar = progress::bar(blocks, "blocks");
        let mut written = 0;
        for block in 0..blocks {
            let now = Instant::now();
            if let Some((_, prompt)) = then.iter().rfind(|(from, _)| *from == block) {
                video.switch_prompt(prompt)?;
            }
            let latents = video.next_block().with_context(|| format!("block {block}"))?;
            let frames = pictures.decode(&latents.transpose(0, 1)?.contiguous()?)?;
            let frames = frames.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            let frames = frames.transpose(0, 1)?.contiguous()?;
            let numbers = frames.flatten_all()?.to_vec1::<f32>()?;
            ensure!(
                numbers.iter().all(|n| n.is_finite()),
                "block {block}: the model gave numbers that are not finite; {} has what was made before",
                out.display()
            );
            for frame in tensor::to_frames(&frames)?.iter().take(wanted - written) {
                film.write(frame)?;
                written += 1;
            }
            if block == 0 {
                let so_far = begun.elapsed();
                let all = so_far + now.elapsed() * (blocks - 1) as u32;
                bar.suspend(|| say!("first     frames after {}; all in about {}", time(so_far), time(all)));
            }
            bar.set_message(format!("cache {:.2} MB", video.cache_bytes() as f64 / 1e6));
            bar.inc();
        }
        bar.finish();
        film.finish()?;
        let all = begun.elapsed();
        say!(
            "made      {written} frames in {}, {:.2} a second",
            time(all),
            written as f64 / all.as_secs_f64()
        );
        say!("cache     {:.2} MB", video.cache_bytes() as f64 / 1e6);
        if self.model.device().is_cpu()
            && let Some(peak) = process::peak_rss_bytes()
        {
            say!(
                "memory    {:.2} GB at most; about {:.2} were told",
                gb(peak as usize),
                gb(plan.total())
            );
        }
        say!("\nwrote {}", out.display());
        Ok(())
    }
}

/// Noise of another program.
pub fn read_noise(file: &PathBuf) -> Result<GivenNoise> {
    let named = || file.display().to_string();
    let mut tensors = candle_core::safetensors::load(file, &Device::Cpu).with_context(named)?;
    let mut take = |name: &str, rank: usize| -> Result<Tensor> {
        let tensor = tensors
            .remove(name)
            .with_context(|| format!("{}: no tensor {name}", named()))?;
        ensure!(tensor.rank() == rank, "{}: {name} is {:?}", named(), tensor.dims());
        Ok(tensor)
    };
    Ok(GivenNoise {
        start: take("start", 4)?,
        fresh: take("fresh", 6)?,
    })
}

/// Of one pass over so many tokens that see so many: products of layers, of attention, and with the prompt.
fn multiply_adds(config: &Config, tokens: usize, seen: usize) -> f64 {
    let (width, hidden) = (config.width() as f64, config.ffn_dim as f64);
    let (tokens, seen, prompt) = (tokens as f64, seen as f64, config.context_len as f64);
    let linear = tokens * (6.0 * width * width + 2.0 * width * hidden);
    config.layers as f64 * (linear + 2.0 * tokens * (seen + prompt) * width)
}

/// Multiply-adds a second of this CPU, by a product of candle's.
fn rate() -> Result<f64> {
    const EXTENT: usize = 1024;
    let a = Tensor::ones((EXTENT, EXTENT), DType::F32, &Device::Cpu)?;
    a.matmul(&a)?;
    let now = Instant::now();
    a.matmul(&a)?;
    Ok((EXTENT * EXTENT * EXTENT) as f64 / now.elapsed().as_secs_f64().max(1e-9))
}

/// As people say it.
fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{:.0} minutes", s / 60.0),
        s => format!("{:.1} hours", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of three frames of Wan2.1 at 480p with 21 in sight: 14.1 T of attention.
    #[test]
    fn work_is_that_of_the_model() {
        let config = Config::wan2_1_t2v_1_3b();
        let attention = multiply_adds(&config, 4680, 21 * 1560) - multiply_adds(&config, 4680, 0);
        assert!((attention / 1e12 - 14.1).abs() < 0.1, "{attention:e}");
    }

    #[test]
    fn the_other_film_lies_beside() {
        let other = beside(Path::new("out/film.mp4"), Remembered::SinkWindow);
        assert_eq!(other, Path::new("out/film.sink-window.mp4"));
    }
}
