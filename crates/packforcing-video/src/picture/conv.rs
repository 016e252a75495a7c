//! Convolutions over frames, `[frames, channels, rows, columns]`.

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result, WeightsFault};
use crate::weights::FileWeights;

/// Numbers that a convolution is unfolded to at most: what is larger is made in strips of rows. 256 MB in f32.
pub(super) const UNFOLDED: usize = 1 << 26;

/// A convolution over rows and columns and, causally, over time.
#[derive(Debug, Clone)]
pub(super) struct Conv {
    weight: Tensor, // [to, taps from, kernel, kernel]
    bias: Option<Tensor>,
    /// Frames that go into one.
    taps: usize,
    stride: usize,
    /// Rows and columns of zeros before the first; behind the last there are always half a kernel.
    before: usize,
}

impl Conv {
    /// By its name in a file; with as many taps over time as its weight has.
    pub fn load(weights: &FileWeights, name: &str, dtype: DType) -> Result<Conv> {
        let of_weight = format!("{name}.weight");
        let shape = weights.shape(&of_weight);
        let (to, from, taps, kernel) = match shape[..] {
            [to, from, taps, rows, cols] if rows == cols => (to, from, taps, rows),
            [to, from, rows, cols] if rows == cols => (to, from, 1, rows),
            _ => return Err(missing(weights, of_weight)),
        };
        if kernel % 2 == 0 || taps % 2 == 0 {
            return Err(missing(weights, of_weight));
        }
        let weight = weights.load(&of_weight, &shape, dtype)?;
        let weight = weight.reshape((to, from, taps, kernel, kernel))?.transpose(1, 2)?;
        let of_bias = format!("{name}.bias");
        let bias = match weights.has(&of_bias) {
            true => Some(weights.load(&of_bias, &[to], dtype)?.reshape((1, to, 1, 1))?),
            false => None,
        };
        Ok(Conv {
            weight: weight.contiguous()?.reshape((to, taps * from, kernel, kernel))?,
            bias,
            taps,
            stride: 1,
            before: kernel / 2,
        })
    }

    /// Every second row and column, the first one in the middle of its kernel.
    pub fn halving(self) -> Conv {
        Conv { stride: 2, ..self }
    }

    /// Every second row and column, the first one at the beginning of its kernel.
    pub fn halving_ahead(self) -> Conv {
        Conv {
            before: 0,
            ..self.halving()
        }
    }

    pub fn channels(&self) -> Result<usize> {
        Ok(self.weight.dim(0)?)
    }

    /// Every frame by itself, or with those before it: `past` holds what the next frames need, zeros before the first.
    pub fn forward(&self, x: &Tensor, past: &mut Option<Tensor>) -> Result<Tensor> {
        if self.taps == 1 {
            return self.frames(x);
        }
        let (count, channels, rows, cols) = x.dims4()?;
        let before = match past.take() {
            Some(past) => past,
            None => Tensor::zeros((self.taps - 1, channels, rows, cols), x.dtype(), x.device())?,
        };
        let all = Tensor::cat(&[&before, x], 0)?;
        // A copy: a view would keep all frames in memory.
        *past = Some(all.narrow(0, count, self.taps - 1)?.force_contiguous()?);
        self.each(count, |i| stacked(&all.narrow(0, i, self.taps)?, self.taps, 1))
    }

    /// Over frames whose taps stand behind one another in their channels.
    pub fn frames(&self, x: &Tensor) -> Result<Tensor> {
        self.each(x.dim(0)?, |i| Ok(x.narrow(0, i, 1)?))
    }

    /// Over frames of twice the rows and columns, each pixel four times.
    pub fn doubled(&self, x: &Tensor) -> Result<Tensor> {
        self.each(x.dim(0)?, |i| doubled(&x.narrow(0, i, 1)?))
    }

