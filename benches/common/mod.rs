//! What every bench shares: the devices that are here, and one way to time.
#![allow(dead_code)]

use criterion::{Criterion, Throughput};
use packforcing::{DType, Device, Result, Tensor};

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

/// The device's own copy of `bytes`, to hold a bandwidth against: it reads and writes as many.
pub fn copy(c: &mut Criterion, op: &str, case: &str, device: &Device, bytes: usize) -> Result<()> {
    let from = Tensor::zeros(device, DType::U8, &[bytes])?;
    let to = Tensor::zeros(device, DType::U8, &[bytes])?;
    let (source, target) = (from.address(), to.address());
    let case = format!("{case}_copy");
    time(c, op, &case, &Work::Bytes(2 * bytes), device, || {
        if let Some(cuda) = device.as_cuda() {
            use packforcing::cudarc::driver::result::memcpy_dtod_async;
            // SAFETY: both tensors are this device's, hold so many bytes and live past the stream's work.
            let copied = unsafe { memcpy_dtod_async(target, source, bytes, cuda.stream().cu_stream()) };
            copied.unwrap_or_else(|e| panic!("a copy: {e:?}"));
        } else {
            // SAFETY: both tensors are host memory of so many bytes, and nothing else reads or writes them.
            unsafe { std::ptr::copy_nonoverlapping(source as *const u8, target as *mut u8, bytes) };
        }
        Ok(())
    });
    Ok(())
}
