//! The driver's library itself: whether it is there, and functions of it that cudarc has not bound.

use std::sync::OnceLock;

use cudarc::driver::sys::{CUevent, CUresult};
use cudarc::driver::{DriverError, result};

use super::advice;
use crate::error::{Error, Result};

/// The driver's library; cudarc tries these names too, in this order.
const LIBRARY: [&str; 3] = ["libcuda.so", "libcuda.so.1", "nvcuda.dll"];

/// What a device calls by cudarc's bindings. cudarc panics where a library lacks one, so they are looked for first.
pub(super) const CALLED: [&str; 44] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuMemsetD8_v2",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuPointerGetAttribute",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// Whether the driver's library can be loaded and started, and has what is called; cudarc panics where it cannot. Its own
/// probe is not there where another crate has it link the library at build time, as candle does.
pub(super) fn probe() -> Result<()> {
    // SAFETY: looks for the library and opens it; nothing is called yet.
    let opens = |name: &&str| unsafe { libloading::Library::new(*name) }.map(std::mem::forget).is_ok();
    if !LIBRARY.iter().any(opens) {
        return Err(Error::NoDriver {
            reason: "libcuda.so.1 was not found".into(),
        });
    }
    if let Some(name) = CALLED.iter().find(|name| symbol::<*const ()>(name).is_none()) {
        return Err(Error::NoDriver {
            reason: format!("its library has no {name}: it is older than CUDA 12.0, or no driver's"),
        });
    }
    match result::init() {
        Ok(()) => Ok(()),
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Err(Error::NoGpu),
        Err(e) => Err(Error::NoDriver {
            reason: match advice::of(e.0 as u32) {
                Some(advice) => format!("cuInit: CUDA error {}: {advice}", e.0 as u32),
                None => format!("cuInit: CUDA error {}", e.0 as u32),
            },
        }),
    }
}

/// A function of the library that is loaded already, by cudarc or by the program's own linking: never of a second one.
/// `T` is a function pointer with the driver's signature, or a plain address.
pub(super) fn symbol<T: Copy>(name: &str) -> Option<T> {
    static LOADED: OnceLock<Option<libloading::Library>> = OnceLock::new();
    let library = LOADED.get_or_init(loaded).as_ref()?;
    // SAFETY: the address is only looked up; whoever calls it answers for the signature.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.ok().map(|symbol| *symbol)
}

#[cfg(unix)]
fn loaded() -> Option<libloading::Library> {
    use libloading::os::unix::{Library, RTLD_NOW};
    /// glibc's: a handle of what is loaded, and nothing is loaded for it.
    const RTLD_NOLOAD: std::ffi::c_int = 4;
    // SAFETY: nothing is loaded, so nothing runs.
    let open = |name: &&str| unsafe { Library::open(Some(*name), RTLD_NOW | RTLD_NOLOAD) }.ok();
    LIBRARY.iter().find_map(open).map(Into::into)
}

#[cfg(windows)]
fn loaded() -> Option<libloading::Library> {
    use libloading::os::windows::Library;
    LIBRARY
        .iter()
        .find_map(|name| Library::open_already_loaded(name).ok())
        .map(Into::into)
}

/// Milliseconds between two events that are over. The function got a new name with CUDA 12.8, and cudarc binds the one of
/// the toolkit that it was built for, which the driver may not have.
pub(super) fn elapsed_ms(start: CUevent, end: CUevent) -> Result<f32, DriverError> {
    type Elapsed = unsafe extern "C" fn(ms: *mut f32, start: CUevent, end: CUevent) -> CUresult;
    let elapsed: Option<Elapsed> = symbol("cuEventElapsedTime_v2").or_else(|| symbol("cuEventElapsedTime"));
    let elapsed = elapsed.ok_or(DriverError(CUresult::CUDA_ERROR_NOT_FOUND))?;
    let mut ms = 0.0;
    // SAFETY: the signature of both; the events live as long as the caller's.
    unsafe { elapsed(&raw mut ms, start, end) }.result()?;
    Ok(ms)
}

/// 1000 times the major part of the driver's version and 10 times the minor; 0 where it does not say.
pub(super) fn version() -> u32 {
    type Version = unsafe extern "C" fn(version: *mut std::ffi::c_int) -> CUresult;
    let mut version = 0;
    if let Some(get) = symbol::<Version>("cuDriverGetVersion") {
        // SAFETY: the driver's signature; it writes one number.
        let _ = unsafe { get(&raw mut version) };
    }
    version.max(0) as u32
}

/// Whether the library is a double of the driver: it says so itself.
pub(super) fn is_double() -> bool {
    symbol::<*const ()>("cuda_double_version").is_some()
}
