//! The SIMT device: launches go to the kernels' CPU build (`kernels/simt/`).

use std::collections::HashSet;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use super::kind::{AsyncCopies, SimtOptions};
use super::launch::{KernelParams, Launch, Span};
use super::memory::Memory;
use crate::error::{Error, Result};

pub(crate) struct Simt {
    options: SimtOptions,
    launches: AtomicU64,
    /// A deferred fault: nothing runs after it, and the next call that waits reports it.
    fault: OnceLock<String>,
    /// Whether the fault was reported.
    lost: AtomicBool,
    /// The capture that is under way.
    recording: Mutex<Option<Recording>>,
    /// Kernels that were launched: a capture takes no others, as on CUDA.
    launched: Mutex<HashSet<&'static str>>,
}

#[derive(Default)]
struct Recording {
    launches: Vec<Recorded>,
    /// What was dropped meanwhile.
    kept: Vec<Memory>,
}

/// A launch with its argument struct as bytes, to be made now or later.
pub(crate) struct Recorded {
    kernel: CString,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    params: Params,
    spans: Vec<CSpan>,
}

/// An argument struct, kept where its alignment is met.
struct Params {
    lines: Vec<Line>,
    bytes: usize,
}

/// As much as the strictest argument struct is aligned to.
#[repr(C, align(128))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 128]);

impl Params {
    fn of<P: KernelParams>(params: &P) -> Params {
        const { assert!(align_of::<P>() <= align_of::<Line>()) };
        let bytes = bytemuck::bytes_of(params);
        let mut lines = vec![Line([0; 128]); bytes.len().div_ceil(size_of::<Line>())];
        bytemuck::cast_slice_mut::<Line, u8>(&mut lines)[..bytes.len()].copy_from_slice(bytes);
        Params {
            lines,
            bytes: bytes.len(),
        }
    }
}

impl Recorded {
    fn of<P: KernelParams>(launch: &Launch<'_, P>) -> Result<Recorded, String> {
        let spans = launch.memory.iter().filter(|s| s.bytes > 0).map(CSpan::of);
        Ok(Recorded {
            kernel: CString::new(launch.kernel).map_err(|e| e.to_string())?,
            grid: launch.grid.map(|n| n as u32),
            threads: launch.threads as u32,
            shared: launch.shared as u32,
            params: Params::of(launch.params),
            spans: spans.collect(),
        })
    }

    fn name(&self) -> String {
        self.kernel.to_string_lossy().into_owned()
    }
}

/// `SimtSpan` of `kernels/simt/simt.h`.
#[repr(C)]
struct CSpan {
    address: u64,
    bytes: u64,
    writable: u32,
    reserved: u32,
}

