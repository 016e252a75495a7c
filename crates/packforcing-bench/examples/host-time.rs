//! The host's own time for each launch, and what it allocates, over a driver that does nothing (`scripts/host-time.sh`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use packforcing::{Device, Grid};
use packforcing_bench::cases::{
    append_kv, attention, denoise_step, guidance, match_tokens, merge_states, merge_tokens, select_blocks,
};
use packforcing_bench::{Case, Result};

/// Counts what is asked of the system's allocator.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Calls of a sample, and samples.
const CALLS: u32 = 2_000;
const SAMPLES: usize = 15;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let device = Device::cuda(0)?;
    println!("{:<24} {:>9} {:>12}", "op", "us a call", "allocations");
    for (name, mut case) in cases(&device)? {
        for _ in 0..CALLS {
            case.call()?;
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        case.call()?;
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        let mut samples = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            let start = Instant::now();
            for _ in 0..CALLS {
                case.call()?;
            }
            samples.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS));
        }
        samples.sort_by(f64::total_cmp);
        println!("{name:<24} {:>9.2} {allocations:>12}", samples[SAMPLES / 2]);
    }
    Ok(())
}

/// Small shapes: the host does the same for every size.
fn cases(device: &Device) -> Result<Vec<(&'static str, Case)>> {
    let grid = Grid {
        frames: 2,
        rows: 5,
        cols: 8,
    };
    let paged = attention::Shape {
        queries: 64,
        keys: 960,
        heads: 2,
        kv_heads: 2,
        segments: Some(5),
        ..Default::default()
    };
    let blocks = || merge_tokens::Shape {
        grid,
        heads: 2,
        ..Default::default()
    };
    let latents = || denoise_step::Shape {
        latents: [4, 2, 8, 8],
        ..Default::default()
    };
    let matching = match_tokens::Shape {
        blocks: blocks(),
        ..Default::default()
    };
    let guided = denoise_step::Shape {
        guided: true,
        ..latents()
    };
    Ok(vec![
        ("attention", paged.case(device)?),
        (
            "attention, sm80",
            attention::Shape {
                kernel: packforcing::ops::attention::Kernel::Sm80,
                ..paged
            }
            .case(device)?,
        ),
        (
            "append_kv",
            append_kv::Shape {
                grid,
                heads: 2,
                kv_heads: 2,
                ..Default::default()
            }
            .case(device)?,
        ),
        (
            "select_blocks",
            select_blocks::Shape {
                queries: 80,
                candidates: 30,
                heads: 2,
                kv_heads: 2,
                ..Default::default()
            }
            .case(device)?,
        ),
        (
            "merge_states",
            merge_states::Shape {
                queries: 64,
                heads: 2,
                ..Default::default()
            }
            .case(device)?,
        ),
        ("merge_tokens", blocks().case(device)?),
        ("match_tokens", matching.case(device)?),
        ("unmerge_tokens", matching.unmerge_case(device)?),
        ("sum_keys", select_blocks::SumShape::default().case(device)?),
        ("denoise_step", latents().case(device)?),
        ("denoise_step, guided", guided.case(device)?),
        ("guidance", guidance::case(&latents(), device)?),
    ])
}
