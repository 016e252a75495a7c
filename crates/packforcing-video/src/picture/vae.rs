//! Wan2.1's autoencoder (arXiv 2503.20314), causal over time.
//!
//! Any cut of a video into pieces gives the same numbers: every convolution over time keeps the frames that the next piece
//! needs.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::PictureBytes;
use super::conv::{Conv, Memory, UNFOLDED, missing, stacked, taken};
use crate::error::{Error, Result, WeightsFault};
use crate::fused::softmax_attention;
use crate::weights::FileWeights;

/// Of the latents that transformers work on, by channel: `(latent - MEAN) / STD`.
const MEAN: [f32; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
];
const STD: [f32; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.916,
];
const CHANNELS: usize = 16;
/// Rows and columns of pixels of one of a latent.
pub(super) const SCALE: usize = 8;

/// The autoencoder with its weights.
#[derive(Debug)]
pub struct Vae {
    encoder: Side,
    decoder: Side,
    /// Between the encoder and its mean and deviation, and between a latent and the decoder.
    quantize: Conv,
    unquantize: Conv,
    mean: Tensor, // [1, 16, 1, 1]
    std: Tensor,
    dtype: DType,
    device: Device,
}

/// One way through the autoencoder.
#[derive(Debug)]
struct Side {
    first: Conv,
    stages: Vec<Stage>,
    /// Of them, those that take all frames at once; the others, at most pixels, take one by one.
    joint: usize,
    norm: Tensor, // [1, channels, 1, 1]
    last: Conv,
}

#[derive(Debug)]
enum Stage {
    Residual(Residual),
    Attention {
        norm: Tensor,
        qkv: Conv,
        out: Conv,
    },
    /// Twice the rows and columns, and twice the frames where there is a convolution over time.
    Up {
        conv: Conv,
        time: Option<Conv>,
    },
    /// Half of them.
    Down {
        conv: Conv,
        time: Option<Conv>,
    },
}

#[derive(Debug)]
struct Residual {
    norms: [Tensor; 2],
    convs: [Conv; 2],
    shortcut: Option<Conv>,
}

impl Vae {
    /// Opens a `Wan2.1_VAE.pth`, or the safetensors of a diffusers folder; computed in `dtype` on `device`.
    ///
    /// # Errors
    ///
    /// As [`FileWeights::open`]; a file of something else, a tensor that is missing.
    pub fn open<P: AsRef<Path>>(files: &[P], dtype: DType, device: &Device) -> Result<Vae> {
        let weights = FileWeights::open(files, "", dtype, device)?;
        let names = Names {
            diffusers: weights.has("decoder.conv_in.weight"),
            weights: &weights,
            dtype,
        };
        let row = |numbers: [f32; CHANNELS]| -> Result<Tensor> {
            Ok(Tensor::new(&numbers, device)?
                .reshape((1, CHANNELS, 1, 1))?
                .to_dtype(dtype)?)
        };
        let stages = |prefix: &str, whole: &str, middle_first: bool| -> Result<Vec<Stage>> {
            let middle = |stages: &mut Vec<Stage>| -> Result<()> {
                stages.push(names.residual(&format!("{prefix}.middle.0"))?);
                stages.push(names.attention(&format!("{prefix}.middle.1"))?);
                stages.push(names.residual(&format!("{prefix}.middle.2"))?);
                Ok(())
            };
            let mut stages = Vec::new();
            if middle_first {
                middle(&mut stages)?;
            }
            // Every third or fourth stage changes the size.
            let (count, period) = if middle_first { (15, 4) } else { (11, 3) };
            for number in 0..count {
                let name = format!("{prefix}.{whole}.{number}");
                if number % period + 1 != period {
                    stages.push(names.residual(&name)?);
                    continue;
                }
                let conv = names.conv(&format!("{name}.resample.1"))?;
                let time = match names.has(&format!("{name}.time_conv.weight")) {
                    true => Some(names.conv(&format!("{name}.time_conv"))?),
                    false => None,
                };
                stages.push(match middle_first {
                    true => Stage::Up { conv, time },
                    false => Stage::Down {
                        conv: conv.halving_ahead(),
                        time,
                    },
                });
            }
            if !middle_first {
                middle(&mut stages)?;
            }
            Ok(stages)
        };
        let latent = names.here("conv2.weight");
        match weights.shape(&latent)[..] {
            [CHANNELS, CHANNELS, ..] => {}
            [] => return Err(missing(&weights, latent)),
            ref other => {
                return Err(Error::Weights {
                    file: weights.file().to_path_buf(),
                    fault: WeightsFault::Torch(format!(
                        "{latent} is {other:?}: an autoencoder of other latents, and Wan2.1's have {CHANNELS} channels"
                    )),
                });
            }
        }
        let side = |prefix: &str, whole: &str, middle_first: bool| -> Result<Side> {
            let stages = stages(prefix, whole, middle_first)?;
            let grows = |stage: &Stage| matches!(stage, Stage::Up { time: Some(_), .. });
            Ok(Side {
                first: names.conv(&format!("{prefix}.conv1"))?,
                joint: stages.iter().rposition(grows).map_or(stages.len(), |last| last + 1),
                stages,
                norm: names.gamma(&format!("{prefix}.head.0.gamma"))?,
                last: names.conv(&format!("{prefix}.head.2"))?,
            })
        };
        Ok(Vae {
            encoder: side("encoder", "downsamples", false)?,
            decoder: side("decoder", "upsamples", true)?,
            quantize: names.conv("conv1")?,
            unquantize: names.conv("conv2")?,
            mean: row(MEAN)?,
            std: row(STD)?,
            dtype,
            device: device.clone(),
        })
    }

