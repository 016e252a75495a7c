//! `generate`: a prompt becomes a video, by published weights.

mod files;
pub mod inspect;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use clap::{Args, ValueEnum};
use packforcing_video::few_step::{FewStep, FewStepConfig, GivenNoise, Memory};
use packforcing_video::picture::{Taehv, TaehvDecoder, Vae, VaeDecoder};
use packforcing_video::{Config, FileWeights, Lora, Model, PromptTokenizer, Recipe, TextEncoder, clean_prompt};

use crate::device::{self, ModelDevice};
use crate::judge;
use crate::media::ffmpeg::Mp4Writer;
use crate::media::tensor;
use crate::output::say;
use crate::progress;
use files::{Files, Named};

/// Frames a second that Wan2.1 was trained at.
const FPS: usize = 16;
/// Pixels along each side of one of a latent, and of a token of two of those.
const SCALE: usize = 8;
const TOKEN: usize = 2 * SCALE;
/// Tokens of a prompt, the end mark among them.
const MOST_TOKENS: usize = 512;
/// The tensor of an embedding in its file.
const EMBEDDING: &str = "embedding";

/// Where the parts of a model are.
#[derive(Debug, Args)]
pub struct Parts {
    /// A checkpoint, or a folder of Wan2.1's parts; may be given several times
    #[arg(long, value_name = "FILE|FOLDER", required = true)]
    model: Vec<PathBuf>,
    /// An adapter (LoRA) that goes with the checkpoint
    #[arg(long, value_name = "FILE")]
    lora: Option<PathBuf>,
    /// The text encoder, a file or a folder of safetensors
    #[arg(long, value_name = "FILE|FOLDER")]
    text: Option<PathBuf>,
    /// Its tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The autoencoder
    #[arg(long, value_name = "FILE|FOLDER")]
    vae: Option<PathBuf>,
    /// TAEHV's file, for --decoder preview
    #[arg(long, value_name = "FILE")]
    preview: Option<PathBuf>,
}

impl Parts {
    fn find(&self) -> Result<Files> {
        let named = Named {
            lora: self.lora.clone(),
            text: self.text.clone(),
            tokenizer: self.tokenizer.clone(),
            vae: self.vae.clone(),
            preview: self.preview.clone(),
        };
        Files::find(&self.model, named)
    }
}

/// What is made.
#[derive(Debug, Args)]
pub struct Shape {
    /// What makes pictures of latents
    #[arg(long, value_enum, default_value_t = Decoder::Vae)]
    decoder: Decoder,
    /// Whose weights these are (self-forcing, causvid, causvid-4-step, causal-forcing, causal-forcing-framewise,
    /// causal-forcing-2-step, causal-forcing-1-step, longlive); guessed from names otherwise
    #[arg(long, value_name = "NAME")]
    recipe: Option<Recipe>,
    /// What a block attends to of those before it
    #[arg(long, value_enum, default_value_t = Remembered::Whole)]
    memory: Remembered,
    /// Old blocks that are kept to select from
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    archive: u32,
    /// Length of the video
    #[arg(long, value_name = "N", default_value_t = 5.0, value_parser = crate::sample::seconds)]
    seconds: f64,
    /// Pixels across and down
    #[arg(long, value_name = "WxH", default_value = "832x480", value_parser = size)]
    size: [usize; 2],
    /// Decides the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Shape {
    fn few_step(&self, recipe: Recipe) -> FewStepConfig {
        let [width, height] = self.size;
        FewStepConfig {
            recipe,
            memory: self.memory.into(),
            size: [height / SCALE, width / SCALE],
            archive: self.archive as usize,
            seed: self.seed,
        }
    }

    /// Frames that were asked for, and blocks that are enough for them.
    fn frames_and_blocks(&self, recipe: Recipe) -> (usize, usize) {
        let wanted = ((self.seconds * FPS as f64).round() as usize).max(1);
        let blocks = (1..)
            .find(|n| frames_of(n * recipe.block_frames()) >= wanted)
            .unwrap_or(1);
        (wanted, blocks)
    }
}

