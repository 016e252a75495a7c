//! `sample`: a long video from a model that was trained on short clips.

mod session;
mod show;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use clap::{Args, ValueEnum};
use packforcing_video::sample::{Generator, History, Packing, SampleConfig};
use packforcing_video::train::Checkpoint;
use packforcing_video::world::{self, Scene, World};

use crate::device::{self, ModelDevice};
use crate::media::film::{Film, Wish};
use crate::media::tensor::{self, Fingerprint};
use crate::output::{self, say};
use crate::progress;
use session::{Session, State};

/// The model that comes with the program. How it was trained is told in data/README.md.
static GALLERY: &[u8] = include_bytes!("../../../../data/gallery.safetensors");
/// What it is called in messages.
const GALLERY_NAME: &str = "gallery.safetensors (built in)";
/// What a start clip may take up as numbers.
const MOST_START_BYTES: usize = 1 << 30;
/// A day.
const MAX_SECONDS: f64 = 86_400.0;

/// Options of `sample`.
#[derive(Debug, Args)]
pub struct Options {
    /// A checkpoint that `train` wrote; a small one is built in
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Length of the video, with what it starts from
    #[arg(long, value_name = "N", default_value_t = 120.0, value_parser = seconds)]
    seconds: f64,
    /// Goes on where this clip ends (y4m or gif of the model's size, or whatever the program ffmpeg reads); otherwise after
    /// the first block of a scene that the training has not seen
    #[arg(long, value_name = "CLIP", conflicts_with = "noise")]
    start: Option<PathBuf>,
    /// Frames a second of a start clip that does not say
    #[arg(long, value_name = "N", requires = "start", value_parser = crate::media::fps)]
    clip_fps: Option<f64>,
    /// Starts from noise alone
    #[arg(long)]
    noise: bool,
    /// What a block sees of those before it
    #[arg(long, value_enum, default_value_t = Policy::Packed)]
    policy: Policy,
    /// What becomes of old blocks
    #[arg(long, value_enum, default_value_t = Compression::Learned)]
    compression: Compression,
    /// Old blocks that a block attends to; the checkpoint's own number otherwise
    #[arg(long, value_name = "K")]
    selected: Option<usize>,
    /// Denoising steps of a block
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1000))]
    steps: u64,
    /// Decides the noise, and the scene that it starts from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where it runs
    #[arg(long, value_enum, default_value_t = ModelDevice::Best)]
    device: ModelDevice,
    /// Where the video, report.json and chart.png go
    #[arg(long, value_name = "DIR", default_value = "out/sample")]
    out: PathBuf,
    /// Writes a PNG for every frame too
    #[arg(long)]
    png: bool,
    /// Goes on with the video in the folder, which the same options began
    #[arg(long)]
    resume: bool,
    /// Makes the same video with the whole history too, and compares time and memory
    #[arg(long)]
    compare: bool,
}

pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0.0 && seconds <= MAX_SECONDS => Ok(seconds),
        _ => Err(format!("a number above 0, at most {MAX_SECONDS}, is expected")),
    }
}

/// What a block sees of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// The first blocks, the best of the compressed ones, the newest
    Packed,
    /// The newest
    Window,
    /// The first and the newest
    SinkWindow,
    /// All, whole: time and memory grow
    Full,
}

impl From<Policy> for History {
    fn from(policy: Policy) -> History {
        match policy {
            Policy::Packed => History::Packed,
            Policy::Window => History::Window,
            Policy::SinkWindow => History::SinkWindow,
            Policy::Full => History::Full,
        }
    }
}

/// What becomes of old blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// What the compressor that was trained with the model makes of them
    Learned,
    /// Means of tokens
    Mean,
    /// The most similar tokens merge
    Match,
}

impl From<Compression> for Packing {
    fn from(compression: Compression) -> Packing {
        match compression {
            Compression::Learned => Packing::Learned,
            Compression::Mean => Packing::Mean,
            Compression::Match => Packing::Match,
        }
    }
}

/// A checkpoint of the user's, or the built-in one, in f32.
pub fn checkpoint(file: Option<&PathBuf>, device: ModelDevice) -> Result<Checkpoint> {
    let device = device.open()?;
    match file {
        Some(file) => Ok(Checkpoint::open(file, DType::F32, &device)?),
        None => Ok(Checkpoint::from_bytes(GALLERY_NAME, GALLERY, DType::F32, &device)?),
    }
}

/// What the video begins with: known blocks, each `[channels, frames, rows, columns]`, and whose they are.
struct Start {
    blocks: Vec<Tensor>,
    scene: Option<Scene>,
    context: Tensor,
    name: String,
}