    /// Bytes that decoding takes up in this dtype for latents of so many rows and columns, before anything is loaded.
    ///
    /// # Errors
    ///
    /// As [`Vae::open`].
    pub fn bytes<P: AsRef<Path>>(files: &[P], [rows, cols]: [usize; 2], dtype: DType) -> Result<PictureBytes> {
        let weights = FileWeights::open(files, "", dtype, &Device::Cpu)?;
        let names = Names {
            diffusers: weights.has("decoder.conv_in.weight"),
            weights: &weights,
            dtype,
        };
        let here = names.here("decoder.head.0.gamma");
        let Some(&base) = weights.shape(&here).first() else {
            return Err(missing(&weights, here));
        };
        let size = dtype.size_in_bytes();
        Ok(PictureBytes {
            weights: weights.numbers() * size,
            kept: kept(base, rows, cols) * size,
            work: work(base, rows, cols) * size,
        })
    }

    /// Begins a video that is decoded.
    pub fn decoder(&self) -> VaeDecoder<'_> {
        VaeDecoder {
            vae: self,
            memory: Memory::default(),
        }
    }

    /// Begins a video that is encoded.
    pub fn encoder(&self) -> VaeEncoder<'_> {
        VaeEncoder {
            vae: self,
            memory: Memory::default(),
            begun: false,
        }
    }
}

/// A video on its way from latents to frames.
#[derive(Debug)]
pub struct VaeDecoder<'v> {
    vae: &'v Vae,
    memory: Memory,
}

