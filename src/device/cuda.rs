//! CUDA: contexts, modules and launches by cudarc.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use cudarc::driver::sys::{CUdevice_attribute as Attribute, CUfunction_attribute, CUresult, CUstream};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut,
    DeviceRepr, DriverError, LaunchConfig, PushKernelArg, SyncOnDrop, result, sys,
};
use cudarc::nvrtc::Ptx;

use super::{Device, KernelParams, Launch};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::tensor::{GuardedBorrow, View, ViewMut};

/// One kernel file as a fatbin.
pub(crate) struct Image {
    /// The file's stem.
    pub name: &'static str,
    pub bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// A context, a stream and the kernels loaded into it.
pub struct CudaDevice {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    name: String,
    capability: (i32, i32),
    shared_memory: usize,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<String, CudaFunction>>,
    /// Set by the first fault that a card reports late.
    lost: OnceLock<String>,
}

/// Zeroed memory of a GPU, freed in the order of its stream.
pub(crate) struct CudaMemory {
    slice: CudaSlice<u8>,
    address: u64,
}

impl CudaMemory {
    pub fn address(&self) -> u64 {
        self.address
    }
    pub fn bytes(&self) -> usize {
        self.slice.len()
    }
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Argument<P>(P);
// SAFETY: argument structs are plain C structs, laid out by bindgen from the header that the
// kernel was compiled with, and passed by value.
unsafe impl<P: KernelParams> DeviceRepr for Argument<P> {}

/// Whether the driver's library can be loaded and started; cudarc panics where it cannot.
fn probe() -> Result<()> {
    // SAFETY: looks for the library and opens it; nothing is called yet.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver {
            reason: "libcuda.so.1 was not found".into(),
        });
    }
    match result::init() {
        Ok(()) => Ok(()),
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Err(Error::NoGpu),
        Err(e) => Err(Error::NoDriver {
            reason: format!("cuInit: CUDA error {}", e.0 as u32),
        }),
    }
}

fn first_image() -> Result<()> {
    match IMAGES.first() {
        Some(_) => Ok(()),
        None => Err(Error::KernelsNotBuilt {
            kernel: "every kernel".into(),
            reason: NO_IMAGES.into(),
        }),
    }
}

impl CudaDevice {
    pub(super) fn new(ordinal: usize) -> Result<CudaDevice> {
        let context = open(ordinal)?;
        // SAFETY: the context object is this device's own. Its memory is used on its one stream,
        // so no event is needed to order it.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(refused("a new stream"))?;
        CudaDevice::on_stream(stream)
    }

    pub(super) unsafe fn on_raw_stream(ordinal: usize, stream: CUstream) -> Result<CudaDevice> {
        let context = open(ordinal)?;
        // SAFETY: as in `new`.
        unsafe { context.disable_event_tracking() };
        // SAFETY: the caller promises that the stream is this context's and outlives the device.
        CudaDevice::on_stream(unsafe { context.wrap_borrowed_stream(stream) })
    }

    pub(super) fn on_stream(stream: Arc<CudaStream>) -> Result<CudaDevice> {
        first_image()?;
        let context = stream.context().clone();
        let name = context.name().map_err(refused("the device's name"))?;
        let capability = context
            .compute_capability()
            .map_err(refused("the compute capability"))?;
        let shared_memory = context
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(refused("the shared memory's size"))? as usize;
        Ok(CudaDevice {
            context,
            stream,
            name,
            capability,
            shared_memory,
            modules: Mutex::default(),
            functions: Mutex::default(),
            lost: OnceLock::new(),
        })
    }

    /// The stream that everything is launched on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The context of the stream.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Compute capability, major and minor.
    pub fn compute_capability(&self) -> (i32, i32) {
        self.capability
    }

    pub(super) fn shared_memory_limit(&self) -> usize {
        self.shared_memory
    }

    pub(super) fn same_stream(&self, other: &CudaDevice) -> bool {
        Arc::ptr_eq(&self.stream, &other.stream)
            || (self.context.cu_ctx() == other.context.cu_ctx() && self.stream.cu_stream() == other.stream.cu_stream())
    }

    pub(super) fn alive(&self) -> Result<()> {
        match self.lost.get() {
            Some(reason) => Err(Error::DeviceLost {
                device: "cuda",
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    /// The driver's answer as this crate's error. A fault that stays (the context is gone) marks
    /// the device lost.
    fn check<T>(&self, call: &'static str, result: Result<T, DriverError>) -> Result<T> {
        result.map_err(|e| {
            let error = refused(call)(e);
            let refusals = [
                CUresult::CUDA_ERROR_INVALID_VALUE,
                CUresult::CUDA_ERROR_OUT_OF_MEMORY,
                CUresult::CUDA_ERROR_NOT_FOUND,
                CUresult::CUDA_ERROR_INVALID_IMAGE,
                CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
                CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
                CUresult::CUDA_ERROR_INVALID_HANDLE,
                CUresult::CUDA_ERROR_INVALID_CONTEXT,
            ];
            if refusals.contains(&e.0) {
                return error;
            }
            let reason = self.lost.get_or_init(|| error.to_string()).clone();
            Error::DeviceLost { device: "cuda", reason }
        })
    }

    fn bind(&self) -> Result<()> {
        self.alive()?;
        self.check("binding the context", self.context.bind_to_thread())
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        self.check("waiting for the stream", self.stream.synchronize())
    }

    pub(super) fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
        self.bind()?;
        let mark = || {
            let event = self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
            self.check("recording an event", event)
        };
        let start = mark()?;
        work()?;
        let end = mark()?;
        self.synchronize()?;
        let ms = self.check("reading two events", start.elapsed_ms(&end))?;
        Ok(Duration::from_secs_f64(f64::from(ms) * 1e-3))
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<CudaMemory> {
        self.bind()?;
        let slice = match self.stream.alloc_zeros::<u8>(bytes.max(1)) {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                return Err(Error::OutOfMemory { device: "cuda", bytes });
            }
            other => self.check("an allocation", other)?,
        };
        let address = slice.device_ptr(&self.stream).0;
        Ok(CudaMemory { slice, address })
    }

    pub(super) fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the range lies in a writable view of this device; the driver has read pageable
        // host memory before it returns.
        let copied = unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) };
        self.check("a copy to the device", copied)
    }

