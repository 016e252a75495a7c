//! The launch for CUDA and SIMT: one block a merged token, its keys or its values.

use smallvec::SmallVec;

use super::{MergeTokens, Shape};
use crate::device::{Launch, Span};
use crate::error::Result;
use crate::ffi;
use crate::ops::check::{Check, MAX_HEAD_DIM, ensure, kernel_of, strides};
use crate::paging::KvPagesMut;
use crate::tensor::ViewMut;

/// `kThreads` of the kernel: the largest block.
const THREADS: usize = 256;
/// `kTurns` of the kernel: rotations of its table, one for each pair and place along an axis.
const TURNS: usize = 4096;
/// `sizeof(Plan)` of the kernel: the table, and 24 bytes for each of `kStage` tokens.
const SHARED: usize = 8 * TURNS + 24 * 128;

pub(super) fn checked(check: &Check<'_>, args: &MergeTokens<'_>, shape: &Shape, kv: &KvPagesMut<'_>) -> Result<()> {
    let device = check.device.kind().name();
    let lane = 16 / kv.k.dtype().bytes();
    ensure!(
        check,
        shape.dim.is_multiple_of(lane) && shape.dim <= MAX_HEAD_DIM,
        "kv.k",
        format!("a head dim in multiples of {lane}, at most {MAX_HEAD_DIM}, on the {device} device"),
        shape.dim.to_string()
    );
    let most = TURNS / (shape.dim / 2);
    ensure!(
        check,
        cell(args, shape).iter().all(|&n| n <= most),
        "pool.cell",
        format!("extents of at most {most} on the {device} device"),
        format!("{:?}", args.pool.cell)
    );
    ensure!(
        check,
        shape.batch <= 65_535,
        "source",
        format!("at most 65535 blocks on the {device} device"),
        shape.batch.to_string()
    );
    let (groups, _) = groups(shape, kv);
    ensure!(
        check,
        2 * groups <= 65_535,
        "kv.k",
        format!("heads for at most 32767 groups of threads on the {device} device"),
        format!("{} heads for {groups}", shape.heads)
    );
    check.aligned_rows("kv.k", &kv.k, kv.k.address())?;
    check.aligned_rows("kv.v", &kv.v, kv.v.address())
}

/// Threads stand as heads x 16-byte vectors of a head; heads that do not fit go to other blocks. How many groups of
/// heads there are, and threads for each.
fn groups(shape: &Shape, kv: &KvPagesMut<'_>) -> (usize, usize) {
    let lanes = shape.dim * kv.k.dtype().bytes() / 16;
    let groups = (shape.heads * lanes).div_ceil(THREADS);
    let threads = (shape.heads.div_ceil(groups) * lanes).next_multiple_of(32).min(THREADS);
    (shape.heads.div_ceil(threads / lanes), threads)
}

/// The largest cell that the grid has.
fn cell(args: &MergeTokens<'_>, shape: &Shape) -> [usize; 3] {
    std::array::from_fn(|axis| args.pool.cell[axis].min(shape.grid[axis]))
}

pub(super) fn run(args: &MergeTokens<'_>, shape: &Shape, kv: &mut KvPagesMut<'_>) -> Result<()> {
    let bias = kv.slot_bias.as_ref();
    let params = ffi::MergeTokensParams {
        k_pages: kv.k.address(),
        v_pages: kv.v.address(),
        slot_bias: bias.map_or(0, ViewMut::address),
        source: args.source.view().address(),
        dest: args.dest.view().address(),
        k_page_strides: strides(&kv.k),
        v_page_strides: strides(&kv.v),
        bias_strides: bias.map_or([0; 2], strides),
        rope: args.rope.params(),
        grid: shape.grid.map(|n| n as i32),
        cell: cell(args, shape).map(|n| n as i32),
        out: shape.out.map(|n| n as i32),
        batch: shape.batch as i32,
        kv_heads: shape.heads as i32,
        dim: shape.dim as i32,
        page_tokens: shape.page_tokens as i32,
        source_pages: args.source.length() as i32,
        dest_pages: args.dest.length() as i32,
        reserved: 0,
    };
    let mut memory: SmallVec<[Span; 5]> = SmallVec::from_slice(&[
        args.source.view().span(),
        args.dest.view().span(),
        kv.k.span(),
        kv.v.span(),
    ]);
    memory.extend(bias.map(ViewMut::span));

    let (groups, threads) = groups(shape, kv);
    kv.k.device().launch(&Launch {
        module: "merge_tokens",
        kernel: kernel_of!("merge_tokens", kv.k.dtype()),
        grid: [shape.used_pages * shape.page_tokens, shape.batch, 2 * groups],
        threads,
        shared: SHARED,
        params: &params,
        memory: &memory,
    })
}
