//! A minimal owned [`Tensor`], and the borrowed [`View`] and [`ViewMut`] that every op takes.
//!
//! A view is an address, a dtype, a shape and strides (in elements, the innermost 1) on a
//! [`Device`]. It may be of a tensor of this crate, of a slice in host memory, of a slice of
//! cudarc's, or of a raw address.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::device::{Device, Memory, Span};
use crate::dtype::{DType, Element, Float, with_float};
use crate::error::{Error, Result};

/// Extents or strides, the outermost first.
pub type Dims = SmallVec<[usize; 6]>;

/// Keeps what a view borrows alive: events of cudarc's slices are recorded when it drops.
type Guard<'a> = Option<Arc<dyn GuardedBorrow + 'a>>;
pub(crate) trait GuardedBorrow: Send + Sync {}

fn contiguous(shape: &[usize]) -> Dims {
    let mut strides: Dims = SmallVec::from_elem(1, shape.len());
    for i in (0..shape.len().saturating_sub(1)).rev() {
        // An empty tensor may have extents that no memory holds; they are refused with its strides.
        strides[i] = strides[i + 1].saturating_mul(shape[i + 1].max(1));
    }
    strides
}

fn count(op: &'static str, shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|n| n.checked_mul(4).is_some_and(|b| b <= isize::MAX as usize))
        .ok_or_else(|| Error::argument(op, "shape", "a size that fits in memory", format!("{shape:?}")))
}

/// Address, shape and strides: what both kinds of view share.
#[derive(Clone)]
struct Raw {
    device: Device,
    address: u64,
    dtype: DType,
    shape: Dims,
    strides: Dims,
}

impl Raw {
    fn narrow(mut self, dim: usize, start: usize, len: usize) -> Result<Raw> {
        let extent = self.shape.get(dim).copied().unwrap_or(0);
        if dim >= self.shape.len() || start.checked_add(len).is_none_or(|end| end > extent) {
            return Err(Error::argument(
                "narrow",
                "range",
                format!("a range inside dimension {dim} of {:?}", self.shape),
                format!("{start}..{}", start.saturating_add(len)),
            ));
        }
        self.address += (start * self.strides[dim] * self.dtype.bytes()) as u64;
        self.shape[dim] = len;
        Ok(self)
    }

    fn select(self, dim: usize, index: usize) -> Result<Raw> {
        if dim >= self.shape.len().saturating_sub(1) {
            return Err(Error::argument(
                "select",
                "dim",
                format!("one of the outer dimensions of {:?}", self.shape),
                dim.to_string(),
            ));
        }
        if index >= self.shape[dim] {
            return Err(Error::argument(
                "select",
                "index",
                format!(
                    "below {}, the extent of dimension {dim} of {:?}",
                    self.shape[dim], self.shape
                ),
                index.to_string(),
            ));
        }
        let mut raw = self.narrow(dim, index, 1)?;
        raw.shape.remove(dim);
        raw.strides.remove(dim);
        Ok(raw)
    }

    fn reshape(mut self, shape: &[usize]) -> Result<Raw> {
        if !self.is_contiguous() || count("reshape", shape)? != self.elements() {
            return Err(Error::argument(
                "reshape",
                "shape",
                format!("a contiguous view and its {} elements", self.elements()),
                format!("{shape:?} of {:?}, strides {:?}", self.shape, self.strides),
            ));
        }
        self.shape = SmallVec::from_slice(shape);
        self.strides = contiguous(shape);
        Ok(self)
    }

    fn strided(self, offset: usize, shape: &[usize], strides: &[usize]) -> Result<Raw> {
        const OP: &str = "strided";
        let elements = self.elements();
        let refuse = |argument, expected: String, got: String| Err(Error::argument(OP, argument, expected, got));
        if !self.is_contiguous() {
            let got = format!("{:?}, strides {:?}", self.shape, self.strides);
            return refuse("self", "a contiguous view".into(), got);
        }
        if offset > elements {
            return refuse("offset", format!("at most {elements}"), offset.to_string());
        }
        let mut strides = Dims::from_slice(strides);
        // Where there is one element, or none, a stride is never taken.
        if let (Some(0 | 1), Some(stride)) = (shape.last(), strides.last_mut()) {
            *stride = 1;
        }
        let address = self.address + (offset * self.dtype.bytes()) as u64;
        let raw = foreign_raw(OP, &self.device, address, self.dtype, shape, &strides)?;
        if raw.extent() > elements - offset {
            let expected = format!("strides that stay inside {elements} elements from {offset} on");
            return refuse("strides", expected, format!("{strides:?} of {shape:?}"));
        }
        Ok(raw)
    }

