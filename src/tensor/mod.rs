//! A minimal owned [`Tensor`], and the borrowed [`View`] and [`ViewMut`] that every op takes.
//!
//! A view is an address, a dtype, a shape and strides (in elements, the innermost 1) on a
//! [`Device`]. It may be of a tensor of this crate, of a slice in host memory, of a slice of
//! cudarc's, or of a raw address.

mod raw;
mod view;

#[cfg(feature = "cuda")]
mod cuda;

use std::fmt;

use crate::device::{Device, Memory};
use crate::dtype::{DType, Element, Float, with_float};
use crate::error::{Error, Result};

pub use raw::Dims;
use raw::{Raw, contiguous, count, foreign_raw};
pub use view::{View, ViewMut};
use view::{accessors, expect_dtype};

/// A dense tensor that owns its memory.
///
/// ```
/// use packforcing::{Device, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let x = Tensor::from_slice(&Device::cpu(), &[1.0f32, 2.0, 3.0, 4.0], &[2, 2])?;
/// assert_eq!(x.view().select(0, 1)?.to_vec::<f32>()?, [3.0, 4.0]);
/// # Ok(())
/// # }
/// ```
pub struct Tensor {
    raw: Raw,
    /// There until the drop.
    memory: Option<Memory>,
}

impl Drop for Tensor {
    /// A graph that is being captured may work on the memory.
    fn drop(&mut self) {
        self.memory = self.memory.take().and_then(|memory| self.raw.device.keep(memory));
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.describe(f, "Tensor")
    }
}

impl Tensor {
    accessors!();

    /// Zeros.
    ///
    /// # Errors
    ///
    /// A shape without a dimension, or memory that the device does not have.
    pub fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let bytes = count("Tensor::zeros", shape)? * dtype.bytes();
        let memory = device.allocate(bytes)?;
        let raw = foreign_raw(
            "Tensor::zeros",
            device,
            memory.address(),
            dtype,
            shape,
            &contiguous(shape),
        )?;
        Ok(Tensor {
            raw,
            memory: Some(memory),
        })
    }

    /// A copy of host elements.
    ///
    /// # Errors
    ///
    /// A shape whose size is not the slice's, or memory that the device does not have.
    pub fn from_slice<T: Element>(device: &Device, data: &[T], shape: &[usize]) -> Result<Tensor> {
        if count("Tensor::from_slice", shape)? != data.len() {
            return Err(Error::argument(
                "Tensor::from_slice",
                "shape",
                format!("{} elements", data.len()),
                format!("{shape:?}"),
            ));
        }
        let mut tensor = Tensor::zeros(device, T::DTYPE, shape)?;
        tensor.view_mut().copy_from_slice(data)?;
        Ok(tensor)
    }

    /// Host numbers, rounded to a float dtype.
    ///
    /// # Errors
    ///
    /// As [`Tensor::from_slice`]; a dtype without fractions.
    pub fn from_f32(device: &Device, dtype: DType, data: &[f32], shape: &[usize]) -> Result<Tensor> {
        with_float!(dtype, T => {
            let rounded: Vec<T> = data.iter().map(|&x| <T as Float>::from_f32(x)).collect();
            Tensor::from_slice(device, &rounded, shape)
        }, else Err(Error::argument("Tensor::from_f32", "dtype", "f32, f16 or bf16", dtype.name())))
    }

    /// Borrows it for reading.
    pub fn view(&self) -> View<'_> {
        View::wrap(self.raw.clone(), None)
    }

    /// Borrows it for writing.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut::wrap(self.raw.clone(), None)
    }

    /// Bytes of memory that it owns.
    pub fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, Memory::bytes)
    }
}
