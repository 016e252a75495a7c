//! `match_tokens` of Wan blocks, each head by itself and all together, and the way back.
mod common;

use common::{devices, on_gpu, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::ops::match_tokens::Metric;
use packforcing_bench::cases::{match_tokens::Shape, merge_tokens};

fn matches(c: &mut Criterion) {
    for device in devices() {
        for &blocks in on_gpu(&device, &[1, 8]) {
            for metric in [Metric::PerHead, Metric::MeanOverHeads] {
                let blocks = merge_tokens::Shape {
                    blocks,
                    ..merge_tokens::Shape::default()
                };
                let shape = Shape { blocks, metric };
                let name = format!("wan_{}_{metric:?}_x{}", blocks.dtype, blocks.blocks);
                time(c, "match_tokens", &name, shape.case(&device));
                time(c, "unmerge_tokens", &name, shape.unmerge_case(&device));
            }
        }
    }
}

criterion_group!(benches, matches);
criterion_main!(benches);
