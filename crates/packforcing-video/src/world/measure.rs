//! Whether a video still shows what its scene began with.
//!
//! Every lane of every frame is judged on its own. What stands out of the dim background by its saturation is
//! given the nearest of the world's colors; the outline is the one of all shapes, at all places near what was
//! found, that covers it best, measured by intersection over union where no post hides it.

use super::render::{Frame, coverage};
use super::scene::{Color, Scene, Shape, Sprite};
use super::{COLS, LANE_ROWS, LANES};

/// Saturation that backgrounds reach.
const DIM: f64 = 0.12;
/// Saturation from which a pixel belongs to a sprite.
const SATURATED: f64 = 0.3;
/// Part of a sprite's area below which nothing is there.
const NOTHING: f64 = 0.25;
/// Part of a sprite that must be in sight for its outline to be told, and for it to be missed.
const IN_SIGHT: f64 = 0.5;
/// Part of a sprite's area that may have other colors.
const STRAY: f64 = 0.25;
/// Least intersection over union.
const COVERED: f64 = 0.5;
/// Pixels by which a place may be off.
const PLACE: f64 = 1.5;
/// Part by which a way may be longer or shorter than the truth's.
const MOTION: f64 = 0.2;

/// What is asked of a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Colors, shapes and places: each sprite's way within 20% of the truth's. For seconds.
    Motion,
    /// Colors and shapes, wherever they are, and nobody out of sight for longer than the scene's laws
    /// allow. For minutes, over which no copy of the world could keep its clocks.
    Look,
}

/// Lanes judged and those found right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Score {
    /// As the scene says.
    pub right: usize,
    /// All that could be judged: where a sprite is half hidden there is nothing to say.
    pub judged: usize,
}

impl Score {
    /// Part that is right, 1 where nothing was judged.
    pub fn share(&self) -> f64 {
        match self.judged {
            0 => 1.0,
            judged => self.right as f64 / judged as f64,
        }
    }
}

impl std::iter::Sum for Score {
    fn sum<I: Iterator<Item = Score>>(scores: I) -> Score {
        scores.fold(Score::default(), |mut sum, score| {
            sum += score;
            sum
        })
    }
}

impl std::ops::AddAssign for Score {
    fn add_assign(&mut self, other: Score) {
        self.right += other.right;
        self.judged += other.judged;
    }
}

/// What a lane shows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Seen {
    Nothing,
    Sprite {
        /// That of most pixels.
        color: Color,
        /// Part of its area in other colors.
        stray: f64,
        /// The outline that covers it best, and whether well enough and with enough in sight to tell.
        shape: Option<Shape>,
        x: f64,
        /// Part of it that is in sight where it was found.
        in_sight: f64,
    },
}

/// Holds a video against its scene, frame by frame from the scene's first on.
///
/// With [`Identity::Motion`] ways are measured from the scene's beginning, where the video began as the truth.
#[derive(Debug, Clone)]
pub struct Measure {
    scene: Scene,
    identity: Identity,
    frames: usize,
    /// Of each lane the frames that it has shown nothing for.
    missed: [usize; LANES],
}

impl Measure {
    /// Before the scene's first frame.
    pub fn new(scene: &Scene, identity: Identity) -> Measure {
        Measure {
            scene: scene.clone(),
            identity,
            frames: 0,
            missed: [0; LANES],
        }
    }

    /// The next frame's score.
    pub fn frame(&mut self, frame: &Frame) -> Score {
        let scene = &self.scene;
        let mut score = Score::default();
        for (lane, (sprite, missed)) in scene.sprites.iter().zip(&mut self.missed).enumerate() {
            // Half hidden at the view's edges or by the post it need not be found either.
            let patience = sprite.longest_absence() + (3.0 * sprite.radius / sprite.speed).ceil() as usize + 2;
            let seen = look(scene, sprite, lane, frame);
            let looks = looks_right(sprite, &seen);
            *missed = if seen == Seen::Nothing { *missed + 1 } else { 0 };
            let right = match self.identity {
                Identity::Motion => moves_right(scene, sprite, self.frames, &seen).map(|there| there && looks),
                Identity::Look => match seen {
                    Seen::Nothing if *missed <= patience => None,
                    _ => Some(looks && *missed == 0),
                },
            };
            if let Some(right) = right {
                score.judged += 1;
                score.right += usize::from(right);
            }
        }
        self.frames += 1;
        score
    }
}

/// Color and outline, as far as they can be told.
fn looks_right(sprite: &Sprite, seen: &Seen) -> bool {
    match *seen {
        Seen::Nothing => true,
        Seen::Sprite {
            color,
            stray,
            shape,
            in_sight,
            ..
        } => color == sprite.color && stray <= STRAY && (in_sight < IN_SIGHT || shape == Some(sprite.shape)),
    }
}

