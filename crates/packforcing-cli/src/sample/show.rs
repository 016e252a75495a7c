//! report.json, the chart, and what is printed.

use std::time::Duration;

use anyhow::Result;
use packforcing_video::sample::{Generator, Times};
use packforcing_video::world::{FPS, Score};
use serde::Serialize;

use super::session::{FILM, Row, Session, State};
use super::{Options, Whole};
use crate::chart;
use crate::chart::{BLUE, GREEN, Line, ORANGE, Panel, Style};
use crate::media::ffmpeg;
use crate::media::png::Image;
use crate::media::tensor;
use crate::output::{self, say};

/// Frames in the contact sheet.
const SHOWN: usize = 12;

/// What `sample` writes into report.json. docs/sample.md tells what each field means.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    state: &'a State,
    frames: usize,
    seconds: f64,
    fps: f64,
    elapsed_seconds: f64,
    blocks: usize,
    cache_bytes: Vec<usize>,
    context_tokens: Vec<usize>,
    tokens_per_block: usize,
    tokens_per_old_block: Option<usize>,
    ms_per_block: Vec<f64>,
    resident_bytes: Vec<Option<u64>>,
    ms_per_block_early: Option<f64>,
    ms_per_block_late: Option<f64>,
    late_over_early: Option<f64>,
    time_shares: Times,
    identity: Option<IdentityReport>,
    full_history: Option<FullReport>,
}

/// How much of the scene it began with a video still shows.
#[derive(Debug, Serialize)]
struct IdentityReport {
    /// Colors, shapes and ways in the first 5 seconds.
    motion_5_s: f64,
    /// Colors and shapes over the whole video, and in its last 5 seconds.
    look: f64,
    look_last_5_s: f64,
    /// The same, second by second.
    look_by_second: Vec<Option<f64>>,
}

/// The same video with everything kept.
#[derive(Debug, Serialize)]
struct FullReport {
    seconds: f64,
    cache_bytes: usize,
    ms_per_block_late: Option<f64>,
    /// How many times the packed video's.
    times_slower: f64,
    times_slower_late: Option<f64>,
    times_larger: f64,
    ms_per_block: Vec<f64>,
}