/// Options of `generate`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    parts: Parts,
    #[command(flatten)]
    shape: Shape,
    /// What the video shows
    #[arg(long, required_unless_present = "embedding", conflicts_with = "embedding")]
    prompt: Option<String>,
    /// What `encode-prompt` wrote, in place of a prompt
    #[arg(long, value_name = "FILE")]
    embedding: Option<PathBuf>,
    /// The adapter's alpha; its rank otherwise
    #[arg(long, value_name = "N")]
    lora_alpha: Option<f64>,
    /// Noise of another program: a safetensors file with `start` [16, frames, rows, columns] and `fresh`
    /// [blocks, steps - 1, 16, frames of a block, rows, columns]
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Makes the same video with another memory too, beside it, and judges both
    #[arg(long, value_enum, value_name = "MEMORY")]
    compare: Option<Remembered>,
    /// Where it runs
    #[arg(long, value_enum, default_value_t = ModelDevice::Best)]
    device: ModelDevice,
    /// The film, an mp4 file
    #[arg(long, value_name = "FILE", default_value = "film.mp4")]
    out: PathBuf,
}

/// Options of `encode-prompt`.
#[derive(Debug, Args)]
pub struct EncodeOptions {
    #[command(flatten)]
    parts: Parts,
    /// What the video shows
    #[arg(long)]
    prompt: String,
    /// Where it runs
    #[arg(long, value_enum, default_value_t = ModelDevice::Best)]
    device: ModelDevice,
    /// What `generate --embedding` takes
    #[arg(long, value_name = "FILE", default_value = "prompt.safetensors")]
    out: PathBuf,
}

/// What makes pictures of latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Decoder {
    /// Wan2.1's own
    Vae,
    /// TAEHV: a twenty-fifth of the work
    Preview,
}

/// What a block attends to of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Remembered {
    /// The first frames, the best of any age, the newest; all whole
    Whole,
    /// The same with means in place of the best: untried with these weights
    Mean,
    /// The newest, as the weights' own code has it
    Window,
    /// The first and the newest, as the weights' own code has it
    SinkWindow,
}

impl From<Remembered> for Memory {
    fn from(remembered: Remembered) -> Memory {
        match remembered {
            Remembered::Whole => Memory::Whole,
            Remembered::Mean => Memory::Mean,
            Remembered::Window => Memory::Window,
            Remembered::SinkWindow => Memory::SinkWindow,
        }
    }
}

/// Pixels across and down, in whole tokens.
fn size(text: &str) -> Result<[usize; 2], String> {
    let parsed = text
        .split_once('x')
        .and_then(|(w, h)| Some([w.parse().ok()?, h.parse().ok()?]));
    match parsed {
        Some(size)
            if size
                .iter()
                .all(|&n: &usize| n > 0 && n <= 8192 && n.is_multiple_of(TOKEN)) =>
        {
            Ok(size)
        }
        _ => Err(format!(
            "WIDTHxHEIGHT is expected, each a multiple of {TOKEN} up to 8192, as 832x480"
        )),
    }
}

/// Frames of so many frames of latents: one of the first, four of every other.
fn frames_of(latents: usize) -> usize {
    4 * latents - 3
}

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