/// Whether what is seen is where the sprite would be after nearly the way it should have gone; nothing where the
/// sprite may well be out of sight, and is.
fn moves_right(scene: &Scene, sprite: &Sprite, frame: usize, seen: &Seen) -> Option<bool> {
    let way = sprite.speed * frame as f64;
    let slack = (MOTION * way).max(PLACE);
    let tries = (4.0 * slack).ceil() as i32;
    let near = (-tries..=tries).map(|i| way + slack * f64::from(i) / f64::from(tries));
    let there = near.map(|way| sprite.x_after(way)).any(|x| match *seen {
        Seen::Nothing => in_sight(scene, sprite, sprite.shape, x) < IN_SIGHT,
        // Half out of the view a place is hard to tell.
        Seen::Sprite { x: found, in_sight, .. } => {
            (found - x).abs() <= if in_sight < IN_SIGHT { 2.0 * PLACE } else { PLACE }
        }
    });
    (*seen != Seen::Nothing || !there).then_some(there)
}

/// Part of a sprite at this column that the view and the post leave in sight.
fn in_sight(scene: &Scene, sprite: &Sprite, shape: Shape, x: f64) -> f64 {
    let (mut whole, mut open) = (0.0, 0.0);
    let lane = sprite.y as usize / LANE_ROWS * LANE_ROWS;
    for row in lane..lane + LANE_ROWS {
        let reach = sprite.radius.ceil() as i32 + 1;
        for col in x as i32 - reach..=x as i32 + reach {
            // Columns outside the view count as hidden.
            let inside = usize::try_from(col).ok().filter(|&col| col < COLS);
            let covered = coverage(shape, sprite.radius, x - f64::from(col), sprite.y, row, 0);
            whole += covered;
            open += inside.map_or(0.0, |col| covered * (1.0 - scene.post_covers(col)));
        }
    }
    if whole > 0.0 { open / whole } else { 0.0 }
}

/// What a lane shows, near the colors and shapes that sprites have.
fn look(scene: &Scene, sprite: &Sprite, lane: usize, frame: &Frame) -> Seen {
    let rows = lane * LANE_ROWS..(lane + 1) * LANE_ROWS;
    // Behind the post's blurred edges nothing is judged.
    let open: Vec<usize> = (0..COLS).filter(|&col| scene.post_covers(col) == 0.0).collect();
    let mut counts = [0usize; Color::ALL.len()];
    let (mut filled, mut middle) = ([[0f64; COLS]; LANE_ROWS], 0.0);
    for row in rows.clone() {
        for &col in &open {
            let pixel = frame.pixel(row, col);
            let color = nearest(pixel);
            filled[row - rows.start][col] = part_of(pixel, Color::ALL[color]);
            if saturation(pixel.map(f64::from)) < SATURATED {
                continue;
            }
            middle += col as f64 + 0.5;
            counts[color] += 1;
        }
    }
    let found: usize = counts.iter().sum();
    let area = {
        let inside = (0..LANE_ROWS * 12)
            .map(|i| coverage(sprite.shape, sprite.radius, 6.0, sprite.y, rows.start + i / 12, i % 12));
        inside.sum::<f64>()
    };
    if (found as f64) < NOTHING * area {
        return Seen::Nothing;
    }
    let (most, &main) = counts.iter().enumerate().max_by_key(|(_, n)| **n).unwrap_or((0, &0));
    middle /= found as f64;

    let mut best = (0.0, None, middle);
    for shape in Shape::ALL {
        for step in -16..=16 {
            let x = middle + 0.5 * f64::from(step);
            let (mut both, mut either) = (0.0, 0.0);
            for row in rows.clone() {
                for &col in &open {
                    let covered = coverage(shape, sprite.radius, x, sprite.y, row, col);
                    let there = filled[row - rows.start][col];
                    both += covered.min(there);
                    either += covered.max(there);
                }
            }
            let overlap = if either > 0.0 { both / either } else { 0.0 };
            if overlap > best.0 {
                best = (overlap, Some(shape), x);
            }
        }
    }
    let (overlap, shape, x) = best;
    Seen::Sprite {
        color: Color::ALL[most],
        stray: (found - main) as f64 / area,
        shape: shape.filter(|_| overlap >= COVERED),
        x,
        in_sight: in_sight(scene, sprite, shape.unwrap_or(sprite.shape), x),
    }
}

/// Largest less smallest channel.
fn saturation(pixel: [f64; 3]) -> f64 {
    let pick = |pick: fn(f64, f64) -> f64| pixel.into_iter().reduce(pick).unwrap_or(0.0);
    pick(f64::max) - pick(f64::min)
}

/// How much of a pixel a sprite of this color fills: at its edges it is mixed with the background, and where the edge
/// runs tells a disc from a square.
fn part_of(pixel: [f32; 3], color: Color) -> f64 {
    let (least, most) = (DIM, saturation(color.rgb()));
    ((saturation(pixel.map(f64::from)) - least) / (most - least)).clamp(0.0, 1.0)
}

