//! Old blocks into few tokens, learned: a branch over the whole latent and one over a small copy of it
//! (PackForcing, arXiv 2603.25730).

use candle_core::Tensor;
use packforcing::Grid;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::{Linear, Model};
use crate::weights::Weights;

/// One stage of the branch over the whole latent: a convolution whose kernel is its stride, which is a
/// reshape and a product. What does not fill a kernel is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Frames, rows and columns that become one.
    pub stride: [usize; 3],
    /// Channels that come out.
    pub channels: usize,
}

/// The stages of a [`Compressor`]. A last one without stride brings them to the model's width.
///
/// ```
/// use packforcing_video::{CompressorConfig, Config};
///
/// // 6,240 tokens of a block of Wan2.1 at 480p become 182.
/// let (model, compressor) = (Config::wan2_1_t2v_1_3b(), CompressorConfig::wan2_1());
/// let mid = compressor.grid(&model, [4, 60, 104])?;
/// assert_eq!((mid.extents(), mid.tokens().0), ([2, 7, 13], 182));
/// # Ok::<(), packforcing_video::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressorConfig {
    /// In their order.
    pub stages: Vec<Stage>,
}

impl CompressorConfig {
    /// The paper's: 128 numbers of the latent along time, rows and columns become one token.
    pub fn wan2_1() -> CompressorConfig {
        let stage = |stride, channels| Stage { stride, channels };
        CompressorConfig {
            stages: vec![
                stage([2, 1, 1], 32),
                stage([1, 2, 2], 128),
                stage([1, 2, 2], 512),
                stage([1, 2, 2], 2048),
            ],
        }
    }

    /// For [`Config::tiny`]: four frames of 2 x 2 patches become one token.
    pub fn tiny() -> CompressorConfig {
        let stage = |stride, channels| Stage { stride, channels };
        CompressorConfig {
            stages: vec![stage([2, 2, 2], 24), stage([2, 2, 2], 96), stage([1, 2, 2], 192)],
        }
    }

    /// Frames, rows and columns of the latent that become one token.
    pub fn stride(&self) -> [usize; 3] {
        let along = |axis: usize| {
            let strides = self.stages.iter().map(|s| s.stride[axis]);
            strides.fold(1, usize::saturating_mul)
        };
        [along(0), along(1), along(2)]
    }

    /// Tokens that a block of so many frames, rows and columns of the latent becomes.
    ///
    /// # Errors
    ///
    /// Strides that are not whole patches of the model, stages without channels, a block that is too small
    /// for one token.
    pub fn grid(&self, model: &Config, latent: [usize; 3]) -> Result<Grid> {
        if self.stages.len() > 64 {
            return Err(Error::argument(
                "compressor",
                "at most 64 stages",
                self.stages.len().to_string(),
            ));
        }
        // Far above what anyone has, and products of a stage's are numbers.
        let large = |s: &Stage| s.channels > 1 << 16 || s.stride.iter().any(|&n| n > 1 << 8);
        if let Some(stage) = self.stages.iter().find(|s| large(s)) {
            let expected = "strides up to 256 and channels up to 65,536";
            return Err(Error::argument("compressor", expected, format!("{stage:?}")));
        }
        let stride = self.stride();
        if self.stages.iter().any(|s| s.channels == 0 || s.stride.contains(&0)) {
            return Err(Error::argument(
                "compressor",
                "strides and channels above 0",
                format!("{:?}", self.stages),
            ));
        }
        if stride.iter().zip(&model.patch).any(|(s, p)| s % p != 0) {
            let expected = format!("strides in whole patches of {:?}", model.patch);
            return Err(Error::argument("compressor", expected, format!("{stride:?}")));
        }
        // Stage by stage: what is left out at one is not there for the next.
        let along = |axis: usize| self.stages.iter().fold(latent[axis], |n, s| n / s.stride[axis]);
        let grid = Grid {
            frames: along(0),
            rows: along(1),
            cols: along(2),
        };
        if grid.extents().contains(&0) {
            let expected = format!("at least {stride:?} frames, rows and columns of the latent");
            return Err(Error::argument("latent", expected, format!("{latent:?}")));
        }
        Ok(grid)
    }
}

/// A small copy of a latent. For latents of an autoencoder: decode, pool, encode again; for pixels the
/// pooling alone, [`Pooled`].
pub trait LowRes {
    /// `latent` (`[batch, channels, frames, rows, columns]`) with `cell` times fewer frames, rows and columns; what
    /// does not fill a cell is left out.
    ///
    /// # Errors
    ///
    /// What the tensors do not allow.
    fn low_res(&self, latent: &Tensor, cell: [usize; 3]) -> Result<Tensor>;
}

/// The mean over every cell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pooled;

impl LowRes for Pooled {
    fn low_res(&self, latent: &Tensor, cell: [usize; 3]) -> Result<Tensor> {
        let (batch, channels, frames, rows, cols) = latent.dims5()?;
        let [f, r, c] = [frames / cell[0], rows / cell[1], cols / cell[2]];
        let whole = latent
            .narrow(2, 0, f * cell[0])?
            .narrow(3, 0, r * cell[1])?
            .narrow(4, 0, c * cell[2])?;
        let mean = whole
            .reshape((batch * channels * f, cell[0], r, cell[1] * c * cell[2]))?
            .mean(1)?;
        let mean = mean.reshape((batch * channels * f * r, cell[1], c, cell[2]))?.mean(1)?;
        Ok(mean.mean(2)?.reshape((batch, channels, f, r, c))?)
    }
}