    pub(super) fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the range lies in a view of this device; the wait below ends the copy before
        // `to` can go away.
        let copied = unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) };
        self.check("a copy to the host", copied)?;
        self.synchronize()
    }

    pub(super) fn launch<P: KernelParams>(&self, launch: &Launch<'_, P>) -> Result<()> {
        self.bind()?;
        let function = self.function(launch.module, launch.kernel)?;
        if launch.shared > 48 * 1024 {
            self.check(
                "more shared memory",
                function.set_attribute(
                    CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    launch.shared as i32,
                ),
            )?;
        }
        let [x, y, z] = launch.grid.map(|n| n as u32);
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (launch.threads as u32, 1, 1),
            shared_mem_bytes: launch.shared as u32,
        };
        let argument = Argument(*launch.params);
        let mut builder = self.stream.launch_builder(&function);
        builder.arg(&argument);
        // SAFETY: the kernel takes this struct by value; the op checked that every address in it
        // covers what the kernel touches, and the views borrow that memory.
        let launched = unsafe { builder.launch(config) };
        self.check("a launch", launched.map(drop))
    }

    fn function(&self, module: &'static str, kernel: &str) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(function) = functions.get(kernel) {
            return Ok(function.clone());
        }
        let mut modules = self.modules.lock().unwrap_or_else(|e| e.into_inner());
        let loaded = match modules.get(module) {
            Some(loaded) => loaded.clone(),
            None => {
                let image = IMAGES
                    .iter()
                    .find(|i| i.name == module)
                    .ok_or_else(|| Error::KernelsNotBuilt {
                        kernel: kernel.to_string(),
                        reason: format!("{module}.cu was not compiled"),
                    })?;
                let loaded = self.check(
                    "loading a module",
                    self.context.load_module(Ptx::from_binary(image.bytes.to_vec())),
                )?;
                modules.insert(module, loaded.clone());
                loaded
            }
        };
        let function = self.check("finding a kernel", loaded.load_function(kernel))?;
        functions.insert(kernel.to_string(), function.clone());
        Ok(function)
    }
}

fn open(ordinal: usize) -> Result<Arc<CudaContext>> {
    probe()?;
    let count = CudaContext::device_count().map_err(refused("counting devices"))? as usize;
    match count {
        0 => Err(Error::NoGpu),
        _ if ordinal >= count => Err(Error::NoSuchDevice { ordinal, count }),
        _ => CudaContext::new(ordinal).map_err(refused("opening the device")),
    }
}

fn refused(call: &'static str) -> impl Fn(DriverError) -> Error {
    move |e| Error::Cuda {
        call,
        code: e.0 as u32,
        name: e
            .error_name()
            .map_or_else(|_| "unknown".into(), |n| n.to_string_lossy().into_owned()),
    }
}

impl fmt::Display for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(f, "cuda:{} ({}, {major}.{minor})", self.context.ordinal(), self.name)
    }
}

impl GuardedBorrow for SyncOnDrop<'_> {}

/// cudarc's slices and views as tensors.
macro_rules! from_cuda {
    ($(#[$doc:meta])* $name:ident, $owner:ident, $slice:ty, $ptr:ident, $borrow:ty) => {
        impl<'a> $owner<'a> {
            $(#[$doc])*
            ///
            /// # Errors
            ///
            /// A device that is not CUDA, memory of another context, a shape of another size.
            pub fn $name<T: Element + DeviceRepr>(
                device: &'a Device,
                data: $borrow,
                shape: &[usize],
            ) -> Result<$owner<'a>> {
                const OP: &str = concat!(stringify!($owner), "::", stringify!($name));
                let cuda = device.as_cuda().ok_or_else(|| {
                    Error::argument(OP, "device", "a cuda device", device.to_string())
                })?;
                let elements: usize = shape.iter().product();
                if data.len() != elements {
                    return Err(Error::argument(
                        OP,
                        "shape",
                        format!("{} elements", data.len()),
                        format!("{shape:?}"),
                    ));
                }
                let (address, sync) = data.$ptr(cuda.stream());
                $owner::guarded(OP, device, address, T::DTYPE, shape, Arc::new(sync))
            }
        }
    };
}

from_cuda!(
    /// A slice that cudarc owns, dense, in the order of the device's stream.
    from_cuda_slice, View, CudaSlice<T>, device_ptr, &'a CudaSlice<T>
);
from_cuda!(
    /// A part of a slice that cudarc owns, dense, in the order of the device's stream.
    from_cuda_view, View, CudaView<'a, T>, device_ptr, &'a CudaView<'a, T>
);
from_cuda!(
    /// A slice that cudarc owns, dense, in the order of the device's stream.
    from_cuda_slice, ViewMut, CudaSlice<T>, device_ptr_mut, &'a mut CudaSlice<T>
);
from_cuda!(
    /// A part of a slice that cudarc owns, dense, in the order of the device's stream.
    from_cuda_view, ViewMut, CudaViewMut<'a, T>, device_ptr_mut, &'a mut CudaViewMut<'a, T>
);
