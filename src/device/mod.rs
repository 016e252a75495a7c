//! Where ops run: the CPU, a CUDA GPU, or the SIMT device, which runs the kernels' own source on
//! the CPU.

#[cfg(feature = "cuda")]
mod cuda;
mod graph;
mod kind;
mod launch;
mod memory;
#[cfg(feature = "simt")]
mod simt;
pub(crate) mod tensor_map;
#[cfg(any(test, feature = "vectors"))]
pub(crate) mod vectors;

use std::fmt;
#[cfg(any(feature = "simt", feature = "cuda"))]
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use launch::{KernelParams, Launch, Span};
use memory::HostMemory;
pub(crate) use memory::Memory;

use crate::error::{Error, Result};

#[cfg(feature = "cuda")]
pub(crate) use cuda::Order;
#[cfg(feature = "cuda")]
pub use cuda::{CudaDevice, ImageInfo};
pub use graph::Graph;
pub use kind::{AsyncCopies, DeviceKind, SimtCard, SimtOptions};

/// A device that is not there, and why.
#[derive(Debug, Clone)]
pub struct Absent {
    /// Which kind.
    pub kind: DeviceKind,
    /// Why it cannot be used.
    pub reason: Error,
}

/// A device and, on CUDA, the stream that work goes to. Cheap to clone; clones are the same device.
#[derive(Clone)]
pub struct Device(Backend);

#[derive(Clone)]
enum Backend {
    Cpu,
    #[cfg(feature = "simt")]
    Simt(Arc<simt::Simt>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<CudaDevice>),
}

impl Device {
    /// The CPU.
    pub fn cpu() -> Device {
        Device(Backend::Cpu)
    }

    /// The CUDA GPU of this ordinal, with a stream of its own.
    ///
    /// # Errors
    ///
    /// [`Error::FeatureDisabled`], [`Error::NoDriver`], [`Error::NoGpu`], [`Error::NoSuchDevice`],
    /// [`Error::KernelsNotBuilt`], [`Error::UnsupportedGpu`] below compute capability 8.0,
    /// [`Error::OldDriver`], [`Error::Cuda`].
    pub fn cuda(ordinal: usize) -> Result<Device> {
        #[cfg(feature = "cuda")]
        return Ok(Device(Backend::Cuda(Arc::new(CudaDevice::new(ordinal)?))));
        #[cfg(not(feature = "cuda"))]
        {
            let _ = ordinal;
            Err(Error::FeatureDisabled {
                device: "cuda",
                feature: "cuda",
            })
        }
    }

    /// A device on a stream of the caller's: ops are launched there, and nowhere else.
    ///
    /// # The per-thread stream
    ///
    /// **`CudaContext::per_thread_stream` gives a handle, not a stream: it means another stream on
    /// every thread.** Candle's `Device::new_cuda` has it in its newer versions. With such a stream
    /// the device, its clones and everything made with it (tensors, views, page pools, caches) are
    /// used on the thread that called this: on another one every call is [`Error::WrongThread`], which
    /// names both. A tensor that is dropped there waits for all work of the context before its memory
    /// goes, which breaks a capture that is under way in it.
    /// A stream of `CudaContext::new_stream` or `default_stream` (candle: `new_cuda_with_stream`)
    /// knows no such limit.
    ///
    /// # Errors
    ///
    /// [`Error::KernelsNotBuilt`], [`Error::UnsupportedGpu`] below compute capability 8.0,
    /// [`Error::OldDriver`], [`Error::Cuda`].
    #[cfg(feature = "cuda")]
    pub fn from_cuda_stream(stream: Arc<cudarc::driver::CudaStream>) -> Result<Device> {
        Ok(Device(Backend::Cuda(Arc::new(CudaDevice::on_stream(stream)?))))
    }

    /// A device on a raw `CUstream` of the primary context of the GPU `ordinal`.
    ///
    /// # Safety
    ///
    /// The stream belongs to that context and outlives the device and everything made with it. Of
    /// the handle `CU_STREAM_PER_THREAD` (2) all of that stays on one thread, as
    /// [`Device::from_cuda_stream`] says.
    ///
    /// # Errors
    ///
    /// As [`Device::cuda`].
    #[cfg(feature = "cuda")]
    pub unsafe fn from_raw_cuda_stream(ordinal: usize, stream: cudarc::driver::sys::CUstream) -> Result<Device> {
        // SAFETY: the caller's promise is the same.
        let device = unsafe { CudaDevice::on_raw_stream(ordinal, stream)? };
        Ok(Device(Backend::Cuda(Arc::new(device))))
    }

