//! TAEHV (github.com/madebyollin/taehv), a small autoencoder of Wan2.1's latents: a preview at a twenty-fifth of the work.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::PictureBytes;
use super::conv::{Conv, Memory, missing, stacked, taken};
use crate::error::{Error, Result};
use crate::weights::FileWeights;

const CHANNELS: usize = 16;
/// Of the four frames that the video's first latent becomes, those that are dropped.
const DROPPED: usize = 3;

/// Frames that become one latent.
const FRAMES: usize = 4;
/// Rows and columns of pixels of one of a latent.
const SCALE: usize = 8;

/// The model of a `taew2_1.pth` or `.safetensors`.
#[derive(Debug)]
pub struct Taehv {
    first: Conv,
    stages: Vec<Stage>,
    last: Conv,
    encoder: Option<Encoder>,
    dtype: DType,
    device: Device,
}

/// The way back.
#[derive(Debug)]
struct Encoder {
    first: Conv,
    stages: [Shrinking; 3],
    last: Conv,
}

/// Fewer frames, half the rows and columns, three blocks with a memory.
#[derive(Debug)]
struct Shrinking {
    pool: Conv,
    /// Frames that become one.
    frames: usize,
    conv: Conv,
    blocks: [[Conv; 3]; 3],
}

/// Three blocks with a memory, twice the rows and columns, more frames, other channels.
#[derive(Debug)]
struct Stage {
    blocks: [[Conv; 3]; 3],
    grow: Conv,
    /// Frames that each becomes.
    frames: usize,
    conv: Conv,
}

impl Taehv {
    /// Opens the file; computed in `dtype` on `device`. The encoder may be missing from it.
    ///
    /// # Errors
    ///
    /// As [`FileWeights::open`]; a file of something else, a tensor that is missing.
    pub fn open<P: AsRef<Path>>(files: &[P], dtype: DType, device: &Device) -> Result<Taehv> {
        let weights = FileWeights::open(files, "", dtype, device)?;
        let conv = |name: String| Conv::load(&weights, &name, dtype);
        let blocks = |side: &str, begin: usize| -> Result<[[Conv; 3]; 3]> {
            let block = |number: usize| -> Result<[Conv; 3]> {
                let [a, b, c] = [0, 2, 4].map(|part| conv(format!("{side}.{number}.conv.{part}")));
                Ok([a?, b?, c?])
            };
            Ok([block(begin)?, block(begin + 1)?, block(begin + 2)?])
        };
        let stage = |begin: usize, frames: usize| -> Result<Stage> {
            Ok(Stage {
                blocks: blocks("decoder", begin)?,
                grow: conv(format!("decoder.{}.conv", begin + 4))?,
                frames,
                conv: conv(format!("decoder.{}", begin + 5))?,
            })
        };
        let shrinking = |begin: usize, frames: usize| -> Result<Shrinking> {
            Ok(Shrinking {
                pool: conv(format!("encoder.{begin}.conv"))?,
                frames,
                conv: conv(format!("encoder.{}", begin + 1))?.halving(),
                blocks: blocks("encoder", begin + 2)?,
            })
        };
        let encoder = match weights.has("encoder.0.weight") {
            true => Some(Encoder {
                first: conv("encoder.0".into())?,
                stages: [shrinking(2, 2)?, shrinking(7, 2)?, shrinking(12, 1)?],
                last: conv("encoder.17".into())?,
            }),
            false => None,
        };
        Ok(Taehv {
            first: conv("decoder.1".into())?,
            stages: vec![stage(3, 1)?, stage(9, 2)?, stage(15, 2)?],
            last: conv("decoder.22".into())?,
            encoder,
            dtype,
            device: device.clone(),
        })
    }

    /// Bytes that decoding takes up in this dtype for latents of so many rows and columns, before anything is loaded.
    ///
    /// # Errors
    ///
    /// As [`Taehv::open`].
    pub fn bytes<P: AsRef<Path>>(files: &[P], [rows, cols]: [usize; 2], dtype: DType) -> Result<PictureBytes> {
        let weights = FileWeights::open(files, "", dtype, &Device::Cpu)?;
        let channels = |begin: usize| -> Result<usize> {
            let name = format!("decoder.{begin}.conv.0.weight");
            let shape = weights.shape(&name);
            shape.first().copied().ok_or_else(|| missing(&weights, name))
        };
        // Of every block the last frame, at a scale that doubles from stage to stage.
        let (first, second, third) = (channels(3)?, channels(9)?, channels(15)?);
        let kept = 3 * rows * cols * (first + 4 * second + 16 * third);
        let size = dtype.size_in_bytes();
        Ok(PictureBytes {
            weights: weights.numbers() * size,
            kept: kept * size,
            // Four frames at all pixels, before and after a convolution.
            work: 6 * 4 * 64 * rows * cols * third * size,
        })
    }

