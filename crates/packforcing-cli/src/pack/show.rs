//! The table, the chart and the picture.

use std::io::Write;

use anyhow::Result;
use packforcing::cache::PackConfig;

use super::compare::Recalled;
use super::report::{Measure, Report};
use super::variant::{Compression, Policy};
use super::{FRAMES, Step};
use crate::chart::{self, BLUE, GREEN, INK, Line, ORANGE, Panel, Style};
use crate::media::clip::{PATCH, Picture};
use crate::media::png::Image;

/// Points of a line over all blocks, at most.
const POINTS: usize = 300;

/// Writes the run in figures.
pub fn table(report: &Report, config: &PackConfig, out: &mut impl Write) -> Result<()> {
    let mb = |bytes: usize| format!("{:.1} MB", bytes as f64 / 1e6);
    writeln!(
        out,
        "context   at most {} tokens ({} when full), of {} in the video; an old block has {} of {}",
        report.context_tokens_max,
        config.context_tokens().0,
        report.blocks * report.tokens_per_block,
        report.tokens_per_old_block,
        report.tokens_per_block
    )?;
    writeln!(
        out,
        "memory    {} for the cache, {} if everything were kept{}",
        mb(report.cache_bytes),
        mb(report.full_cache_bytes),
        report.peak_rss_bytes.map_or_else(String::new, |bytes| format!(
            "; the program had at most {}",
            mb(bytes as usize)
        ))
    )?;
    match (report.ms_per_block_early, report.ms_per_block_late) {
        (Some(early), Some(late)) => writeln!(
            out,
            "time      {early:.1} ms a block early, {late:.1} ms late ({:.2} times), {:.1} s in all",
            late / early,
            report.elapsed_seconds
        )?,
        _ => writeln!(out, "time      {:.1} s in all", report.elapsed_seconds)?,
    }
    if report.variants.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\nagainst attention over the full history, mean of {} sampled block{}",
        report.samples.len(),
        if report.samples.len() == 1 { "" } else { "s" }
    )?;
    writeln!(out, "  compression  policy   error (rel. L2)  attention kept")?;
    for v in &report.variants {
        let this = v.compression == report.compression && v.policy == report.policy;
        writeln!(
            out,
            "{} {:<11}  {:<7}  {:>15.4}  {:>13.1}%",
            if this { '>' } else { ' ' },
            v.compression,
            v.policy,
            v.measure.rel_l2_vs_full,
            100.0 * v.measure.attention_mass_kept
        )?;
    }
    if let Some(error) = report.run_rel_l2_vs_full {
        writeln!(out, "> this run on {:<10} {error:>15.4}", report.device)?;
    }
    Ok(())
}

