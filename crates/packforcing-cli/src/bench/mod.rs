//! `bench`: how long an op takes at a shape, and how near to its floor that is.

mod ops;
mod show;

use std::io::{BufRead, Write};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use packforcing::{DType, Device, DeviceKind, SimtCard, SimtOptions};
use packforcing_bench::timer::{self, Plan};
use packforcing_bench::{Case, Error, floor};
use serde_json::json;

use crate::device::Wanted;
use ops::Op;
use show::Record;

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    op: Op,
}

/// What every op's bench takes.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Where it runs
    #[arg(long, value_enum, default_value_t = Wanted::Best)]
    device: Wanted,
    /// Samples to take; fewer where they take longer than 20 s together, but 3
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = count)]
    samples: usize,
    /// A sample makes as many calls as take this long, in ms [default: 1 on a GPU, 10 on the CPU]
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    sample_ms: Option<f64>,
    /// Decides the inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Launches the calls of all copies as one graph, as a captured block does; not on the CPU
    #[arg(long)]
    graph: bool,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
    /// Takes one sample for each line of the standard input, and prints its time as a line of JSON
    #[arg(long, conflicts_with = "json")]
    turns: bool,
}

/// The dtype that the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Float {
    F32,
    F16,
    Bf16,
}

impl From<Float> for DType {
    fn from(float: Float) -> DType {
        match float {
            Float::F32 => DType::F32,
            Float::F16 => DType::F16,
            Float::Bf16 => DType::BF16,
        }
    }
}

/// More of anything makes no bench, and products of such numbers are still numbers.
const MOST: usize = u32::MAX as usize;

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=MOST).contains(&n) => Ok(n),
        _ => Err(format!("a whole number from 1 to {MOST} is expected")),
    }
}

fn milliseconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ms) if (0.0..=60_000.0).contains(&ms) => Ok(ms),
        _ => Err("a number from 0 to 60000 is expected".into()),
    }
}

/// A device whose times say something.
fn open(wanted: Wanted, card: SimtCard) -> Result<Device> {
    let device = wanted.open(SimtOptions {
        card,
        ..SimtOptions::default()
    })?;
    ensure!(
        device.kind() != DeviceKind::CudaDouble,
        "--device {wanted}: {device} runs kernels on the CPU, and its times say nothing"
    );
    Ok(device)
}

pub fn run(options: &Options) -> Result<()> {
    let common = options.op.common();
    let device = open(common.device, options.op.card())?;
    let mut case = options.op.case(&device).map_err(named)?;
    if common.graph {
        // SAFETY: the device was opened here, and this thread alone has it.
        unsafe { case.capture() }.context("--graph")?;
    }
    let mut plan = Plan {
        samples: common.samples,
        ..Plan::of(&device)
    };
    if let Some(ms) = common.sample_ms {
        plan.sample = Duration::from_secs_f64(ms * 1e-3);
    }
    if common.turns {
        return turns(&mut case, &plan);
    }
    let timing = timer::measure(&mut case, &plan)?;
    let floor = floor::floor(&device, case.work())?;
    let record = Record::new(&case, options.op.dtype(), options.op.shape()?, &timing, floor);
    let mut stdout = std::io::stdout().lock();
    if common.json {
        writeln!(stdout, "{}", serde_json::to_string(&record)?)?;
    } else {
        record.show(&mut stdout)?;
    }
    Ok(())
}

/// A sample for each line that comes: another program has its turn in between, and what it leaves
/// in the caches is gone after a call that does not count.
fn turns(case: &mut Case, plan: &Plan) -> Result<()> {
    let calls = timer::warm_up(case, plan)?;
    let mut stdout = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        line.context("cannot read the standard input")?;
        timer::time(case, 1)?;
        let seconds = timer::time(case, calls)?.as_secs_f64() / (calls * case.at_once()) as f64;
        writeln!(stdout, "{}", json!({ "ms": 1e3 * seconds }))?;
        stdout.flush()?;
    }
    Ok(())
}

/// An error of a shape names the option that the user gave.
fn named(error: Error) -> anyhow::Error {
    match error {
        Error::Shape { field, expected, got } => {
            anyhow!("--{}: expected {expected}, got {got}", field.replace('_', "-"))
        }
        other => other.into(),
    }
}