impl CSpan {
    fn of(span: &Span) -> CSpan {
        CSpan {
            address: span.address,
            bytes: span.bytes,
            writable: span.writable.into(),
            reserved: 0,
        }
    }
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
                kernel: "the SIMT device".into(),
                reason: "it needs a C++17 compiler such as g++, and the build found none that worked".into(),
            });
        }
        Ok(Simt {
            options,
            launches: AtomicU64::new(0),
            fault: OnceLock::new(),
            lost: AtomicBool::new(false),
            recording: Mutex::new(None),
            launched: Mutex::default(),
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
        let recorded = Recorded::of(launch).map_err(|report| Error::Simt {
            kernel: launch.kernel.to_string(),
            report,
        })?;
        let mut launched = self.launched.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(recording) = self.recording().as_mut() {
            if !launched.contains(launch.kernel) {
                return Err(Error::not_launched_before(launch.kernel));
            }
            recording.launches.push(recorded);
            return Ok(());
        }
        launched.insert(launch.kernel);
        drop(launched);
        self.replay(&recorded)
    }

    /// Makes a launch.
    pub fn replay(&self, launch: &Recorded) -> Result<()> {
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
                self.fault.get_or_init(|| format!("{}: {report}", launch.name()));
                Ok(())
            }
            other => other.map_err(|report| Error::Simt {
                kernel: launch.name(),
                report,
            }),
        }
    }

    fn recording(&self) -> MutexGuard<'_, Option<Recording>> {
        self.recording.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn capturing(&self) -> bool {
        self.recording().is_some()
    }

    pub fn begin_capture(&self, op: &'static str) -> Result<()> {
        self.alive()?;
        match &mut *self.recording() {
            Some(_) => Err(Error::Order {
                op,
                reason: "a capture of another thread's is under way".into(),
            }),
            idle => {
                *idle = Some(Recording::default());
                Ok(())
            }
        }
    }

    pub fn end_capture(&self) -> (Vec<Recorded>, Vec<Memory>) {
        let Recording { launches, kept } = self.recording().take().unwrap_or_default();
        (launches, kept)
    }

    /// As [`Device::keep`](super::Device::keep).
    pub fn keep(&self, memory: Memory) -> Option<Memory> {
        match self.recording().as_mut() {
            Some(recording) => {
                recording.kept.push(memory);
                None
            }
            None => Some(memory),
        }
    }

    fn run(&self, launch: &Recorded, number: u64) -> Result<(), String> {
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
        let mut report = [0u8; 4096];
        // SAFETY: the pointers are to live values of the lengths given, `params` is the struct that
        // the named kernel takes (its size is checked on the other side), and every span is memory
        // that a view of this launch borrows, or that the caller of `Graph::launch` answers for.
        let code = unsafe {
            simt_launch(
                launch.kernel.as_ptr(),
                launch.params.lines.as_ptr().cast(),
                launch.params.bytes,
                launch.grid.as_ptr(),
                launch.threads,
                launch.shared,
                launch.spans.as_ptr(),
                launch.spans.len(),
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

#[cfg(all(test, packforcing_simt))]
mod tests {
    //! The planted bugs of `kernels/simt/planted/`: each must be caught, its twin must pass.

    use super::super::Device;
    use super::*;

    /// `PlantedParams` of `kernels/simt/planted/planted.h`.
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct PlantedParams {
        input: u64,
        out: u64,
        n: i32,
        reserved: i32,
    }
    impl KernelParams for PlantedParams {}

    /// When copies and products must land for a bug to show.
    #[derive(Clone, Copy, PartialEq)]
    enum Shows {
        /// Whenever they do.
        Always,
        /// Not where copies land at once.
        LateOnly,
        /// Only where they land as late as can be.
        LateAlone,
    }
    use Shows::{Always, LateAlone, LateOnly};

    struct Planted {
        name: &'static str,
        threads: usize,
        grid: usize,
        shared: usize,
        n: usize,
        /// What the twin writes.
        expected: fn(&[i32], usize) -> i32,
        /// Part of the report; empty where the result is wrong instead, or [`EITHER`].
        report: &'static str,
        shows: Shows,
    }

    const fn planted(
        name: &'static str,
        (threads, grid, shared, n): (usize, usize, usize, usize),
        expected: fn(&[i32], usize) -> i32,
        report: &'static str,
        shows: Shows,
    ) -> Planted {
        Planted {
            name,
            threads,
            grid,
            shared,
            n,
            expected,
            report,
            shows,
        }
    }

    fn same(x: &[i32], i: usize) -> i32 {
        x[i]
    }
    fn reversed(x: &[i32], i: usize) -> i32 {
        x[x.len() - 1 - i]
    }
    fn half_reversed(x: &[i32], i: usize) -> i32 {
        if i < x.len() / 2 { x[i] } else { reversed(x, i) }
    }

    /// What `products.cu` multiplies.
    fn rows(x: &[i32], i: usize) -> i32 {
        x[i % 64] % 100
    }

    /// A report or a wrong result, as the schedule will have it.
    const EITHER: &str = "*";

    const PLANTED: &[Planted] = &[
        planted("missing_barrier", (128, 1, 512, 128), reversed, "", Always),
        planted(
            "reused_tile",
            (128, 1, 512, 128),
            |x, i| 2 * reversed(x, i) + 1,
            "",
            Always,
        ),
        planted(
            "divergent_barrier",
            (128, 1, 512, 128),
            reversed,
            "two sites meet at one barrier",
            Always,
        ),
        planted(
            "exited_thread",
            (128, 1, 512, 128),
            |x, i| if i < 96 { x[i] } else { 0 },
            "exited",
            Always,
        ),
        planted(
            "lost_arrival",
            (128, 1, 512, 128),
            half_reversed,
            "deadlock: nobody can run",
            Always,
        ),
        planted(
            "barrier_counts",
            (128, 1, 512, 128),
            half_reversed,
            "threads here, of",
            Always,
        ),
        planted(
            "warp_mask",
            (32, 1, 128, 32),
            |x, i| if i < 16 { x[i ^ 1] } else { x[i] },
            "exited",
            Always,
        ),
        planted(
            "own_mask",
            (32, 1, 128, 32),
            |x, _| x.iter().sum(),
            "not in its own mask",
            Always,
        ),
        planted(
            "warp_divergence",
            (32, 1, 128, 32),
            |x, i| x[i ^ 1],
            "a warp does not agree",
            Always,
        ),
        planted(
            "shuffle_source",
            (32, 1, 128, 32),
            |x, i| if i < 8 { x[i + 8] } else { x[i] },
            "which is not in the mask",
            Always,
        ),
        planted("missing_syncwarp", (32, 1, 128, 32), reversed, "", Always),
        planted("weak_wait", (64, 1, 2048, 512), same, "", LateOnly),
        planted("missing_commit", (64, 1, 2048, 256), same, "", LateOnly),
        planted("late_wait", (64, 1, 2048, 256), same, "", LateOnly),
        planted("wait_without_barrier", (64, 1, 2048, 256), same, "", Always),
        planted("source_overwritten", (64, 1, 2048, 256), same, "", LateOnly),
        planted(
            "shared_index",
            (32, 1, 512, 128),
            same,
            "index 128 of a shared array of 128",
            Always,
        ),
        planted(
            "red_zone",
            (32, 1, 512, 128),
            same,
            "byte 512 of shared memory was written",
            Always,
        ),
        planted("uninitialised", (32, 1, 512, 128), same, "", Always),
        planted(
            "misaligned",
            (32, 1, 512, 128),
            same,
            "misaligned read of 16 bytes",
            Always,
        ),
        planted("read_past", (32, 1, 512, 100), same, "read of 4 bytes", Always),
        planted("write_past", (32, 1, 512, 100), same, "write of 4 bytes", Always),
        planted("write_to_input", (32, 1, 512, 32), same, "not writable", Always),
        planted(
            "ldmatrix_row",
            (32, 1, 512, 128),
            same,
            "ldmatrix: misaligned shared address",
            Always,
        ),
        planted(
            "lost_update",
            (256, 4, 512, 1024),
            |x, i| if i == 0 { x.iter().sum() } else { 0 },
            "",
            Always,
        ),
        planted("stack_overflow", (32, 1, 512, 32), same, "stack overflow", Always),
        planted("wrong_phase", (64, 1, 2048, 512), same, EITHER, LateOnly),
        planted("not_released", (64, 1, 2048, 512), same, EITHER, Always),
        planted(
            "missing_arrival",
            (64, 1, 2048, 32),
            same,
            "deadlock: nobody can run",
            Always,
        ),
        planted(
            "bytes_over",
            (64, 1, 2048, 32),
            same,
            "waits for 0 of 1 arrivals and 16 bytes",
            Always,
        ),
        planted("bytes_under", (64, 1, 2048, 32), same, "16 bytes more landed", Always),
        planted(
            "missing_init_fence",
            (64, 1, 2048, 32),
            same,
            "no fence_mbarrier_init",
            Always,
        ),
        planted(
            "missing_fence_before_box",
            (64, 1, 2048, 32),
            same,
            "no fence_proxy_async",
            Always,
        ),
        planted(
            "misaligned_box",
            (64, 1, 2048, 32),
            same,
            "not a multiple of 128",
            Always,
        ),
        planted(
            "misaligned_column",
            (64, 1, 2048, 32),
            same,
            "not on a multiple of 16 bytes",
            Always,
        ),
        planted(
            "overwritten_barrier",
            (64, 1, 2048, 32),
            same,
            "was overwritten",
            Always,
        ),
        planted(
            "abandoned_box",
            (64, 1, 2048, 32),
            same,
            "under way when the block ended",
            LateAlone,
        ),
        planted(
            "registers_over",
            (512, 1, 0, 512),
            same,
            "nobody gives up the registers",
            Always,
        ),
        planted(
            "missing_proxy_fence",
            (128, 1, 16384, 128),
            rows,
            "no fence_proxy_async",
            Always,
        ),
        planted(
            "missing_wgmma_fence",
            (128, 1, 16384, 128),
            rows,
            "no wgmma_fence",
            Always,
        ),
        planted("early_read", (128, 1, 16384, 128), rows, "", Always),
        planted(
            "early_write",
            (128, 1, 16384, 128),
            rows,
            "wrote to accumulator",
            Always,
        ),
        planted("operand_overwritten", (128, 1, 16384, 128), rows, "", LateOnly),
        planted(
            "operand_after_fence",
            (128, 1, 16384, 128),
            rows,
            "wrote to a's registers",
            Always,
        ),
        planted("tile_overwritten", (128, 1, 16384, 128), rows, EITHER, LateOnly),
        planted("descriptor_row", (128, 1, 16384, 128), rows, "", Always),
        planted("descriptor_stride", (128, 1, 16384, 128), rows, "", Always),
        planted(
            "uncommitted",
            (128, 1, 16384, 128),
            rows,
            "a wgmma that it did not wait for",
            Always,
        ),
        planted(
            "warps_disagree",
            (128, 1, 16384, 128),
            rows,
            "do not issue the same products",
            Always,
        ),
        planted(
            "stmatrix_row",
            (128, 1, 16384, 128),
            rows,
            "stmatrix: misaligned",
            Always,
        ),
    ];

    const SEEDS: u64 = 100;
    const COPIES: [AsyncCopies; 3] = [AsyncCopies::Late, AsyncCopies::Early, AsyncCopies::Random];

    /// The report, or `None` where it ran through; and whether the output is right.
    fn run(p: &Planted, kernel: &str, seed: u64, copies: AsyncCopies) -> (Option<String>, bool) {
        let device = Device::simt(SimtOptions {
            seed,
            copies,
            ..SimtOptions::default()
        })
        .expect("it was built");
        let input: Vec<i32> = (0..p.n as i32).map(|i| 1000 + 7 * i).collect();
        // One buffer, so that what lies past the input is known to be nobody's.
        let memory = device.allocate(4 * (2 * p.n + 512)).expect("a few bytes");
        let (input_at, out_at) = (memory.address(), memory.address() + 4 * (p.n as u64 + 256));
        device.upload(input_at, bytemuck::cast_slice(&input)).expect("in range");
        let span = |address, writable| Span {
            address,
            bytes: 4 * p.n as u64,
            writable,
        };
        // A launch's name is the program's own; these are made of two parts, and few.
        let result = device.launch(&Launch {
            module: "planted",
            kernel: kernel.to_string().leak(),
            grid: [p.grid, 1, 1],
            threads: p.threads,
            shared: p.shared,
            params: &PlantedParams {
                input: input_at,
                out: out_at,
                n: p.n as i32,
                reserved: 0,
            },
            memory: &[span(input_at, false), span(out_at, true)],
        });
        let mut out = vec![0i32; p.n];
        device
            .download(out_at, bytemuck::cast_slice_mut(&mut out))
            .expect("in range");
        let right = out.iter().enumerate().all(|(i, &x)| x == (p.expected)(&input, i));
        match result {
            Ok(()) => (None, right),
            Err(Error::Simt { report, .. }) => (Some(report), right),
            Err(other) => panic!("{kernel}: {other}"),
        }
    }

    #[test]
    fn correct_twins_pass_under_every_schedule() {
        for p in PLANTED {
            let kernel = format!("planted_{}_fixed", p.name);
            for copies in COPIES {
                for seed in 0..SEEDS {
                    let (report, right) = run(p, &kernel, seed, copies);
                    assert!(
                        report.is_none() && right,
                        "{kernel}, seed {seed}, {copies:?}: {report:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn planted_bugs_are_caught() {
        for p in PLANTED {
            let kernel = format!("planted_{}", p.name);
            for copies in COPIES {
                match (p.shows, copies) {
                    (LateOnly, AsyncCopies::Early) => continue,
                    (LateAlone, AsyncCopies::Early | AsyncCopies::Random) => continue,
                    _ => {}
                }
                let caught = (0..SEEDS).filter(|&seed| {
                    let (report, right) = run(p, &kernel, seed, copies);
                    match report {
                        Some(report) => p.report == EITHER || !p.report.is_empty() && report.contains(p.report),
                        None => (p.report == EITHER || p.report.is_empty()) && !right,
                    }
                });
                let caught = caught.count() as u64;
                assert!(
                    caught * 100 >= SEEDS * 99,
                    "{kernel}, {copies:?}: caught under {caught} of {SEEDS} seeds"
                );
            }
        }
    }

    #[test]
    fn a_report_names_the_kernel_and_the_seed() {
        let p = &PLANTED[1];
        let (report, _) = run(p, "planted_divergent_barrier", 7, AsyncCopies::Late);
        let report = report.expect("it is caught");
        assert!(report.contains("barriers.cu") && report.contains("seed 7"), "{report}");
    }

    #[test]
    fn an_unknown_kernel_is_an_error() {
        let (report, _) = run(&PLANTED[0], "no_such_kernel", 0, AsyncCopies::Late);
        assert!(report.expect("it is refused").contains("no_such_kernel"));
    }

    #[test]
    fn deferred_faults_are_told_by_the_next_wait() {
        let options = SimtOptions {
            deferred_faults: true,
            fail_launch: Some(0),
            ..SimtOptions::default()
        };
        let simt = Simt::new(options).expect("it was built");
        let launch = Launch {
            module: "planted",
            kernel: "planted_missing_barrier_fixed",
            grid: [1, 1, 1],
            threads: 128,
            shared: 512,
            params: &PlantedParams {
                input: 0,
                out: 0,
                n: 0,
                reserved: 0,
            },
            memory: &[],
        };
        assert!(simt.launch(&launch).is_ok() && simt.alive().is_ok());
        assert!(matches!(simt.synchronize(), Err(Error::DeviceLost { .. })));
        assert!(matches!(simt.launch(&launch), Err(Error::DeviceLost { .. })));
    }
}