impl Start {
    fn of(options: &Options, checkpoint: &Checkpoint) -> Result<Start> {
        let description = &checkpoint.description;
        let device = checkpoint.model.device();
        let dim = description.model.context_dim;
        let world = World { context_dim: dim };
        let frames = description.train.block_frames;
        if let Some(path) = &options.start {
            let name = path.display().to_string();
            let [rows, cols] = description.size;
            let wish = Wish {
                fps: world::FPS,
                size: Some((cols, rows)),
                pixels: None,
                unsaid_fps: options.clip_fps,
            };
            let mut film = Film::open(path, &wish)?;
            let pictures = film.rest(MOST_START_BYTES)?;
            film.warn();
            ensure!(
                pictures.len() >= frames,
                "{name}: {} frames at {} a second are too few to start from: a block has {frames}",
                pictures.len(),
                world::FPS
            );
            // The video goes on behind the newest frame: what does not fill a block is the oldest.
            let over = pictures.len() % frames;
            if over > 0 {
                eprintln!(
                    "{name}: the first {over} of its {} frames do not fill a block of {frames}, and are left out",
                    pictures.len()
                );
            }
            let blocks = pictures[over..].chunks_exact(frames).map(tensor::of_frames);
            return Ok(Start {
                blocks: blocks.collect::<Result<_>>()?,
                scene: None,
                context: Tensor::zeros((1, 1, dim), DType::F32, device)?,
                name,
            });
        }
        let scene = Scene::held_out(options.seed);
        let context = world.context(scene.background, device)?.unsqueeze(0)?;
        if options.noise || description.size != [world::ROWS, world::COLS] {
            return Ok(Start {
                blocks: Vec::new(),
                scene: None,
                context,
                name: "noise".into(),
            });
        }
        Ok(Start {
            blocks: vec![scene.clip(0, frames, device)?],
            context,
            name: format!("scene {} of the gallery, not seen in training", options.seed),
            scene: Some(scene),
        })
    }
}

impl Start {
    /// Of a clip's numbers.
    fn fingerprint(&self) -> Result<Option<String>> {
        if self.scene.is_some() || self.blocks.is_empty() {
            return Ok(None);
        }
        let mut hash = Fingerprint::default();
        for block in &self.blocks {
            hash.add(block)?;
        }
        Ok(Some(hash.to_string()))
    }
}

/// Runs `sample`.
pub fn run(options: &Options) -> Result<()> {
    let checkpoint = checkpoint(options.checkpoint.as_ref(), options.device)?;
    let description = &checkpoint.description;
    let config = SampleConfig {
        history: options.policy.into(),
        packing: options.compression.into(),
        selected: options.selected.unwrap_or(description.train.selected),
        steps: options.steps as usize,
        seed: options.seed,
        ..SampleConfig::of(description)
    };
    let start = Start::of(options, &checkpoint)?;
    // Whole blocks, as long as was asked for at least.
    let frames = (options.seconds * world::FPS as f64).round() as usize;
    let blocks = frames.div_ceil(config.block_frames).max(1);
    let seconds = |blocks: usize| (blocks * config.block_frames) as f64 / world::FPS as f64;
    ensure!(
        blocks > start.blocks.len(),
        "--seconds {}: {} has {} s already, which the video begins with: {} is the next block",
        options.seconds,
        start.name,
        seconds(start.blocks.len()),
        seconds(start.blocks.len() + 1)
    );
    let _lock = output::prepare(&options.out)?;
    let state = State {
        config: config.clone(),
        checkpoint: description.clone(),
        start: start.name.clone(),
        start_clip: start.fingerprint()?,
    };

    let begun = Instant::now();
    let mut generator = Generator::new(&checkpoint, &start.context, &config)?;
    let mut session = Session::open(&options.out, &state, start.scene.as_ref(), options.resume, options.png)?;
    say!("runs on   {}", device::name(checkpoint.model.device()));
    say!(
        "model     {} numbers, trained for {} steps on {}",
        numbers(&checkpoint),
        description.steps,
        description.data
    );
    say!(
        "video     {} s at {} frames a second: {blocks} blocks, from {}",
        seconds(blocks),
        world::FPS,
        start.name
    );
    let bar = progress::bar(blocks, "blocks");
    for block in 0..blocks {
        let now = Instant::now();
        let kept = session.kept(block)?;
        let made = match (start.blocks.get(block), &kept) {
            (Some(start), _) => {
                generator.append(start)?;
                start.clone()
            }
            (None, Some(kept)) => {
                generator.replay(kept)?;
                kept.clone()
            }
            (None, None) => generator.next_block()?,
        };
        session
            .add(&made, kept.is_none(), &generator, now.elapsed())
            .with_context(|| format!("block {block}"))?;
        bar.set_message(format!(
            "{:.0} frames a second, cache {:.2} MB",
            session.frames() as f64 / begun.elapsed().as_secs_f64(),
            generator.cache_bytes() as f64 / 1e6
        ));
        bar.inc();
    }
    bar.finish();

    let full = match options.compare {
        true => Some(whole_history(&checkpoint, &config, &start, blocks)?),
        false => None,
    };
    show::write(options, session, &generator, &state, full.as_ref(), begun.elapsed())
}

/// Numbers of the model, shortened.
fn numbers(checkpoint: &Checkpoint) -> String {
    format!("{:.1} million", checkpoint.numbers() as f64 / 1e6)
}

/// What a video with everything kept took, block by block.
pub struct Whole {
    pub ms: Vec<f64>,
    pub bytes: Vec<usize>,
}

fn whole_history(checkpoint: &Checkpoint, config: &SampleConfig, start: &Start, blocks: usize) -> Result<Whole> {
    let config = SampleConfig {
        history: History::Full,
        ..config.clone()
    };
    let mut generator = Generator::new(checkpoint, &start.context, &config)?;
    let mut whole = Whole {
        ms: Vec::new(),
        bytes: Vec::new(),
    };
    let bar = progress::bar(blocks, "blocks with the whole history");
    for block in 0..blocks {
        let now = Instant::now();
        match start.blocks.get(block) {
            Some(start) => generator.append(start)?,
            None => drop(generator.next_block()?),
        }
        whole.ms.push(now.elapsed().as_secs_f64() * 1e3);
        whole.bytes.push(generator.cache_bytes());
        bar.inc();
    }
    bar.finish();
    Ok(whole)
}
