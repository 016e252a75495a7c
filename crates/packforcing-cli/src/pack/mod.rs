//! `pack`: a clip, played back and forth, streams block after block through the packed cache.

mod compare;
mod history;
mod past;
mod project;
mod random;
mod report;
mod show;
mod variant;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use packforcing::cache::{self, Heads, MeanPool, PackConfig, PagePool, Place, Remainder, Stream};
use packforcing::{Blocks, DType, Device, DeviceKind, Grid, SimtOptions, Tensor, View};

use crate::device::Wanted;
use crate::media::clip::Clip;
use crate::output;
use crate::process::peak_rss_bytes;
use crate::progress;
use crate::sample::seconds;
use compare::{Comparison, Recalled};
use history::{Footage, History};
use past::Past;
use project::{DIM, HEADS, Tokens};
use random::Random;
use report::{Report, Sample};
use variant::{Compression, Policy};

/// Frames of a block.
const FRAMES: usize = 4;
/// Blocks at the beginning that stay whole.
const SINK: usize = 2;
/// Newest blocks that stay whole.
const RECENT: usize = 1;
/// Compressed blocks that are kept to choose from, at least.
const ARCHIVE: usize = 120;
/// What a merged token stands for: frames, rows and columns of patches.
const POOL: MeanPool = MeanPool {
    cell: [2, 4, 4],
    remainder: Remainder::Keep,
};
/// Columns of the picture.
const RECALLED: usize = 4;

/// Options of `pack`.
#[derive(Debug, Args)]
pub struct Options {
    /// A clip: y4m, gif, or whatever the program ffmpeg reads; a small one is built in
    clip: Option<PathBuf>,
    /// Frames a second of a clip that does not say
    #[arg(long, value_name = "N", value_parser = crate::media::fps)]
    clip_fps: Option<f64>,
    /// Length of the video; the clip is played back and forth to it
    #[arg(long, value_name = "N", default_value_t = 120.0, value_parser = seconds)]
    seconds: f64,
    /// What becomes of old blocks
    #[arg(long, value_enum, default_value_t = Compression::Mean)]
    compression: Compression,
    /// Old blocks that a block attends to
    #[arg(long, value_name = "K", default_value_t = 16)]
    selected: usize,
    /// Which old blocks those are
    #[arg(long, value_enum, default_value_t = Policy::Top)]
    policy: Policy,
    /// Where the cache is
    #[arg(long, value_enum, default_value_t = Wanted::Best)]
    device: Wanted,
    /// Decides random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Blocks that are compared with the full history, spread over the video
    #[arg(long, value_name = "N", default_value_t = 12)]
    samples: usize,
    /// Writes report.json, chart.png, cache.png and memory.png into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What the cache did with a block.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Tokens that it attended to.
    pub context_tokens: usize,
    /// Both passes and the commit.
    pub ms: f32,
}

/// Runs `pack`.
pub fn run(options: &Options) -> Result<()> {
    let begun = Instant::now();
    let clip = Clip::open(options.clip.as_deref(), options.clip_fps)?;
    let _lock = options.out.as_deref().map(output::prepare).transpose()?;
    let grid = Grid {
        frames: FRAMES,
        rows: clip.rows(),
        cols: clip.cols(),
    };
    let frames = (options.seconds * clip.frames_per_second()).round() as usize;
    let blocks = frames / FRAMES;
    ensure!(
        blocks > 0,
        "--seconds {}: a block is {FRAMES} frames, which is {:.2} s of this clip",
        options.seconds,
        FRAMES as f64 / clip.frames_per_second()
    );

    let mut stdout = std::io::stdout();
    let device = choose_device(options, &mut stdout)?;
    let config = configure(options, &device, grid)?;
    writeln!(
        stdout,
        "clip      {}: {} x {} patches of 8 x 8 pixels, {:.0} frames a second{}",
        clip.name(),
        grid.cols,
        grid.rows,
        clip.frames_per_second(),
        match clip.scale() {
            1 => String::new(),
            n => format!(", made {n} times smaller"),
        }
    )?;
    writeln!(
        stdout,
        "video     {} s: {frames} frames, {blocks} blocks of {} tokens",
        options.seconds,
        grid.tokens().0
    )?;
    writeln!(stdout, "cache     {}", config.bytes())?;

    let mut session = Session::new(options, &device, &config, clip, blocks)?;
    let bar = progress::bar(blocks, "blocks");
    for block in 0..blocks {
        session.step(block)?;
        bar.inc();
    }
    bar.finish();

    let report = session.report(options, &config, frames, begun.elapsed());
    show::table(&report, &config, &mut stdout)?;
    if let Some(folder) = &options.out {
        write(folder, &session, &config, &report)?;
        writeln!(
            stdout,
            "\nwrote report.json, chart.png, cache.png and memory.png into {}",
            folder.display()
        )?;
    }
    Ok(())
}

