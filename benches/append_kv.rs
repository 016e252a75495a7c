//! `append_kv` of a Wan block, beside a copy of as many bytes.
mod common;

use common::{copy, devices, on_gpu, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing_bench::cases::append_kv::Shape;

fn blocks(c: &mut Criterion) {
    for device in devices() {
        for &streams in on_gpu(&device, &[1, 4]) {
            let shape = Shape {
                streams,
                ..Shape::default()
            };
            let name = format!("wan_{}_x{streams}", shape.dtype);
            let case = shape.case(&device);
            let bytes = case.as_ref().map_or(0, |case| case.work().bytes);
            time(c, "append_kv", &name, case);
            copy(c, "append_kv", &name, &device, bytes);
        }
    }
}

criterion_group!(benches, blocks);
criterion_main!(benches);