pub fn write(
    options: &Options,
    mut session: Session,
    generator: &Generator<'_>,
    state: &State,
    full: Option<&Whole>,
    elapsed: Duration,
) -> Result<()> {
    let sheet = contact_sheet(&mut session)?;
    let rows = &session.rows;
    let ms: Vec<f64> = rows.iter().map(|r| r.ms).collect();
    let seconds: f64 = ms.iter().sum::<f64>() / 1e3;
    let (early, late) = early_and_late(rows, &ms);
    let identity = identity(&session);
    let last = rows.last();
    let report = Report {
        state,
        frames: session.frames(),
        seconds: session.frames() as f64 / FPS as f64,
        fps: session.frames() as f64 / seconds,
        elapsed_seconds: elapsed.as_secs_f64(),
        blocks: rows.len(),
        cache_bytes: rows.iter().map(|r| r.cache_bytes).collect(),
        context_tokens: rows.iter().map(|r| r.context_tokens).collect(),
        tokens_per_block: generator.block_tokens(),
        tokens_per_old_block: generator.mid_tokens(),
        resident_bytes: rows.iter().map(|r| r.resident_bytes).collect(),
        ms_per_block_early: early,
        ms_per_block_late: late,
        late_over_early: early.zip(late).map(|(early, late)| late / early),
        time_shares: shares(generator.times()),
        identity,
        full_history: full.map(|full| {
            let whole: f64 = full.ms.iter().sum::<f64>() / 1e3;
            let late_full = median_of_last(&full.ms);
            FullReport {
                seconds: whole,
                cache_bytes: full.bytes.last().copied().unwrap_or(0),
                ms_per_block_late: late_full,
                times_slower: whole / seconds,
                times_slower_late: late_full.zip(late).map(|(full, late)| full / late),
                times_larger: full.bytes.last().copied().unwrap_or(0) as f64
                    / last.map_or(1, |r| r.cache_bytes).max(1) as f64,
                ms_per_block: full.ms.clone(),
            }
        }),
        ms_per_block: ms,
    };
    let mut json = serde_json::to_vec_pretty(&report)?;
    json.push(b'\n');
    output::write(&options.out, "report.json", &json)?;
    output::write(&options.out, "chart.png", &draw(&report)?.png()?)?;
    output::write(&options.out, "frames.png", &sheet.png()?)?;

    say!(
        "made      {} frames in {seconds:.1} s, {:.0} a second",
        report.frames,
        report.fps
    );
    if let Some(last) = last {
        say!(
            "cache     {:.2} MB, {} tokens in sight of a block{}",
            last.cache_bytes as f64 / 1e6,
            last.context_tokens,
            match report.tokens_per_old_block {
                Some(left) => format!("; an old block has {left} of {}", report.tokens_per_block),
                None => String::new(),
            }
        );
    }
    match (early, late) {
        (Some(early), Some(late)) => say!(
            "time      {early:.1} ms a block early, {late:.1} ms late ({:.2} times), {:.1} s in all",
            late / early,
            report.elapsed_seconds
        ),
        _ => say!("time      {:.1} s in all", report.elapsed_seconds),
    }
    let t = report.time_shares;
    say!(
        "shares    model {:.0}%, attention {:.0}%, selection {:.1}%, merging {:.1}%, steps {:.1}%",
        100.0 * t.model,
        100.0 * t.attention,
        100.0 * t.selection,
        100.0 * t.merging,
        100.0 * t.steps
    );
    if let Some(i) = &report.identity {
        say!(
            "identity  {:.1}% right over 5 s with motion; {:.1}% over all {:.0} s, {:.1}% in the last 5",
            100.0 * i.motion_5_s,
            100.0 * i.look,
            report.seconds,
            100.0 * i.look_last_5_s
        );
    }
    if let Some(full) = &report.full_history {
        say!(
            "whole     the whole history took {:.1} times as long (its last blocks {}) and {:.1} times the memory",
            full.times_slower,
            full.times_slower_late.map_or("-".into(), |n| format!("{n:.1}")),
            full.times_larger
        );
    }
    let (film, out) = (options.out.join(FILM), options.out.display());
    let files = "video.gif, video.y4m, frames.png, chart.png and report.json";
    match ffmpeg::mp4(&options.out.join("video.y4m"), &film, session.zoom()) {
        Ok(true) => say!("\nwrote {FILM}, {files} into {out}"),
        Ok(false) => say!("\nwrote {files} into {out}\n(no {FILM}: an ffmpeg with an encoder of H.264 makes it)"),
        // The video is there without it.
        Err(error) => say!("\nwrote {files} into {out}\n(no {FILM}: {error:#})"),
    }
    Ok(())
}

/// Median times of the first and the last quarter of the blocks that see all they ever will.
fn early_and_late(rows: &[Row], ms: &[f64]) -> (Option<f64>, Option<f64>) {
    let most = rows.iter().map(|r| r.context_tokens).max().unwrap_or(0);
    let first = rows.iter().position(|r| r.context_tokens == most).unwrap_or(0) + 1;
    let full = ms.get(first..).unwrap_or(&[]);
    let quarter = full.len() / 4;
    if quarter == 0 {
        return (None, None);
    }
    (median(&full[..quarter]), median(&full[full.len() - quarter..]))
}

fn median_of_last(ms: &[f64]) -> Option<f64> {
    median(&ms[ms.len() - ms.len() / 8..])
}

fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn shares(t: Times) -> Times {
    let all = (t.attention + t.selection + t.merging + t.steps + t.model).max(f64::MIN_POSITIVE);
    Times {
        attention: t.attention / all,
        selection: t.selection / all,
        merging: t.merging / all,
        steps: t.steps / all,
        model: t.model / all,
    }
}

/// Of the frames that were made; the first block was given. Nothing where the scene is not known.
fn identity(session: &Session) -> Option<IdentityReport> {
    let scores = &session.scores;
    let made = scores.get(session.block_frames()..)?;
    let short = scores.len().min(5 * FPS);
    let sum = |scores: &[[Score; 2]], which: usize| scores.iter().map(|both| both[which]).sum::<Score>();
    Some(IdentityReport {
        motion_5_s: sum(&made[..short - session.block_frames()], 0).share(),
        look: sum(made, 1).share(),
        look_last_5_s: sum(&scores[scores.len() - short..], 1).share(),
        look_by_second: scores
            .chunks(FPS)
            .map(|second| Some(sum(second, 1)).filter(|s| s.judged > 0).map(|s| s.share()))
            .collect(),
    })
}