/// The video on its way through the cache.
struct Session {
    footage: Footage,
    device: Device,
    pool: PagePool,
    video: Stream,
    out: Tensor, // [1, tokens, HEADS, DIM]
    comparison: Comparison,
    policy: Policy,
    /// Blocks that are compared, and among them those that are shown.
    sampled: Vec<usize>,
    shown: Vec<usize>,
    steps: Vec<Step>,
    samples: Vec<Sample>,
    recalled: Vec<Recalled>,
    past: Past,
}

impl Session {
    fn new(options: &Options, device: &Device, config: &PackConfig, clip: Clip, blocks: usize) -> Result<Session> {
        let pool = PagePool::new(device, config)?;
        let sampled = sampled(options.samples, blocks, options.seed);
        let pictures = if options.out.is_some() { RECALLED } else { 0 };
        let shown = spread(pictures.min(sampled.len()), sampled.len() + 1);
        let grid = config.block();
        // A context that is compared: everything whole, and the block itself.
        let at_once = SINK + options.selected + RECENT + 1;
        let reread = Footage::new(clip.reopen()?, FRAMES)?;
        let needed = if sampled.is_empty() { 1 } else { blocks };
        let slots = history::slots(grid, POOL).max(at_once).min(needed);
        Ok(Session {
            video: pool.stream()?,
            pool,
            footage: Footage::new(clip, FRAMES)?,
            device: device.clone(),
            out: Tensor::zeros(device, config.dtype(), &shape(grid))?,
            comparison: Comparison {
                history: History::new(reread, grid, POOL, slots)?,
                grid,
                selected: options.selected,
                seed: options.seed,
            },
            policy: options.policy,
            shown: shown.into_iter().map(|i| sampled[i - 1]).collect(),
            sampled,
            steps: Vec::new(),
            samples: Vec::new(),
            recalled: Vec::new(),
            past: Past::of(blocks),
        })
    }

    /// The next block.
    fn step(&mut self, block: usize) -> Result<()> {
        let tokens = self.footage.block(block)?;
        let places = self.video.timeline();
        let step = self
            .advance(&tokens, &places)
            .with_context(|| format!("block {block}"))?;
        self.steps.push(step);
        if self.sampled.contains(&block) {
            let out = self.out.to_f32_vec()?;
            self.samples.push(self.comparison.sample(block, &places, &out)?);
        }
        if self.shown.contains(&block) {
            let recalled = self.recall(block, &places)?;
            self.recalled.push(recalled);
        }
        Ok(())
    }