/// The learned compressor, with its weights.
#[derive(Debug, Clone)]
pub struct Compressor {
    config: CompressorConfig,
    stages: Vec<Linear>,
    out: Linear,
}

impl Compressor {
    /// A compressor for a model of these sizes; its names begin with `compressor.`.
    ///
    /// # Errors
    ///
    /// As [`CompressorConfig::grid`], and what `weights` reports.
    pub fn new(config: &CompressorConfig, model: &Config, weights: &mut impl Weights) -> Result<Compressor> {
        config.grid(model, config.stride())?;
        let mut from = model.channels;
        let mut stages = Vec::with_capacity(config.stages.len());
        for (i, stage) in config.stages.iter().enumerate() {
            let inside = from * stage.stride.iter().product::<usize>();
            stages.push(Linear::new(
                weights,
                &format!("compressor.stages.{i}"),
                inside,
                stage.channels,
            )?);
            from = stage.channels;
        }
        Ok(Compressor {
            config: config.clone(),
            stages,
            out: Linear::new(weights, "compressor.out", from, model.width())?,
        })
    }

    /// The stages.
    pub fn config(&self) -> &CompressorConfig {
        &self.config
    }

    /// A clean block's tokens, `[batch, mid tokens, width]`: both branches, added. `latent` is
    /// `[batch, channels, frames, rows, columns]`.
    ///
    /// # Errors
    ///
    /// A latent that is too small, and what `low_res` reports.
    pub fn tokens(&self, model: &Model, latent: &Tensor, low_res: &impl LowRes) -> Result<Tensor> {
        let (batch, _, frames, rows, cols) = latent.dims5()?;
        let grid = self.config.grid(model.config(), [frames, rows, cols])?;
        let (stride, patch) = (self.config.stride(), model.config().patch);
        let cell = std::array::from_fn(|axis| stride[axis] / patch[axis]);
        let small = low_res.low_res(latent, cell)?;
        // What a stage leaves out may be enough for one more cell of the other branch, or half a patch of it.
        let [pf, pr, pc] = patch;
        let small = small.narrow(2, 0, grid.frames * pf)?.narrow(3, 0, grid.rows * pr)?;
        let small = small.narrow(4, 0, grid.cols * pc)?.contiguous()?;
        let low = model.embed(&small)?;

        // [batch, frames, rows, columns, channels] from here on.
        let mut x = latent.to_dtype(model.dtype())?.permute((0, 2, 3, 4, 1))?;
        for (i, (stage, linear)) in self.config.stages.iter().zip(&self.stages).enumerate() {
            if i > 0 {
                x = x.silu()?;
            }
            let (_, frames, rows, cols, channels) = x.dims5()?;
            let [sf, sr, sc] = stage.stride;
            let (frames, rows, cols) = (frames / sf, rows / sr, cols / sc);
            let whole = x
                .narrow(1, 0, frames * sf)?
                .narrow(2, 0, rows * sr)?
                .narrow(3, 0, cols * sc)?;
            let cells = whole.reshape(&[batch, frames, sf, rows, sr, cols, sc, channels][..])?;
            let cells = cells.permute(vec![0, 1, 3, 5, 2, 4, 6, 7])?;
            x = linear.forward(&cells.reshape((batch, frames, rows, cols, sf * sr * sc * channels))?)?;
        }
        let high = self.out.forward(&x.silu()?.reshape((batch, grid.tokens().0, ()))?)?;
        Ok((high + low)?)
    }

    /// What every layer attends to of a clean block: keys, normed and not rotated, and values, each
    /// `[batch, mid tokens, heads, dim]`, by the layer's own projections, without modulation.
    ///
    /// # Errors
    ///
    /// As [`Compressor::tokens`].
    pub fn keys_and_values(
        &self,
        model: &Model,
        latent: &Tensor,
        low_res: &impl LowRes,
    ) -> Result<Vec<(Tensor, Tensor)>> {
        model.keys_and_values(&self.tokens(model, latent, low_res)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn pooling_is_the_mean_of_every_cell() {
        let numbers: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| i as f32).collect();
        let latent = Tensor::from_vec(numbers, (1, 2, 3, 4, 5), &Device::Cpu).expect("a tensor");
        let pooled = Pooled.low_res(&latent, [2, 2, 2]).expect("cells");
        assert_eq!((pooled.dims(), pooled.dtype()), (&[1, 2, 1, 2, 2][..], DType::F32));
        let got = pooled.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("numbers");
        let at = |c: usize, f: usize, r: usize, k: usize| (((c * 3 + f) * 4 + r) * 5 + k) as f32;
        let mean = |c: usize, r: usize, k: usize| {
            let corners = (0..8).map(|i| at(c, i / 4, 2 * r + i / 2 % 2, 2 * k + i % 2));
            corners.sum::<f32>() / 8.0
        };
        let expected: Vec<f32> = (0..8).map(|i| mean(i / 4, i / 2 % 2, i % 2)).collect();
        assert_eq!(got, expected);
    }
}
