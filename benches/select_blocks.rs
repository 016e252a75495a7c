//! A choice of 16 among two minutes of blocks, and the key sums of one block, at Wan's sizes.
mod common;

use common::{devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing_bench::cases::select_blocks::{Shape, SumShape};

fn selections(c: &mut Criterion) {
    for device in devices() {
        for candidates in [116, 2_048] {
            let shape = Shape {
                candidates,
                ..Shape::default()
            };
            time(c, "select_blocks", &format!("wan_{candidates}"), shape.case(&device));
        }
        time(c, "sum_keys", "wan_mid", SumShape::default().case(&device));
    }
}

criterion_group!(benches, selections);
criterion_main!(benches);