/// Runs `generate`.
pub fn run(options: &Options) -> Result<()> {
    let begun = Instant::now();
    let mut files = options.parts.find()?;
    let transformer = files.transformer.first().cloned().context(
        "no transformer in what --model names: a checkpoint (self_forcing_dmd.pt, ...) or a folder with \
         diffusion_pytorch_model.safetensors is wanted",
    )?;
    match options.shape.decoder {
        Decoder::Vae => ensure!(
            !files.vae.is_empty(),
            "no autoencoder: Wan2.1_VAE.pth is wanted in a folder of --model, or by --vae"
        ),
        Decoder::Preview => ensure!(
            files.preview.is_some(),
            "no taew2_1.pth or .safetensors: --preview names it"
        ),
    }
    let folder = options.out.parent().filter(|folder| !folder.as_os_str().is_empty());
    ensure!(
        folder.is_none_or(Path::is_dir),
        "{}: there is no such folder",
        options.out.display()
    );
    let recipe = recipe(options.shape.recipe, &mut files, options.parts.lora.is_some())?;
    recipe.schedule(true)?;
    let device = options.device.open()?;
    // On the CPU candle has no products of bf16 of its own.
    let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    say!("runs on   {}", device::name(&device));

    // Text first: its weights leave memory before the others come.
    let embedding = match &options.embedding {
        Some(file) => read_embedding(file, &device)?,
        None => encode(&files, options.prompt.as_deref().unwrap_or_default(), &device)?,
    };

    let mut weights = FileWeights::open(&files.transformer, "", dtype, &device)?;
    let mut config = weights.config()?;
    if !weights.left_out().is_empty() {
        say!(
            "weights   {}: besides it holds {}",
            transformer.display(),
            weights.left_out().join(", ")
        );
    }
    if let Some(path) = &files.lora {
        let lora = Lora::open(path, options.lora_alpha)?;
        say!(
            "adapter   {}: {} layers of rank {}, by {}",
            path.display(),
            lora.layers(),
            lora.rank(),
            lora.scale()
        );
        weights = weights.with_lora(lora);
    }
    ensure!(
        embedding.dim(1)? == config.context_dim,
        "the prompt's embeddings have {} numbers, and the transformer takes {}",
        embedding.dim(1)?,
        config.context_dim
    );
    config.context_len = MOST_TOKENS;
    let model = Model::new(&config, &mut weights)?;
    weights.finish()?;

    let vae = match options.shape.decoder {
        Decoder::Vae => Some(Vae::open(&files.vae, dtype, &device)?),
        Decoder::Preview => None,
    };
    let preview = match options.shape.decoder {
        Decoder::Preview => Some(Taehv::open(&files.preview.iter().collect::<Vec<_>>(), dtype, &device)?),
        Decoder::Vae => None,
    };
    let made = Made {
        model: &model,
        embedding: embedding.unsqueeze(0)?,
        decoder: match (&vae, &preview) {
            (Some(vae), _) => AnyDecoder::Vae(vae),
            (_, Some(preview)) => AnyDecoder::Preview(preview),
            _ => bail!("no decoder"),
        },
        noise: options.noise.as_ref().map(read_noise).transpose()?,
        shape: &options.shape,
        recipe,
    };
    made.tell(&device, &config)?;
    made.film(options.shape.memory, &options.out, begun)?;
    if let Some(memory) = options.compare {
        let other = beside(&options.out, memory);
        made.film(memory, &other, Instant::now())?;
        for film in [&options.out, &other] {
            say!("");
            judge::film(film, FPS, made.blocks())?.tell(film);
        }
    }
    Ok(())
}

/// A film's name with a memory's in it: `film.mp4` and `film.window.mp4`.
fn beside(out: &Path, memory: Remembered) -> PathBuf {
    let name = memory.to_possible_value().map(|value| value.get_name().to_string());
    let ending = out
        .extension()
        .map_or_else(|| "mp4".into(), |end| end.to_string_lossy().into_owned());
    out.with_extension(format!("{}.{ending}", name.unwrap_or_default()))
}

/// What every film of a prompt has in common.
struct Made<'m> {
    model: &'m Model,
    embedding: Tensor,
    decoder: AnyDecoder<'m>,
    noise: Option<GivenNoise>,
    shape: &'m Shape,
    recipe: Recipe,
}

enum AnyDecoder<'m> {
    Vae(&'m Vae),
    Preview(&'m Taehv),
}

impl Made<'_> {
    /// Frames of the first block, and of every other.
    fn blocks(&self) -> (usize, usize) {
        let latents = self.recipe.block_frames();
        (frames_of(latents), 4 * latents)
    }

    /// What will be made, and on a CPU how long it will take.
    fn tell(&self, device: &Device, config: &Config) -> Result<()> {
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
            let about = time(Duration::from_secs_f64(all / rate()?));
            say!("time      about {about} for the transformer alone, by a product that was timed");
        }
        Ok(())
    }

    /// Makes a film, block by block; `begun` is when the first frames began to be waited for.
    fn film(&self, memory: Remembered, out: &Path, begun: Instant) -> Result<()> {
        let [width, height] = self.shape.size;
        let (wanted, blocks) = self.shape.frames_and_blocks(self.recipe);
        let few_step = FewStepConfig {
            memory: memory.into(),
            ..self.shape.few_step(self.recipe)
        };
        let mut video = FewStep::new(self.model, &self.embedding, &few_step)?;
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
        say!("\nwrote {}", out.display());
        Ok(())
    }
}