impl VaeDecoder<'_> {
    /// The next latents, `[frames, 16, rows, columns]` as the transformer makes them, become frames from -1 to 1,
    /// `[frames, 3, 8 rows, 8 columns]`: four for each, and one for the first of the video.
    ///
    /// # Errors
    ///
    /// Another shape, or other rows and columns than before; memory.
    pub fn decode(&mut self, latents: &Tensor) -> Result<Tensor> {
        Ok(self.unclamped(latents)?.clamp(-1f32, 1f32)?)
    }

    /// The same, of numbers beyond -1 and 1 too.
    pub(super) fn unclamped(&mut self, latents: &Tensor) -> Result<Tensor> {
        let vae = self.vae;
        let z = taken(latents, "latents", CHANNELS, vae.dtype, &vae.device)?;
        let z = z.broadcast_mul(&vae.std)?.broadcast_add(&vae.mean)?;
        let z = vae.unquantize.frames(&z)?;
        // One by one, so that no more is worked with than four frames take.
        let frames = (0..z.dim(0)?).map(|i| {
            self.memory.begin();
            vae.decoder.forward(&z.narrow(0, i, 1)?, &mut self.memory)
        });
        Ok(Tensor::cat(&frames.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Bytes that are kept from one call to the next.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

/// A video on its way from frames to latents.
#[derive(Debug)]
pub struct VaeEncoder<'v> {
    vae: &'v Vae,
    memory: Memory,
    begun: bool,
}

impl VaeEncoder<'_> {
    /// The next frames from -1 to 1, `[frames, 3, rows, columns]`, become latents as the transformer takes them,
    /// `[frames, 16, rows / 8, columns / 8]`: the means, without sampling. A video is one frame and then fours.
    ///
    /// # Errors
    ///
    /// Another shape, frames that are not one and fours, rows and columns that 8 does not divide.
    pub fn encode(&mut self, frames: &Tensor) -> Result<Tensor> {
        let vae = self.vae;
        let x = taken(frames, "frames", 3, vae.dtype, &vae.device)?;
        let (count, _, rows, cols) = x.dims4()?;
        let first = usize::from(!self.begun);
        if (count - first) % 4 != 0 || rows % SCALE != 0 || cols % SCALE != 0 {
            let expected = format!("{first} and fours of frames, rows and columns in eights");
            return Err(Error::argument("frames", expected, format!("{:?}", x.dims())));
        }
        self.memory.begin();
        let moments = vae.encoder.forward(&x, &mut self.memory)?;
        self.begun = true;
        let mean = vae.quantize.frames(&moments)?.narrow(1, 0, CHANNELS)?;
        Ok(mean.broadcast_sub(&vae.mean)?.broadcast_div(&vae.std)?)
    }
}

/// Numbers that a decoder works with at most, about: where four frames of twice the base's channels, at a quarter of the
/// pixels, become the last ones.
fn work(base: usize, rows: usize, cols: usize) -> usize {
    let frames = 4 * 16 * rows * cols * 2 * base;
    6 * frames + UNFOLDED.min(9 * frames)
}

/// Numbers that a decoder keeps: of every convolution over time the last two frames that went in. `base` channels in its
/// last stage.
fn kept(base: usize, rows: usize, cols: usize) -> usize {
    let (two, four) = (2 * base, 4 * base);
    let first = CHANNELS + 11 * four;
    let of_place = first + 4 * (two + 6 * four) + 16 * 6 * two + 64 * 7 * base;
    2 * rows * cols * of_place
}

impl Side {
    fn forward(&self, x: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        let mut x = self.first.forward(x, memory.next())?;
        for stage in &self.stages[..self.joint] {
            x = stage.forward(&x, memory)?;
        }
        if self.joint == self.stages.len() {
            return self.last.forward(&active(&x, &self.norm)?, memory.next());
        }
        let mark = memory.mark();
        let frames = (0..x.dim(0)?).map(|i| {
            memory.back_to(mark);
            let mut x = x.narrow(0, i, 1)?;
            for stage in &self.stages[self.joint..] {
                x = stage.forward(&x, memory)?;
            }
            self.last.forward(&active(&x, &self.norm)?, memory.next())
        });
        Ok(Tensor::cat(&frames.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

impl Stage {
    fn forward(&self, x: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        match self {
            Stage::Residual(residual) => residual.forward(x, memory),
            Stage::Attention { norm, qkv, out } => {
                let (frames, channels, rows, cols) = x.dims4()?;
                let y = qkv
                    .frames(&normed(x, norm)?)?
                    .reshape((frames, 3, channels, rows * cols))?;
                // One head over the places of a frame.
                let part = |i: usize| y.narrow(1, i, 1)?.transpose(2, 3)?.transpose(1, 2)?.contiguous();
                let seen = softmax_attention(&part(0)?, &part(1)?, &part(2)?, None)?;
                let seen = seen
                    .squeeze(2)?
                    .transpose(1, 2)?
                    .contiguous()?
                    .reshape((frames, channels, rows, cols))?;
                Ok((x + out.frames(&seen)?)?)
            }
            Stage::Up { conv, time: None } => conv.doubled(x),
            Stage::Up { conv, time: Some(time) } => conv.doubled(&more_frames(x, time, memory)?),
            Stage::Down { conv, time: None } => conv.frames(x),
            Stage::Down { conv, time: Some(time) } => fewer_frames(&conv.frames(x)?, time, memory),
        }
    }
}

/// Two frames of each, but of the video's first one, which is not looked at: behind it stand zeros and not that frame.
fn more_frames(x: &Tensor, time: &Conv, memory: &mut Memory) -> Result<Tensor> {
    let (count, channels, rows, cols) = x.dims4()?;
    let slot = memory.next();
    let begins = slot.is_none();
    let first = usize::from(begins);
    if begins {
        *slot = Some(Tensor::zeros((2, channels, rows, cols), x.dtype(), x.device())?);
    }
    let mut frames = Vec::new();
    if begins {
        frames.push(x.narrow(0, 0, 1)?);
    }
    if count > first {
        let rest = x.narrow(0, first, count - first)?;
        let pairs = time.forward(&rest, slot)?;
        frames.push(pairs.reshape((2 * (count - first), channels, rows, cols))?);
    }
    Ok(Tensor::cat(&frames, 0)?)
}

/// One frame of two and the one before them; the video's first by itself.
fn fewer_frames(x: &Tensor, time: &Conv, memory: &mut Memory) -> Result<Tensor> {
    let count = x.dim(0)?;
    let slot = memory.next();
    let last = x.narrow(0, count - 1, 1)?.force_contiguous()?;
    let (begun, all) = match slot.replace(last) {
        Some(before) => (None, Tensor::cat(&[&before, x], 0)?),
        None => (Some(x.narrow(0, 0, 1)?), x.clone()),
    };
    let mut frames: Vec<Tensor> = begun.into_iter().collect();
    if all.dim(0)? >= 3 {
        frames.push(time.frames(&stacked(&all, 3, 2)?)?);
    }
    Ok(Tensor::cat(&frames, 0)?)
}

impl Residual {
    fn forward(&self, x: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        let y = self.convs[0].forward(&active(x, &self.norms[0])?, memory.next())?;
        let y = self.convs[1].forward(&active(&y, &self.norms[1])?, memory.next())?;
        let x = match &self.shortcut {
            Some(shortcut) => shortcut.frames(x)?,
            None => x.clone(),
        };
        Ok((x + y)?)
    }
}

/// What goes into a convolution: normed, then SiLU; frame by frame, for there are several of it in f32.
fn active(x: &Tensor, gamma: &Tensor) -> Result<Tensor> {
    let frames = (0..x.dim(0)?).map(|i| Ok(normed(&x.narrow(0, i, 1)?, gamma)?.silu()?));
    Ok(Tensor::cat(&frames.collect::<Result<Vec<_>>>()?, 0)?)
}

/// Each place's channels at length `sqrt(channels)`, by `gamma`; in f32.
fn normed(x: &Tensor, gamma: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let length = wide.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12f64)?;
    let scale = (x.dim(1)? as f64).sqrt();
    let unit = (wide.broadcast_div(&length)? * scale)?;
    Ok(unit.broadcast_mul(gamma)?.to_dtype(x.dtype())?)
}

/// Where tensors lie in a file of either scheme, by their original names.
struct Names<'w> {
    weights: &'w FileWeights,
    diffusers: bool,
    dtype: DType,
}

impl Names<'_> {
    fn here(&self, name: &str) -> String {
        if self.diffusers {
            diffusers_name(name)
        } else {
            name.into()
        }
    }

    fn has(&self, name: &str) -> bool {
        self.weights.has(&self.here(name))
    }

    fn conv(&self, name: &str) -> Result<Conv> {
        Conv::load(self.weights, &self.here(name), self.dtype)
    }

    fn gamma(&self, name: &str) -> Result<Tensor> {
        let here = self.here(name);
        let shape = self.weights.shape(&here);
        let Some(&channels) = shape.first() else {
            return Err(missing(self.weights, here));
        };
        Ok(self
            .weights
            .load(&here, &shape, DType::F32)?
            .reshape((1, channels, 1, 1))?)
    }

    fn residual(&self, name: &str) -> Result<Stage> {
        let shortcut = format!("{name}.shortcut");
        Ok(Stage::Residual(Residual {
            norms: [
                self.gamma(&format!("{name}.residual.0.gamma"))?,
                self.gamma(&format!("{name}.residual.3.gamma"))?,
            ],
            convs: [
                self.conv(&format!("{name}.residual.2"))?,
                self.conv(&format!("{name}.residual.6"))?,
            ],
            shortcut: match self.has(&format!("{shortcut}.weight")) {
                true => Some(self.conv(&shortcut)?),
                false => None,
            },
        }))
    }

    fn attention(&self, name: &str) -> Result<Stage> {
        Ok(Stage::Attention {
            norm: self.gamma(&format!("{name}.norm.gamma"))?,
            qkv: self.conv(&format!("{name}.to_qkv"))?,
            out: self.conv(&format!("{name}.proj"))?,
        })
    }
}

/// The name that diffusers has for an original one, of a tensor or of a part.
fn diffusers_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    // What it begins with there, and how many parts here that stands for.
    let inside = |of: &[&str]| match of {
        ["residual", "0", ..] => (".norm1", 2),
        ["residual", "2", ..] => (".conv1", 2),
        ["residual", "3", ..] => (".norm2", 2),
        ["residual", "6", ..] => (".conv2", 2),
        ["shortcut", ..] => (".conv_shortcut", 1),
        _ => ("", 0),
    };
    let (begins, stands) = match &parts[..] {
        ["conv1", ..] => ("quant_conv".into(), 1),
        ["conv2", ..] => ("post_quant_conv".into(), 1),
        [side, "conv1", ..] => (format!("{side}.conv_in"), 2),
        [side, "head", "0", ..] => (format!("{side}.norm_out"), 3),
        [side, "head", "2", ..] => (format!("{side}.conv_out"), 3),
        [side, "middle", "1", ..] => (format!("{side}.mid_block.attentions.0"), 3),
        [side, whole @ ("middle" | "downsamples" | "upsamples"), number, of @ ..] => {
            let at: usize = number.parse().unwrap_or(0);
            let place = match *whole {
                "middle" => format!("mid_block.resnets.{}", at / 2),
                "downsamples" => format!("down_blocks.{at}"),
                _ if at % 4 == 3 => format!("up_blocks.{}.upsamplers.0", at / 4),
                _ => format!("up_blocks.{}.resnets.{}", at / 4, at % 4),
            };
            let (inside, stands) = inside(of);
            (format!("{side}.{place}{inside}"), 3 + stands)
        }
        _ => return name.into(),
    };
    let rest = parts[stands..].iter().map(|part| format!(".{part}"));
    begins + &rest.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of Wan2.1 at 832 x 480: 1.89 GB in bf16.
    #[test]
    fn what_is_kept_is_counted() {
        assert_eq!(kept(96, 60, 104), 944_286_720);
    }

    #[test]
    fn names_are_those_of_diffusers() {
        for (original, diffusers) in [
            ("conv1.bias", "quant_conv.bias"),
            ("encoder.conv1.weight", "encoder.conv_in.weight"),
            (
                "encoder.downsamples.3.shortcut.weight",
                "encoder.down_blocks.3.conv_shortcut.weight",
            ),
            (
                "encoder.downsamples.5.time_conv.bias",
                "encoder.down_blocks.5.time_conv.bias",
            ),
            (
                "encoder.middle.2.residual.6.bias",
                "encoder.mid_block.resnets.1.conv2.bias",
            ),
            (
                "decoder.middle.1.to_qkv.weight",
                "decoder.mid_block.attentions.0.to_qkv.weight",
            ),
            (
                "decoder.upsamples.6.residual.3.gamma",
                "decoder.up_blocks.1.resnets.2.norm2.gamma",
            ),
            (
                "decoder.upsamples.11.resample.1.bias",
                "decoder.up_blocks.2.upsamplers.0.resample.1.bias",
            ),
            ("decoder.head.2.weight", "decoder.conv_out.weight"),
            ("decoder.head.2", "decoder.conv_out"),
            (
                "decoder.middle.1.norm.gamma",
                "decoder.mid_block.attentions.0.norm.gamma",
            ),
            ("encoder.downsamples.0.residual.2", "encoder.down_blocks.0.conv1"),
            ("encoder.downsamples.2.resample.1", "encoder.down_blocks.2.resample.1"),
        ] {
            assert_eq!(diffusers_name(original), diffusers);
        }
    }
}
