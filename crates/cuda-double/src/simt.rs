//! The kernels: their SIMT builds, which `packforcing`'s own build has made.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use crate::codes::Code;
use crate::random::Random;

/// `simt::Kernel` of `kernels/simt/simt.h`.
#[repr(C)]
struct CKernel {
    name: *const c_char,
    params_bytes: usize,
    max_threads: u32,
    entry: *const c_void,
}

/// `SimtSpan`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Span {
    pub address: u64,
    pub bytes: u64,
    pub writable: u32,
    pub reserved: u32,
}

/// `SimtOptions`.
#[repr(C)]
struct COptions {
    seed: u64,
    copies: u32,
    in_order: u32,
    threads: u32,
    reserved: u32,
}

unsafe extern "C" {
    static simt_kernels: [*const CKernel; 0];
    static simt_kernel_count: usize;
    fn simt_launch(
        kernel: *const c_char,
        params: *const c_void,
        params_bytes: usize,
        grid: *const u32,
        threads: u32,
        shared_bytes: u32,
        spans: *const Span,
        span_count: usize,
        options: *const COptions,
        report: *mut c_char,
        report_bytes: usize,
    ) -> c_int;
}

/// A kernel that there is a SIMT build of.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub name: CString,
    pub params_bytes: usize,
    pub max_threads: u32,
}

pub fn find(name: &str) -> Option<Kernel> {
    // SAFETY: the build's table has as many entries as it says, whose names end in a zero.
    unsafe {
        let first = (&raw const simt_kernels).cast::<*const CKernel>();
        (0..simt_kernel_count).map(|i| &**first.add(i)).find_map(|kernel| {
            let found = CStr::from_ptr(kernel.name);
            (found.to_bytes() == name.as_bytes()).then(|| Kernel {
                name: found.to_owned(),
                params_bytes: kernel.params_bytes,
                max_threads: kernel.max_threads,
            })
        })
    }
}

/// An argument struct, as it was at the launch.
#[derive(Clone)]
pub struct Params(Vec<Line>);

#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct Line([u8; 128]);

impl Params {
    /// # Safety
    ///
    /// `from` has as many bytes.
    pub unsafe fn copy(from: *const u8, bytes: usize) -> Params {
        let mut lines = vec![Line([0; 128]); bytes.div_ceil(128)];
        // SAFETY: the lines hold at least as much.
        unsafe { std::ptr::copy_nonoverlapping(from, lines.as_mut_ptr().cast(), bytes) };
        Params(lines)
    }
}

#[derive(Clone)]
pub struct Launch {
    pub kernel: Kernel,
    pub params: Params,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: u32,
}

impl Launch {
    /// Runs it to its end over this memory, or says what it did wrong.
    pub fn run(&self, memory: &[Span], random: u64) -> Result<(), (Code, String)> {
        let mut random = Random::new(random);
        let options = COptions {
            seed: random.bits(),
            copies: random.below(3) as u32,
            in_order: 1,
            threads: 1,
            reserved: 0,
        };
        let nothing = [Span {
            address: 0,
            bytes: 0,
            writable: 0,
            reserved: 0,
        }];
        // With no spans at all the device would check nothing.
        let memory = if memory.is_empty() { &nothing } else { memory };
        let mut report = [0u8; 4096];
        // SAFETY: pointers to live values of the lengths given; the spans are memory of this process, which is kept while
        // the launch runs (what is freed meanwhile stays in quarantine).
        let code = unsafe {
            simt_launch(
                self.kernel.name.as_ptr(),
                self.params.0.as_ptr().cast(),
                self.kernel.params_bytes,
                self.grid.as_ptr(),
                self.threads,
                self.shared,
                memory.as_ptr(),
                memory.len(),
                &options,
                report.as_mut_ptr().cast(),
                report.len(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        let end = report.iter().position(|&byte| byte == 0).unwrap_or(report.len());
        let report = String::from_utf8_lossy(&report[..end]).into_owned();
        let code = match &report {
            r if r.contains("misaligned") => Code::MISALIGNED_ADDRESS,
            r if r.contains("deadlock") => Code::LAUNCH_TIMEOUT,
            r if r.contains("read of") || r.contains("write of") => Code::ILLEGAL_ADDRESS,
            _ => Code::LAUNCH_FAILED,
        };
        Err((code, report))
    }
}
