//! The SIMT device: launches go to the kernels' CPU build (`kernels/simt/`).

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{AsyncCopies, KernelParams, Launch, SimtOptions, Span};
use crate::error::{Error, Result};

pub(crate) struct Simt {
    options: SimtOptions,
    launches: AtomicU64,
    /// A deferred fault: nothing runs after it, and the next call that waits reports it.
    fault: OnceLock<String>,
    /// Whether the fault was reported.
    lost: AtomicBool,
}

/// `SimtSpan` of `kernels/simt/simt.h`.
#[repr(C)]
struct CSpan {
    address: u64,
    bytes: u64,
    writable: u32,
    reserved: u32,
}

/// `SimtOptions` of `kernels/simt/simt.h`.
#[repr(C)]
struct COptions {
    seed: u64,
    copies: u32,
    in_order: u32,
    threads: u32,
    reserved: u32,
}

#[cfg(packforcing_simt)]
unsafe extern "C" {
    fn simt_launch(
        kernel: *const c_char,
        params: *const c_void,
        params_bytes: usize,
        grid: *const u32,
        threads: u32,
        shared_bytes: u32,
        spans: *const CSpan,
        span_count: usize,
        options: *const COptions,
        report: *mut c_char,
        report_bytes: usize,
    ) -> c_int;
}

#[cfg(not(packforcing_simt))]
#[expect(clippy::too_many_arguments, reason = "stands in for the C function")]
unsafe fn simt_launch(
    _: *const c_char,
    _: *const c_void,
    _: usize,
    _: *const u32,
    _: u32,
    _: u32,
    _: *const CSpan,
    _: usize,
    _: *const COptions,
    _: *mut c_char,
    _: usize,
) -> c_int {
    1
}

impl Simt {
    pub fn new(options: SimtOptions) -> Result<Simt> {
        if cfg!(not(packforcing_simt)) {
            return Err(Error::KernelsNotBuilt {
                kernel: "simt".into(),
                reason: "the build found no C++ compiler for the kernels' CPU build".into(),
            });
        }
        Ok(Simt {
            options,
            launches: AtomicU64::new(0),
            fault: OnceLock::new(),
            lost: AtomicBool::new(false),
        })
    }

    pub fn options(&self) -> &SimtOptions {
        &self.options
    }

    pub fn synchronize(&self) -> Result<()> {
        if self.fault.get().is_some() {
            self.lost.store(true, Ordering::Relaxed);
        }
        self.alive()
    }

    pub fn alive(&self) -> Result<()> {
        match self.fault.get() {
            Some(reason) if self.lost.load(Ordering::Relaxed) => Err(Error::DeviceLost {
                device: "simt",
                reason: reason.clone(),
            }),
            _ => Ok(()),
        }
    }

    pub fn launch<P: KernelParams>(&self, launch: &Launch<'_, P>) -> Result<()> {
        self.alive()?;
        if self.fault.get().is_some() {
            return Ok(());
        }
        let number = self.launches.fetch_add(1, Ordering::Relaxed);
        let result = if self.options.fail_launch == Some(number) {
            Err(format!("launch {number} was told to fail"))
        } else {
            self.run(launch, number)
        };
        match result {
            Err(report) if self.options.deferred_faults => {
                self.fault.get_or_init(|| format!("{}: {report}", launch.kernel));
                Ok(())
            }
            other => other.map_err(|report| Error::Simt {
                kernel: launch.kernel.to_string(),
                report,
            }),
        }
    }

    fn run<P: KernelParams>(&self, launch: &Launch<'_, P>, number: u64) -> Result<(), String> {
        let kernel = CString::new(launch.kernel).map_err(|e| e.to_string())?;
        let spans: Vec<CSpan> = launch
            .memory
            .iter()
            .filter(|s| s.bytes > 0)
            .map(
                |&Span {
                     address,
                     bytes,
                     writable,
                 }| CSpan {
                    address,
                    bytes,
                    writable: writable.into(),
                    reserved: 0,
                },
            )
            .collect();
        let options = COptions {
            // Another schedule for every launch, the same ones for the same seed.
            seed: self
                .options
                .seed
                .wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            copies: match self.options.copies {
                AsyncCopies::Late => 0,
                AsyncCopies::Early => 1,
                AsyncCopies::Random => 2,
            },
            in_order: self.options.in_order.into(),
            threads: self.options.threads as u32,
            reserved: 0,
        };
        let grid = launch.grid.map(|n| n as u32);
        let mut report = [0u8; 4096];
        // SAFETY: the pointers are to live values of the lengths given, `params` is the struct that
        // the named kernel takes (its size is checked on the other side), and every span is memory
        // that a view of this launch borrows.
        let code = unsafe {
            simt_launch(
                kernel.as_ptr(),
                std::ptr::from_ref(launch.params).cast(),
                size_of::<P>(),
                grid.as_ptr(),
                launch.threads as u32,
                launch.shared as u32,
                spans.as_ptr(),
                spans.len(),
                &options,
                report.as_mut_ptr().cast(),
                report.len(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        let end = report.iter().position(|&b| b == 0).unwrap_or(report.len());
        Err(String::from_utf8_lossy(&report[..end]).into_owned())
    }
}
