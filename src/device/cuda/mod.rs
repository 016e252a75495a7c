//! CUDA: contexts, modules and launches by cudarc.

mod graph;
mod staging;
mod tensor_map;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use cudarc::driver::sys::{CUdevice_attribute as Attribute, CUfunction_attribute, CUresult, CUstream};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut,
    DeviceRepr, DeviceSlice, DriverError, LaunchConfig, PushKernelArg, SyncOnDrop, result, sys,
};
use cudarc::nvrtc::Ptx;

pub(crate) use graph::CudaGraph;
use staging::Staging;

use super::tensor_map::Boxes;
use super::{Device, KernelParams, Launch};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::ffi;
use crate::tensor::{GuardedBorrow, View, ViewMut};

/// One kernel file as a fatbin.
pub(crate) struct Image {
    /// The file's stem.
    pub name: &'static str,
    pub bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// What the kernels need: `cp.async`, bfloat16 arithmetic.
const CAPABILITY: (i32, i32) = (8, 0);

/// A context, a stream and the kernels loaded into it.
pub struct CudaDevice {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    name: String,
    capability: (i32, i32),
    shared_memory: usize,
    /// Whether the card reads the host's page tables, so that no copy has to be staged.
    reads_pageable: bool,
    /// Made at the first copy that wants it. Before the modules: it waits for the stream when it drops.
    staging: Mutex<Option<Staging>>,
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

impl Drop for CudaMemory {
    /// The last owner may sit on a thread without a context, and the slice frees into the current one.
    fn drop(&mut self) {
        bind_anyway(self.slice.context());
    }
}

/// Binds a context where nobody can be told of an error: one that cudarc kept comes instead of the
/// binding, and is kept again.
fn bind_anyway(context: &CudaContext) {
    let bound = context.bind_to_thread();
    if bound.is_err() {
        let _ = context.bind_to_thread();
        context.record_err(bound);
    }
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Argument<P>(P);
// SAFETY: argument structs are plain C structs, laid out by bindgen from the header that the
// kernel was compiled with, and passed by value.
unsafe impl<P: KernelParams> DeviceRepr for Argument<P> {}

/// The driver's library; cudarc tries these names too.
const LIBRARY: [&str; 3] = ["libcuda.so", "libcuda.so.1", "nvcuda.dll"];

/// Whether the driver's library can be loaded and started; cudarc panics where it cannot. Its own
/// probe is not there where another crate has it link the library at build time, as candle does.
fn probe() -> Result<()> {
    // SAFETY: looks for the library and opens it; nothing is called yet.
    let opens = |name: &&str| unsafe { libloading::Library::new(*name) }.is_ok();
    if !LIBRARY.iter().any(opens) {
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

fn first_image() -> Result<&'static Image> {
    IMAGES.first().ok_or_else(|| Error::KernelsNotBuilt {
        kernel: "every kernel".into(),
        reason: NO_IMAGES.into(),
    })
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
        let image = first_image()?;
        let context = stream.context().clone();
        let name = context.name().map_err(refused("the device's name"))?;
        let capability = context
            .compute_capability()
            .map_err(refused("the compute capability"))?;
        if capability < CAPABILITY {
            return Err(Error::UnsupportedGpu {
                name,
                capability,
                needed: CAPABILITY,
            });
        }
        let shared_memory = context
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(refused("the shared memory's size"))? as usize;
        let reads_pageable = context
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES)
            .map_err(refused("how the card reads host memory"))?
            != 0;
        let device = CudaDevice {
            context,
            stream,
            name,
            capability,
            shared_memory,
            reads_pageable,
            modules: Mutex::default(),
            functions: Mutex::default(),
            staging: Mutex::default(),
            lost: OnceLock::new(),
        };
        // One module tells whether the driver takes what nvcc made.
        device.module(image)?;
        Ok(device)
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

    /// Whether the kernels of this file were compiled.
    pub(super) fn has_module(&self, module: &str) -> bool {
        IMAGES.iter().any(|i| i.name == module)
    }

    pub(super) fn tensor_map(&self, boxes: &Boxes) -> Result<ffi::TensorMap, String> {
        self.bind().map_err(|e| e.to_string())?;
        tensor_map::make(boxes)
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
            if !stays(e.0) {
                return error;
            }
            let reason = self.lost.get_or_init(|| error.to_string()).clone();
            Error::DeviceLost { device: "cuda", reason }
        })
    }

    /// Waits for the stream in the bound context; cudarc's own call may return an older error
    /// instead of waiting.
    fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this device holds it.
        let waited = unsafe { result::stream::synchronize(self.stream.cu_stream()) };
        self.check("waiting for the stream", waited)
    }

