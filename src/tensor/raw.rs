//! Where a tensor lies: address, shape and strides, checked.

use std::fmt;

use smallvec::SmallVec;

use crate::device::{Device, Span};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Extents or strides, the outermost first.
pub type Dims = SmallVec<[usize; 6]>;

pub(super) fn contiguous(shape: &[usize]) -> Dims {
    let mut strides: Dims = SmallVec::from_elem(1, shape.len());
    for i in (0..shape.len().saturating_sub(1)).rev() {
        // An empty tensor may have extents that no memory holds; they are refused with its strides.
        strides[i] = strides[i + 1].saturating_mul(shape[i + 1].max(1));
    }
    strides
}

pub(super) fn count(op: &'static str, shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|n| n.checked_mul(4).is_some_and(|b| b <= isize::MAX as usize))
        .ok_or_else(|| Error::argument(op, "shape", "a size that fits in memory", format!("{shape:?}")))
}

/// Address, shape and strides: what both kinds of view share.
#[derive(Clone)]
pub(super) struct Raw {
    pub device: Device,
    pub address: u64,
    pub dtype: DType,
    pub shape: Dims,
    pub strides: Dims,
}

impl Raw {
    pub fn narrow(mut self, dim: usize, start: usize, len: usize) -> Result<Raw> {
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

    pub fn select(self, dim: usize, index: usize) -> Result<Raw> {
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

    pub fn reshape(mut self, shape: &[usize]) -> Result<Raw> {
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

    pub fn strided(self, offset: usize, shape: &[usize], strides: &[usize]) -> Result<Raw> {
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
    pub fn may_overlap(&self) -> bool {
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

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_contiguous(&self) -> bool {
        let dense = contiguous(&self.shape);
        self.shape
            .iter()
            .zip(self.strides.iter().zip(&dense))
            .all(|(&n, (a, b))| n <= 1 || a == b)
    }

    /// Elements from the first to one past the last.
    pub fn extent(&self) -> usize {
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

    pub fn span(&self, writable: bool) -> Span {
        Span {
            address: self.address,
            bytes: (self.extent() * self.dtype.bytes()) as u64,
            writable,
        }
    }

    pub fn describe(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        write!(
            f,
            "{name}({} {:?}, strides {:?}, {})",
            self.dtype, self.shape, self.strides, self.device
        )
    }

    /// Copies the elements, in order, to host memory; waits for the device.
    pub fn download(&self, to: &mut [u8]) -> Result<()> {
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
    pub fn row_offset(&self, mut i: usize) -> usize {
        let mut at = 0;
        for d in (0..self.shape.len().saturating_sub(1)).rev() {
            at += (i % self.shape[d]) * self.strides[d];
            i /= self.shape[d];
        }
        at
    }
}

pub(super) fn host_raw(
    op: &'static str,
    device: &Device,
    dtype: DType,
    address: u64,
    len: usize,
    shape: &[usize],
) -> Result<Raw> {
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

pub(super) fn foreign_raw(
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
