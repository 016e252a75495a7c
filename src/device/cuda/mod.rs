//! CUDA: contexts, modules and launches by cudarc.

mod advice;
mod driver;
mod graph;
mod images;
mod kernels;
mod staging;
mod tensor_map;
mod thread;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use cudarc::driver::sys::{CUdevice_attribute as Attribute, CUresult, CUstream};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, result, sys};

pub(crate) use graph::CudaGraph;
use images::{IMAGES, Image, NO_IMAGES};
use kernels::Kernels;
use staging::Staging;
use thread::Thread;

use super::kind::DeviceKind;
use super::launch::{KernelParams, Launch};
use super::tensor_map::Boxes;
use crate::error::{Advice, Error, Result};
use crate::ffi;

/// What the kernels need: `cp.async`, bfloat16 arithmetic.
const CAPABILITY: (i32, i32) = (8, 0);

/// `CU_STREAM_PER_THREAD`: a handle that means another stream on every thread.
const PER_THREAD: CUstream = 2 as CUstream;

/// A context, a stream and the kernels loaded into it.
pub struct CudaDevice {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// Whose the stream is, where its handle means another one on every thread.
    thread: Option<Thread>,
    name: String,
    capability: (i32, i32),
    shared_memory: usize,
    /// Whether the card reads the host's page tables, so that no copy has to be staged.
    reads_pageable: bool,
    double: bool,
    /// Made at the first copy that wants it. Before the kernels: it waits for the stream when it drops.
    staging: Mutex<Option<Staging>>,
    kernels: Kernels,
    /// Whether `capture` is some, for those who only ask.
    capturing: AtomicBool,
    capture: Mutex<Option<Capture>>,
    /// Set by the first fault that a card reports late.
    lost: OnceLock<String>,
    /// What was said, by what it is about.
    notes: Mutex<Vec<(&'static str, String)>>,
}

/// A kernel file in this build.
#[derive(Debug, Clone)]
pub struct ImageInfo {
    /// The file's stem.
    pub name: &'static str,
    /// What there is code and PTX for.
    pub holds: String,
    /// Whether the device's card runs it, or why not.
    pub runs_here: Result<(), String>,
}

/// A capture of the device's stream that is under way.
struct Capture {
    thread: Thread,
    /// What was dropped meanwhile: freeing it would break the capture, or free what the graph works on.
    kept: Vec<CudaMemory>,
}

/// Memory of a GPU, freed in the order of its stream.
pub(crate) struct CudaMemory {
    slice: CudaSlice<u8>,
    address: u64,
    /// As was asked for: the driver has nothing of no bytes.
    bytes: usize,
    thread: Option<Thread>,
}

impl CudaMemory {
    pub fn address(&self) -> u64 {
        self.address
    }
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for CudaMemory {
    /// The last owner may sit on a thread without a context, and the slice frees into the current one.
    fn drop(&mut self) {
        let context = self.slice.context();
        bind_anyway(context);
        // The slice's stream is another one here: nothing orders the freeing but a wait for all of them.
        if self.thread.as_ref().is_some_and(|thread| !thread.is_here()) {
            context.record_err(result::ctx::synchronize());
        }
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

/// Something that a card of this compute capability can run; without it there is no device.
fn first_image(capability: (i32, i32)) -> Result<&'static Image> {
    let missing = |reason| Error::KernelsNotBuilt {
        kernel: "every kernel".into(),
        reason,
    };
    if IMAGES.is_empty() {
        return Err(missing(NO_IMAGES.into()));
    }
    let first = IMAGES.iter().find(|image| image.runs_on(capability));
    first.ok_or_else(|| missing(no_code("the build", capability)))
}

/// That a build lacks code for a card, and what to do.
fn no_code(file: &str, (major, minor): (i32, i32)) -> String {
    format!(
        "{file} has no code for compute capability {major}.{minor}; {major}{minor} in PACKFORCING_CUDA_ARCHS gives it some"
    )
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
        let image = first_image(capability)?;
        let shared_memory = context
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(refused("the shared memory's size"))? as usize;
        let reads_pageable = context
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES)
            .map_err(refused("how the card reads host memory"))?
            != 0;
        let thread = (stream.cu_stream() == PER_THREAD).then(Thread::here);
        let device = CudaDevice {
            context,
            stream,
            thread,
            name,
            capability,
            shared_memory,
            reads_pageable,
            double: driver::is_double(),
            staging: Mutex::default(),
            kernels: Kernels::default(),
            capturing: AtomicBool::new(false),
            capture: Mutex::default(),
            lost: OnceLock::new(),
            notes: Mutex::default(),
        };
        device.bind()?;
        // One module tells whether the driver takes what nvcc made.
        device.check("loading a module", device.kernels.load(&device.context, image))?;
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

    /// A card, or a double of the driver.
    pub(super) fn kind(&self) -> DeviceKind {
        match self.double {
            true => DeviceKind::CudaDouble,
            false => DeviceKind::Cuda,
        }
    }

    /// The driver's version: 1000 times the major part, 10 times the minor.
    pub fn driver_version(&self) -> u32 {
        driver::version()
    }

    /// Every kernel file of the library, and whether this build's code of it runs on this card.
    pub fn images(&self) -> Vec<ImageInfo> {
        let missing = images::MISSING.iter().map(|(name, reason)| ImageInfo {
            name,
            holds: "nothing".into(),
            runs_here: Err((*reason).to_string()),
        });
        let built = IMAGES.iter().map(|image| ImageInfo {
            name: image.name,
            holds: image.holds(),
            runs_here: self.image(image.name).map(drop),
        });
        built.chain(missing).collect()
    }

    pub(super) fn shared_memory_limit(&self) -> usize {
        self.shared_memory
    }

    pub(super) fn same_stream(&self, other: &CudaDevice) -> bool {
        Arc::ptr_eq(&self.stream, &other.stream)
            || (self.context.cu_ctx() == other.context.cu_ctx() && self.stream.cu_stream() == other.stream.cu_stream())
    }

    /// Whether the kernels of this file were compiled for this card.
    pub(super) fn has_module(&self, module: &str) -> bool {
        self.image(module).is_ok()
    }

    /// The image of a kernel file, or why this card has none.
    fn image(&self, module: &str) -> Result<&'static Image, String> {
        let image = Image::find(module)?;
        match image.runs_on(self.capability) {
            true => Ok(image),
            false => Err(no_code(&format!("{module}.cu"), self.capability)),
        }
    }

