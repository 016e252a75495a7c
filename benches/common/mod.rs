//! What every bench shares: the devices that are here, and one way to time.
#![allow(dead_code)]

use criterion::{Criterion, Throughput};
use packforcing::{Device, Result};

/// The CPU, and a GPU where there is one. The SIMT device is no place to measure.
pub fn devices() -> Vec<Device> {
    let mut devices = vec![Device::cpu()];
    match Device::cuda(0) {
        Ok(cuda) => devices.push(cuda),
        Err(e) => eprintln!("no cuda: {e}"),
    }
    devices
}

/// What one call does.
pub enum Work {
    /// Bytes read and written.
    Bytes(usize),
    /// Floating point operations.
    Flops(f64),
}

/// Times `call` by the device's own clock.
pub fn time(
    c: &mut Criterion,
    op: &str,
    case: &str,
    work: &Work,
    device: &Device,
    mut call: impl FnMut() -> Result<()>,
) {
    let mut group = c.benchmark_group(op);
    group.sample_size(10);
    group.throughput(match *work {
        Work::Bytes(n) => Throughput::Bytes(n as u64),
        Work::Flops(n) => Throughput::Elements(n as u64),
    });
    group.bench_function(format!("{}/{case}", device.kind().name()), |b| {
        b.iter_custom(|n| {
            device
                .time(|| (0..n).try_for_each(|_| call()))
                .unwrap_or_else(|e| panic!("{op}/{case}: {e}"))
        });
    });
    group.finish();
}