/// Number of the color nearest to a pixel in its hue: edges are mixed with a dim background.
fn nearest(pixel: [f32; 3]) -> usize {
    let hue = |pixel: [f64; 3]| {
        let low = pixel.into_iter().fold(f64::INFINITY, f64::min);
        let pure = pixel.map(|c| c - low);
        let high = pure.into_iter().fold(1e-9, f64::max);
        pure.map(|c| c / high)
    };
    let this = hue(pixel.map(f64::from));
    let off = |color: Color| -> f64 {
        let other = hue(color.rgb());
        this.iter().zip(other).map(|(a, b)| (a - b).powi(2)).sum()
    };
    let all = Color::ALL.iter().map(|&color| off(color)).enumerate();
    all.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::SHORT;

    const LONG: usize = 960;

    fn truth(scene: &Scene, frames: usize) -> Vec<Frame> {
        (0..frames).map(|frame| scene.frame(frame)).collect()
    }

    fn total(scene: &Scene, identity: Identity, frames: &[Frame]) -> Score {
        let mut measure = Measure::new(scene, identity);
        frames.iter().map(|frame| measure.frame(frame)).sum()
    }

    /// Share of right lanes over scenes whose frames are drawn from a changed scene.
    fn changed(identity: Identity, frames: usize, change: impl Fn(&mut Scene, usize)) -> f64 {
        let mut sum = Score::default();
        for number in 0..12 {
            let scene = Scene::held_out(number);
            let shown = (0..frames).map(|frame| {
                let mut other = scene.clone();
                change(&mut other, frame);
                other.frame(frame)
            });
            sum += total(&scene, identity, &shown.collect::<Vec<_>>());
        }
        sum.share()
    }

    #[test]
    fn the_truth_is_right() {
        let (mut short, mut long) = (Score::default(), Score::default());
        for number in 0..64 {
            let scene = Scene::held_out(number);
            let frames = truth(&scene, if number < 8 { LONG } else { SHORT });
            short += total(&scene, Identity::Motion, &frames[..SHORT]);
            long += total(&scene, Identity::Look, &frames);
        }
        assert!(short.share() >= 0.999, "{short:?}");
        assert!(long.share() >= 0.999, "{long:?}");
        // Who is out of sight is not judged.
        assert!(short.judged * 10 > 64 * SHORT * LANES * 6, "{short:?}");
        assert!(long.judged * 10 > (8 * LONG + 56 * SHORT) * LANES * 5, "{long:?}");
    }

    #[test]
    fn what_is_wrong_is_seen() {
        let both = [Identity::Motion, Identity::Look];
        for identity in both {
            let share = changed(identity, SHORT, |scene, _| {
                let colors = scene.sprites.map(|s| s.color);
                let unused = Color::ALL.into_iter().filter(|c| !colors.contains(c));
                scene.sprites.iter_mut().zip(unused).for_each(|(s, c)| s.color = c);
            });
            assert!(share < 0.05, "other colors: {share}");
            let share = changed(identity, SHORT, |scene, _| {
                let next = |shape| Shape::ALL[(Shape::ALL.iter().position(|&s| s == shape).unwrap_or(0) + 1) % 3];
                scene.sprites.iter_mut().for_each(|s| s.shape = next(s.shape));
            });
            assert!(share < 0.5, "other shapes: {share}");
        }
        let share = changed(Identity::Motion, SHORT, |scene, _| {
            scene.sprites.iter_mut().for_each(|s| s.y = -100.0);
        });
        assert!(share < 0.05, "gone: {share}");
        let share = changed(Identity::Look, LONG, |scene, frame| {
            if frame > SHORT {
                scene.sprites.iter_mut().for_each(|s| s.y = -100.0);
            }
        });
        assert!(share < 0.15, "gone after 5 s: {share}");
        let share = changed(Identity::Motion, SHORT, |scene, frame| {
            scene
                .sprites
                .iter_mut()
                .for_each(|s| s.start -= 0.5 * s.speed * frame as f64);
        });
        assert!(share < 0.5, "half as fast: {share}");
        let share = changed(Identity::Motion, SHORT, |scene, frame| {
            scene
                .sprites
                .iter_mut()
                .for_each(|s| s.start -= 0.1 * s.speed * frame as f64);
        });
        assert!(share > 0.97, "a tenth slower: {share}");
        let share = changed(Identity::Look, SHORT, |scene, _| {
            scene.sprites.iter_mut().for_each(|s| s.start += 11.0);
        });
        assert!(share > 0.97, "elsewhere on its way: {share}");
    }

    #[test]
    fn a_frame_goes_through_a_tensor() {
        let scene = Scene::held_out(3);
        let clip = scene.clip(5, 2, &candle_core::Device::Cpu).expect("a clip");
        let second = clip.narrow(1, 1, 1).and_then(|t| t.squeeze(1)).expect("a frame");
        let back = Frame::from_tensor(&second).expect("a frame");
        let truth = scene.frame(6);
        for i in 0..24 * 32 {
            let (a, b) = (back.pixel(i / 32, i % 32), truth.pixel(i / 32, i % 32));
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6));
        }
        assert!(Frame::from_tensor(&clip).is_err());
    }
}
