//! Scenes as pictures.

use candle_core::{Device, Tensor};

use super::scene::{Background, Scene, Shape};
use super::{COLS, ROWS};
use crate::error::{Error, Result};

/// Points along each side of a pixel that are looked at.
const POINTS: usize = 4;
/// A wall.
const LIGHT: [f64; 3] = [0.7, 0.7, 0.72];
/// The post.
const DARK: [f64; 3] = [0.03, 0.03, 0.04];

/// A picture, red, green and blue from 0 to 1. `[ROWS][COLS][3]`
#[derive(Debug, Clone, PartialEq)]
pub struct Frame(Vec<[f32; 3]>);

impl Frame {
    /// From `[3, rows, columns]`, numbers from -1 to 1; what lies outside is cut.
    ///
    /// # Errors
    ///
    /// Another size than the world's.
    pub fn from_tensor(tensor: &Tensor) -> Result<Frame> {
        if tensor.dims() != [3, ROWS, COLS] {
            let expected = format!("[3, {ROWS}, {COLS}]");
            return Err(Error::argument("frame", expected, format!("{:?}", tensor.dims())));
        }
        let planes = tensor
            .to_dtype(candle_core::DType::F32)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        let level = |i: usize| (0.5 * planes[i] + 0.5).clamp(0.0, 1.0);
        let pixels = ROWS * COLS;
        Ok(Frame(
            (0..pixels)
                .map(|i| [level(i), level(pixels + i), level(2 * pixels + i)])
                .collect(),
        ))
    }

    /// The pixel at a row and column.
    pub fn pixel(&self, row: usize, col: usize) -> [f32; 3] {
        self.0[row * COLS + col]
    }
}

impl Scene {
    /// The picture at a frame.
    pub fn frame(&self, frame: usize) -> Frame {
        let mut pixels = Vec::with_capacity(ROWS * COLS);
        for row in 0..ROWS {
            let lane = &self.sprites[row / super::LANE_ROWS];
            let (x, color) = (lane.x(frame), lane.color.rgb());
            for col in 0..COLS {
                let covered = coverage(lane.shape, lane.radius, x, lane.y, row, col);
                let post = self.post_covers(col);
                let [left, right] = lane.walls_in_view();
                let behind = match col {
                    0 if left => LIGHT,
                    col if col + 1 == COLS && right => LIGHT,
                    _ => self.texture(row, col),
                };
                let mixed = std::array::from_fn(|c| {
                    let open = covered * color[c] + (1.0 - covered) * behind[c];
                    (post * DARK[c] + (1.0 - post) * open) as f32
                });
                pixels.push(mixed);
            }
        }
        Frame(pixels)
    }

    /// Frames from `first` on, f32 numbers from -1 to 1, `[3, frames, rows, columns]`.
    ///
    /// # Errors
    ///
    /// Memory for it.
    pub fn clip(&self, first: usize, frames: usize, device: &Device) -> Result<Tensor> {
        let pictures: Vec<Frame> = (first..first + frames).map(|frame| self.frame(frame)).collect();
        let mut numbers = Vec::with_capacity(3 * frames * ROWS * COLS);
        for channel in 0..3 {
            for picture in &pictures {
                numbers.extend(picture.0.iter().map(|pixel| 2.0 * pixel[channel] - 1.0));
            }
        }
        Ok(Tensor::from_vec(numbers, (3, frames, ROWS, COLS), device)?)
    }

    /// How much of a column's width the post covers.
    pub(super) fn post_covers(&self, col: usize) -> f64 {
        let [from, to] = self.post;
        (to.min(col as f64 + 1.0) - from.max(col as f64)).clamp(0.0, 1.0)
    }

    fn texture(&self, row: usize, col: usize) -> [f64; 3] {
        let [y, x] = [row as f64 + self.offset[0], col as f64 + self.offset[1]];
        let wave = |t: f64| 0.5 + 0.5 * (std::f64::consts::TAU * t).sin();
        let mix = match self.background {
            Background::Bands => wave((x + y) / 12.0),
            // Edges of one pixel, not sharper than anything else.
            Background::Checks => 0.5 + 0.5 * (edge(x / 8.0) * edge(y / 8.0)),
            Background::Rings => wave((x - 24.0).hypot(y - 20.0) / 9.0),
            Background::Waves => 0.5 * (wave(x / 10.0) + wave(y / 7.0)),
        };
        let [a, b] = self.shades;
        std::array::from_fn(|c| mix * a[c] + (1.0 - mix) * b[c])
    }
}

/// A wave between -1 and 1 that is flat but for its edges.
fn edge(t: f64) -> f64 {
    (4.0 * (std::f64::consts::TAU * t).sin()).clamp(-1.0, 1.0)
}

/// How much of a pixel a shape covers whose middle is at (x, y).
pub(super) fn coverage(shape: Shape, radius: f64, x: f64, y: f64, row: usize, col: usize) -> f64 {
    let [dx, dy] = [col as f64 - x, row as f64 - y];
    if dx.abs() > radius + 1.0 || dy.abs() > radius + 1.0 {
        return 0.0;
    }
    let point = |i: usize| (i as f64 + 0.5) / POINTS as f64;
    let inside = (0..POINTS * POINTS).filter(|i| shape.holds(dx + point(i % POINTS), dy + point(i / POINTS), radius));
    inside.count() as f64 / (POINTS * POINTS) as f64
}