    /// The kernels' own source on the CPU: a test device.
    ///
    /// # Errors
    ///
    /// [`Error::FeatureDisabled`], [`Error::KernelsNotBuilt`] where the build found no C++ compiler.
    pub fn simt(options: SimtOptions) -> Result<Device> {
        #[cfg(feature = "simt")]
        return Ok(Device(Backend::Simt(Arc::new(simt::Simt::new(options)?))));
        #[cfg(not(feature = "simt"))]
        {
            let _ = options;
            Err(Error::FeatureDisabled {
                device: "simt",
                feature: "simt",
            })
        }
    }

    /// The fastest device that works here, and for each that does not, why. It never fails: the
    /// CPU is always there. The SIMT device is for tests, and never chosen.
    ///
    /// ```
    /// let (device, absent) = packforcing::Device::best();
    /// for a in &absent {
    ///     println!("no {}: {}", a.kind.name(), a.reason);
    /// }
    /// assert!(device.kind().is_cuda() || !absent.is_empty());
    /// ```
    pub fn best() -> (Device, Vec<Absent>) {
        match Device::cuda(0) {
            Ok(device) => (device, Vec::new()),
            Err(reason) => (
                Device::cpu(),
                vec![Absent {
                    kind: DeviceKind::Cuda,
                    reason,
                }],
            ),
        }
    }

    /// Which kind of device this is.
    pub fn kind(&self) -> DeviceKind {
        match &self.0 {
            Backend::Cpu => DeviceKind::Cpu,
            #[cfg(feature = "simt")]
            Backend::Simt(_) => DeviceKind::Simt,
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.kind(),
        }
    }

    /// The CUDA side of it, for its context and stream.
    #[cfg(feature = "cuda")]
    pub fn as_cuda(&self) -> Option<&CudaDevice> {
        match &self.0 {
            Backend::Cuda(cuda) => Some(cuda),
            _ => None,
        }
    }

    /// Whether its memory is the host's.
    pub fn is_host(&self) -> bool {
        !self.kind().is_cuda()
    }

    /// Waits for everything that was launched.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLost`] with a fault of an earlier launch; [`Error::Order`] inside of a capture.
    pub fn synchronize(&self) -> Result<()> {
        self.not_capturing("Device::synchronize")?;
        match &self.0 {
            Backend::Cpu => Ok(()),
            #[cfg(feature = "simt")]
            Backend::Simt(simt) => simt.synchronize(),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.synchronize(),
        }
    }

