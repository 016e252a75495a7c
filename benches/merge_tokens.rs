//! `merge_tokens` of Wan blocks, beside a copy of as many bytes.
mod common;

use common::{copy, devices, on_gpu, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing_bench::cases::merge_tokens::Shape;

fn merges(c: &mut Criterion) {
    for device in devices() {
        for &blocks in on_gpu(&device, &[1, 8]) {
            let shape = Shape {
                blocks,
                ..Shape::default()
            };
            let name = format!("wan_{}_x{blocks}", shape.dtype);
            let case = shape.case(&device);
            let bytes = case.as_ref().map_or(0, |case| case.work().bytes);
            time(c, "merge_tokens", &name, case);
            copy(c, "merge_tokens", &name, &device, bytes);
        }
    }
}

criterion_group!(benches, merges);
criterion_main!(benches);
