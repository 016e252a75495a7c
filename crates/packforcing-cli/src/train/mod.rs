//! `train`: a small model from short clips.

mod clips;
mod curve;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Args;
use packforcing_video::train::{Clips, Description, TrainConfig, Trainer};
use packforcing_video::world::{self, World};
use packforcing_video::{CompressorConfig, Config};

use crate::device::{self, ModelDevice};
use crate::output::{self, say};
use crate::progress;
use clips::Folder;
use curve::Curve;

/// Everything that another run needs to go on.
const RUN: &str = "run.safetensors";
/// What samples: the averaged weights alone.
const MODEL: &str = "model.safetensors";

/// Options of `train`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("data").required(true).args(["clips", "synthetic"])))]
pub struct Options {
    /// A folder of clips: y4m and gif of one size, and whatever the program ffmpeg reads
    clips: Option<PathBuf>,
    /// Frames a second of clips that do not say
    #[arg(long, value_name = "N", value_parser = crate::media::fps)]
    clip_fps: Option<f64>,
    /// Clips of the built-in world, whose truth is known: 5 seconds at 8 frames a second, without end
    #[arg(long)]
    synthetic: bool,
    /// Frames of a clip to learn from; longer files are cut at any place
    #[arg(long, value_name = "N", default_value_t = world::SHORT)]
    frames: usize,
    /// Steps of the whole run
    #[arg(long, value_name = "N", default_value_t = TrainConfig::default().steps)]
    steps: u64,
    /// Clips in a part of a step; a step has two parts, side by side
    #[arg(long, value_name = "N", default_value_t = TrainConfig::default().batch)]
    batch: usize,
    /// Largest learning rate
    #[arg(long, value_name = "RATE", default_value_t = TrainConfig::default().learning_rate)]
    learning_rate: f64,
    /// Decides everything that is random: one seed, one model
    #[arg(long, default_value_t = TrainConfig::default().seed)]
    seed: u64,
    /// Where it runs
    #[arg(long, value_enum, default_value_t = ModelDevice::Best)]
    device: ModelDevice,
    /// Where checkpoints, losses and the loss curve go
    #[arg(long, value_name = "DIR", default_value = "out/train")]
    out: PathBuf,
    /// Steps from one checkpoint to the next
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    save_every: u64,
    /// Goes on where the last checkpoint in the folder was written
    #[arg(long)]
    resume: bool,
}

/// Candle's tensors are large and short-lived: memory that goes back to the system at once comes back a page at a
/// time, which takes as long as the work.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    const GIGABYTE: libc::c_int = 1 << 30;
    for (setting, value) in [
        (libc::M_MMAP_THRESHOLD, GIGABYTE),
        (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
        (libc::M_TOP_PAD, GIGABYTE / 8),
    ] {
        // SAFETY: mallopt takes any numbers and has no memory of ours in hand. What it refuses costs time alone.
        unsafe { libc::mallopt(setting, value) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

/// Runs `train`.
pub fn run(options: &Options) -> Result<()> {
    keep_freed_memory();
    let model = Config::tiny(3);
    match &options.clips {
        Some(folder) => {
            let clips = Folder::open(folder, options.frames, model.context_dim, options.clip_fps)?;
            let (rows, cols) = clips.size();
            // Another folder may hold the same clips: they are known by their numbers.
            let data = format!(
                "{} clips of {}, {}",
                clips.count(),
                folder.display(),
                clips.fingerprint()?
            );
            train(options, &model, &clips, [rows, cols], &data)
        }
        None => {
            let world = World {
                context_dim: model.context_dim,
            };
            let data = "5-second clips of the built-in world (--synthetic)";
            train(options, &model, &world, [world::ROWS, world::COLS], data)
        }
    }
}

fn train(options: &Options, model: &Config, clips: &(impl Clips + Sync), size: [usize; 2], data: &str) -> Result<()> {
    let config = TrainConfig {
        steps: options.steps,
        batch: options.batch,
        learning_rate: options.learning_rate,
        seed: options.seed,
        ..TrainConfig::default()
    };
    let compressor = CompressorConfig::tiny();
    compressor
        .grid(model, [config.block_frames, size[0], size[1]])
        .with_context(|| data.to_string())?;
    let device = options.device.open()?;
    let device: &Device = &device;
    let _lock = output::prepare(&options.out)?;
    let (run, shipped) = (options.out.join(RUN), options.out.join(MODEL));
    let mut curve = Curve::new(&options.out);
    let mut trainer = if options.resume {
        let there = Description::read(&run)?;
        let learned = |data: &str| data.rsplit(", ").next().map(str::to_string);
        ensure!(
            learned(&there.data) == learned(data),
            "--resume: {}: the run learned from {}, and not from {data}",
            run.display(),
            there.data
        );
        let trainer = Trainer::resume(&run, model, &compressor, &config, device)?;
        curve.read(trainer.done())?;
        trainer
    } else {
        ensure!(
            !run.exists(),
            "{}: there is a run already; --resume goes on with it, another --out begins a new one",
            run.display()
        );
        Trainer::new(model, &compressor, &config, device)?
    };
    say!("runs on   {}", device::name(device));
    say!(
        "model     {:.1} million numbers, {} x {} pixels",
        trainer.numbers() as f64 / 1e6,
        size[1],
        size[0]
    );
    say!("clips     {data}");
    say!("steps     {} of {}", trainer.done(), config.steps);

    let bar = progress::bar(config.steps as usize, "steps");
    bar.begin_at(trainer.done());
    let mut saved = Instant::now();
    while trainer.done() < config.steps {
        let report = trainer.step(clips)?;
        curve.add(report.loss);
        bar.set_message(format!("loss {:.4}", curve.recent()));
        bar.inc();
        let last = trainer.done() == config.steps;
        if trainer.done() % options.save_every == 0 || last {
            // The curve first: without its checkpoint it is cut at the next start.
            curve.write()?;
            trainer.save(&run, size, data, true)?;
            trainer.save(&shipped, size, data, false)?;
            let minutes = saved.elapsed().as_secs_f64() / 60.0;
            bar.suspend(|| {
                say!(
                    "step {}: loss {:.4}, {minutes:.1} minutes",
                    trainer.done(),
                    curve.recent()
                )
            });
            saved = Instant::now();
        }
    }
    bar.finish();
    say!(
        "\nwrote {MODEL}, {RUN}, losses.csv and loss.png into {}",
        options.out.display()
    );
    Ok(())
}
