//! What a double of the driver can be told (`crates/cuda-double`). A real driver has none of this.

use std::ffi::{CString, c_char};

use packforcing::cudarc::driver::sys;

type Fail = unsafe extern "C" fn(call: *const c_char, number: u64, code: u32);

/// The `number`th call of this thread to a driver function from now on (1 is the next) gives `code`.
pub fn fail(call: &str, number: u64, code: u32) {
    let call = CString::new(call).expect("a name");
    // SAFETY: the double's functions have these signatures; only the double has them.
    unsafe {
        let fail = sys::culib().get::<Fail>(b"cuda_double_fail\0").expect("a double");
        fail(call.as_ptr(), number, code);
    }
}

/// Takes back what was told to fail and did not yet.
pub fn mend() {
    fail("", 0, 0);
}
