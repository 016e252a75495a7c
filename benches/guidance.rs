//! The weights of guidance from two velocities, of Wan's latents and of many more.
mod common;

use common::{devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::DeviceKind;
use packforcing_bench::cases::denoise_step::Shape;
use packforcing_bench::cases::{WAN_LATENTS, guidance};

fn weights(c: &mut Criterion) {
    for device in devices() {
        let large = match device.kind() {
            DeviceKind::Cuda => [16, 64, 256, 256],
            _ => [16, 16, 128, 128],
        };
        for (size, latents) in [("wan_block", WAN_LATENTS), ("large", large)] {
            let shape = Shape {
                latents,
                ..Shape::default()
            };
            time(c, "guidance", size, guidance::case(&shape, &device));
        }
    }
}

criterion_group!(benches, weights);
criterion_main!(benches);
