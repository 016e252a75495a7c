//! `merge_tokens` of Wan blocks, beside a copy of as many bytes.
mod common;

use common::{Work, copy, devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::ops::merge_tokens::{MeanPool, MergeTokens, Remainder, merge_tokens};
use packforcing::paging::{KvPagesMut, PageLists};
use packforcing::{DType, Device, DeviceKind, Grid, Result, Rope3d, Tensor};

const BLOCK: Grid = Grid {
    frames: 4,
    rows: 30,
    cols: 52,
};
const POOL: MeanPool = MeanPool {
    cell: [2, 4, 4],
    remainder: Remainder::Drop,
};
const HEADS: usize = 12;
const DIM: usize = 128;
const PAGE: usize = 96;

fn blocks(c: &mut Criterion, device: &Device, dtype: DType, batch: usize) -> Result<()> {
    let (tokens, merged) = (BLOCK.tokens().0, POOL.output(BLOCK).tokens().0);
    let (whole, mid) = (tokens.div_ceil(PAGE), merged.div_ceil(PAGE));
    let shape = [batch * (whole + mid), HEADS, PAGE, DIM];
    let ones = vec![1.0; shape.iter().product()];
    let mut k = Tensor::from_f32(device, dtype, &ones, &shape)?;
    let mut v = Tensor::from_f32(device, dtype, &ones, &shape)?;
    let mut bias = Tensor::zeros(device, DType::F32, &shape[..3])?;
    let lists = |first: usize, pages: usize| {
        let list = |block: usize| (0..pages).map(|i| (first + block * pages + i) as u32).collect();
        PageLists::from_host(device, shape[0], &(0..batch).map(list).collect::<Vec<_>>())
    };
    let (source, dest) = (lists(0, whole)?, lists(batch * whole, mid)?);
    let rope = Rope3d::wan(DIM);
    let args = MergeTokens {
        source: &source,
        dest: &dest,
        grid: BLOCK,
        pool: POOL,
        rope: &rope,
    };
    // What falls into cells is read, what they become is written.
    let read = merged * POOL.cell.iter().product::<usize>();
    let bytes = 2 * batch * (read + merged) * HEADS * DIM * dtype.bytes();
    let case = format!("wan_{dtype}_x{batch}");
    time(c, "merge_tokens", &case, &Work::Bytes(bytes), device, || {
        let mut kv = KvPagesMut {
            k: k.view_mut(),
            v: v.view_mut(),
            slot_bias: Some(bias.view_mut()),
        };
        merge_tokens(&args, &mut kv)
    });
    copy(c, "merge_tokens", &case, device, bytes / 2)
}

fn benches(c: &mut Criterion) {
    for device in devices() {
        // Eight blocks: 290 MB, past any L2.
        let batches: &[usize] = if device.kind() == DeviceKind::Cuda {
            &[1, 8]
        } else {
            &[1]
        };
        for &batch in batches {
            blocks(c, &device, DType::BF16, batch).unwrap_or_else(|e| panic!("{device}: {e}"));
        }
    }
}

criterion_group!(all, benches);
criterion_main!(all);
