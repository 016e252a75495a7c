//! Capture of the device's stream, and CUDA graphs.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use cudarc::driver::{self, result, sys};

use super::images::IMAGES;
use super::thread::Thread;
use super::{Capture, CudaDevice, CudaMemory, bind_anyway};
use crate::error::{Error, Result};

const OP: &str = "Device::capture";

/// A graph that can be launched from any thread, one at a time.
pub(crate) struct CudaGraph(Mutex<Exclusive>);

struct Exclusive(driver::CudaGraph);

// SAFETY: the driver's graph objects belong to no thread; calls on one of them must not overlap, and
// the mutex around this is the only way to it.
unsafe impl Send for Exclusive {}

impl CudaDevice {
    pub(in crate::device) fn begin_capture(&self) -> Result<()> {
        self.bind()?;
        // Its events are recorded outside of the capture, and waiting for them inside would break it.
        if self.context.is_managing_stream_synchronization() {
            return Err(Error::argument(
                OP,
                "device",
                "a context that does not order streams by events: CudaDevice::disable_event_tracking (candle) or \
                 CudaContext::disable_event_tracking (cudarc), before its first tensor",
                "one that does",
            ));
        }
        // Loading a module is not for the inside of a capture.
        for image in IMAGES.iter().filter(|image| image.runs_on(self.capability)) {
            self.check("loading a module", self.kernels.load(&self.context, image))?;
        }
        let mut captured = self.captured();
        if let Some(other) = captured.as_ref() {
            let reason = format!("a capture of thread {} is under way", other.thread);
            return Err(Error::Order { op: OP, reason });
        }
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.check("beginning a capture", self.stream.begin_capture(mode))?;
        *captured = Some(Capture {
            thread: Thread::here(),
            kept: Vec::new(),
        });
        self.capturing.store(true, Ordering::Release);
        Ok(())
    }

    pub(in crate::device) fn capturing(&self) -> Result<bool> {
        if self.capturing.load(Ordering::Acquire) {
            return Ok(true);
        }
        self.bind()?;
        let status = self.check("asking for a capture", self.stream.capture_status())?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// The graph, and what was dropped while it was captured, which it may work on.
    pub(in crate::device) fn end_capture(&self) -> Result<(CudaGraph, Vec<CudaMemory>)> {
        let flags = sys::CUgraphInstantiate_flags(0);
        let ended = self.stream.end_capture(flags);
        if ended.is_err() {
            self.abandon_capture();
        }
        // From here on what is dropped is freed.
        let capture = self.captured().take();
        self.capturing.store(false, Ordering::Release);
        let kept = capture.map(|capture| capture.kept).unwrap_or_default();
        let graph = self.check("ending a capture", ended)?;
        let graph = graph.ok_or_else(|| Error::Order {
            op: OP,
            reason: "the capture was ended inside of it".into(),
        })?;
        Ok((CudaGraph(Mutex::new(Exclusive(graph))), kept))
    }

    /// Ends a capture that cudarc did not end, because an error that it had kept came instead.
    fn abandon_capture(&self) {
        bind_anyway(&self.context);
        let stream = self.stream.cu_stream();
        // SAFETY: the stream lives as long as this device holds it, and a graph that comes back is
        // this call's to destroy. An error says that there is no capture.
        unsafe {
            if let Ok(graph) = result::stream::end_capture(stream)
                && !graph.is_null()
            {
                self.context.record_err(result::graph::destroy(graph));
            }
        }
    }

    pub(in crate::device) fn launch_graph(&self, graph: &CudaGraph) -> Result<()> {
        self.bind()?;
        let graph = graph.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.check("the launch of a graph", graph.0.launch())
    }
}
