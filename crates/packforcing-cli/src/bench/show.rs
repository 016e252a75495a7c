//! What a bench prints: one JSON object, or a few lines.

use std::io::{self, Write};

use packforcing::DType;
use packforcing_bench::timer::Timing;
use packforcing_bench::{Case, floor};
use serde::Serialize;
use serde_json::Value;

/// One op at one shape. docs/benchmarks.md tells what each field means.
#[derive(Debug, Serialize)]
pub struct Record {
    op: &'static str,
    device: String,
    dtype: &'static str,
    shape: Value,
    samples: usize,
    calls_per_sample: u64,
    copies: usize,
    graph: bool,
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    spread: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    flops: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tflops: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gbps: Option<f64>,
    floor: Option<Floor>,
    share: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Floor {
    what: String,
    value: f64,
    unit: &'static str,
    ms: f64,
}

impl Record {
    pub fn new(case: &Case, dtype: DType, shape: Value, timing: &Timing, floor: Option<floor::Floor>) -> Record {
        let (work, median) = (case.work(), timing.median());
        let flops = Some(work.flops).filter(|&n| n > 0.0);
        let bytes = Some(work.bytes).filter(|&n| n > 0);
        Record {
            op: case.op(),
            device: case.device().to_string(),
            dtype: dtype.name(),
            shape,
            samples: timing.samples(),
            calls_per_sample: timing.calls(),
            copies: case.copies(),
            graph: case.is_graph(),
            median_ms: 1e3 * median,
            min_ms: 1e3 * timing.min(),
            max_ms: 1e3 * timing.max(),
            spread: timing.spread(),
            flops,
            tflops: flops.map(|n| 1e-12 * n / median),
            bytes,
            gbps: bytes.map(|n| 1e-9 * n as f64 / median),
            share: floor.as_ref().map(|floor| floor.seconds / median),
            floor: floor.map(|floor| Floor {
                what: floor.what,
                value: floor.value,
                unit: floor.unit,
                ms: 1e3 * floor.seconds,
            }),
        }
    }

    /// A short table.
    pub fn show(&self, to: &mut impl Write) -> io::Result<()> {
        let Record { op, device, dtype, .. } = self;
        writeln!(to, "{op:<9} {dtype} on {device}")?;
        if let Value::Object(shape) = &self.shape {
            let shape: Vec<String> = shape.iter().map(|(name, n)| format!("{name} {n}")).collect();
            writeln!(to, "shape     {}", shape.join(", "))?;
        }
        writeln!(
            to,
            "time      {} ms (from {} to {}, middle half within {:.1}%)",
            digits(self.median_ms),
            digits(self.min_ms),
            digits(self.max_ms),
            100.0 * self.spread
        )?;
        writeln!(
            to,
            "samples   {} of {} calls, {} copies of the buffers in turn{}",
            self.samples,
            self.calls_per_sample,
            self.copies,
            if self.graph { ", as one graph" } else { "" }
        )?;
        let rates = [(self.tflops, "TFLOP/s"), (self.gbps, "GB/s")];
        for (rate, unit) in rates.iter().filter_map(|(rate, unit)| Some((rate.as_ref()?, unit))) {
            writeln!(to, "rate      {} {unit}", digits(*rate))?;
        }
        match (&self.floor, self.share) {
            (Some(floor), Some(share)) => writeln!(
                to,
                "floor     {} ms at {} {}: {}\nshare     {:.1}%",
                digits(floor.ms),
                digits(floor.value),
                floor.unit,
                floor.what,
                100.0 * share
            ),
            _ => writeln!(to, "floor     none known for this device"),
        }
    }
}

/// Four digits that count.
fn digits(x: f64) -> String {
    let before = x.abs().max(1e-9).log10().floor() as i32 + 1;
    format!("{x:.*}", (4 - before).clamp(0, 9) as usize)
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn four_digits_count() {
        let shown = [12_345.6, 123.456, 1.234_56, 0.012_345_6, 0.0].map(digits);
        assert_eq!(shown[..4], ["12346", "123.5", "1.235", "0.01235"]);
    }
}
