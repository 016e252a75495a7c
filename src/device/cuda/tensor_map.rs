//! Tensor maps by the driver. The function is looked up by name: cudarc has it only where the toolkit
//! that it was built for is 12.0 or later.

use std::ffi::c_void;
use std::sync::OnceLock;

use super::driver;
use crate::device::tensor_map::Boxes;
use crate::ffi;

/// `cuTensorMapEncodeTiled`.
type Encode = unsafe extern "C" fn(
    map: *mut ffi::TensorMap,
    dtype: u32,
    rank: u32,
    address: *mut c_void,
    extents: *const u64,
    strides: *const u64,
    size: *const u32,
    steps: *const u32,
    interleave: u32,
    swizzle: u32,
    l2_promotion: u32,
    fill: u32,
) -> u32;

// Of the driver's enums. What lies outside of a tensor becomes 0 whatever the elements are, so that
// they can all be 16 bits.
const UINT16: u32 = 1;
const NO_INTERLEAVE: u32 = 0;
const SWIZZLE_128B: u32 = 3;
const L2_256B: u32 = 3;
const FILL_ZEROS: u32 = 0;

/// A map of these boxes, for the current context's device.
pub(super) fn make(boxes: &Boxes) -> Result<ffi::TensorMap, String> {
    static ENCODE: OnceLock<Option<Encode>> = OnceLock::new();
    let found = ENCODE.get_or_init(|| driver::symbol("cuTensorMapEncodeTiled"));
    let encode = found.ok_or("the driver is older than CUDA 12.0")?;
    let mut map = ffi::TensorMap { words: [0; 16] };
    let extents = boxes.extents.map(|n| n as u64);
    let strides = boxes.strides.map(|n| n as u64);
    let size = boxes.size.map(|n| n as u32);
    // SAFETY: the arrays are as long as the rank says (strides one less), the map has the size and more
    // than the alignment of a CUtensorMap, and the driver only stores the address.
    let code = unsafe {
        encode(
            &raw mut map,
            UINT16,
            extents.len() as u32,
            boxes.address as *mut c_void,
            extents.as_ptr(),
            strides.as_ptr(),
            size.as_ptr(),
            [1; 4].as_ptr(),
            NO_INTERLEAVE,
            SWIZZLE_128B,
            L2_256B,
            FILL_ZEROS,
        )
    };
    match code {
        0 => Ok(map),
        code => Err(format!("the driver refused {boxes:?}: CUDA error {code}")),
    }
}