/// Frames spread over the video, from its first to its last.
fn contact_sheet(session: &mut Session) -> Result<Image> {
    let (all, of_block) = (session.frames(), session.block_frames());
    let count = SHOWN.min(all);
    let mut shown = Vec::new();
    for i in 0..count {
        let number = i * (all - 1) / (count - 1).max(1);
        let frames = tensor::to_frames(&session.block(number / of_block)?)?;
        shown.extend(frames.into_iter().nth(number % of_block).map(|frame| (number, frame)));
    }
    let (width, height) = shown.first().map_or((0, 0), |(_, f)| (f.width, f.height));
    let (zoom, across, gap) = ((160 / width.max(1)).max(1), 6, 4);
    let (w, h) = (zoom * width + gap, zoom * height + gap + 14);
    let mut sheet = Image::white(across.min(count) * w + gap, count.div_ceil(across) * h + gap);
    for (i, (number, frame)) in shown.iter().enumerate() {
        let (x, y) = (gap + i % across * w, gap + i / across * h);
        sheet.paste(frame, x, y + 14, zoom);
        chart::write(&mut sheet, &format!("{:.0} s", *number as f64 / FPS as f64), x, y, 12)?;
    }
    Ok(sheet)
}

fn draw(report: &Report<'_>) -> Result<Image> {
    let per_block = report.seconds / report.blocks.max(1) as f64;
    let style = |color, dashed| Style {
        color,
        dashed,
        marked: false,
    };
    let points = |numbers: &mut dyn Iterator<Item = f64>| -> Vec<(f64, f64)> {
        numbers
            .enumerate()
            .map(|(i, y)| ((i + 1) as f64 * per_block, y))
            .collect()
    };
    let panel = |title: &str, lines, log, top| Panel {
        title: title.into(),
        x: "time in the video (s)".into(),
        lines,
        end: report.seconds,
        log,
        top,
    };
    let (now, whole) = (style(BLUE, false), style(ORANGE, true));
    let mut time = vec![Line {
        points: points(&mut report.ms_per_block.iter().copied()),
        style: now,
    }];
    let mut memory = vec![Line {
        points: points(&mut report.cache_bytes.iter().map(|&b| b as f64 / 1e6)),
        style: now,
    }];
    let mut legend = vec![(Some(now), "this video".to_string())];
    if let Some(full) = &report.full_history {
        time.push(Line {
            points: points(&mut full.ms_per_block.iter().copied()),
            style: whole,
        });
        let all = full.cache_bytes as f64 / 1e6;
        memory.push(Line {
            points: vec![(per_block, all / report.blocks as f64), (report.seconds, all)],
            style: whole,
        });
        legend.push((Some(whole), "with the whole history".into()));
    }
    let tokens = vec![Line {
        points: points(&mut report.context_tokens.iter().map(|&t| t as f64)),
        style: now,
    }];
    let mut panels = vec![
        panel("Time per block (ms)", time, false, None),
        // With the whole history beside it one line would lie on the axis.
        panel(
            "Keys and values in memory (MB)",
            memory,
            report.full_history.is_some(),
            None,
        ),
        panel("Context of a block (tokens)", tokens, false, None),
    ];
    if let Some(identity) = &report.identity {
        let seconds = identity.look_by_second.iter().enumerate();
        let points = seconds
            .filter_map(|(i, share)| Some((i as f64 + 0.5, 100.0 * (*share)?)))
            .collect();
        let green = style(GREEN, false);
        let lines = vec![Line { points, style: green }];
        panels.push(panel(
            "Colors and shapes as in the beginning (%)",
            lines,
            false,
            Some(105.0),
        ));
        legend.push((Some(green), "what is right, each second".into()));
    }
    chart::draw(&panels, &legend, 1200, 360)
}
