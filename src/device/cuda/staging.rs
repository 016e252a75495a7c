//! Pinned memory that small copies to the card go through.
//!
//! A copy from pageable memory makes the driver wait for the stream first. Tables are small and go up
//! once a block, so they are written to pinned memory, and the call returns. There are two buffers:
//! one is filled while the card may still read the other.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, DriverError, result};

use super::bind_anyway;
use super::thread::Thread;

/// Bytes of each of the two buffers.
const BUFFER: usize = 256 * 1024;

pub(super) struct Staging {
    stream: Arc<CudaStream>,
    /// Whose the stream is, where it is one thread's.
    thread: Option<Thread>,
    buffers: [Buffer; 2],
    /// The one that is being filled.
    current: usize,
}

struct Buffer {
    memory: *mut u8,
    used: usize,
    /// After the last copy out of it.
    read: Option<CudaEvent>,
}

// SAFETY: the pinned memory is this object's alone, and pinned for every context and thread.
unsafe impl Send for Staging {}

impl Staging {
    /// Whether a copy of so many bytes goes this way.
    pub fn takes(bytes: usize) -> bool {
        bytes <= BUFFER
    }

    /// The stream's context is bound.
    pub fn new(stream: Arc<CudaStream>, thread: Option<Thread>) -> Result<Staging, DriverError> {
        let buffer = || Buffer {
            memory: std::ptr::null_mut(),
            used: 0,
            read: None,
        };
        let mut staging = Staging {
            stream,
            thread,
            buffers: [buffer(), buffer()],
            current: 0,
        };
        for buffer in &mut staging.buffers {
            // SAFETY: it is freed once, when the staging drops. No flag is asked for.
            buffer.memory = unsafe { result::malloc_host(BUFFER, 0)? }.cast();
        }
        Ok(staging)
    }

    /// Copies bytes to the card in the order of the stream; `from` has been read when this returns.
    ///
    /// # Safety
    ///
    /// `to` is the start of as many bytes of the stream's device that may be written. At most
    /// [`BUFFER`] bytes come.
    pub unsafe fn upload(&mut self, to: u64, from: &[u8]) -> Result<(), DriverError> {
        if self.buffers[self.current].used + from.len() > BUFFER {
            self.buffers[self.current].read = Some(self.stream.record_event(None)?);
            self.current = 1 - self.current;
            let next = &mut self.buffers[self.current];
            if let Some(read) = next.read.take() {
                read.synchronize()?;
            }
            next.used = 0;
        }
        let buffer = &mut self.buffers[self.current];
        // SAFETY: the bytes fit behind what is used, and the card reads none of them: what it may
        // still read of this buffer lies before, or was waited for.
        let staged = unsafe {
            let at = buffer.memory.add(buffer.used);
            std::ptr::copy_nonoverlapping(from.as_ptr(), at, from.len());
            std::slice::from_raw_parts(at, from.len())
        };
        buffer.used += from.len().next_multiple_of(16).min(BUFFER - buffer.used);
        // SAFETY: the caller answers for `to`; the staged bytes stay until the card has read them.
        unsafe { result::memcpy_htod_async(to, staged, self.stream.cu_stream()) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let context = self.stream.context().clone();
        bind_anyway(&context);
        let elsewhere = self.thread.as_ref().is_some_and(|thread| !thread.is_here());
        let waited = match elsewhere {
            // The handle means another stream here.
            true => result::ctx::synchronize(),
            // SAFETY: the stream lives as long as this holds it.
            false => unsafe { result::stream::synchronize(self.stream.cu_stream()) },
        };
        context.record_err(waited);
        for buffer in self.buffers.iter().filter(|b| !b.memory.is_null()) {
            // SAFETY: it came from `malloc_host`, and the stream was waited for.
            context.record_err(unsafe { result::free_host(buffer.memory.cast()) });
        }
    }
}