    /// Whether two elements may share an address: whether a stride falls into the reach of the
    /// smaller ones.
    fn may_overlap(&self) -> bool {
        let mut dims: SmallVec<[(usize, usize); 6]> = self.strides.iter().copied().zip(self.shape.clone()).collect();
        dims.retain(|(_, n)| *n > 1);
        dims.sort_unstable();
        let mut reach = 0;
        self.elements() > 0
            && dims.iter().any(|&(stride, n)| {
                let falls = stride <= reach;
                reach += (n - 1) * stride;
                falls
            })
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn is_contiguous(&self) -> bool {
        let dense = contiguous(&self.shape);
        self.shape
            .iter()
            .zip(self.strides.iter().zip(&dense))
            .all(|(&n, (a, b))| n <= 1 || a == b)
    }

    /// Elements from the first to one past the last.
    fn extent(&self) -> usize {
        if self.elements() == 0 {
            return 0;
        }
        1 + self
            .shape
            .iter()
            .zip(&self.strides)
            .map(|(n, s)| (n - 1) * s)
            .sum::<usize>()
    }

    fn span(&self, writable: bool) -> Span {
        Span {
            address: self.address,
            bytes: (self.extent() * self.dtype.bytes()) as u64,
            writable,
        }
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        write!(
            f,
            "{name}({} {:?}, strides {:?}, {})",
            self.dtype, self.shape, self.strides, self.device
        )
    }

    /// Copies the elements, in order, to host memory; waits for the device.
    fn download(&self, to: &mut [u8]) -> Result<()> {
        let size = self.dtype.bytes();
        if self.is_contiguous() {
            return self.device.download(self.address, to);
        }
        let mut span = vec![0u8; self.extent() * size];
        self.device.download(self.address, &mut span)?;
        let row = self.shape.last().copied().unwrap_or(1) * size;
        for (i, to) in to.chunks_exact_mut(row.max(1)).enumerate() {
            let at = self.row_offset(i) * size;
            to.copy_from_slice(&span[at..at + row]);
        }
        Ok(())
    }

    /// Offset, in elements, of the `i`-th innermost row.
    fn row_offset(&self, mut i: usize) -> usize {
        let mut at = 0;
        for d in (0..self.shape.len().saturating_sub(1)).rev() {
            at += (i % self.shape[d]) * self.strides[d];
            i /= self.shape[d];
        }
        at
    }
}

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

fn expect_dtype<T: Element>(op: &'static str, got: DType) -> Result<()> {
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

    fn wrap(raw: Raw, guard: Guard<'a>) -> View<'a> {
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

    fn wrap(raw: Raw, guard: Guard<'a>) -> ViewMut<'a> {
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

fn host_raw(op: &'static str, device: &Device, dtype: DType, address: u64, len: usize, shape: &[usize]) -> Result<Raw> {
    if !device.is_host() {
        return Err(Error::argument(
            op,
            "device",
            "a device in host memory (cpu, simt)",
            device.to_string(),
        ));
    }
    if count(op, shape)? != len {
        return Err(Error::argument(
            op,
            "shape",
            format!("{len} elements"),
            format!("{shape:?}"),
        ));
    }
    foreign_raw(op, device, address, dtype, shape, &contiguous(shape))
}

fn foreign_raw(
    op: &'static str,
    device: &Device,
    address: u64,
    dtype: DType,
    shape: &[usize],
    strides: &[usize],
) -> Result<Raw> {
    let elements = count(op, shape)?;
    if strides.len() != shape.len() || shape.is_empty() || strides.last() != Some(&1) {
        return Err(Error::argument(
            op,
            "strides",
            format!("{} strides, the innermost 1", shape.len().max(1)),
            format!("{strides:?}"),
        ));
    }
    let reach = shape.iter().zip(strides).try_fold(1usize, |n, (&d, &s)| {
        d.saturating_sub(1).checked_mul(s).and_then(|x| n.checked_add(x))
    });
    if reach
        .and_then(|n| n.checked_mul(dtype.bytes()))
        .is_none_or(|b| b > isize::MAX as usize)
    {
        return Err(Error::argument(
            op,
            "strides",
            "a size that fits in memory",
            format!("{strides:?}"),
        ));
    }
    if elements > 0 && (address == 0 || !address.is_multiple_of(dtype.bytes() as u64)) {
        return Err(Error::argument(
            op,
            "address",
            format!("an address aligned for {dtype}"),
            format!("{address:#x}"),
        ));
    }
    Ok(Raw {
        device: device.clone(),
        address,
        dtype,
        shape: SmallVec::from_slice(shape),
        strides: SmallVec::from_slice(strides),
    })
}

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