    pub(super) fn tensor_map(&self, boxes: &Boxes) -> Result<ffi::TensorMap, String> {
        self.bind().map_err(|e| e.to_string())?;
        tensor_map::make(boxes)
    }

    pub(super) fn alive(&self) -> Result<()> {
        match self.lost.get() {
            Some(reason) => Err(Error::DeviceLost {
                device: self.kind().name(),
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    /// The driver's answer as this crate's error. A fault that stays (the context is gone) marks
    /// the device lost.
    fn check<T>(&self, call: &'static str, result: Result<T, DriverError>) -> Result<T> {
        result.map_err(|e| self.failed(e, refused(call)(e)))
    }

    /// What a call gives that the driver answered with `e`, which is `error` unless the device is gone.
    fn failed(&self, e: DriverError, error: Error) -> Error {
        if !advice::stays(e.0 as u32) {
            return error;
        }
        let reason = self.lost.get_or_init(|| error.to_string()).clone();
        Error::DeviceLost {
            device: self.kind().name(),
            reason,
        }
    }

    /// Waits for the stream in the bound context; cudarc's own call may return an older error
    /// instead of waiting.
    fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this device holds it.
        let waited = unsafe { result::stream::synchronize(self.stream.cu_stream()) };
        self.check("waiting for the stream", waited)
    }

    /// Makes the context this thread's. An error of an earlier call that had nobody to tell, such as a drop, comes out here:
    /// it is told as what it is, and is over then.
    fn bind(&self) -> Result<()> {
        self.alive()?;
        if let Some(thread) = &self.thread {
            thread.ensure_here("a per-thread stream")?;
        }
        if let Err(e) = self.context.check_err() {
            let code = e.0 as u32;
            let name = name_of(e);
            let earlier = Error::Earlier {
                code,
                name,
                advice: Advice(advice::of(code)),
            };
            return Err(self.failed(e, earlier));
        }
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
        let ms = self.check(
            "reading two events",
            driver::elapsed_ms(start.cu_event(), end.cu_event()),
        )?;
        Ok(Duration::from_secs_f64(f64::from(ms) * 1e-3))
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<CudaMemory> {
        self.bind()?;
        let slice = match self.stream.alloc_zeros::<u8>(bytes.max(1)) {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                return Err(Error::OutOfMemory {
                    device: self.kind().name(),
                    bytes,
                });
            }
            other => self.check("an allocation", other)?,
        };
        let address = slice.device_ptr(&self.stream).0;
        Ok(CudaMemory {
            slice,
            address,
            bytes,
            thread: self.thread.clone(),
        })
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
            None => self.check("pinned memory", Staging::new(self.stream.clone(), self.thread.clone()))?,
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
        let function = match self.kernels.ready(launch.kernel, launch.shared) {
            Some(function) if !self.capturing.load(Ordering::Acquire) => function,
            _ => self.function(launch.module, launch.kernel, launch.shared)?,
        };
        let [x, y, z] = launch.grid.map(|n| n as u32);
        let mut arguments = [std::ptr::from_ref(launch.params).cast_mut().cast()];
        // SAFETY: the kernel takes this struct by value, laid out by bindgen from the header that it was compiled with; the
        // op checked that every address in it covers what the kernel touches, and the views borrow that memory.
        let launched = unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.threads as u32, 1, 1),
                launch.shared as u32,
                self.stream.cu_stream(),
                &mut arguments,
            )
        };
        self.check("a launch", launched)
    }

