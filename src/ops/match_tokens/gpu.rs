//! The launches for CUDA and SIMT: scores, choice, means; and the way back.

use smallvec::SmallVec;

use super::{MatchTokens, Matching, Merges, Mode, OP_UNMERGE, Shape, UnmergeTokens};
use crate::device::{Launch, Span};
use crate::dtype::DType;
use crate::error::Result;
use crate::ffi;
use crate::ops::check::{Check, MAX_HEAD_DIM, ensure, kernel_of, strides};
use crate::paging::KvPagesMut;
use crate::tensor::{Tensor, ViewMut};

// As in match_tokens.cu.
const SCORE_THREADS: usize = 256;
const ROWS: usize = 128;
const CHOOSE_THREADS: usize = 512;
const MAX_TOKENS: usize = 16_384;
const STAGE: usize = 32;
const UNMERGE_THREADS: usize = 256;

/// The head dim that a kernel is made for.
fn padded(dim: usize) -> usize {
    if dim <= 64 { 64 } else { 128 }
}

fn score_kernel(dtype: DType, dim: usize) -> &'static str {
    match (dtype, padded(dim)) {
        (DType::F16, 64) => "score_tokens_f16_64",
        (DType::F16, _) => "score_tokens_f16_128",
        (DType::BF16, 64) => "score_tokens_bf16_64",
        (DType::BF16, _) => "score_tokens_bf16_128",
        (_, 64) => "score_tokens_f32_64",
        _ => "score_tokens_f32_128",
    }
}

/// Bytes of `ScorePlan`: keys of sources and of a tile of destinations, and for each of them a place of 24
/// bytes and a norm, for sources whether they are destinations.
fn score_shared(dtype: DType, dim: usize) -> usize {
    let (tile, row) = match dtype {
        DType::F32 => (32, 4 * padded(dim) + 16),
        _ => (64, 2 * padded(dim)),
    };
    ((ROWS + tile) * (row + 28) + 4 * ROWS).next_multiple_of(128)
}

/// Bytes of `ChoosePlan`: a key and a slot of every token, and the totals of warps.
const CHOOSE_SHARED: usize = 6 * MAX_TOKENS + 4 * CHOOSE_THREADS / 32;
/// Bytes of `MergePlan`.
const MERGE_SHARED: usize = 24 * STAGE;

pub(super) fn checked(check: &Check<'_>, shape: &Shape, kv: &KvPagesMut<'_>) -> Result<()> {
    let device = check.device.kind().name();
    let lane = 16 / kv.k.dtype().bytes();
    ensure!(
        check,
        shape.dim.is_multiple_of(lane) && shape.dim <= MAX_HEAD_DIM,
        "kv.k",
        format!("a head dim in multiples of {lane}, at most {MAX_HEAD_DIM}, on the {device} device"),
        shape.dim.to_string()
    );
    for (argument, what, got, most) in [
        ("kv.k", "heads", shape.heads, 65_535),
        ("kv.k", "tokens a page", shape.page_tokens, i32::MAX as usize),
        ("matching", "tokens a block", shape.tokens, MAX_TOKENS),
        ("source", "blocks", shape.batch, 65_535),
        (
            "source",
            "heads of all blocks",
            shape.batch * shape.heads,
            i32::MAX as usize,
        ),
    ] {
        ensure!(
            check,
            got <= most,
            argument,
            format!("at most {most} {what} on the {device} device"),
            got.to_string()
        );
    }
    let needed = score_shared(kv.k.dtype(), shape.dim).max(CHOOSE_SHARED);
    let limit = check.device.shared_memory_limit();
    ensure!(
        check,
        needed <= limit,
        "device",
        format!("one with {needed} bytes of shared memory a block"),
        format!("{} with {limit}", check.device)
    );
    check.aligned_rows("kv.k", &kv.k, kv.k.address())?;
    check.aligned_rows("kv.v", &kv.v, kv.v.address())
}

