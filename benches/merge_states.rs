//! Merging the results of one Wan block, and of eight.
mod common;

use common::{devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::DType;
use packforcing_bench::cases::merge_states::Shape;

fn merges(c: &mut Criterion) {
    for device in devices() {
        for (name, dtype, queries) in [
            ("block_bf16", DType::BF16, 6_240),
            ("block_f32", DType::F32, 6_240),
            ("eight_blocks_bf16", DType::BF16, 49_920),
        ] {
            let shape = Shape {
                queries,
                dtype,
                ..Shape::default()
            };
            time(c, "merge_states", name, shape.case(&device));
        }
    }
}

criterion_group!(benches, merges);
criterion_main!(benches);
