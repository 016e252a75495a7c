//! Owned memory of a device.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// What CUDA gives; kernels count on 16, tensor maps on 128.
const ALIGNMENT: usize = 256;

/// Memory that a tensor owns.
pub(crate) enum Memory {
    Host(HostMemory),
    #[cfg(feature = "cuda")]
    Cuda(super::cuda::CudaMemory),
}

impl Memory {
    pub fn address(&self) -> u64 {
        match self {
            Memory::Host(m) => m.address.as_ptr() as u64,
            #[cfg(feature = "cuda")]
            Memory::Cuda(m) => m.address(),
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Memory::Host(m) => m.bytes,
            #[cfg(feature = "cuda")]
            Memory::Cuda(m) => m.bytes(),
        }
    }
}

/// Zeroed, aligned host memory.
pub(crate) struct HostMemory {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its bytes and hands out addresses only; who may touch them is decided by the
// borrows of the tensor around it.
unsafe impl Send for HostMemory {}
// SAFETY: as above; a shared reference gives an address and a size.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes.max(1), ALIGNMENT).ok()
    }

    pub fn zeroed(bytes: usize) -> Option<HostMemory> {
        // SAFETY: the layout's size is at least 1.
        let address = NonNull::new(unsafe { alloc_zeroed(Self::layout(bytes)?) })?;
        Some(HostMemory { address, bytes })
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.bytes) {
            // SAFETY: allocated in `zeroed` under the same layout, and freed once.
            unsafe { dealloc(self.address.as_ptr(), layout) };
        }
    }
}
