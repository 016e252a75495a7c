//! `append_kv` of a Wan block, beside a copy of as many bytes.
mod common;

use common::{Work, copy, devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::ops::append_kv::{AppendKv, Lattice, Norm, append_kv};
use packforcing::paging::{KvPagesMut, PageLists};
use packforcing::{DType, Device, DeviceKind, Grid, Result, Rope3d, Tensor};

const BLOCK: Grid = Grid {
    frames: 4,
    rows: 30,
    cols: 52,
};
const HEADS: usize = 12;
const DIM: usize = 128;
const PAGE: usize = 96;

fn block(c: &mut Criterion, device: &Device, dtype: DType, streams: usize) -> Result<()> {
    let tokens = BLOCK.tokens().0;
    let pages = tokens.div_ceil(PAGE);
    let ones = |shape: &[usize]| Tensor::from_f32(device, dtype, &vec![1.0; shape.iter().product()], shape);
    let [q, k, v] = [(); 3].map(|()| ones(&[streams, tokens, HEADS, DIM]));
    let (q, k, v, weight) = (q?, k?, v?, ones(&[HEADS * DIM])?);
    let mut q_out = Tensor::zeros(device, dtype, q.shape())?;
    let pool = [streams * pages, HEADS, PAGE, DIM];
    let mut k_pages = Tensor::zeros(device, dtype, &pool)?;
    let mut v_pages = Tensor::zeros(device, dtype, &pool)?;
    let list = |stream: usize| (stream * pages..(stream + 1) * pages).map(|p| p as u32).collect();
    let lists: Vec<Vec<u32>> = (0..streams).map(list).collect();
    let lists = PageLists::from_host(device, pool[0], &lists)?;
    let rope = Rope3d::wan(DIM);
    let args = AppendKv {
        q: Some(q.view()),
        k: k.view(),
        v: v.view(),
        norm: Some(Norm {
            q_weight: weight.view(),
            k_weight: weight.view(),
            eps: 1e-6,
        }),
        rope: &rope,
        lattice: Lattice::whole(BLOCK),
        origins: None,
        pages: &lists,
    };
    let bytes = 3 * q.bytes();
    let case = format!("wan_{dtype}_x{streams}");
    time(c, "append_kv", &case, &Work::Bytes(2 * bytes), device, || {
        let mut kv = KvPagesMut {
            k: k_pages.view_mut(),
            v: v_pages.view_mut(),
            slot_bias: None,
        };
        append_kv(&args, Some(&mut q_out.view_mut()), &mut kv)
    });
    copy(c, "append_kv", &case, device, bytes)
}

fn benches(c: &mut Criterion) {
    for device in devices() {
        // Four streams: 460 MB, past any L2.
        let streams: &[usize] = if device.kind() == DeviceKind::Cuda {
            &[1, 4]
        } else {
            &[1]
        };
        for &n in streams {
            block(c, &device, DType::BF16, n).unwrap_or_else(|e| panic!("{device}: {e}"));
        }
    }
}

criterion_group!(all, benches);
criterion_main!(all);