    /// A kernel that may have to be loaded first, which the inside of a capture does not allow.
    fn function(&self, module: &'static str, kernel: &'static str, shared: usize) -> Result<sys::CUfunction> {
        if let Some(capture) = self.captured().as_ref() {
            capture.thread.ensure_here("a capture of the device's stream")?;
            if self.kernels.ready(kernel, shared).is_none() {
                return Err(Error::not_launched_before(kernel));
            }
        }
        let image = self.image(module).map_err(|reason| Error::KernelsNotBuilt {
            kernel: kernel.to_string(),
            reason,
        })?;
        let function = self.kernels.get(&self.context, image, kernel, shared);
        function.map_err(|(call, e)| self.failed(e, refused(call)(e)))
    }

    fn captured(&self) -> MutexGuard<'_, Option<Capture>> {
        self.capture.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes memory that is dropped while a capture is under way, and gives it back where none is.
    pub(super) fn keep(&self, memory: CudaMemory) -> Option<CudaMemory> {
        if !self.capturing.load(Ordering::Acquire) {
            return Some(memory);
        }
        match self.captured().as_mut() {
            Some(capture) => {
                capture.kept.push(memory);
                None
            }
            None => Some(memory),
        }
    }

    /// Something that a person should know once: it is said on stderr, and kept.
    pub(super) fn note(&self, about: &'static str, text: impl FnOnce() -> String) {
        let mut notes = self.notes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if notes.iter().all(|(known, _)| *known != about) {
            let text = text();
            eprintln!("packforcing: {text}");
            notes.push((about, text));
        }
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let notes = self.notes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        notes.iter().map(|(_, text)| text.clone()).collect()
    }

    /// How work on a slice of stream `other` is ordered with this device's. Another context object
    /// that tracks events would not learn of what this device does, even on the same stream.
    pub(crate) fn order(&self, other: &CudaStream) -> Order {
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

/// How work of a stream is ordered with a device's.
pub(crate) enum Order {
    /// By the stream, which is the device's.
    Stream,
    /// By the events of each slice that has some.
    Events,
    None,
}

fn open(ordinal: usize) -> Result<Arc<CudaContext>> {
    driver::probe()?;
    let count = CudaContext::device_count().map_err(refused("counting devices"))? as usize;
    match count {
        0 => Err(Error::NoGpu),
        _ if ordinal >= count => Err(Error::NoSuchDevice { ordinal, count }),
        _ => CudaContext::new(ordinal).map_err(refused("opening the device")),
    }
}

fn name_of(e: DriverError) -> String {
    e.error_name()
        .map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned())
}

fn refused(call: &'static str) -> impl Fn(DriverError) -> Error {
    move |e| {
        let (code, name) = (e.0 as u32, name_of(e));
        match e.0 {
            CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Error::OldDriver { code, name },
            _ => Error::Cuda {
                call,
                code,
                name,
                advice: Advice(advice::of(code)),
            },
        }
    }
}

impl fmt::Display for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        let (kind, ordinal) = (self.kind().name(), self.context.ordinal());
        write!(f, "{kind}:{ordinal} ({}, {major}.{minor})", self.name)
    }
}
