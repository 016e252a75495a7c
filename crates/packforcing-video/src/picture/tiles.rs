//! Decoding in tiles: of a large picture less at a time, at the price of tiles that do not know one another.

use candle_core::{DType, Tensor};

use super::vae::{SCALE, Vae};
use crate::error::{Error, Result};

/// How a picture is cut into tiles, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// Rows and columns of a tile.
    pub size: usize,
    /// From one tile to the next; what they have in common goes over from one to the other.
    pub step: usize,
}

impl Default for Tiles {
    /// Those of diffusers.
    fn default() -> Tiles {
        Tiles { size: 256, step: 192 }
    }
}

impl Vae {
    /// A whole video's latents, `[frames, 16, rows, columns]`, become its frames from -1 to 1, tile by tile, as diffusers does
    /// it: each tile runs through all frames by itself, so what is kept from frame to frame is that of one tile.
    ///
    /// # Errors
    ///
    /// Another shape; tiles that are no whole latents, or do not reach one another; memory.
    pub fn decode_tiled(&self, latents: &Tensor, tiles: Tiles) -> Result<Tensor> {
        let Tiles { size, step } = tiles;
        if !size.is_multiple_of(SCALE) || !step.is_multiple_of(SCALE) || step == 0 || step > size {
            let expected = format!("multiples of {SCALE}, a step of at most the size");
            return Err(Error::argument("tiles", expected, format!("{tiles:?}")));
        }
        let &[_, _, rows, cols] = latents.dims() else {
            let expected = "[frames, 16, rows, columns]";
            return Err(Error::argument("latents", expected, format!("{:?}", latents.dims())));
        };
        let [extent, each] = [size / SCALE, step / SCALE];
        let (mut above, mut strips): (Vec<Tensor>, _) = (Vec::new(), Vec::new());
        for row in (0..rows).step_by(each) {
            let (mut row_of_tiles, mut strip) = (Vec::<Tensor>::new(), Vec::new());
            for (number, col) in (0..cols).step_by(each).enumerate() {
                let part = latents.narrow(2, row, extent.min(rows - row))?;
                let part = part.narrow(3, col, extent.min(cols - col))?.contiguous()?;
                let mut tile = self.decoder().unclamped(&part)?;
                if let Some(before) = above.get(number) {
                    tile = blended(before, &tile, 2, size - step)?;
                }
                if let Some(before) = row_of_tiles.last() {
                    tile = blended(before, &tile, 3, size - step)?;
                }
                let (_, _, tall, wide) = tile.dims4()?;
                strip.push(tile.narrow(2, 0, tall.min(step))?.narrow(3, 0, wide.min(step))?);
                row_of_tiles.push(tile);
            }
            strips.push(Tensor::cat(&strip, 3)?);
            above = row_of_tiles;
        }
        Ok(Tensor::cat(&strips, 2)?.clamp(-1f32, 1f32)?)
    }
}

/// `next`, whose first `overlap` rows (or columns) go over from the last ones of `before`.
fn blended(before: &Tensor, next: &Tensor, axis: usize, overlap: usize) -> Result<Tensor> {
    let (there, here) = (before.dim(axis)?, next.dim(axis)?);
    let overlap = overlap.min(there).min(here);
    if overlap == 0 {
        return Ok(next.clone());
    }
    let shares: Vec<f32> = (0..overlap).map(|i| i as f32 / overlap as f32).collect();
    let mut shape = [1; 4];
    shape[axis] = overlap;
    let share = Tensor::from_vec(shares, &shape, next.device())?;
    let wide = |x: &Tensor, first: usize| x.narrow(axis, first, overlap)?.to_dtype(DType::F32);
    let mixed = wide(before, there - overlap)?.broadcast_mul(&(1.0 - &share)?)?;
    let mixed = (mixed + wide(next, 0)?.broadcast_mul(&share)?)?.to_dtype(next.dtype())?;
    Ok(Tensor::cat(
        &[&mixed, &next.narrow(axis, overlap, here - overlap)?],
        axis,
    )?)
}
