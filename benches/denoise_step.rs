//! Steps of a sampler, beside a copy of as many bytes.
mod common;

use common::{Work, devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, denoise_step, rows};
use packforcing::{DType, Device, DeviceKind, Result, Tensor};

/// x in f32, stepped in place along a velocity in bf16, frames in dimension 1.
fn steps(c: &mut Criterion, device: &Device, size: &str, shape: &[usize]) -> Result<()> {
    let frames = shape[1];
    let mut x = Tensor::zeros(device, DType::F32, shape)?;
    let v = Tensor::zeros(device, DType::BF16, shape)?;
    let bytes = 2 * x.bytes() + v.bytes();
    let sigma = |s: f64| vec![s; frames];
    let kinds = [
        ("euler", rows::euler(&sigma(0.9), &sigma(0.8)), None),
        (
            "renoise",
            rows::renoise(&sigma(0.9), &sigma(0.8)),
            Some(Noise { seed: 1, offset: 0 }),
        ),
    ];
    for (kind, rows, noise) in kinds {
        let args = DenoiseStep {
            terms: vec![v.view()],
            in_place: 1,
            frame_axis: 1,
            coefficients: &Coefficients::new(device, &[rows])?,
            noise,
        };
        time(
            c,
            "denoise_step",
            &format!("{kind}_{size}"),
            &Work::Bytes(bytes),
            device,
            || denoise_step(&args, &mut [x.view_mut()]),
        );
    }
    copy(c, device, size, bytes / 2)
}

/// The machine's own copy: it reads and writes `bytes` each.
fn copy(c: &mut Criterion, device: &Device, size: &str, bytes: usize) -> Result<()> {
    let from = Tensor::zeros(device, DType::U8, &[bytes])?;
    let to = Tensor::zeros(device, DType::U8, &[bytes])?;
    let (source, destination) = (from.address(), to.address());
    time(
        c,
        "denoise_step",
        &format!("copy_{size}"),
        &Work::Bytes(2 * bytes),
        device,
        || {
            match device.as_cuda() {
                Some(cuda) => {
                    // SAFETY: both tensors live on this device and hold so many bytes.
                    let copied = unsafe {
                        packforcing::cudarc::driver::result::memcpy_dtod_async(
                            destination,
                            source,
                            bytes,
                            cuda.stream().cu_stream(),
                        )
                    };
                    assert!(copied.is_ok(), "a copy failed");
                }
                // SAFETY: both tensors are of this machine's memory, hold so many bytes, and nothing
                // else touches them.
                None => unsafe { std::ptr::copy_nonoverlapping(source as *const u8, destination as *mut u8, bytes) },
            }
            Ok(())
        },
    );
    Ok(())
}

fn all(c: &mut Criterion) {
    for device in devices() {
        // A block of Wan's latents, and one that no cache holds.
        let large: &[usize] = match device.kind() {
            DeviceKind::Cuda => &[16, 64, 256, 256],
            _ => &[16, 16, 128, 128],
        };
        for (size, shape) in [("wan_block", &[16, 4, 60, 104][..]), ("large", large)] {
            steps(c, &device, size, shape).unwrap_or_else(|e| panic!("{size}: {e}"));
        }
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
