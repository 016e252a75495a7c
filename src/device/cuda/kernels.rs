//! Kernels that a device has loaded.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule};
use cudarc::driver::{CudaContext, DriverError, result};

use super::bind_anyway;
use super::images::Image;

/// Dynamic shared memory that a launch may have without asking.
const UNASKED: usize = 48 * 1024;

/// A module of a context.
struct Module {
    handle: CUmodule,
    context: Arc<CudaContext>,
}

impl Drop for Module {
    fn drop(&mut self) {
        bind_anyway(&self.context);
        // SAFETY: it came from `load_data`, and its functions go with it.
        self.context.record_err(unsafe { result::module::unload(self.handle) });
    }
}

#[derive(Clone, Copy)]
struct Function {
    handle: CUfunction,
    /// The dynamic shared memory that was asked for it.
    shared: usize,
}

#[derive(Default)]
pub(super) struct Kernels(Mutex<Loaded>);

#[derive(Default)]
struct Loaded {
    functions: HashMap<&'static str, Function>,
    modules: HashMap<&'static str, Module>,
}

// SAFETY: the driver's handles belong to no thread.
unsafe impl Send for Loaded {}

impl Kernels {
    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A kernel that was launched before, ready for so much shared memory.
    pub fn ready(&self, kernel: &str, shared: usize) -> Option<CUfunction> {
        let loaded = self.loaded();
        let function = loaded.functions.get(kernel)?;
        (shared <= function.shared).then_some(function.handle)
    }

    /// Loads an image into the bound context, once.
    pub fn load(&self, context: &Arc<CudaContext>, image: &'static Image) -> Result<(), DriverError> {
        self.loaded().module(context, image).map(drop)
    }

    /// A kernel of an image, ready for so much shared memory in the bound context.
    pub fn get(
        &self,
        context: &Arc<CudaContext>,
        image: &'static Image,
        kernel: &'static str,
        shared: usize,
    ) -> Result<CUfunction, (&'static str, DriverError)> {
        let mut loaded = self.loaded();
        let mut function = match loaded.functions.get(kernel) {
            Some(&function) => function,
            None => {
                let module = loaded.module(context, image).map_err(|e| ("loading a module", e))?;
                let name = CString::new(kernel).unwrap_or_default();
                // SAFETY: the module is loaded, and its functions are not used after it.
                let handle = unsafe { result::module::get_function(module, name) };
                Function {
                    handle: handle.map_err(|e| ("finding a kernel", e))?,
                    shared: UNASKED,
                }
            }
        };
        if shared > function.shared {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded; the attribute only allows launches.
            let set = unsafe { result::function::set_function_attribute(function.handle, attribute, shared as i32) };
            set.map_err(|e| ("more shared memory", e))?;
            function.shared = shared;
        }
        loaded.functions.insert(kernel, function);
        Ok(function.handle)
    }
}

impl Loaded {
    fn module(&mut self, context: &Arc<CudaContext>, image: &'static Image) -> Result<CUmodule, DriverError> {
        if let Some(module) = self.modules.get(image.name) {
            return Ok(module.handle);
        }
        // SAFETY: a fatbin as nvcc wrote it, which says itself how long it is.
        let handle = unsafe { result::module::load_data(image.bytes.as_ptr().cast()) }?;
        let context = context.clone();
        self.modules.insert(image.name, Module { handle, context });
        Ok(handle)
    }
}