pub(super) fn run(
    args: &MatchTokens<'_>,
    shape: &Shape,
    matching: &mut Matching,
    kv: &mut KvPagesMut<'_>,
) -> Result<()> {
    let device = kv.k.device().clone();
    let dtype = kv.k.dtype();
    let bias = kv.slot_bias.as_ref();
    let params = ffi::MatchTokensParams {
        k_pages: kv.k.address(),
        v_pages: kv.v.address(),
        slot_bias: bias.map_or(0, ViewMut::address),
        source: args.source.view().address(),
        dest: args.dest.view().address(),
        destinations: matching.destinations.address(),
        turns: matching.turns.address(),
        nearest: matching.nearest.address(),
        similarity: matching.similarity.address(),
        map: matching.map.address(),
        counts: matching.counts.address(),
        members: matching.members.address(),
        starts: matching.starts.address(),
        k_page_strides: strides(&kv.k),
        v_page_strides: strides(&kv.v),
        bias_strides: bias.map_or([0; 2], strides),
        rope: matching.rope.params(),
        grid: matching.grid.extents().map(|n| n as i32),
        tokens: shape.tokens as i32,
        destination_count: matching.destinations.view().elements() as i32,
        kv_heads: shape.heads as i32,
        maps: shape.maps as i32,
        dim: shape.dim as i32,
        page_tokens: shape.page_tokens as i32,
        source_pages: args.source.length() as i32,
        dest_pages: args.dest.length() as i32,
        top: shape.top.map_or(-1, |n| n as i32),
        threshold: match args.merges {
            Merges::Above(threshold) => threshold,
            Merges::Top(_) => 0.0,
        },
        weighted: i32::from(args.weighted),
        replace: i32::from(matching.how.mode == Mode::Replace),
        reserved: 0,
    };
    let mut memory: SmallVec<[Span; 13]> = SmallVec::from_slice(&[
        kv.k.span(),
        kv.v.span(),
        args.source.view().span(),
        args.dest.view().span(),
        matching.destinations.view().span(),
        matching.turns.view().span(),
    ]);
    let written: [&mut Tensor; 6] = [
        &mut matching.nearest,
        &mut matching.similarity,
        &mut matching.map,
        &mut matching.counts,
        &mut matching.members,
        &mut matching.starts,
    ];
    memory.extend(written.map(|tensor| tensor.view_mut().span()));
    memory.extend(bias.map(ViewMut::span));
    let launch = |kernel: &'static str, grid, threads, shared| {
        device.launch(&Launch {
            module: "match_tokens",
            kernel,
            grid,
            threads,
            shared,
            params: &params,
            memory: &memory,
        })
    };
    launch(
        score_kernel(dtype, shape.dim),
        [shape.tokens.div_ceil(ROWS), shape.maps, shape.batch],
        SCORE_THREADS,
        score_shared(dtype, shape.dim),
    )?;
    launch(
        "choose_tokens",
        [shape.batch * shape.maps, 1, 1],
        CHOOSE_THREADS,
        CHOOSE_SHARED,
    )?;
    // Half of the threads for keys, half for values, 16 bytes each.
    let lanes = shape.dim * dtype.bytes() / 16;
    launch(
        kernel_of!("merge_members", dtype),
        [shape.used_pages * shape.page_tokens, shape.heads, shape.batch],
        (2 * lanes).next_multiple_of(32),
        MERGE_SHARED,
    )
}

pub(super) fn unmerge(args: &UnmergeTokens<'_>, out: &mut ViewMut<'_>) -> Result<()> {
    let device = out.device().clone();
    let check = Check {
        op: OP_UNMERGE,
        device: &device,
    };
    let &[batch, tokens, heads, dim] = out.shape() else {
        return check.fail("out", "[batch, tokens, heads, dim]", format!("{:?}", out.shape()));
    };
    let lane = 16 / out.dtype().bytes();
    let vectors = dim.is_multiple_of(lane)
        && check.aligned_rows("x", &args.x, args.x.address()).is_ok()
        && check.aligned_rows("out", &*out, out.address()).is_ok();
    let threads = tokens
        .checked_mul(heads)
        .and_then(|n| n.checked_mul(if vectors { dim / lane } else { dim }))
        .filter(|n| n.div_ceil(UNMERGE_THREADS) <= i32::MAX as usize);
    let Some(threads) = threads else {
        return check.fail("out", "fewer than 2^39 numbers a block", format!("{:?}", out.shape()));
    };
    let merged = args.x.shape()[1];
    for (argument, got, most) in [
        ("out", batch, 65_535),
        ("out", tokens.max(heads).max(dim), i32::MAX as usize),
        ("x", merged, i32::MAX as usize),
    ] {
        ensure!(
            check,
            got <= most,
            argument,
            format!("extents of at most {most}"),
            got.to_string()
        );
    }
    let params = ffi::UnmergeTokensParams {
        x: args.x.address(),
        map: args.map.address(),
        out: out.address(),
        x_strides: strides(&args.x),
        map_strides: strides(&args.map),
        out_strides: strides(&*out),
        tokens: tokens as i32,
        merged: merged as i32,
        heads: heads as i32,
        maps: args.map.shape()[1] as i32,
        dim: dim as i32,
        vectors: i32::from(vectors),
    };
    device.launch(&Launch {
        module: "match_tokens",
        kernel: kernel_of!("unmerge_tokens", out.dtype()),
        grid: [threads.div_ceil(UNMERGE_THREADS), batch, 1],
        threads: UNMERGE_THREADS,
        shared: 0,
        params: &params,
        memory: &[args.x.span(), args.map.span(), out.span()],
    })
}
