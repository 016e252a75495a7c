//! `evaluate`: how long a model's videos still show what they began with, over many scenes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use packforcing_video::sample::{Generator, History, SampleConfig};
use packforcing_video::train::Checkpoint;
use packforcing_video::world::{self, FPS, Frame, Identity, Measure, Scene, Score, World};
use serde::Serialize;

use crate::device::{self, ModelDevice};
use crate::output::{self, say};
use crate::{judge, progress, sample};

/// Options of `evaluate`.
#[derive(Debug, Args)]
pub struct Options {
    /// A checkpoint that `train --synthetic` wrote; the built-in one otherwise
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Scenes that the training has not seen
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    scenes: u64,
    /// Length of a video
    #[arg(long, value_name = "N", default_value_t = 5.0, value_parser = sample::seconds)]
    seconds: f64,
    /// Denoising steps of a block
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1000))]
    steps: u64,
    /// Histories that are compared
    #[arg(long, value_enum, value_delimiter = ',', default_value = "packed,window,sink-window")]
    policies: Vec<sample::Policy>,
    /// Judges this film instead, whatever made it: drift, flicker, and jumps between blocks
    #[arg(long, value_name = "FILE", conflicts_with_all = ["checkpoint", "scenes", "seconds", "steps", "policies"])]
    film: Option<PathBuf>,
    /// Frames a second that a film is judged at
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=240), requires = "film")]
    fps: u32,
    /// Frames of a film's first block, and of every other
    #[arg(long, value_name = "FIRST,OTHERS", default_value = "9,12", value_parser = blocks, requires = "film")]
    blocks: (usize, usize),
    /// Where it runs
    #[arg(long, value_enum, default_value_t = ModelDevice::Best)]
    device: ModelDevice,
    /// Writes evaluation.json into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What one history gives.
#[derive(Debug, Clone, Serialize)]
struct Row {
    history: History,
    scenes: u64,
    seconds: f64,
    /// Colors, shapes and ways, over all frames made.
    motion: f64,
    /// Colors and shapes.
    look: f64,
    look_last_5_s: f64,
    elapsed_seconds: f64,
}

fn blocks(text: &str) -> Result<(usize, usize), String> {
    let parsed = text
        .split_once(',')
        .and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    match parsed {
        Some((first, others)) if first > 0 && others > 0 => Ok((first, others)),
        _ => Err("two numbers above 0 are expected, as 9,12".into()),
    }
}

/// Tells of any film what can be told without knowing what it should show.
fn judge_film(options: &Options, film: &Path) -> Result<()> {
    let _lock = options.out.as_deref().map(output::prepare).transpose()?;
    let told = judge::film(film, options.fps as usize, options.blocks)?;
    told.tell(film);
    write_json(options, &told)
}

fn write_json(options: &Options, what: &impl Serialize) -> Result<()> {
    if let Some(folder) = &options.out {
        let mut json = serde_json::to_vec_pretty(what)?;
        json.push(b'\n');
        output::write(folder, "evaluation.json", &json)?;
    }
    Ok(())
}

/// Runs `evaluate`.
pub fn run(options: &Options) -> Result<()> {
    if let Some(film) = &options.film {
        return judge_film(options, film);
    }
    let checkpoint = sample::checkpoint(options.checkpoint.as_ref(), options.device)?;
    let description = &checkpoint.description;
    ensure!(
        description.size == [world::ROWS, world::COLS],
        "the model makes {} x {} pixels; only videos of the built-in world ({} x {}) can be measured",
        description.size[1],
        description.size[0],
        world::COLS,
        world::ROWS
    );
    let _lock = options.out.as_deref().map(output::prepare).transpose()?;
    say!("runs on   {}", device::name(checkpoint.model.device()));
    say!(
        "{} scenes of {} s; share of lanes that are right",
        options.scenes,
        options.seconds
    );
    say!("history       with motion   colors and shapes   in the last 5 s");
    let mut rows = Vec::new();
    for &policy in &options.policies {
        let row = measure_policy(options, &checkpoint, policy.into())?;
        say!(
            "{:<13} {:10.1}%   {:16.1}%   {:14.1}%   ({:.0} s)",
            serde_json::to_value(row.history)?.as_str().unwrap_or_default(),
            100.0 * row.motion,
            100.0 * row.look,
            100.0 * row.look_last_5_s,
            row.elapsed_seconds
        );
        rows.push(row);
    }
    write_json(options, &rows)
}

/// All scenes, side by side.
fn measure_policy(options: &Options, checkpoint: &Checkpoint, history: History) -> Result<Row> {
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let bar = progress::bar(options.scenes as usize, "scenes");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let done: Vec<Result<[Score; 3]>> = std::thread::scope(|scope| {
        let work = || -> Result<[Score; 3]> {
            let mut sums = [Score::default(); 3];
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= options.scenes {
                    return Ok(sums);
                }
                let scores = measure_scene(options, checkpoint, history, number)?;
                sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
                bar.inc();
            }
        };
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = all.into_iter().map(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect()
    });
    bar.finish();
    let mut sums = [Score::default(); 3];
    for scores in done {
        sums.iter_mut().zip(scores?).for_each(|(sum, score)| *sum += score);
    }
    let [motion, look, last] = sums.map(|s| s.share());
    Ok(Row {
        history,
        scenes: options.scenes,
        seconds: options.seconds,
        motion,
        look,
        look_last_5_s: last,
        elapsed_seconds: begun.elapsed().as_secs_f64(),
    })
}

/// With motion, by look, and by look in the last 5 seconds: of the frames that were made.
fn measure_scene(options: &Options, checkpoint: &Checkpoint, history: History, number: u64) -> Result<[Score; 3]> {
    let description = &checkpoint.description;
    let device = checkpoint.model.device();
    let scene = Scene::held_out(number);
    let world = World {
        context_dim: description.model.context_dim,
    };
    let config = SampleConfig {
        history,
        steps: options.steps as usize,
        seed: number,
        ..SampleConfig::of(description)
    };
    let context = world.context(scene.background, device)?.unsqueeze(0)?;
    let mut generator = Generator::new(checkpoint, &context, &config)?;
    let given = config.block_frames;
    let wanted = (options.seconds * FPS as f64).round() as usize;
    let mut measures = [Identity::Motion, Identity::Look].map(|identity| Measure::new(&scene, identity));
    (0..given).for_each(|frame| {
        for measure in &mut measures {
            measure.frame(&scene.frame(frame));
        }
    });
    generator.append(&scene.clip(0, given, device)?)?;
    let [mut motion, mut look, mut last] = [Score::default(); 3];
    let mut made = given;
    while made < wanted {
        let block = generator.next_block()?;
        for i in 0..given {
            let frame = Frame::from_tensor(&block.narrow(1, i, 1)?.squeeze(1)?)?;
            let [moved, looked] = measures.each_mut().map(|measure| measure.frame(&frame));
            motion += moved;
            look += looked;
            if made + 5 * FPS >= wanted {
                last += looked;
            }
            made += 1;
        }
    }
    Ok([motion, look, last])
}
