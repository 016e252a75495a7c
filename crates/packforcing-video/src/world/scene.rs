//! What is where, and when.

use super::{COLS, LANE_ROWS, LANES};
use crate::rng::Rng;

/// The outline of a sprite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// A circle, filled.
    Disc,
    /// As wide as high.
    Square,
    /// Its point up.
    Triangle,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Shape; 3] = [Shape::Disc, Shape::Square, Shape::Triangle];

    /// Whether a point, from the middle, is inside a shape of this radius.
    pub(super) fn holds(self, x: f64, y: f64, radius: f64) -> bool {
        match self {
            Shape::Disc => x * x + y * y <= radius * radius,
            Shape::Square => x.abs().max(y.abs()) <= 0.95 * radius,
            // From a line at the bottom to a point at the top.
            Shape::Triangle => y.abs() <= radius && x.abs() <= 0.55 * (y + radius),
        }
    }
}

/// The color of a sprite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Color {
    /// The colors that a sprite can have, as far apart as six can be.
    Red,
    /// See [`Color::rgb`].
    Green,
    /// See [`Color::rgb`].
    Blue,
    /// See [`Color::rgb`].
    Yellow,
    /// See [`Color::rgb`].
    Magenta,
    /// See [`Color::rgb`].
    Cyan,
}

impl Color {
    /// Every color.
    pub const ALL: [Color; 6] = [
        Color::Red,
        Color::Green,
        Color::Blue,
        Color::Yellow,
        Color::Magenta,
        Color::Cyan,
    ];

    /// Red, green and blue from 0 to 1.
    pub fn rgb(self) -> [f64; 3] {
        match self {
            Color::Red => [0.95, 0.15, 0.15],
            Color::Green => [0.15, 0.85, 0.2],
            Color::Blue => [0.2, 0.35, 1.0],
            Color::Yellow => [1.0, 0.9, 0.1],
            Color::Magenta => [0.95, 0.2, 0.95],
            Color::Cyan => [0.15, 0.95, 0.95],
        }
    }
}

/// The texture behind everything: the class of a scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Background {
    /// Diagonal bands.
    Bands,
    /// Squares in two shades.
    Checks,
    /// Soft rings.
    Rings,
    /// Crossing waves.
    Waves,
}

impl Background {
    /// Every texture.
    pub const ALL: [Background; 4] = [
        Background::Bands,
        Background::Checks,
        Background::Rings,
        Background::Waves,
    ];
}

/// A shape on its lane.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sprite {
    /// Its outline.
    pub shape: Shape,
    /// Its color.
    pub color: Color,
    /// Half its height, in pixels.
    pub radius: f64,
    /// Row of its middle, in pixels from the top.
    pub y: f64,
    /// Columns between which its middle goes back and forth.
    pub walls: [f64; 2],
    /// Pixels a frame.
    pub speed: f64,
    /// How far it has gone from the first wall when the scene begins.
    pub start: f64,
}

impl Sprite {
    /// Column of its middle after so many pixels of way since the scene began.
    pub fn x_after(&self, way: f64) -> f64 {
        let [from, to] = self.walls;
        let there = (self.start + way).rem_euclid(2.0 * (to - from));
        if there < to - from {
            from + there
        } else {
            2.0 * to - from - there
        }
    }

    /// Column of its middle at a frame.
    pub fn x(&self, frame: usize) -> f64 {
        self.x_after(self.speed * frame as f64)
    }

    /// Whether there is a wall to see, on the left and on the right.
    pub fn walls_in_view(&self) -> [bool; 2] {
        [self.walls[0] > 0.0, self.walls[1] < COLS as f64]
    }

    /// Most frames in a row, of those of its whole path, of which it is out of the view entirely.
    pub fn longest_absence(&self) -> usize {
        let beyond = (-self.radius - self.walls[0]).max(self.walls[1] - COLS as f64 - self.radius);
        (2.0 * beyond.max(0.0) / self.speed).ceil() as usize
    }
}

/// Everything that there is, for all time.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// The texture.
    pub background: Background,
    /// Its two shades, red, green and blue from 0 to 1.
    pub shades: [[f64; 3]; 2],
    /// Where the texture begins, in pixels.
    pub offset: [f64; 2],
    /// Columns of the post, from and to.
    pub post: [f64; 2],
    /// One on each lane, from the top.
    pub sprites: [Sprite; LANES],
}

/// Columns that a wall in the view takes.
const WALL: f64 = 1.0;

/// What tells scenes to learn from and held-out ones apart.
const TRAINING: u64 = 0x7261_696e;
const HELD_OUT: u64 = 0x6865_6c64;

impl Scene {
    /// A scene to learn from.
    pub fn for_training(number: u64) -> Scene {
        Scene::draw(&mut Rng::new(TRAINING, number))
    }

    /// A scene that no training has seen.
    pub fn held_out(number: u64) -> Scene {
        Scene::draw(&mut Rng::new(HELD_OUT, number))
    }

