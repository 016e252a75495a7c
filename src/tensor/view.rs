//! Borrowed tensors.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::device::{Device, Span};
use crate::dtype::{DType, Element, Float, with_float};
use crate::error::{Error, Result};

#[cfg(feature = "cuda")]
use super::raw::contiguous;
use super::raw::{Raw, foreign_raw, host_raw};

/// Keeps what a view borrows alive: events of cudarc's slices are recorded when it drops.
type Guard<'a> = Option<Arc<dyn GuardedBorrow + 'a>>;
pub(crate) trait GuardedBorrow: Send + Sync {}

/// What every tensor tells of itself.
macro_rules! accessors {
    () => {
        /// The device whose memory this is, with the stream that work on it is launched on.
        pub fn device(&self) -> &Device {
            &self.raw.device
        }
        /// The type of the elements.
        pub fn dtype(&self) -> DType {
            self.raw.dtype
        }
        /// Extents, the outermost first.
        pub fn shape(&self) -> &[usize] {
            &self.raw.shape
        }
        /// Strides in elements.
        pub fn strides(&self) -> &[usize] {
            &self.raw.strides
        }
        /// How many elements there are.
        pub fn elements(&self) -> usize {
            self.raw.elements()
        }
        /// Whether the elements lie one after the other.
        pub fn is_contiguous(&self) -> bool {
            self.raw.is_contiguous()
        }
        /// The address of the first element, in the device's memory.
        pub fn address(&self) -> u64 {
            self.raw.address
        }
        /// The elements, in order, in host memory; waits for the device.
        ///
        /// # Errors
        ///
        /// Another dtype, or whatever the device reports.
        pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
            expect_dtype::<T>("to_vec", self.raw.dtype)?;
            let mut out = vec![T::zeroed(); self.raw.elements()];
            self.raw.download(bytemuck::cast_slice_mut(&mut out))?;
            Ok(out)
        }
        /// The elements of a float tensor widened to f32, in order; waits for the device.
        ///
        /// # Errors
        ///
        /// A dtype without fractions, or whatever the device reports.
        pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
            with_float!(self.raw.dtype, T => {
                Ok(self.to_vec::<T>()?.into_iter().map(Float::to_f32).collect())
            }, else Err(Error::argument("to_f32_vec", "dtype", "f32, f16 or bf16", self.raw.dtype.name())))
        }
    };
}

pub(super) use accessors;

pub(super) fn expect_dtype<T: Element>(op: &'static str, got: DType) -> Result<()> {
    if got == T::DTYPE {
        Ok(())
    } else {
        Err(Error::argument(op, "dtype", T::DTYPE.name(), got.name()))
    }
}

/// A borrowed, strided, read-only tensor.
#[derive(Clone)]
pub struct View<'a> {
    raw: Raw,
    guard: Guard<'a>,
    life: PhantomData<&'a [u8]>,
}

/// A borrowed, strided tensor that may be written.
pub struct ViewMut<'a> {
    raw: Raw,
    guard: Guard<'a>,
    life: PhantomData<&'a mut [u8]>,
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.describe(f, "View")
    }
}

impl fmt::Debug for ViewMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.describe(f, "ViewMut")
    }
}

impl<'a> View<'a> {
    accessors!();