/// Sizes, times, errors and attention over the video.
pub fn chart(report: &Report, steps: &[Step], config: &PackConfig) -> Result<Image> {
    let second = |block: usize| (block * FRAMES) as f64 / report.frames_per_second;
    let over_blocks = |of: &dyn Fn(usize) -> f64| -> Vec<(f64, f64)> {
        let stride = steps.len().div_ceil(POINTS);
        let blocks = (0..steps.len()).step_by(stride.max(1));
        blocks.map(|block| (second(block), of(block))).collect()
    };
    // The median of the blocks that a point stands for: single ones wait for other work.
    let ms = |block: usize| {
        let stride = steps.len().div_ceil(POINTS).max(5);
        let some: Vec<f32> = steps[block..].iter().take(stride).map(|s| s.ms).collect();
        super::median(&some).unwrap_or(0.0)
    };
    let (packed, whole) = (plain(BLUE, false), plain(INK, true));
    let line = |points, style| Line { points, style };
    let block_bytes = config.block_tokens().0 * config.token_bytes();
    let of_samples = |of: fn(&Measure) -> f64| -> Vec<Line> {
        let variants = report.variants.iter().enumerate().map(|(i, v)| Line {
            points: report
                .samples
                .iter()
                .map(|s| (s.seconds, of(&s.variants[i].measure)))
                .collect(),
            style: style(v.compression, v.policy),
        });
        variants.collect()
    };
    let panel = |title: &str, lines, log, top| Panel {
        title: title.into(),
        x: "time in the video (s)".into(),
        lines,
        end: report.seconds,
        log,
        top,
    };
    let panels = [
        panel(
            "Context of a block (tokens)",
            vec![
                line(over_blocks(&|b| steps[b].context_tokens as f64), packed),
                line(over_blocks(&|b| ((b + 1) * report.tokens_per_block) as f64), whole),
            ],
            true,
            None,
        ),
        panel(
            "Keys and values in memory (MB)",
            vec![
                line(over_blocks(&|_| report.cache_bytes as f64 / 1e6), packed),
                line(over_blocks(&|b| ((b + 1) * block_bytes) as f64 / 1e6), whole),
            ],
            true,
            None,
        ),
        panel(
            "Time per block in the cache (ms)",
            vec![line(over_blocks(&ms), packed)],
            false,
            None,
        ),
        panel(
            "Error against full history (relative L2)",
            of_samples(|m| m.rel_l2_vs_full),
            false,
            None,
        ),
        panel(
            "Attention kept (% of the full history's softmax)",
            of_samples(|m| 100.0 * m.attention_mass_kept),
            false,
            Some(100.0),
        ),
    ];
    let mut legend = vec![
        (
            None,
            format!(
                "{} s of video, {} blocks, on {}",
                report.seconds, report.blocks, report.device
            ),
        ),
        (
            Some(packed),
            format!("the packed cache ({}, {})", report.compression, report.policy),
        ),
        (Some(whole), "everything kept".to_string()),
        (None, String::new()),
        (None, format!("old blocks in the context ({} chosen)", report.selected)),
    ];
    for v in &report.variants {
        let form = match v.compression {
            Compression::Mean => "merged",
            Compression::Match => "merged by likeness",
            Compression::None => "whole",
        };
        legend.push((Some(style(v.compression, v.policy)), format!("{}, {form}", v.policy)));
    }
    chart::draw(&panels, &legend, 1360, 360)
}

fn plain(color: plotters::style::RGBColor, dashed: bool) -> Style {
    Style {
        color,
        dashed,
        marked: false,
    }
}

fn style(compression: Compression, policy: Policy) -> Style {
    Style {
        color: match policy {
            Policy::Top => BLUE,
            Policy::Newest => ORANGE,
            Policy::Random => GREEN,
        },
        dashed: compression == Compression::None,
        marked: compression != Compression::Match,
    }
}

/// Frames over the same frames as attention to their past brings them back.
pub fn memory(recalled: &[Recalled], policy: Policy) -> Result<Image> {
    const ZOOM: usize = 2;
    const GAP: usize = 10;
    const SIDE: usize = 190;
    const HEAD: usize = 40;
    let (rows, cols) = recalled.first().map_or((4, 4), |r| (r.original.rows, r.original.cols));
    let (width, height) = (ZOOM * PATCH * cols, ZOOM * PATCH * rows);
    let mut image = Image::white(SIDE + recalled.len() * (width + GAP), HEAD + 4 * (height + GAP));
    let labels = [
        ["the video", ""],
        ["its past,", "everything kept"],
        ["its past, packed,", "old blocks whole"],
        ["its past, packed,", "old blocks merged"],
    ];
    for (row, [first, second]) in labels.iter().enumerate() {
        let y = HEAD + row * (height + GAP) + height / 2 - 20;
        chart::write(&mut image, first, 14, y, 18)?;
        chart::write(&mut image, second, 14, y + 22, 18)?;
    }
    chart::write(&mut image, &format!("policy: {policy}"), 14, 12, 16)?;
    for (column, recalled) in recalled.iter().enumerate() {
        let x = SIDE + column * (width + GAP);
        chart::write(&mut image, &format!("{:.1} s", recalled.seconds), x, 12, 18)?;
        let pictures = std::iter::once(&recalled.original).chain(&recalled.through);
        for (row, picture) in pictures.enumerate() {
            let picture: &Picture = picture;
            image.paste(&picture.rgb(), x, HEAD + row * (height + GAP), ZOOM);
        }
    }
    Ok(image)
}
