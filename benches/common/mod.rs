//! What every bench shares: the devices that are here, and criterion over the cases and the timer
//! of packforcing-bench.

use criterion::{Criterion, Throughput};
use packforcing::{Device, DeviceKind};
use packforcing_bench::{Case, Result, timer};

/// The CPU, and a GPU where there is one. The SIMT device and a double of the driver are no places to measure.
pub fn devices() -> Vec<Device> {
    let mut devices = vec![Device::cpu()];
    match Device::cuda(0) {
        Ok(double) if double.kind() == DeviceKind::CudaDouble => eprintln!("no cuda: {double} gives no times"),
        Ok(cuda) => devices.push(cuda),
        Err(e) => eprintln!("no cuda: {e}"),
    }
    devices
}

/// On a GPU these, where a large case is worth the wait; elsewhere the first alone.
#[allow(dead_code)]
pub fn on_gpu<'a, T>(device: &Device, all: &'a [T]) -> &'a [T] {
    if device.kind() == DeviceKind::Cuda {
        all
    } else {
        &all[..1]
    }
}

/// Times a case under its op's name.
pub fn time(c: &mut Criterion, op: &str, name: &str, case: Result<Case>) {
    let mut case = case.unwrap_or_else(|e| panic!("{op}/{name}: {e}"));
    let mut group = c.benchmark_group(op);
    group.sample_size(10);
    group.throughput(match case.work() {
        work if work.flops > 0.0 => Throughput::Elements(work.flops as u64),
        work => Throughput::Bytes(work.bytes as u64),
    });
    group.bench_function(format!("{}/{name}", case.device().kind().name()), |b| {
        b.iter_custom(|n| timer::time(&mut case, n).unwrap_or_else(|e| panic!("{op}/{name}: {e}")));
    });
    group.finish();
}

/// The device's own copy, to hold a case of as many bytes against.
#[allow(dead_code)]
pub fn copy(c: &mut Criterion, op: &str, name: &str, device: &Device, bytes: usize) {
    let case = packforcing_bench::floor::copy(device, bytes / 2);
    time(c, op, &format!("{name}_copy"), case.map_err(Into::into));
}
