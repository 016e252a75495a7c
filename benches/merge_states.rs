//! Merging the results of one Wan block, and of eight (past every L2).
mod common;

use common::{Work, devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::ops::merge_states::{State, merge_states};
use packforcing::{DType, Device, Result, Tensor};

fn case(c: &mut Criterion, device: &Device, name: &str, dtype: DType, rows: usize) -> Result<()> {
    const HEADS: usize = 12;
    const DIM: usize = 128;
    let out = || Tensor::zeros(device, dtype, &[rows, HEADS, DIM]);
    let lse = || Tensor::zeros(device, DType::F32, &[rows, HEADS]);
    let (a, b, a_lse, b_lse) = (out()?, out()?, lse()?, lse()?);
    let (mut merged, mut merged_lse) = (out()?, lse()?);
    let work = Work::Bytes(3 * rows * HEADS * (DIM * dtype.bytes() + 4));
    time(c, "merge_states", name, &work, device, || {
        let a = State {
            out: a.view(),
            lse: a_lse.view(),
        };
        let b = State {
            out: b.view(),
            lse: b_lse.view(),
        };
        merge_states(&a, &b, &mut merged.view_mut(), &mut merged_lse.view_mut())
    });
    Ok(())
}

fn merges(c: &mut Criterion) {
    for device in devices() {
        for (name, dtype, rows) in [
            ("block_bf16", DType::BF16, 6_240),
            ("block_f32", DType::F32, 6_240),
            ("eight_blocks_bf16", DType::BF16, 49_920),
        ] {
            case(c, &device, name, dtype, rows).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

criterion_group!(benches, merges);
criterion_main!(benches);
