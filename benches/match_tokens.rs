//! `match_tokens` of Wan blocks, each head by itself and all together, and the way back.
mod common;

use common::{Work, devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::ops::match_tokens::{
    MatchTokens, Matching, Merges, Metric, SoftMatch, UnmergeTokens, match_tokens, unmerge_tokens,
};
use packforcing::paging::{KvPagesMut, PageLists};
use packforcing::{DType, Device, DeviceKind, Grid, Result, Rope3d, Tensor};

const BLOCK: Grid = Grid {
    frames: 4,
    rows: 30,
    cols: 52,
};
const CELL: [usize; 3] = [2, 4, 4];
const HEADS: usize = 12;
const DIM: usize = 128;
const PAGE: usize = 96;

fn blocks(c: &mut Criterion, device: &Device, dtype: DType, metric: Metric, batch: usize) -> Result<()> {
    let how = SoftMatch {
        metric,
        ..SoftMatch::strided(CELL)
    };
    let (tokens, destinations) = (BLOCK.tokens().0, how.destinations.count(BLOCK));
    let (whole, mid) = (tokens.div_ceil(PAGE), destinations.div_ceil(PAGE));
    let shape = [batch * (whole + mid), HEADS, PAGE, DIM];
    // Any keys that are not all alike; sizes of merged tokens depend on them, the work does not.
    let noise: Vec<f32> = (0..shape.iter().product::<usize>() as u32)
        .map(|i| (i.wrapping_mul(0x9E37_79B9) >> 16) as f32 / 32_768.0 - 1.0)
        .collect();
    let mut k = Tensor::from_f32(device, dtype, &noise, &shape)?;
    let mut v = Tensor::from_f32(device, dtype, &noise, &shape)?;
    let mut bias = Tensor::zeros(device, DType::F32, &shape[..3])?;
    let lists = |first: usize, pages: usize| {
        let list = |block: usize| (0..pages).map(|i| (first + block * pages + i) as u32).collect();
        PageLists::from_host(device, shape[0], &(0..batch).map(list).collect::<Vec<_>>())
    };
    let (source, dest) = (lists(0, whole)?, lists(batch * whole, mid)?);
    let mut matching = Matching::new(device, how, BLOCK, &Rope3d::wan(DIM), (batch, HEADS))?;
    let args = MatchTokens {
        source: &source,
        dest: &dest,
        merges: Merges::Top(usize::MAX),
        weighted: false,
    };
    let flops = 2.0 * (batch * tokens * destinations * HEADS * DIM) as f64;
    let case = format!("wan_{dtype}_{metric:?}_x{batch}");
    time(c, "match_tokens", &case, &Work::Flops(flops), device, || {
        let mut kv = KvPagesMut {
            k: k.view_mut(),
            v: v.view_mut(),
            slot_bias: Some(bias.view_mut()),
        };
        match_tokens(&args, &mut matching, &mut kv)
    });

    let x = Tensor::zeros(device, dtype, &[batch, destinations, HEADS, DIM])?;
    let mut out = Tensor::zeros(device, dtype, &[batch, tokens, HEADS, DIM])?;
    let args = UnmergeTokens {
        x: x.view(),
        map: matching.map(),
    };
    let bytes = x.bytes() + out.bytes() + matching.map().elements() * 4;
    time(c, "unmerge_tokens", &case, &Work::Bytes(bytes), device, || {
        unmerge_tokens(&args, &mut out.view_mut())
    });
    Ok(())
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
            for metric in [Metric::PerHead, Metric::MeanOverHeads] {
                blocks(c, &device, DType::BF16, metric, batch).unwrap_or_else(|e| panic!("{device}: {e}"));
            }
        }
    }
}

criterion_group!(all, benches);
criterion_main!(all);
