//! Launches that are recorded once and made again as one.

use std::fmt;

use super::{Backend, Device, Memory};
use crate::error::{Error, Result};

/// What [`Device::capture`] recorded: launches with their arguments. On CUDA it is a CUDA graph; the
/// SIMT device keeps the launches in a list.
///
/// Addresses and sizes are frozen in it. What is to change from one launch of the graph to the next
/// lies in device memory: tables, counts, coefficients, the base of the noise.
pub struct Graph {
    launches: Launches,
    device: Device,
    /// What was dropped while it was captured, which it may work on.
    _kept: Vec<Memory>,
}

enum Launches {
    #[cfg(feature = "simt")]
    Simt(Vec<super::simt::Recorded>),
    #[cfg(feature = "cuda")]
    Cuda(super::cuda::CudaGraph),
}

impl Device {
    /// Records what `work` launches on this device; none of it runs. It is for work that is the same
    /// again and again, such as the denoising steps of a block: one [`Graph::launch`] takes the place
    /// of hundreds of launches.
    ///
    /// Until this returns, whatever this thread launches on this device is recorded, and no other thread may use it. A
    /// tensor that is dropped meanwhile keeps its memory until the graph is gone. Foreign slices that cudarc orders by
    /// events cannot take part. Run the work once before it is captured: CUDA may load a kernel at its first launch, which
    /// a capture forbids.
    ///
    /// # Errors
    ///
    /// What `work` returns; inside of it, an allocation, a copy between host and device, a wait,
    /// [`Device::time`] or a kernel that was never launched before is [`Error::Order`], and another thread's launch
    /// [`Error::WrongThread`]. The CPU, which has no launches; a CUDA context that orders streams by events (cudarc's and
    /// candle's event tracking); another capture under way; CUDA's default stream, which cannot be captured. Nothing stays
    /// recorded then.
    pub fn capture<E: From<Error>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        const OP: &str = "Device::capture";
        self.not_capturing(OP)?;
        self.begin_capture(OP)?;
        let capture = Capture(self);
        work()?;
        let (launches, kept) = capture.end()?;
        Ok(Graph {
            launches,
            device: self.clone(),
            _kept: kept,
        })
    }

    fn begin_capture(&self, op: &'static str) -> Result<()> {
        match &self.0 {
            Backend::Cpu => Err(Error::argument(
                op,
                "device",
                "cuda or simt, whose work is launches",
                "cpu",
            )),
            #[cfg(feature = "simt")]
            Backend::Simt(simt) => simt.begin_capture(op),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.begin_capture(),
        }
    }

    /// An error while a capture is under way.
    pub(crate) fn not_capturing(&self, op: &'static str) -> Result<()> {
        let capturing = match &self.0 {
            Backend::Cpu => false,
            #[cfg(feature = "simt")]
            Backend::Simt(simt) => simt.capturing(),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.capturing()?,
        };
        if !capturing {
            return Ok(());
        }
        Err(Error::Order {
            op,
            reason: "a capture of this device is under way, which takes launches and nothing else".into(),
        })
    }
}

/// A capture under way; it ends however the work does.
struct Capture<'a>(&'a Device);

impl Capture<'_> {
    fn end(self) -> Result<(Launches, Vec<Memory>)> {
        let device = self.0;
        std::mem::forget(self);
        match &device.0 {
            Backend::Cpu => unreachable!("the cpu captures nothing"),
            #[cfg(feature = "simt")]
            Backend::Simt(simt) => {
                let (launches, kept) = simt.end_capture();
                Ok((Launches::Simt(launches), kept))
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => {
                let (graph, kept) = cuda.end_capture()?;
                Ok((Launches::Cuda(graph), kept.into_iter().map(Memory::Cuda).collect()))
            }
        }
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // What was recorded is of no use, and neither is an error about it.
        drop(Capture(self.0).end());
    }
}

impl Graph {
    /// Makes the recorded launches again, in their order, on the device they were recorded on.
    ///
    /// # Errors
    ///
    /// As the launches: [`Error::DeviceLost`] and whatever the device reports; [`Error::Order`] inside
    /// of a capture.
    ///
    /// # Safety
    ///
    /// All memory that the recorded launches touch is still there and unmoved: tensors, page lists,
    /// coefficients, foreign memory behind views. Nothing else borrows what they write, and nobody
    /// writes what they read, from this call until the device is done with it. The contents are what
    /// the ops' own checks would accept: page lists and slot rows inside their pools. While it was
    /// captured, no other thread used the device: a copy of another thread's would have become a part
    /// of the graph, with the host memory that it read.
    pub unsafe fn launch(&self) -> Result<()> {
        self.device.not_capturing("Graph::launch")?;
        match (&self.launches, &self.device.0) {
            #[cfg(feature = "simt")]
            (Launches::Simt(launches), Backend::Simt(simt)) => launches.iter().try_for_each(|l| simt.replay(l)),
            #[cfg(feature = "cuda")]
            (Launches::Cuda(graph), Backend::Cuda(cuda)) => cuda.launch_graph(graph),
            #[allow(unreachable_patterns, reason = "which arms there are depends on the features")]
            _ => unreachable!("a graph belongs to the kind of device that made it"),
        }
    }

    /// Where it was recorded, and where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({})", self.device)
    }
}