    /// How long the device takes for `work`: on CUDA between two events on the stream, elsewhere by
    /// the clock.
    ///
    /// # Errors
    ///
    /// What `work` returns, or [`Error::DeviceLost`].
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
        self.not_capturing("Device::time")?;
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = &self.0 {
            return cuda.time(work);
        }
        self.synchronize()?;
        let start = Instant::now();
        work()?;
        self.synchronize()?;
        Ok(start.elapsed())
    }

    /// An error once the device has reported a fault of an earlier launch; does not wait.
    pub(crate) fn alive(&self) -> Result<()> {
        match &self.0 {
            Backend::Cpu => Ok(()),
            #[cfg(feature = "simt")]
            Backend::Simt(simt) => simt.alive(),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.alive(),
        }
    }

    /// Zeroed memory.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<Memory> {
        self.not_capturing("an allocation")?;
        match &self.0 {
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.allocate(bytes).map(Memory::Cuda),
            _ => HostMemory::zeroed(bytes).map(Memory::Host).ok_or(Error::OutOfMemory {
                device: self.kind().name(),
                bytes,
            }),
        }
    }

    /// Copies host bytes to this device's memory, in the order of its stream.
    pub(crate) fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        self.not_capturing("a copy to the device")?;
        match &self.0 {
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.upload(to, from),
            _ => {
                // SAFETY: callers pass an address range inside a writable view of this device,
                // whose memory is the host's; `copy` allows an overlap.
                unsafe { std::ptr::copy(from.as_ptr(), to as *mut u8, from.len()) };
                Ok(())
            }
        }
    }

    /// Copies this device's memory to the host and waits for it.
    pub(crate) fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.synchronize()?;
        if to.is_empty() {
            return Ok(());
        }
        match &self.0 {
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.download(from, to),
            _ => {
                // SAFETY: callers pass an address range inside a view of this device, whose
                // memory is the host's; `copy` allows an overlap.
                unsafe { std::ptr::copy(from as *const u8, to.as_mut_ptr(), to.len()) };
                Ok(())
            }
        }
    }

    /// What a person should know of how it works here: that a slower kernel takes the place of the one for this card, and why.
    /// Each is said on stderr too, once.
    pub fn notes(&self) -> Vec<String> {
        match &self.0 {
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.notes(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn note(&self, about: &'static str, text: impl FnOnce() -> String) {
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = &self.0 {
            cuda.note(about, text);
        }
        #[cfg(not(feature = "cuda"))]
        let _ = (about, text);
    }

    /// Takes memory whose tensor is dropped while a capture is under way: the graph may work on it. Else it comes back.
    pub(crate) fn keep(&self, memory: Memory) -> Option<Memory> {
        match &self.0 {
            Backend::Cpu => Some(memory),
            #[cfg(feature = "simt")]
            Backend::Simt(simt) => simt.keep(memory),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => match memory {
                Memory::Cuda(memory) => cuda.keep(memory).map(Memory::Cuda),
                host => Some(host),
            },
        }
    }

    /// Launches a kernel; never on the CPU device, whose ops are plain functions.
    pub(crate) fn launch<P: KernelParams>(&self, launch: &Launch<'_, P>) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        match &self.0 {
            Backend::Cpu => unreachable!("{} has no launch on the cpu", launch.kernel),
            #[cfg(feature = "simt")]
            Backend::Simt(simt) => simt.launch(launch),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.launch(launch),
        }
    }

    /// Bytes of dynamic shared memory that one block may have.
    pub(crate) fn shared_memory_limit(&self) -> usize {
        match &self.0 {
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.shared_memory_limit(),
            #[cfg(feature = "simt")]
            Backend::Simt(simt) if simt.options().card == SimtCard::Sm90 => 227 * 1024,
            _ => 163 * 1024, // what sm_80 has
        }
    }

    /// Compute capability, major and minor; none on the CPU.
    pub(crate) fn compute_capability(&self) -> Option<(i32, i32)> {
        match &self.0 {
            Backend::Cpu => None,
            #[cfg(feature = "simt")]
            Backend::Simt(simt) => Some(match simt.options().card {
                SimtCard::Sm80 => (8, 0),
                SimtCard::Sm90 => (9, 0),
            }),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => Some(cuda.compute_capability()),
        }
    }

    /// Whether the kernels of this file are there.
    pub(crate) fn has_module(&self, module: &str) -> bool {
        match &self.0 {
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.has_module(module),
            _ => {
                let _ = module;
                self.kind() == DeviceKind::Simt
            }
        }
    }

    /// A map for the copy engine, or why there is none.
    pub(crate) fn tensor_map(&self, boxes: &tensor_map::Boxes) -> Result<crate::ffi::TensorMap, String> {
        match &self.0 {
            #[cfg(feature = "simt")]
            Backend::Simt(_) => Ok(tensor_map::for_simt(boxes)),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.tensor_map(boxes),
            Backend::Cpu => Err(format!("the cpu has no copy engine for {boxes:?}")),
        }
    }
}

impl PartialEq for Device {
    /// The same device on the same stream.
    fn eq(&self, other: &Device) -> bool {
        match (&self.0, &other.0) {
            (Backend::Cpu, Backend::Cpu) => true,
            #[cfg(feature = "simt")]
            (Backend::Simt(a), Backend::Simt(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "cuda")]
            (Backend::Cuda(a), Backend::Cuda(b)) => Arc::ptr_eq(a, b) || a.same_stream(b),
            #[cfg(any(feature = "simt", feature = "cuda"))]
            _ => false,
        }
    }
}
impl Eq for Device {}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Backend::Cpu => f.write_str("cpu"),
            #[cfg(feature = "simt")]
            Backend::Simt(simt) => write!(f, "simt (seed {})", simt.options().seed),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => write!(f, "{cuda}"),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({self})")
    }
}
