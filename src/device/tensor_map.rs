//! What a copy engine reads a tensor by (`TensorMap` of `kernels/params.h`).

/// A tensor of 16-bit elements in global memory, and the boxes in which its parts are fetched. Extents
/// stand innermost first. Boxes go to shared memory in rows of 128 bytes, whose 16-byte chunks are
/// swapped by the row (the 128-byte swizzle).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boxes {
    /// Of the first element; 16 divides it.
    pub address: u64,
    /// Elements, tokens, heads, pages.
    pub extents: [usize; 4],
    /// Bytes from one token, head, page to the next; 16 divides them.
    pub strides: [usize; 3],
    /// Of a box; the innermost is 64.
    pub size: [usize; 4],
}

pub(crate) const ELEMENT_BYTES: usize = 2;
pub(crate) const SWIZZLE: usize = 128;

impl Boxes {
    /// What the copy engine does not take, or the same with strides that nothing is read by replaced.
    pub fn taken(mut self) -> Result<Boxes, String> {
        for (stride, &extent) in self.strides.iter_mut().zip(&self.extents[1..]) {
            if extent == 1 {
                *stride = 16;
            }
        }
        let refused = match self {
            Boxes { address, .. } if !address.is_multiple_of(16) => format!("an address of {address:#x}"),
            Boxes { strides, .. } if strides.iter().any(|s| *s == 0 || s % 16 != 0 || s >> 40 != 0) => {
                format!("strides of {strides:?} bytes")
            }
            Boxes { extents, .. } if extents.iter().any(|&n| n == 0 || n > 1 << 31) => {
                format!("extents of {extents:?}")
            }
            Boxes { size, .. } if size[0] * ELEMENT_BYTES != SWIZZLE || size.iter().any(|&n| n == 0 || n > 256) => {
                format!("boxes of {size:?}")
            }
            boxes => return Ok(boxes),
        };
        Err(refused)
    }
}

/// `SimtTensorMap` of `kernels/simt/simt.h`.
#[cfg(feature = "simt")]
pub(super) fn for_simt(boxes: &Boxes) -> crate::ffi::TensorMap {
    const MAGIC: u64 = 0x5041_4D5F_5449_4D53;
    let [b0, b1, b2, b3] = boxes.size.map(|n| n as u64);
    let [d0, d1, d2, d3] = boxes.extents.map(|n| n as u64);
    let [s0, s1, s2] = boxes.strides.map(|n| n as u64);
    let pair = |low: u64, high: u64| low | high << 32;
    let mut words = [0; 16];
    words[..13].copy_from_slice(&[
        MAGIC,
        boxes.address,
        s0,
        s1,
        s2,
        0,
        pair(4, ELEMENT_BYTES as u64),
        pair(SWIZZLE as u64, d0),
        pair(d1, d2),
        pair(d3, 1),
        pair(b0, b1),
        pair(b2, b3),
        pair(1, 0),
    ]);
    crate::ffi::TensorMap { words }
}