    /// A dense tensor in the caller's host memory, for the CPU and the SIMT device.
    ///
    /// # Errors
    ///
    /// A shape whose size is not the slice's, a device whose memory is not the host's.
    pub fn from_slice<T: Element>(device: &Device, data: &'a [T], shape: &[usize]) -> Result<View<'a>> {
        let raw = host_raw(
            "View::from_slice",
            device,
            T::DTYPE,
            data.as_ptr() as u64,
            data.len(),
            shape,
        )?;
        Ok(View::wrap(raw, None))
    }

    /// A tensor at a raw address, with strides in elements.
    ///
    /// # Safety
    ///
    /// The address is aligned for `dtype`; every element that shape and strides reach is valid
    /// memory of `device` (for CUDA: of its context) for `'a`, and nobody writes it meanwhile
    /// except in the order of the device's stream.
    ///
    /// # Errors
    ///
    /// Strides of another rank, an innermost stride other than 1, a null address.
    pub unsafe fn from_raw(
        device: &Device,
        address: u64,
        dtype: DType,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<View<'a>> {
        Ok(View::wrap(
            foreign_raw("View::from_raw", device, address, dtype, shape, strides)?,
            None,
        ))
    }

    pub(super) fn wrap(raw: Raw, guard: Guard<'a>) -> View<'a> {
        View {
            raw,
            guard,
            life: PhantomData,
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn guarded(
        op: &'static str,
        device: &Device,
        address: u64,
        dtype: DType,
        shape: &[usize],
        guard: Arc<dyn GuardedBorrow + 'a>,
    ) -> Result<View<'a>> {
        let raw = foreign_raw(op, device, address, dtype, shape, &contiguous(shape))?;
        Ok(View::wrap(raw, Some(guard)))
    }

    /// The part `start..start + len` of one dimension.
    ///
    /// # Errors
    ///
    /// A range outside the dimension.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<View<'a>> {
        Ok(View::wrap(
            self.raw.clone().narrow(dim, start, len)?,
            self.guard.clone(),
        ))
    }

    /// One index of an outer dimension, which disappears.
    ///
    /// # Errors
    ///
    /// The innermost dimension, or an index outside.
    pub fn select(&self, dim: usize, index: usize) -> Result<View<'a>> {
        Ok(View::wrap(self.raw.clone().select(dim, index)?, self.guard.clone()))
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    ///
    /// A view that is not contiguous, or another number of elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<View<'a>> {
        Ok(View::wrap(self.raw.clone().reshape(shape)?, self.guard.clone()))
    }

    /// The memory of a contiguous view under another shape, with strides in elements, from element
    /// `offset` on. Strides of 0 repeat what they pass over.
    ///
    /// ```
    /// use packforcing::{Device, View};
    /// # fn main() -> packforcing::Result<()> {
    /// // [tokens, heads, dim] of 2 x 2 x 2, seen as [heads, tokens, dim].
    /// let x = [0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
    /// let heads = View::from_slice(&Device::cpu(), &x, &[8])?.strided(0, &[2, 2, 2], &[2, 4, 1])?;
    /// assert_eq!(heads.select(0, 1)?.to_vec::<f32>()?, [2.0, 3.0, 6.0, 7.0]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// A view that is not contiguous, elements outside of it, strides of another rank, an innermost
    /// stride other than 1 where there is more than one element.
    pub fn strided(&self, offset: usize, shape: &[usize], strides: &[usize]) -> Result<View<'a>> {
        Ok(View::wrap(
            self.raw.clone().strided(offset, shape, strides)?,
            self.guard.clone(),
        ))
    }

    pub(crate) fn span(&self) -> Span {
        self.raw.span(false)
    }

    /// Everything from the first element to the last, for a host device.
    pub(crate) fn host<T: Element>(&self) -> &'a [T] {
        assert!(
            self.raw.device.is_host() && self.raw.dtype == T::DTYPE,
            "host access to {self:?}"
        );
        let len = self.raw.extent();
        if len == 0 {
            return &[];
        }
        // SAFETY: the view was made from `len` readable elements of this type that live for 'a;
        // constructors checked or were promised alignment.
        unsafe { std::slice::from_raw_parts(self.raw.address as *const T, len) }
    }
}

impl<'a> ViewMut<'a> {
    accessors!();

