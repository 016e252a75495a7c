//! A choice of 16 among two minutes of blocks, and the key sums of one block, at Wan's sizes.
mod common;

use common::{Work, devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::ops::select_blocks::{
    BlockShape, Scores, SelectBlocks, SumKeys, query_chunks, select_blocks, sum_keys,
};
use packforcing::paging::{Context, KvPages, PageLists, Segment};
use packforcing::{DType, Device, Result, Tensor};

const HEADS: usize = 12;
const DIM: usize = 128;
const TOKENS: usize = 6_240;
const PAGE_TOKENS: usize = 96;
const SELECTED: usize = 16;
const MID_TOKENS: usize = 182;

fn choice(c: &mut Criterion, device: &Device, blocks: usize) -> Result<()> {
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(device, dtype, shape);
    let pool = (4 * 65 + 2 * blocks, PAGE_TOKENS);
    let run = |first: u32, pages: u32, rotation: f32| Segment {
        rotation,
        ..Segment::new((first..first + pages).collect(), pages as usize * PAGE_TOKENS)
    };
    let draft = vec![run(0, 130, 12.0), run(130, 65, 4.0), run(195, 65, 0.0)];
    let slots: Vec<Vec<u32>> = (0..blocks as u32).map(|b| vec![260 + 2 * b, 261 + 2 * b]).collect();
    let order: Vec<i32> = (0..blocks as i32).collect();
    let chunks = query_chunks(TOKENS);
    let q = zeros(DType::BF16, &[1, TOKENS, HEADS, DIM])?;
    let key_sums = zeros(DType::F32, &[blocks, HEADS, DIM])?;
    let mut query_sums = zeros(DType::F32, &[1, chunks, HEADS, DIM])?;
    let mut scores = zeros(DType::F32, &[1, blocks])?;
    let candidates = Tensor::from_slice(device, &order, &[1, blocks])?;
    let counts = Tensor::from_slice(device, &[blocks as i32], &[1])?;
    let prefix = Tensor::from_slice(device, &[1i32], &[1])?;
    let mut chosen = zeros(DType::I32, &[1, SELECTED])?;
    let mut context = Context::new(device, pool, 1, 260 + 2 * SELECTED, 3 + SELECTED)?;
    let work = Work::Bytes(q.bytes() + key_sums.bytes());
    let mut args = SelectBlocks {
        scores: Scores::Dot {
            q: q.view(),
            key_sums: key_sums.view(),
            query_sums: query_sums.view_mut(),
            scores: scores.view_mut(),
        },
        candidates: candidates.view(),
        counts: counts.view(),
        slot_pages: &PageLists::from_host(device, pool.0, &slots)?,
        shape: BlockShape {
            tokens: MID_TOKENS,
            frames: 4.0,
            key_bias: 0.0,
            slot_bias: false,
        },
        selected: SELECTED,
        draft: &Context::from_host(device, pool, &[draft])?,
        draft_prefix: prefix.view(),
    };
    time(c, "select_blocks", &format!("wan_{blocks}"), &work, device, || {
        select_blocks(&mut args, &mut chosen.view_mut(), &mut context)
    });
    Ok(())
}

fn key_sums(c: &mut Criterion, device: &Device) -> Result<()> {
    let k = Tensor::zeros(device, DType::BF16, &[2, HEADS, PAGE_TOKENS, DIM])?;
    let rows = Tensor::from_slice(device, &[0i32], &[1])?;
    let mut sums = Tensor::zeros(device, DType::F32, &[1, HEADS, DIM])?;
    let args = SumKeys {
        kv: KvPages {
            k: k.view(),
            v: k.view(),
            slot_bias: None,
        },
        pages: &PageLists::from_host(device, 2, &[vec![0, 1]])?,
        rows: rows.view(),
        tokens: MID_TOKENS,
    };
    let work = Work::Bytes(MID_TOKENS * HEADS * DIM * 2);
    time(c, "sum_keys", "wan_mid", &work, device, || {
        sum_keys(&args, &mut sums.view_mut())
    });
    Ok(())
}

fn all(c: &mut Criterion) {
    for device in devices() {
        for blocks in [116, 2_048] {
            choice(c, &device, blocks).unwrap_or_else(|e| panic!("{blocks}: {e}"));
        }
        key_sums(c, &device).unwrap_or_else(|e| panic!("sum_keys: {e}"));
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
