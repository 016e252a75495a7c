//! Attention at the shapes of a long video, and a plain matrix product beside it.
mod common;

use common::{devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::{DType, DeviceKind};
use packforcing_bench::cases::attention::Shape;

fn attentions(c: &mut Criterion) {
    let block = Shape::default();
    let small = Shape {
        queries: 256,
        keys: 692,
        heads: 4,
        kv_heads: 4,
        page_tokens: 32,
        segments: Some(5),
        ..block
    };
    let frame = Shape {
        queries: 1_560,
        keys: 8_192,
        dtype: DType::F32,
        segments: Some(1),
        ..block
    };
    let contiguous = Shape {
        contiguous: true,
        ..block
    };
    for device in devices() {
        let shapes: &[(&str, Shape)] = match device.kind() {
            DeviceKind::Cuda => &[
                ("small_paged_bf16", small),
                ("wan_block_bf16", block),
                ("wan_contiguous_bf16", contiguous),
            ],
            _ => &[("small_paged_bf16", small), ("wan_frame_f32", frame)],
        };
        for (name, shape) in shapes {
            time(c, "attention", name, shape.case(&device));
        }
    }
}

/// What the CPU's case is to be compared with: the same operations in a plain product.
fn product(c: &mut Criterion) {
    time(c, "attention", "gemm_f32", Ok(packforcing_bench::floor::product()));
}

criterion_group!(benches, attentions, product);
criterion_main!(benches);
