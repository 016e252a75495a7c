//! The launch for CUDA and SIMT: one block a token.

use smallvec::SmallVec;

use super::{AppendKv, Shape};
use crate::device::{Launch, Span};
use crate::error::Result;
use crate::ffi;
use crate::ops::check::{Check, MAX_HEAD_DIM, ensure, kernel_of, strides};
use crate::paging::KvPagesMut;
use crate::tensor::{View, ViewMut};

/// `kThreads` and `kPasses` of the kernel: the largest block, and the heads that one thread takes.
const THREADS: usize = 512;
const PASSES: usize = 4;
/// `sizeof(Plan)` of the kernel: a rotation a pair, two sums a warp.
const SHARED: usize = 8 * ffi::PF_MAX_PAIRS as usize + 2 * 4 * THREADS / 32;

/// 16-byte vectors of a head.
fn lanes(args: &AppendKv<'_>, shape: &Shape) -> usize {
    shape.dim * args.k.dtype().bytes() / 16
}

pub(super) fn checked(
    check: &Check<'_>,
    args: &AppendKv<'_>,
    shape: &Shape,
    q_out: Option<&ViewMut<'_>>,
    kv: &KvPagesMut<'_>,
) -> Result<()> {
    let device = check.device.kind().name();
    let lane = 16 / args.k.dtype().bytes();
    ensure!(
        check,
        shape.dim.is_multiple_of(lane) && shape.dim <= MAX_HEAD_DIM,
        "k",
        format!("a head dim in multiples of {lane}, at most {MAX_HEAD_DIM}, on the {device} device"),
        shape.dim.to_string()
    );
    let most = PASSES * (THREADS / lanes(args, shape));
    for (argument, heads) in [("q", shape.q_heads), ("k", shape.kv_heads)] {
        ensure!(
            check,
            heads <= most,
            argument,
            format!("at most {most} heads of {} on the {device} device", shape.dim),
            heads.to_string()
        );
    }
    ensure!(
        check,
        shape.streams <= 65_535,
        "k",
        format!("at most 65535 streams on the {device} device"),
        shape.streams.to_string()
    );
    for (argument, view) in [("q", args.q.as_ref()), ("k", Some(&args.k)), ("v", Some(&args.v))] {
        if let Some(view) = view {
            check.aligned_rows(argument, view, view.address())?;
        }
    }
    if let Some(out) = q_out {
        check.aligned_rows("q_out", out, out.address())?;
    }
    if let Some(norm) = &args.norm {
        if args.q.is_some() {
            check.aligned_rows("norm.q_weight", &norm.q_weight, norm.q_weight.address())?;
        }
        check.aligned_rows("norm.k_weight", &norm.k_weight, norm.k_weight.address())?;
    }
    check.aligned_rows("kv.k", &kv.k, kv.k.address())?;
    check.aligned_rows("kv.v", &kv.v, kv.v.address())
}

pub(super) fn run(
    args: &AppendKv<'_>,
    shape: &Shape,
    q_out: Option<&mut ViewMut<'_>>,
    kv: &mut KvPagesMut<'_>,
) -> Result<()> {
    let address = |view: Option<&View<'_>>| view.map_or(0, View::address);
    let norm = args.norm.as_ref();
    let q_norm = norm.filter(|_| args.q.is_some());
    let lattice = &args.lattice;
    let params = ffi::AppendKvParams {
        q: address(args.q.as_ref()),
        k: args.k.address(),
        v: args.v.address(),
        q_weight: address(q_norm.map(|n| &n.q_weight)),
        k_weight: address(norm.map(|n| &n.k_weight)),
        q_out: q_out.as_ref().map_or(0, |out| out.address()),
        k_pages: kv.k.address(),
        v_pages: kv.v.address(),
        page_list: args.pages.view().address(),
        origins: address(args.origins.as_ref()),
        q_strides: args.q.as_ref().map_or([0; 3], strides),
        k_strides: strides(&args.k),
        v_strides: strides(&args.v),
        q_out_strides: q_out.as_deref().map_or([0; 3], strides),
        k_page_strides: strides(&kv.k),
        v_page_strides: strides(&kv.v),
        rope: args.rope.params(),
        start: lattice.start,
        step: lattice.step,
        grid: lattice.grid.extents().map(|n| n as i32),
        streams: shape.streams as i32,
        q_heads: shape.q_heads as i32,
        kv_heads: shape.kv_heads as i32,
        dim: shape.dim as i32,
        page_tokens: shape.page_tokens as i32,
        max_pages: args.pages.length() as i32,
        eps: norm.map_or(0.0, |n| n.eps),
    };
    let mut memory: SmallVec<[Span; 10]> = SmallVec::from_slice(&[
        args.k.span(),
        args.v.span(),
        args.pages.view().span(),
        kv.k.span(),
        kv.v.span(),
    ]);
    memory.extend(args.q.iter().chain(&args.origins).map(View::span));
    memory.extend(norm.map(|n| n.k_weight.span()));
    memory.extend(q_norm.map(|n| n.q_weight.span()));
    memory.extend(q_out.map(|out| out.span()));

    let heads = shape.q_heads.max(shape.kv_heads);
    args.k.device().launch(&Launch {
        module: "append_kv",
        kernel: kernel_of!("append_kv", args.k.dtype()),
        grid: [shape.used_pages * shape.page_tokens, shape.streams, 1],
        threads: (heads.div_ceil(PASSES) * lanes(args, shape)).next_multiple_of(32),
        shared: SHARED,
        params: &params,
        memory: &memory,
    })
}