    /// Over so many frames, made one by one: what each is made of is gone before the next comes.
    fn each(&self, count: usize, frame: impl Fn(usize) -> Result<Tensor>) -> Result<Tensor> {
        let frames = (0..count).map(|i| self.frame(&frame(i)?)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&frames, 0)?)
    }

    fn frame(&self, x: &Tensor) -> Result<Tensor> {
        let kernel = self.weight.dim(2)?;
        let x = match kernel {
            1 => x.clone(),
            _ => x
                .pad_with_zeros(2, self.before, kernel / 2)?
                .pad_with_zeros(3, self.before, kernel / 2)?,
        };
        let (_, channels, rows, cols) = x.dims4()?;
        let out_rows = (rows - kernel) / self.stride + 1;
        let of_row = channels * kernel * kernel * (cols / self.stride);
        let strip = (UNFOLDED / of_row.max(1)).clamp(1, out_rows.max(1));
        let mut strips = Vec::new();
        for first in (0..out_rows).step_by(strip) {
            let made = strip.min(out_rows - first);
            let needed = (made - 1) * self.stride + kernel;
            let rows = x.narrow(2, first * self.stride, needed)?.contiguous()?;
            strips.push(rows.conv2d(&self.weight, 0, self.stride, 1, 1)?);
        }
        let out = match &strips[..] {
            [whole] => whole.clone(),
            _ => Tensor::cat(&strips, 2)?,
        };
        Ok(match &self.bias {
            Some(bias) => out.broadcast_add(bias)?,
            None => out,
        })
    }
}

/// Each frame with those that follow it, in its channels: `taps` frames from every `step`th on.
pub(super) fn stacked(x: &Tensor, taps: usize, step: usize) -> Result<Tensor> {
    let (count, channels, rows, cols) = x.dims4()?;
    let made = (count - taps) / step + 1;
    let frames = (0..made).map(|i| {
        x.narrow(0, i * step, taps)?
            .contiguous()?
            .reshape((1, taps * channels, rows, cols))
    });
    Ok(Tensor::cat(&frames.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}

/// Twice the rows and columns, each pixel four times.
pub(super) fn doubled(x: &Tensor) -> Result<Tensor> {
    let (_, _, rows, cols) = x.dims4()?;
    Ok(x.upsample_nearest2d(2 * rows, 2 * cols)?)
}

/// What the convolutions of a model keep from one call to the next, in the order in which they come.
#[derive(Debug, Default)]
pub(super) struct Memory {
    slots: Vec<Option<Tensor>>,
    at: usize,
}

impl Memory {
    /// From the first again.
    pub fn begin(&mut self) {
        self.at = 0;
    }

    /// Which one comes next.
    pub fn mark(&self) -> usize {
        self.at
    }

    /// From there again.
    pub fn back_to(&mut self, mark: usize) {
        self.at = mark;
    }

    pub fn next(&mut self) -> &mut Option<Tensor> {
        if self.at == self.slots.len() {
            self.slots.push(None);
        }
        self.at += 1;
        &mut self.slots[self.at - 1]
    }

    pub fn bytes(&self) -> usize {
        let held = self.slots.iter().flatten();
        held.map(|x| x.elem_count() * x.dtype().size_in_bytes()).sum()
    }
}

/// An error that names a tensor which is not there, or is of no shape that it could be.
pub(super) fn missing(weights: &FileWeights, name: String) -> Error {
    let there = weights.shape(&name);
    Error::Weights {
        file: weights.file().to_path_buf(),
        fault: match there.is_empty() {
            true => WeightsFault::Incomplete {
                missing: vec![name],
                wrong: Vec::new(),
                surplus: Vec::new(),
            },
            false => WeightsFault::Torch(format!("{name} is {there:?}, which is no convolution of this model")),
        },
    }
}

/// A latent or frames as a model takes them.
pub(super) fn taken(
    x: &Tensor,
    argument: &'static str,
    channels: usize,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    match x.dims() {
        &[frames, c, rows, cols] if c == channels && frames > 0 && rows > 0 && cols > 0 => {
            Ok(x.to_device(device)?.to_dtype(dtype)?)
        }
        other => Err(Error::argument(
            argument,
            format!("[frames, {channels}, rows, columns]"),
            format!("{other:?}"),
        )),
    }
}