/// What was told, or what names tell. An adapter that was only found goes with LongLive alone.
fn recipe(told: Option<Recipe>, files: &mut Files, lora_is_named: bool) -> Result<Recipe> {
    let path = files.transformer.first().cloned().unwrap_or_default();
    let recipe = match (told, Recipe::guess(&path, files.lora.is_some())) {
        (Some(recipe), _) => {
            say!("recipe    {recipe}");
            recipe
        }
        (None, Some((recipe, by))) => {
            say!("recipe    {recipe}, a guess by {by} (--recipe says another)");
            recipe
        }
        (None, None) => {
            let names: Vec<&str> = Recipe::ALL.iter().map(|recipe| recipe.name()).collect();
            bail!(
                "{}: nothing tells whose few-step weights these are, and all have the same names: --recipe says it ({}). Plain \
                 Wan2.1 is not sampled in few steps",
                path.display(),
                names.join(", ")
            );
        }
    };
    if recipe == Recipe::LongLive && files.lora.is_none() {
        let missing = "LongLive's base without its adapter is not LongLive: lora.pt is wanted beside it, or by --lora";
        ensure!(told.is_some(), missing);
        eprintln!("warning: {missing}; it is taken for one with the adapter merged in");
    }
    if recipe != Recipe::LongLive
        && !lora_is_named
        && let Some(lora) = files.lora.take()
    {
        say!(
            "adapter   {} is left out: {recipe} has none (--lora takes it all the same)",
            lora.display()
        );
    }
    Ok(recipe)
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

/// Embeddings of a prompt, `[tokens, width]`, in f32.
fn encode(files: &Files, prompt: &str, device: &Device) -> Result<Tensor> {
    ensure!(
        !files.text.is_empty(),
        "no text encoder: models_t5_umt5-xxl-enc-bf16.pth or text_encoder/ is wanted in a folder of --model, or by --text"
    );
    let tokenizer = files.tokenizer.as_ref().context(
        "no tokenizer: google/umt5-xxl/tokenizer.json or tokenizer/tokenizer.json is wanted in a folder of --model, or by \
         --tokenizer",
    )?;
    let clean = clean_prompt(prompt);
    ensure!(!clean.is_empty(), "the prompt is empty");
    let tokenizer = PromptTokenizer::open(tokenizer)?;
    let all = tokenizer.encode(&clean, usize::MAX)?.len();
    let tokens = tokenizer.encode(&clean, MOST_TOKENS)?;
    if all > tokens.len() {
        eprintln!("warning: the prompt has {all} tokens, and {MOST_TOKENS} are taken: its end is left out");
    }
    let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    let encoder = TextEncoder::open(&files.text, dtype, device)?;
    let embedding = encoder.encode(&tokens)?.to_dtype(DType::F32)?;
    say!("prompt    {} tokens", tokens.len());
    Ok(embedding)
}

fn read_embedding(file: &PathBuf, device: &Device) -> Result<Tensor> {
    let named = || file.display().to_string();
    let mut tensors = candle_core::safetensors::load(file, device).with_context(named)?;
    let embedding = tensors
        .remove(EMBEDDING)
        .with_context(|| format!("{}: no tensor {EMBEDDING}", named()))?;
    let fits = matches!(embedding.dims(), &[tokens, _] if (1..=MOST_TOKENS).contains(&tokens));
    ensure!(
        fits,
        "{}: {EMBEDDING} is {:?}, and [1 to {MOST_TOKENS}, width] is expected",
        named(),
        embedding.dims()
    );
    Ok(embedding.to_dtype(DType::F32)?)
}

fn read_noise(file: &PathBuf) -> Result<GivenNoise> {
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

/// Runs `encode-prompt`.
pub fn encode_prompt(options: &EncodeOptions) -> Result<()> {
    let files = options.parts.find()?;
    let device = options.device.open()?;
    let embedding = encode(&files, &options.prompt, &device)?.to_device(&Device::Cpu)?;
    let made = std::collections::HashMap::from([(EMBEDDING, embedding)]);
    candle_core::safetensors::save(&made, &options.out).with_context(|| options.out.display().to_string())?;
    say!("\nwrote {}", options.out.display());
    Ok(())
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

    #[test]
    fn sizes_are_whole_tokens() {
        assert_eq!(size("832x480"), Ok([832, 480]));
        for wrong in ["832", "x", "0x480", "830x480", "832x8208", "axb", "-16x16"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

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

    #[test]
    fn blocks_of_three_give_12_n_less_3_frames() {
        assert_eq!([3, 6, 21].map(frames_of), [9, 21, 81]);
    }
}