    /// Both passes over a block, which takes its place in the history.
    fn advance(&mut self, tokens: &Tokens, places: &[(usize, Place)]) -> Result<Step> {
        let shape = shape(self.pool.config().block());
        let dtype = self.pool.config().dtype();
        let qk = Tensor::from_f32(&self.device, dtype, &tokens.qk, &shape)?;
        let v = Tensor::from_f32(&self.device, dtype, &tokens.v, &shape)?;
        let (qk, v): (View<'_>, View<'_>) = (qk.view(), v.view());
        let context_tokens = self.video.context_tokens().0;
        self.device.synchronize()?;

        let begun = Instant::now();
        let mut block = self.pool.begin([&mut self.video])?;
        let mut pass = block.denoise_pass()?;
        pass.attend(0, qk.clone(), qk.clone(), v.clone(), &mut self.out.view_mut())?;
        let mut pass = block.commit_pass()?;
        pass.attend(0, qk.clone(), qk, v, &mut self.out.view_mut())?;
        self.device.synchronize()?;
        let attended = begun.elapsed();
        self.past.look(&block, places)?;
        let begun = Instant::now();
        block.commit()?;
        self.device.synchronize()?;
        Ok(Step {
            context_tokens,
            ms: (attended + begun.elapsed()).as_secs_f32() * 1e3,
        })
    }

    fn recall(&mut self, block: usize, places: &[(usize, Place)]) -> Result<Recalled> {
        Ok(Recalled {
            seconds: self.footage.seconds(block),
            original: self.footage.clip.play(block * FRAMES)?,
            through: self.comparison.recall(block, places, self.policy)?,
        })
    }

    fn report(&self, options: &Options, config: &PackConfig, frames: usize, elapsed: Duration) -> Report {
        let full = config.context_tokens().0;
        let times: Vec<f32> = self
            .steps
            .iter()
            .filter(|s| s.context_tokens == full)
            .map(|s| s.ms)
            .collect();
        let quarter = times.len() / 4;
        let blocks = self.steps.len();
        let runs: Vec<f64> = self.samples.iter().map(|s| s.run_rel_l2_vs_full).collect();
        Report {
            clip: self.footage.clip.name().into(),
            scale: self.footage.clip.scale(),
            seconds: options.seconds,
            frames_per_second: self.footage.clip.frames_per_second(),
            frames,
            blocks,
            tokens_per_block: config.block_tokens().0,
            tokens_per_old_block: config.mid_tokens().0,
            device: self.device.to_string(),
            dtype: config.dtype().name(),
            compression: options.compression,
            policy: options.policy,
            selected: options.selected,
            seed: options.seed,
            context_tokens_max: self.steps.iter().map(|s| s.context_tokens).max().unwrap_or(0),
            cache_bytes: config.bytes().total(),
            full_cache_bytes: blocks * config.block_tokens().0 * config.token_bytes(),
            ms_per_block_early: median(&times[..quarter]),
            ms_per_block_late: median(&times[times.len() - quarter..]),
            run_rel_l2_vs_full: (!runs.is_empty()).then(|| runs.iter().sum::<f64>() / runs.len() as f64),
            variants: compare::average(&self.samples),
            samples: self.samples.clone(),
            elapsed_seconds: elapsed.as_secs_f64(),
            peak_rss_bytes: peak_rss_bytes(),
        }
    }
}

/// The device that was asked for; tells which there are.
fn choose_device(options: &Options, stdout: &mut impl Write) -> Result<Device> {
    let simt = || SimtOptions {
        seed: options.seed,
        ..SimtOptions::default()
    };
    let (best, absent) = Device::best();
    let mut here = vec!["cpu".to_string()];
    if best.kind().is_cuda() {
        here.insert(0, best.to_string());
    }
    let simt_absent = Device::simt(simt())
        .map(|_| here.push("simt (kernels on the cpu, for tests)".into()))
        .err();
    writeln!(stdout, "devices   {}", here.join(", "))?;
    let absent = absent.into_iter().map(|a| (a.kind.name(), a.reason));
    for (name, reason) in absent.chain(simt_absent.map(|reason| ("simt", reason))) {
        writeln!(stdout, "          no {name}: {reason}")?;
    }
    let device = options.device.open(simt())?;
    writeln!(stdout, "runs on   {device}")?;
    Ok(device)
}