    fn draw(rng: &mut Rng) -> Scene {
        let mut shade = || {
            let grey = rng.between(0.12, 0.32);
            std::array::from_fn(|_| grey + rng.between(-0.06, 0.06))
        };
        let shades = [shade(), shade()];
        let background = Background::ALL[rng.below(Background::ALL.len())];
        let offset = [rng.between(0.0, 16.0), rng.between(0.0, 16.0)];
        let post = rng.between(9.0, 19.0);
        let post = [post, post + rng.between(3.5, 5.0)];
        let mut colors = Color::ALL;
        rng.shuffle(&mut colors);
        // One at least leaves the view.
        let leaves = rng.below(LANES);
        Scene {
            background,
            shades,
            offset,
            post,
            sprites: std::array::from_fn(|lane| sprite(rng, lane, colors[lane], lane == leaves, post)),
        }
    }
}

/// Bounces off walls in the view or, on one side, outside; it begins in the view, before or behind the post.
fn sprite(rng: &mut Rng, lane: usize, color: Color, leaves: bool, post: [f64; 2]) -> Sprite {
    let shape = Shape::ALL[rng.below(Shape::ALL.len())];
    let radius = rng.between(3.2, 3.7);
    let speed = rng.between(0.9, 1.6);
    let slack = 0.5 * LANE_ROWS as f64 - radius;
    let y = (lane as f64 + 0.5) * LANE_ROWS as f64 + rng.between(-slack, slack);
    let edges = [WALL + radius, COLS as f64 - WALL - radius];
    // Gone for 10 to 12 frames: more than a recent block and the one that is made have together.
    let beyond = radius + 0.5 * speed * rng.between(10.0, 12.0);
    let side = if leaves { rng.below(2) } else { rng.below(3) };
    let walls = match side {
        0 => [-beyond, edges[1]],
        1 => [edges[0], COLS as f64 + beyond],
        _ => edges,
    };
    // One of the two ways over a place where all of it is in sight: the post leaves room on one side at least.
    let (before, behind) = (
        (post[0] - radius - edges[0]).max(0.0),
        (edges[1] - post[1] - radius).max(0.0),
    );
    let room = rng.between(0.0, before + behind);
    let x = if room < before {
        edges[0] + room
    } else {
        post[1] + radius + room - before
    };
    let there = x - walls[0];
    let start = if rng.below(2) == 0 {
        there
    } else {
        2.0 * (walls[1] - walls[0]) - there
    };
    Sprite {
        shape,
        color,
        radius,
        y,
        walls,
        speed,
        start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::SHORT;

    #[test]
    fn laws_hold_in_every_scene() {
        let mut gone_long = 0;
        for number in 0..500 {
            let scene = Scene::held_out(number);
            assert_eq!(scene, Scene::held_out(number));
            assert_ne!(scene, Scene::for_training(number));
            let mut leaves = false;
            for (lane, sprite) in scene.sprites.iter().enumerate() {
                let others = scene.sprites.iter().filter(|o| o.color == sprite.color);
                assert_eq!(others.count(), 1, "colors differ");
                let rows = [lane * LANE_ROWS, (lane + 1) * LANE_ROWS].map(|row| row as f64);
                assert!(sprite.y - sprite.radius >= rows[0] && sprite.y + sprite.radius <= rows[1]);
                let first = sprite.x(0);
                assert!(first >= sprite.radius + WALL && first <= COLS as f64 - WALL - sprite.radius);
                let [left, right] = scene.post;
                assert!(first + sprite.radius <= left + 1e-9 || first - sprite.radius >= right - 1e-9);
                let inside = [sprite.walls[0] > 0.0, sprite.walls[1] < COLS as f64];
                assert_eq!(sprite.walls_in_view(), inside);
                assert!(inside[0] || inside[1]);

                let (mut gone, mut longest) = (0, 0);
                for frame in 1..2000 {
                    let (x, before) = (sprite.x(frame), sprite.x(frame - 1));
                    let step = (x - before).abs();
                    let turned = sprite.walls.iter().any(|w| (x - w).abs() < sprite.speed);
                    assert!(turned || (step - sprite.speed).abs() < 1e-9, "straight between walls");
                    assert!(x >= sprite.walls[0] - 1e-9 && x <= sprite.walls[1] + 1e-9);
                    let hidden = x <= -sprite.radius || x >= COLS as f64 + sprite.radius;
                    gone = if hidden { gone + 1 } else { 0 };
                    longest = longest.max(gone);
                    gone_long += usize::from(gone == 9 && frame < SHORT);
                }
                assert!(longest <= sprite.longest_absence() && longest + 1 >= sprite.longest_absence());
                assert!(longest == 0 || (9..=13).contains(&longest), "gone for {longest}");
                leaves |= longest > 0;
            }
            assert!(leaves, "one at least leaves the view");
        }
        assert!(gone_long > 300, "seen within 5 s in most scenes: {gone_long}");
    }
}
