//! Whether all is right on this machine's card: `packforcing check`.

mod history;
mod ops;

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use packforcing::{Device, DeviceKind, SimtCard, SimtOptions, instructions};
use serde::Serialize;

/// What `packforcing check` is asked.
#[derive(Args)]
pub struct Options {
    /// Where to look
    #[arg(long, value_enum, default_value_t = Wanted::Cuda)]
    device: Wanted,
    /// Small shapes alone; the SIMT device and a double of the driver run no others
    #[arg(long)]
    small: bool,
    /// A report to attach to a bug report
    #[arg(long, value_name = "FILE", default_value = "packforcing-check.json")]
    report: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// An NVIDIA GPU
    Cuda,
    /// The kernels on the CPU, as a card of 9.0 would run them
    Simt,
}

/// One check: what was looked at, and how it came out.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    what: String,
    /// What was found; of a failed check the reason.
    found: String,
    passed: bool,
    seconds: f64,
}

/// Everything, for a bug report.
#[derive(Serialize)]
struct Report {
    packforcing: &'static str,
    system: String,
    device: Option<String>,
    passed: bool,
    notes: Vec<String>,
    checks: Vec<Line>,
}

/// The checks of one run; each is printed when it is done.
#[derive(Default)]
pub(crate) struct Checks {
    lines: Vec<Line>,
}

impl Checks {
    /// Makes a check. What it finds, or why it failed, is one line.
    pub(crate) fn check(&mut self, what: impl Into<String>, check: impl FnOnce() -> Result<String>) -> Result<()> {
        let start = Instant::now();
        let outcome = check();
        let line = Line {
            what: what.into(),
            passed: outcome.is_ok(),
            found: outcome.unwrap_or_else(|e| format!("{e:#}")),
            seconds: start.elapsed().as_secs_f64(),
        };
        let verdict = if line.passed { "ok    " } else { "FAILED" };
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{verdict} {:<34} {}", line.what, line.found)?;
        self.lines.push(line);
        Ok(())
    }

    fn passed(&self) -> bool {
        self.lines.iter().all(|line| line.passed)
    }
}

pub fn run(options: &Options) -> Result<()> {
    let mut checks = Checks::default();
    let mut device = None;
    checks.check("device", || {
        let opened = match options.device {
            Wanted::Cuda => Device::cuda(0),
            Wanted::Simt => Device::simt(SimtOptions {
                card: SimtCard::Sm90,
                ..SimtOptions::default()
            }),
        };
        Ok(device.insert(opened?).to_string())
    })?;
    if let Some(device) = &device {
        on_device(device, options, &mut checks)?;
    }
    let passed = checks.passed();
    let report = Report {
        packforcing: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        device: device.as_ref().map(Device::to_string),
        passed,
        notes: device.as_ref().map(Device::notes).unwrap_or_default(),
        checks: checks.lines,
    };
    let text = serde_json::to_string_pretty(&report)?;
    std::fs::write(&options.report, text + "\n").with_context(|| options.report.display().to_string())?;
    let mut stdout = std::io::stdout().lock();
    for note in &report.notes {
        writeln!(stdout, "note   {note}")?;
    }
    writeln!(stdout, "\nwrote {}", options.report.display())?;
    let failed = report.checks.iter().filter(|line| !line.passed).count();
    if failed > 0 {
        bail!("{failed} of {} checks failed", report.checks.len());
    }
    Ok(())
}

fn on_device(device: &Device, options: &Options, checks: &mut Checks) -> Result<()> {
    if let Some(cuda) = device.as_cuda() {
        checks.check("driver", || {
            let (major, minor) = (cuda.driver_version() / 1000, cuda.driver_version() % 1000 / 10);
            Ok(format!("CUDA {major}.{minor}"))
        })?;
        checks.check("memory", || {
            let (free, total) = cuda.context().mem_get_info()?;
            let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
            Ok(format!("{:.1} of {:.1} GiB are free", gib(free), gib(total)))
        })?;
        for image in cuda.images() {
            checks.check(format!("image {}", image.name), || match image.runs_here {
                Ok(()) => Ok(image.holds),
                // Attention has a kernel for every card beside the one for 9.0.
                Err(_) if image.name.ends_with("_sm90") && cuda.compute_capability() != (9, 0) => {
                    Ok("not for this card, and not wanted".into())
                }
                Err(reason) => bail!("{reason}"),
            })?;
        }
    }
    checks.check("single instructions", || {
        let told = instructions(device)?;
        if let Some(first) = told.wrong.first() {
            bail!(
                "{} of {} differ from the tables: {first}",
                told.wrong.len(),
                told.wrong.len() + told.agreed
            );
        }
        Ok(format!(
            "{} as the tables say, {} not of this card",
            told.agreed, told.left_out
        ))
    })?;
    let small = options.small || device.kind() != DeviceKind::Cuda;
    ops::all(device, small, checks)?;
    history::all(device, small, checks)?;
    #[cfg(feature = "cuda")]
    if device.as_cuda().is_some() {
        checks.check("candle", candle)?;
    }
    Ok(())
}

/// A tensor of candle's on a stream of candle's, through an op, and back.
#[cfg(feature = "cuda")]
fn candle() -> Result<String> {
    use candle_core::{DType, Tensor};
    let candle = crate::device::ModelDevice::Cuda.open()?;
    let device = packforcing_candle::device(&candle)?;
    let state = |x: f32| -> Result<_> {
        let out = Tensor::full(x, (16, 2, 64), &candle)?.to_dtype(DType::BF16)?;
        Ok((out, Tensor::zeros((16, 2), DType::F32, &candle)?))
    };
    let (a, b) = (state(1.0)?, state(3.0)?);
    let (out, _) = packforcing_candle::merge_states(&device, (&a.0, &a.1), (&b.0, &b.1))?;
    let all = out.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    anyhow::ensure!(
        all.iter().all(|x| *x == 2.0),
        "two halves of 1 and 3 make {:?}",
        &all[..4]
    );
    Ok("a tensor of its own, in place".into())
}
