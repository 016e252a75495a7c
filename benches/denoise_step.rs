//! Steps of a sampler, beside a copy of as many bytes.
mod common;

use common::{Work, devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, denoise_step, rows};
use packforcing::ops::guidance::{Guidance, GuidanceWeights, guidance};
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
            noise_base: None,
            guidance: None,
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
    guided(c, device, size, shape)?;
    copy(c, device, size, bytes / 2)
}

/// The two passes of guidance over velocities in bf16: the weights, and the step that takes them.
fn guided(c: &mut Criterion, device: &Device, size: &str, shape: &[usize]) -> Result<()> {
    let frames = shape[1];
    let mut x = Tensor::zeros(device, DType::F32, shape)?;
    let [cond, uncond] = [
        Tensor::zeros(device, DType::BF16, shape)?,
        Tensor::zeros(device, DType::BF16, shape)?,
    ];
    let mut weights = GuidanceWeights::new(device, shape, 1)?;
    let zero_star = Guidance {
        cond: cond.view(),
        uncond: uncond.view(),
        frame_axis: 1,
        scale: 5.0,
        zero_star: true,
        rescale: 0.7,
    };
    let read = Work::Bytes(cond.bytes() + uncond.bytes());
    let case = format!("guidance_weights_{size}");
    time(c, "denoise_step", &case, &read, device, || {
        guidance(&zero_star, &mut weights)
    });

    let euler = rows::euler(&vec![0.9; frames], &vec![0.8; frames]);
    let step = DenoiseStep {
        terms: vec![cond.view(), uncond.view()],
        in_place: 1,
        frame_axis: 1,
        coefficients: &Coefficients::new(device, &[rows::weighted(euler)])?,
        noise: None,
        noise_base: None,
        guidance: Some(&weights),
    };
    let moved = Work::Bytes(2 * x.bytes() + cond.bytes() + uncond.bytes());
    let case = format!("guided_euler_{size}");
    time(c, "denoise_step", &case, &moved, device, || {
        denoise_step(&step, &mut [x.view_mut()])
    });
    Ok(())
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