    /// A dense tensor in the caller's host memory, for the CPU and the SIMT device.
    ///
    /// # Errors
    ///
    /// A shape whose size is not the slice's, a device whose memory is not the host's.
    pub fn from_slice<T: Element>(device: &Device, data: &'a mut [T], shape: &[usize]) -> Result<ViewMut<'a>> {
        let raw = host_raw(
            "ViewMut::from_slice",
            device,
            T::DTYPE,
            data.as_mut_ptr() as u64,
            data.len(),
            shape,
        )?;
        Ok(ViewMut::wrap(raw, None))
    }

    /// A tensor at a raw address, with strides in elements.
    ///
    /// # Safety
    ///
    /// As [`View::from_raw`], and nobody else reads or writes the elements for `'a` except in the
    /// order of the device's stream. No two elements share an address. On a host device the gaps
    /// that the strides leave between elements count as elements too.
    ///
    /// # Errors
    ///
    /// Strides of another rank, an innermost stride other than 1, a null address.
    pub unsafe fn from_raw(
        device: &Device,
        address: u64,
        dtype: DType,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<ViewMut<'a>> {
        Ok(ViewMut::wrap(
            foreign_raw("ViewMut::from_raw", device, address, dtype, shape, strides)?,
            None,
        ))
    }

    pub(super) fn wrap(raw: Raw, guard: Guard<'a>) -> ViewMut<'a> {
        ViewMut {
            raw,
            guard,
            life: PhantomData,
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn guarded(
        op: &'static str,
        device: &Device,
        address: u64,
        dtype: DType,
        shape: &[usize],
        guard: Arc<dyn GuardedBorrow + 'a>,
    ) -> Result<ViewMut<'a>> {
        let raw = foreign_raw(op, device, address, dtype, shape, &contiguous(shape))?;
        Ok(ViewMut::wrap(raw, Some(guard)))
    }

    /// The same elements, read-only.
    pub fn view(&self) -> View<'_> {
        View::wrap(self.raw.clone(), self.guard.clone())
    }

    /// The same elements for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut::wrap(self.raw.clone(), self.guard.clone())
    }

    /// The part `start..start + len` of one dimension.
    ///
    /// # Errors
    ///
    /// A range outside the dimension.
    pub fn narrow(self, dim: usize, start: usize, len: usize) -> Result<ViewMut<'a>> {
        Ok(ViewMut::wrap(self.raw.narrow(dim, start, len)?, self.guard))
    }

    /// One index of an outer dimension, which disappears.
    ///
    /// # Errors
    ///
    /// The innermost dimension, or an index outside.
    pub fn select(self, dim: usize, index: usize) -> Result<ViewMut<'a>> {
        Ok(ViewMut::wrap(self.raw.select(dim, index)?, self.guard))
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    ///
    /// A view that is not contiguous, or another number of elements.
    pub fn reshape(self, shape: &[usize]) -> Result<ViewMut<'a>> {
        Ok(ViewMut::wrap(self.raw.reshape(shape)?, self.guard))
    }

    /// The memory of a contiguous view under another shape, with strides in elements, from element
    /// `offset` on.
    ///
    /// # Errors
    ///
    /// As [`View::strided`]; strides under which two elements may share an address.
    pub fn strided(self, offset: usize, shape: &[usize], strides: &[usize]) -> Result<ViewMut<'a>> {
        let raw = self.raw.strided(offset, shape, strides)?;
        if raw.may_overlap() {
            return Err(Error::argument(
                "strided",
                "strides",
                "strides that keep elements apart",
                format!("{strides:?} of {shape:?}"),
            ));
        }
        Ok(ViewMut::wrap(raw, self.guard))
    }

    /// Copies host elements in, in the order of the device's stream.
    ///
    /// # Errors
    ///
    /// Another dtype or number of elements, a view that is not contiguous.
    pub fn copy_from_slice<T: Element>(&mut self, data: &[T]) -> Result<()> {
        expect_dtype::<T>("copy_from_slice", self.raw.dtype)?;
        if data.len() != self.raw.elements() || !self.raw.is_contiguous() {
            return Err(Error::argument(
                "copy_from_slice",
                "data",
                format!("{} elements for a contiguous view", self.raw.elements()),
                format!("{} elements", data.len()),
            ));
        }
        self.raw.device.upload(self.raw.address, bytemuck::cast_slice(data))
    }

    pub(crate) fn span(&self) -> Span {
        self.raw.span(true)
    }

    /// Everything from the first element to the last, for a host device.
    pub(crate) fn host<T: Element>(&mut self) -> &mut [T] {
        assert!(
            self.raw.device.is_host() && self.raw.dtype == T::DTYPE,
            "host access to {self:?}"
        );
        let len = self.raw.extent();
        if len == 0 {
            return &mut [];
        }
        // SAFETY: the view was made from `len` elements of this type that nobody else touches for
        // as long as it is borrowed; constructors checked or were promised alignment.
        unsafe { std::slice::from_raw_parts_mut(self.raw.address as *mut T, len) }
    }
}
