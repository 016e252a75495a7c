//! Steps of a sampler, beside a copy of as many bytes.
mod common;

use common::{copy, devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::DeviceKind;
use packforcing_bench::cases::WAN_LATENTS;
use packforcing_bench::cases::denoise_step::{Shape, Solver};

fn steps(c: &mut Criterion) {
    for device in devices() {
        // A block of Wan's latents, and one that no cache holds.
        let large = match device.kind() {
            DeviceKind::Cuda => [16, 64, 256, 256],
            _ => [16, 16, 128, 128],
        };
        for (size, latents) in [("wan_block", WAN_LATENTS), ("large", large)] {
            let euler = Shape {
                latents,
                ..Shape::default()
            };
            let renoise = Shape {
                solver: Solver::Renoise,
                ..euler
            };
            let guided = Shape { guided: true, ..euler };
            for (kind, shape) in [("euler", euler), ("renoise", renoise), ("guided_euler", guided)] {
                time(c, "denoise_step", &format!("{kind}_{size}"), shape.case(&device));
            }
            let bytes = latents.iter().product::<usize>() * (2 * 4 + euler.dtype.bytes());
            copy(c, "denoise_step", size, &device, bytes);
        }
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