    /// Begins a video.
    pub fn decoder(&self) -> TaehvDecoder<'_> {
        TaehvDecoder {
            model: self,
            memory: Memory::default(),
            dropped: 0,
        }
    }

    /// All frames of a video, `[frames, 3, rows, columns]` from -1 to 1, become latents as the transformer takes them,
    /// `[frames / 4, 16, rows / 8, columns / 8]`; the last frame stands for those that a latent lacks.
    ///
    /// # Errors
    ///
    /// A file without the encoder; another shape, rows and columns that 8 does not divide; memory.
    pub fn encode(&self, frames: &Tensor) -> Result<Tensor> {
        let Some(encoder) = &self.encoder else {
            return Err(Error::argument(
                "weights",
                "a file with TAEHV's encoder",
                "the decoder alone",
            ));
        };
        let x = taken(frames, "frames", 3, self.dtype, &self.device)?;
        let (count, _, rows, cols) = x.dims4()?;
        if rows % SCALE != 0 || cols % SCALE != 0 {
            let expected = "rows and columns in eights";
            return Err(Error::argument("frames", expected, format!("{:?}", x.dims())));
        }
        let mut all = vec![x.clone()];
        all.resize(1 + count.next_multiple_of(FRAMES) - count, x.narrow(0, count - 1, 1)?);
        // To 0 to 1.
        let mut x = ((Tensor::cat(&all, 0)? + 1.0)? / 2.0)?;
        x = encoder.first.frames(&x)?.relu()?;
        for stage in &encoder.stages {
            x = stage.pool.frames(&stacked(&x, stage.frames, stage.frames)?)?;
            x = stage.conv.frames(&x)?;
            for block in &stage.blocks {
                x = remembering(&x, block, &mut None)?;
            }
        }
        encoder.last.frames(&x)
    }
}

/// A video on its way from latents to frames.
#[derive(Debug)]
pub struct TaehvDecoder<'m> {
    model: &'m Taehv,
    memory: Memory,
    dropped: usize,
}

impl TaehvDecoder<'_> {
    /// The next latents, `[frames, 16, rows, columns]` as the transformer makes them, become frames from -1 to 1,
    /// `[frames, 3, 8 rows, 8 columns]`: four for each, and one for the first of the video.
    ///
    /// # Errors
    ///
    /// Another shape, or other rows and columns than before; memory.
    pub fn decode(&mut self, latents: &Tensor) -> Result<Tensor> {
        let model = self.model;
        let x = taken(latents, "latents", CHANNELS, model.dtype, &model.device)?;
        // One by one, so that no more is worked with than four frames take.
        let frames = (0..x.dim(0)?).map(|i| {
            self.memory.begin();
            model.raw(&x.narrow(0, i, 1)?, &mut self.memory)
        });
        // Of 0 to 1.
        let frames = Tensor::cat(&frames.collect::<Result<Vec<_>>>()?, 0)?.clamp(0f32, 1f32)?;
        let drop = DROPPED - self.dropped;
        self.dropped += drop;
        let kept = frames.narrow(0, drop, frames.dim(0)? - drop)?;
        Ok(((kept * 2.0)? - 1.0)?)
    }

    /// Bytes that are kept from one call to the next.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

impl Taehv {
    fn raw(&self, x: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        // Latents that are far off are drawn in.
        let x = ((x / 3.0)?.tanh()? * 3.0)?;
        let mut x = self.first.frames(&x)?.relu()?;
        for stage in &self.stages {
            for block in &stage.blocks {
                x = remembering(&x, block, memory.next())?;
            }
            // Growing looks at single pixels: before they are doubled it is a quarter of the work.
            x = stage.conv.doubled(&stage.more_frames(&x)?)?;
        }
        self.last.frames(&x.relu()?)
    }
}

impl Stage {
    /// A file may grow more frames than are wanted: the last ones count.
    fn more_frames(&self, x: &Tensor) -> Result<Tensor> {
        let (count, channels, rows, cols) = x.dims4()?;
        let (made, wanted) = (self.grow.channels()?, self.frames * channels);
        let grown = self.grow.frames(x)?;
        let grown = grown.narrow(1, made.saturating_sub(wanted), wanted)?.contiguous()?;
        Ok(grown.reshape((count * self.frames, channels, rows, cols))?)
    }
}

/// A block over each frame and the one before it, zeros before the first.
fn remembering(x: &Tensor, [a, b, c]: &[Conv; 3], past: &mut Option<Tensor>) -> Result<Tensor> {
    let (count, channels, rows, cols) = x.dims4()?;
    let before = match past.take() {
        Some(before) => before,
        None => Tensor::zeros((1, channels, rows, cols), x.dtype(), x.device())?,
    };
    *past = Some(x.narrow(0, count - 1, 1)?.force_contiguous()?);
    let before = Tensor::cat(&[&before, &x.narrow(0, 0, count - 1)?], 0)?;
    let both = Tensor::cat(&[x, &before], 1)?;
    let y = c.frames(&b.frames(&a.frames(&both)?.relu()?)?.relu()?)?;
    Ok((y + x)?.relu()?)
}
