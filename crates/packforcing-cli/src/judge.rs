//! What can be told of any film without knowing what it should show: how far it drifts, flickers, and jumps where blocks meet.

use std::path::Path;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::media::film::{Film, Wish};
use crate::media::png::Image;
use crate::output::say;

/// Pixels that a frame is made smaller to, where ffmpeg reads it.
const PIXELS: usize = 1 << 16;

/// Of a film, in levels of 0 to 255.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    pub frames: usize,
    pub seconds: f64,
    /// Of red, green and blue that whose mean over the last second is farthest from its mean over the first.
    pub drift: f64,
    /// How many times the contrast of the first second that of the last is; the standard deviation of brightness.
    pub contrast: f64,
    /// By how much a frame's mean brightness is off the mean of its neighbors', on average.
    pub flicker: f64,
    /// How many times as far apart the frames on either side of a border between blocks are as other neighbors.
    pub border_jump: Option<f64>,
}

impl Judgement {
    pub fn tell(&self, film: &Path) {
        say!(
            "film      {}: {} frames, {:.1} s",
            film.display(),
            self.frames,
            self.seconds
        );
        say!(
            "drift     {:.2} of 255 levels from the first second to the last",
            self.drift
        );
        say!("contrast  {:.3} times that of the first second", self.contrast);
        say!("flicker   {:.3} of 255 levels", self.flicker);
        match self.border_jump {
            Some(jump) => say!("borders   {jump:.2} times as far apart as other frames"),
            None => say!("borders   none, or nothing moves"),
        }
    }
}

/// What is kept of a frame.
struct Seen {
    /// Means of red, green and blue.
    colors: [f64; 3],
    brightness: f64,
    deviation: f64,
    /// Mean distance of its numbers from those of the frame before.
    step: Option<f64>,
}

/// Judges a film at so many frames a second, whose first block has `first` frames and every other `block`.
pub fn film(path: &Path, fps: usize, (first, block): (usize, usize)) -> Result<Judgement> {
    let wish = Wish {
        fps,
        size: None,
        pixels: Some(PIXELS),
        unsaid_fps: Some(fps as f64),
    };
    let mut film = Film::open(path, &wish)?.endless();
    let (mut seen, mut last): (Vec<Seen>, Option<Image>) = (Vec::new(), None);
    while let Some(frame) = film.next()? {
        seen.push(look(&frame, last.as_ref()));
        last = Some(frame);
    }
    film.warn();
    ensure!(
        seen.len() > 2,
        "{}: {} frames are too few to judge",
        path.display(),
        seen.len()
    );
    Ok(judge(&seen, fps, (first, block)))
}

fn look(frame: &Image, before: Option<&Image>) -> Seen {
    let count = (frame.width * frame.height) as f64;
    let mut sums = [0.0; 3];
    let (mut bright, mut square) = (0.0, 0.0);
    for pixel in frame.rgb.chunks_exact(3) {
        let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(f64::from);
        let y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
        bright += y;
        square += y * y;
        sums.iter_mut().zip([r, g, b]).for_each(|(sum, x)| *sum += x);
    }
    let step = before.map(|before| {
        let pairs = frame.rgb.iter().zip(&before.rgb);
        pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / (3.0 * count)
    });
    let brightness = bright / count;
    Seen {
        colors: sums.map(|sum| sum / count),
        brightness,
        deviation: (square / count - brightness * brightness).max(0.0).sqrt(),
        step,
    }
}

fn judge(seen: &[Seen], fps: usize, (first, block): (usize, usize)) -> Judgement {
    let second = fps.clamp(1, seen.len());
    let (begin, end) = (&seen[..second], &seen[seen.len() - second..]);
    let mean = |of: &[Seen], what: &dyn Fn(&Seen) -> f64| of.iter().map(what).sum::<f64>() / of.len().max(1) as f64;
    let drift = (0..3).map(|i| (mean(end, &|s| s.colors[i]) - mean(begin, &|s| s.colors[i])).abs());
    let off = seen
        .windows(3)
        .map(|w| (w[1].brightness - 0.5 * (w[0].brightness + w[2].brightness)).abs());
    // Frame `i` begins a block.
    let border = |i: usize| i >= first && (i - first).is_multiple_of(block.max(1));
    let steps = seen.iter().enumerate().filter_map(|(i, s)| Some((border(i), s.step?)));
    let (at, inside): (Vec<_>, Vec<_>) = steps.partition(|(border, _)| *border);
    let of = |steps: &[(bool, f64)]| steps.iter().map(|(_, step)| step).sum::<f64>() / steps.len().max(1) as f64;
    let contrast = mean(end, &|s| s.deviation) / mean(begin, &|s| s.deviation).max(1e-9);
    Judgement {
        frames: seen.len(),
        seconds: seen.len() as f64 / fps.max(1) as f64,
        drift: drift.fold(0.0, f64::max),
        contrast,
        flicker: off.sum::<f64>() / (seen.len() - 2) as f64,
        border_jump: (!at.is_empty() && of(&inside) > 0.0).then(|| of(&at) / of(&inside)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A film whose brightness at a frame is told, with a pattern on it that has a contrast.
    fn made(levels: impl Iterator<Item = (f64, f64)>) -> Judgement {
        let mut last = None;
        let seen: Vec<Seen> = levels
            .map(|(level, contrast)| {
                let rgb = (0..64).flat_map(|i| [level + if i % 2 == 0 { contrast } else { -contrast }; 3]);
                let frame = Image {
                    width: 8,
                    height: 8,
                    rgb: rgb.map(|x| x as u8).collect(),
                };
                let seen = look(&frame, last.as_ref());
                last = Some(frame);
                seen
            })
            .collect();
        judge(&seen, 16, (9, 12))
    }

    #[test]
    fn what_stands_still_has_nothing_to_tell() {
        let still = made((0..80).map(|_| (100.0, 20.0)));
        assert_eq!(
            (still.drift, still.flicker, still.border_jump, still.frames),
            (0.0, 0.0, None, 80)
        );
        assert!((still.contrast - 1.0).abs() < 1e-9);
    }

    #[test]
    fn drift_flicker_and_jumps_are_told_apart() {
        let drifts = made((0..80).map(|i| (100.0 + i as f64, 20.0)));
        assert!(
            (drifts.drift - 64.0).abs() < 1e-9 && drifts.flicker < 1e-9,
            "{drifts:?}"
        );
        assert!((drifts.border_jump.unwrap() - 1.0).abs() < 1e-9, "{drifts:?}");
        let flickers = made((0..80).map(|i| (100.0 + 4.0 * (i % 2) as f64, 20.0)));
        assert!(
            flickers.drift < 1e-9 && (flickers.flicker - 4.0).abs() < 1e-9,
            "{flickers:?}"
        );
        // A level more inside of blocks, ten at their borders.
        let jumps = made((0..80).map(|i: usize| (10.0 + i as f64 + 9.0 * ((i + 3) / 12) as f64, 5.0)));
        assert!((jumps.border_jump.unwrap() - 10.0).abs() < 1e-9, "{jumps:?}");
        let fades = made((0..80).map(|i| (100.0, if i < 40 { 40.0 } else { 10.0 })));
        assert!((fades.contrast - 0.25).abs() < 0.01, "{fades:?}");
    }
}