fn configure(options: &Options, device: &Device, grid: Grid) -> Result<PackConfig> {
    let policy = match options.policy {
        Policy::Top => cache::Policy::Top,
        Policy::Newest => cache::Policy::Newest,
        Policy::Random => cache::Policy::Random { seed: options.seed },
    };
    let compression = match options.compression {
        Compression::Mean => cache::Compression::Mean(POOL),
        Compression::Match => cache::Compression::matching(POOL.cell),
        Compression::None => cache::Compression::None,
    };
    let config = PackConfig::builder()
        .layers(1)
        .heads(Heads {
            query: HEADS,
            kv: HEADS,
            dim: DIM,
        })
        // What the kernels take, and what the CPU is fastest with.
        .dtype(match device.kind() {
            DeviceKind::Cpu => DType::F32,
            _ => DType::BF16,
        })
        .block(grid)
        .sink(Blocks(SINK))
        .recent(Blocks(RECENT))
        .selected(Blocks(options.selected))
        .archive(Blocks(options.selected.max(ARCHIVE)))
        .compression(compression)
        .policy(policy)
        .build()?;
    Ok(config)
}

fn shape(grid: Grid) -> [usize; 4] {
    [1, grid.tokens().0, HEADS, DIM]
}

/// `count` numbers from 1 up to, not including, `end`, as far apart as can be, the last among them.
fn spread(count: usize, end: usize) -> Vec<usize> {
    let last = end.saturating_sub(1);
    let count = count.min(last);
    (1..=count).map(|i| i * last / count).collect()
}

/// Blocks to compare: one, by seed, of the later half of each of `count` equal parts of the video,
/// and the last. A fixed distance would meet a video that repeats itself at few of its moments.
fn sampled(count: usize, blocks: usize, seed: u64) -> Vec<usize> {
    let mut ends = spread(count, blocks);
    let mut random = Random::new(seed);
    let mut start = 0;
    let whole = ends.len();
    for end in ends.iter_mut().take(whole.saturating_sub(1)) {
        let part = start..*end;
        *end = part.end - (random.uniform() * 0.5 * part.len() as f64) as usize;
        start = part.end;
    }
    ends
}

fn median(times: &[f32]) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted.get(sorted.len() / 2).map(|&ms| ms.into())
}

/// On a terminal only.
fn write(folder: &Path, session: &Session, config: &PackConfig, report: &Report) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(report)?;
    json.push(b'\n');
    output::write(folder, "report.json", &json)?;
    output::write(
        folder,
        "chart.png",
        &show::chart(report, &session.steps, config)?.png()?,
    )?;
    let seconds_of_block = FRAMES as f64 / report.frames_per_second;
    output::write(folder, "cache.png", &session.past.draw(seconds_of_block)?.png()?)?;
    output::write(
        folder,
        "memory.png",
        &show::memory(&session.recalled, session.policy)?.png()?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_and_end_with_the_last() {
        assert_eq!(spread(3, 10), [3, 6, 9]);
        assert_eq!(spread(12, 3), [1, 2]);
        assert!(spread(12, 1).is_empty() && spread(0, 9).is_empty() && spread(3, 0).is_empty());
    }

    #[test]
    fn sampled_blocks_are_different_and_end_with_the_last() {
        for (count, blocks) in [(12, 750), (12, 13), (12, 5), (1, 2), (0, 9), (3, 1)] {
            let chosen = sampled(count, blocks, 7);
            assert_eq!(chosen.len(), count.min(blocks - 1));
            assert!(chosen.windows(2).all(|w| w[0] < w[1]) && chosen.first() != Some(&0));
            assert!(chosen.last().is_none_or(|&last| last == blocks - 1));
        }
        assert_ne!(sampled(12, 750, 7), sampled(12, 750, 8));
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn lengths_that_are_none() {
        for text in ["0", "-1", "NaN", "inf", "1e9", "x", ""] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert_eq!(seconds("0.5"), Ok(0.5));
    }
}