    fn bind(&self) -> Result<()> {
        self.alive()?;
        self.check("binding the context", self.context.bind_to_thread())
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        self.wait()
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
        if Staging::takes(from.len()) {
            return self.upload_staged(to, from);
        }
        // SAFETY: the range lies in a writable view of this device; `from` has been read before this
        // returns, by the driver's staging or by the wait below.
        let copied = unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) };
        self.check("a copy to the device", copied)?;
        match self.staged(from) {
            true => Ok(()),
            false => self.wait(),
        }
    }

    fn upload_staged(&self, to: u64, from: &[u8]) -> Result<()> {
        let mut staging = self.staging.lock().unwrap_or_else(|e| e.into_inner());
        let ready = match staging.take() {
            Some(ready) => ready,
            None => self.check("pinned memory", Staging::new(self.stream.clone()))?,
        };
        let ready = staging.insert(ready);
        // SAFETY: the range lies in a writable view of this device, and the bytes are few enough.
        let copied = unsafe { ready.upload(to, from) };
        self.check("a copy to the device", copied)
    }

    /// Whether a copy out of `host` is staged, so that the driver has read it when the call
    /// returns. Pinned and managed memory is read later, by the card.
    fn staged(&self, host: &[u8]) -> bool {
        let pageable = |byte: &u8| {
            let mut kind = 0u32;
            // SAFETY: this attribute is 32 bits, and an address that CUDA does not know is an error.
            let answer = unsafe {
                sys::cuPointerGetAttribute(
                    (&raw mut kind).cast(),
                    sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                    std::ptr::from_ref(byte) as u64,
                )
            };
            answer == CUresult::CUDA_ERROR_INVALID_VALUE
        };
        !self.reads_pageable && host.first().is_none_or(pageable) && host.last().is_none_or(pageable)
    }

    pub(super) fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the range lies in a view of this device; the wait below ends the copy before
        // `to` can go away.
        let copied = unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) };
        self.check("a copy to the host", copied)?;
        self.wait()
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
        let image = IMAGES
            .iter()
            .find(|i| i.name == module)
            .ok_or_else(|| Error::KernelsNotBuilt {
                kernel: kernel.to_string(),
                reason: format!("{module}.cu was not compiled"),
            })?;
        let loaded = self.module(image)?;
        let function = self.check("finding a kernel", loaded.load_function(kernel))?;
        functions.insert(kernel.to_string(), function.clone());
        Ok(function)
    }

    fn module(&self, image: &Image) -> Result<Arc<CudaModule>> {
        let mut modules = self.modules.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(loaded) = modules.get(image.name) {
            return Ok(loaded.clone());
        }
        let binary = Ptx::from_binary(image.bytes.to_vec());
        let loaded = self.check("loading a module", self.context.load_module(binary))?;
        modules.insert(image.name, loaded.clone());
        Ok(loaded)
    }

    /// How work on a slice of stream `other` is ordered with this device's. Another context object
    /// that tracks events would not learn of what this device does, even on the same stream.
    fn order(&self, other: &CudaStream) -> Order {
        let (own, theirs) = (self.context(), other.context());
        let same = own.cu_ctx() == theirs.cu_ctx() && self.stream.cu_stream() == other.cu_stream();
        let shared = Arc::ptr_eq(own, theirs);
        let managed = theirs.is_managing_stream_synchronization();
        match (same, shared, managed) {
            (true, true, _) | (true, false, false) => Order::Stream,
            (false, true, true) => Order::Events,
            _ => Order::None,
        }
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
    move |e| {
        let code = e.0 as u32;
        let name = e
            .error_name()
            .map_or_else(|_| "unknown".into(), |n| n.to_string_lossy().into_owned());
        match e.0 {
            CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Error::OldDriver { code, name },
            _ => Error::Cuda { call, code, name },
        }
    }
}

/// Whether every later call in the context fails too: what the driver calls sticky.
fn stays(code: CUresult) -> bool {
    // Older toolkits' bindings have no name for CUDA_ERROR_CONTAINED and
    // CUDA_ERROR_TENSOR_MEMORY_LEAK.
    const UNNAMED: [u32; 2] = [226, 721];
    matches!(
        code,
        CUresult::CUDA_ERROR_DEINITIALIZED
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_EXTERNAL_DEVICE
            | CUresult::CUDA_ERROR_UNKNOWN
    ) || UNNAMED.contains(&(code as u32))
}

impl fmt::Display for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(f, "cuda:{} ({}, {major}.{minor})", self.context.ordinal(), self.name)
    }
}

impl GuardedBorrow for SyncOnDrop<'_> {}

/// How work of a stream is ordered with a device's.
enum Order {
    /// By the stream, which is the device's.
    Stream,
    /// By the events of each slice that has some.
    Events,
    None,
}

/// cudarc's slices and views as tensors.
macro_rules! from_cuda {
    ($(#[$doc:meta])* $name:ident, $owner:ident, $slice:ty, $ptr:ident, $borrow:ty) => {
        impl<'a> $owner<'a> {
            $(#[$doc])*
            ///
            /// # Errors
            ///
            /// A device that is not CUDA; a shape of another size; memory whose use cudarc could not
            /// order. It can where stream and device share one `CudaContext` object, and the stream
            /// is the device's or the context manages the synchronization of its streams; and on
            /// the device's stream in another context object, if that one does not manage it.
            pub fn $name<T: Element + DeviceRepr>(
                device: &'a Device,
                data: $borrow,
                shape: &[usize],
            ) -> Result<$owner<'a>> {
                const OP: &str = concat!(stringify!($owner), "::", stringify!($name));
                let cuda = device.as_cuda().ok_or_else(|| {
                    Error::argument(OP, "device", "a cuda device", device.to_string())
                })?;
                let elements = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
                if elements != Some(data.len()) {
                    return Err(Error::argument(
                        OP,
                        "shape",
                        format!("{} elements", data.len()),
                        format!("{shape:?}"),
                    ));
                }
                let stranger = || {
                    Error::argument(
                        OP,
                        "data",
                        "memory of the device's stream (or of a stream of the same CudaContext, with its events)",
                        "memory of another stream",
                    )
                };
                let by_events = match cuda.order(data.stream()) {
                    Order::Stream => false,
                    Order::Events => true,
                    Order::None => return Err(stranger()),
                };
                let (address, sync) = data.$ptr(cuda.stream());
                // A slice that was made while the context tracked no events has none.
                if by_events && !matches!(sync, SyncOnDrop::Record(Some(_))) {
                    return Err(stranger());
                }
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
