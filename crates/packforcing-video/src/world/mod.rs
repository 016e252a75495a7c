//! A small world whose truth is known: a shooting gallery.
//!
//! Three shapes of different colors slide along lanes of their own, over a textured background that stands
//! still and behind a dark post. They bounce off walls. A wall in the view is a light bar at its edge; where there is
//! none, the wall stands outside, and the shape is gone for ten frames or more, longer than a model's newest frames
//! reach back, and must come back as it was. What a scene begins with tells all that happens: everybody is in sight, and
//! so are the walls. Where everything is at any time follows from the seed in closed form, which is what [`Measure`]
//! holds a generated video against.
//!
//! A frame has 24 x 32 pixels of three channels; there are 8 frames a second, and a clip for training has 5 seconds.

mod measure;
mod render;
mod scene;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::train::{Clips, ShortClip};

pub use measure::{Identity, Measure, Score};
pub use render::Frame;
pub use scene::{Background, Color, Scene, Shape, Sprite};

/// Rows of a frame.
pub const ROWS: usize = 24;
/// Columns of a frame.
pub const COLS: usize = 32;
/// Frames a second.
pub const FPS: usize = 8;
/// Frames of a clip to learn from: 5 seconds.
pub const SHORT: usize = 40;
/// Lanes, each with one shape.
pub const LANES: usize = 3;
/// Rows of a lane.
pub const LANE_ROWS: usize = ROWS / LANES;

/// Scenes to learn from, never one that [`Scene::held_out`] gives.
#[derive(Debug, Clone, Copy)]
pub struct World {
    /// Numbers of a token of the context.
    pub context_dim: usize,
}

impl World {
    /// What a scene of this kind is conditioned on: its background, one-hot. `[1, context_dim]`
    ///
    /// # Errors
    ///
    /// Fewer numbers than there are backgrounds.
    pub fn context(&self, background: Background, device: &Device) -> Result<Tensor> {
        let kinds = Background::ALL;
        if self.context_dim < kinds.len() {
            let expected = format!("at least {}, one for each background", kinds.len());
            return Err(Error::argument("context_dim", expected, self.context_dim.to_string()));
        }
        let hot = (0..self.context_dim).map(|i| f32::from(kinds.get(i) == Some(&background)));
        Ok(Tensor::from_vec(hot.collect(), (1, self.context_dim), device)?)
    }
}

impl Clips for World {
    fn clip(&self, number: u64) -> Result<ShortClip> {
        let scene = Scene::for_training(number);
        Ok(ShortClip {
            frames: scene.clip(0, SHORT, &Device::Cpu)?,
            context: self.context(scene.background, &Device::Cpu)?,
        })
    }
}
