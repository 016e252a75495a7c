//! `generate`: a prompt becomes a video, by published weights.

mod files;
mod film;
pub mod inspect;
mod plan;
mod text;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use packforcing_video::few_step::{FewStepConfig, Memory};
use packforcing_video::picture::{Taehv, Vae};
use packforcing_video::{FileWeights, Lora, Model, Recipe};

use crate::device::{self, ModelDevice};
use crate::judge;
use crate::media::ffmpeg::Mp4Writer;
use crate::output::say;
use files::{Files, Named};
use film::{AnyDecoder, Made, beside, read_noise};
use plan::{Plan, Weights};
use text::{EMBEDDING, MOST_TOKENS, encode, following, read_embedding};

/// Frames a second that Wan2.1 was trained at.
const FPS: usize = 16;
/// Pixels along each side of one of a latent, and of a token of two of those.
const SCALE: usize = 8;
const TOKEN: usize = 2 * SCALE;

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
    /// Old blocks that are kept to select from; as many as the video has, or as there is memory for, otherwise
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    archive: Option<u32>,
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
            archive: self.archive.unwrap_or(0) as usize,
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

    /// The first block that begins at a time or after it.
    fn block_at(&self, seconds: f64, recipe: Recipe) -> Result<usize> {
        let ((_, blocks), frame) = (
            self.frames_and_blocks(recipe),
            (seconds * FPS as f64 - 1e-9).ceil() as usize,
        );
        let found = (1..blocks).find(|n| frames_of(n * recipe.block_frames()) >= frame);
        found.with_context(|| format!("--then {seconds}: no block of the video begins at that time or after it"))
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
    /// Another prompt from this second of the video on; may be given several times
    #[arg(long, num_args = 2, value_names = ["SECONDS", "PROMPT"], action = clap::ArgAction::Append, conflicts_with = "embedding")]
    then: Vec<String>,
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

/// Runs `generate`.
pub fn run(options: &Options) -> Result<()> {
    let begun = Instant::now();
    let mut files = options.parts.find()?;
    let transformer = files.transformer.first().cloned().context(
        "no transformer in what --model names: a checkpoint (self_forcing_dmd.pt, ...) or a folder with \
         diffusion_pytorch_model.safetensors is wanted",
    )?;
    let device = options.device.open()?;
    // On the CPU candle has no products of bf16 of its own.
    let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    say!("runs on   {}", device::name(&device));

    // All that can be wrong is looked at before the first number is loaded.
    let mut weights = FileWeights::open(&files.transformer, "", dtype, &device)?;
    let mut config = weights.config()?;
    config.context_len = MOST_TOKENS;
    if !weights.left_out().is_empty() {
        say!(
            "weights   {}: besides it holds {}",
            transformer.display(),
            weights.left_out().join(", ")
        );
    }
    let recipe = recipe(options.shape.recipe, &mut files, options.parts.lora.is_some())?;
    recipe.schedule(true)?;
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
    Mp4Writer::encoder(&options.out)?;
    let then = following(&options.then, options.shape.seconds)?;
    let blocks = then
        .iter()
        .map(|next| options.shape.block_at(next.seconds, recipe))
        .collect::<Result<Vec<_>>>()?;
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
    let noise = options.noise.as_ref().map(read_noise).transpose()?;
    if let Some(noise) = &noise {
        let few_step = options.shape.few_step(recipe);
        let (_, blocks) = options.shape.frames_and_blocks(recipe);
        noise.check(&config, &few_step, blocks)?;
    }
    let parts = Weights {
        config: &config,
        dtype,
        transformer: weights.numbers() * dtype.size_in_bytes(),
        pictures: plan::pictures(&options.shape, &files, dtype)?,
        switches: !then.is_empty(),
    };
    let free = plan::free(&device)?;
    let plan = |memory| {
        let plan = Plan::new(&options.shape, recipe, memory, &parts, free)?;
        plan.fits(free)?;
        Ok::<_, anyhow::Error>(plan)
    };
    let plans = (plan(options.shape.memory)?, options.compare.map(plan).transpose()?);

    // Text first: its weights leave memory before the others come.
    let mut embeddings = match &options.embedding {
        Some(file) => vec![read_embedding(file, &device)?],
        None => {
            let first = options.prompt.as_deref().unwrap_or_default();
            let all: Vec<&str> = std::iter::once(first)
                .chain(then.iter().map(|next| &next.prompt[..]))
                .collect();
            encode(&files, &all, &device)?
        }
    };
    for embedding in &mut embeddings {
        ensure!(
            embedding.dim(1)? == config.context_dim,
            "the prompt's embeddings have {} numbers, and the transformer takes {}",
            embedding.dim(1)?,
            config.context_dim
        );
        *embedding = embedding.unsqueeze(0)?;
    }
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
        prompts: std::iter::once(0).chain(blocks).zip(embeddings).collect(),
        decoder: match (&vae, &preview) {
            (Some(vae), _) => AnyDecoder::Vae(vae),
            (_, Some(preview)) => AnyDecoder::Preview(preview),
            _ => bail!("no decoder"),
        },
        noise,
        shape: &options.shape,
        recipe,
    };
    made.tell(&device, &config, &plans.0)?;
    made.film(&plans.0, &options.out, begun)?;
    if let (Some(memory), Some(plan)) = (options.compare, &plans.1) {
        let other = beside(&options.out, memory);
        made.film(plan, &other, Instant::now())?;
        for film in [&options.out, &other] {
            say!("");
            // The films are there, whatever can be told of them.
            match judge::film(film, FPS, made.blocks()) {
                Ok(judgement) => judgement.tell(film),
                Err(error) => eprintln!("warning: {error:#}"),
            }
        }
    }
    Ok(())
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
        let missing = "LongLive's base without its adapter is not LongLive: lora.pt is wanted beside it, or by --lora \
                       (huggingface-cli download Efficient-Large-Model/LongLive-1.3B models/lora.pt --local-dir .)";
        ensure!(told.is_some(), missing);
        eprintln!("warning: {missing}; it is taken for one with the adapter merged in");
    }
    if recipe != Recipe::LongLive && lora_is_named {
        eprintln!("warning: {recipe} has no adapter of its own: what --lora names is merged into it all the same");
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

/// Runs `encode-prompt`.
pub fn encode_prompt(options: &EncodeOptions) -> Result<()> {
    let files = options.parts.find()?;
    let device = options.device.open()?;
    let mut embeddings = encode(&files, &[&options.prompt], &device)?;
    let embedding = embeddings.swap_remove(0).to_device(&Device::Cpu)?;
    let made = std::collections::HashMap::from([(EMBEDDING, embedding)]);
    candle_core::safetensors::save(&made, &options.out).with_context(|| options.out.display().to_string())?;
    say!("\nwrote {}", options.out.display());
    Ok(())
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

    #[test]
    fn blocks_of_three_give_12_n_less_3_frames() {
        assert_eq!([3, 6, 21].map(frames_of), [9, 21, 81]);
    }
}
