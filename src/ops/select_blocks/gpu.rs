//! Launches for CUDA and SIMT.

use super::{Scores, SelectBlocks, SumKeys, chunk_tokens};
use crate::device::{Device, KernelParams, Launch, Span};
use crate::error::Result;
use crate::ffi;
use crate::ops::check::{AnyView, kernel_of, strides};
use crate::paging::{Context, PageShape};
use crate::tensor::ViewMut;

const THREADS: usize = 256;
const WARP: usize = 32;

/// As the plans in `kernels/select_blocks.cu`.
const SUM_SHARED: usize = 4 * THREADS * 8;
const SCORE_SHARED: usize = 4 * super::MAX_WIDTH;
const SELECT_SHARED: usize = 4 * (super::MAX_CANDIDATES + super::MAX_SELECTED + 1);

fn launch<P: KernelParams>(
    device: &Device,
    kernel: &'static str,
    grid: [usize; 3],
    shared: usize,
    params: &P,
    memory: &[Span],
) -> Result<()> {
    device.launch(&Launch {
        module: "select_blocks",
        kernel,
        grid,
        threads: THREADS,
        shared,
        params,
        memory,
    })
}

/// Whether rows are made of whole, aligned 16-byte vectors.
fn vectors(view: &impl AnyView, address: u64) -> bool {
    let lane = 16 / view.dtype().bytes();
    let (inner, outer) = (view.shape().len() - 1, view.strides());
    address.is_multiple_of(16)
        && view.shape()[inner].is_multiple_of(lane)
        && outer[..inner].iter().all(|s| s.is_multiple_of(lane))
}

pub(super) fn sum_keys(args: &SumKeys<'_>, pool: PageShape, sums: &mut ViewMut<'_>) -> Result<()> {
    let k = &args.kv.k;
    let params = ffi::SumKeysParams {
        k: k.address(),
        pages: args.pages.view().address(),
        rows: args.rows.address(),
        sums: sums.address(),
        k_strides: strides(k),
        sum_strides: strides(sums),
        tokens: args.tokens as i32,
        dim: pool.dim as i32,
        page_tokens: pool.page_tokens as i32,
        block_pages: args.pages.length() as i32,
        row_count: sums.shape()[0] as i32,
        vectors: vectors(k, k.address()).into(),
    };
    launch(
        k.device(),
        kernel_of!("sum_keys", k.dtype()),
        [pool.heads, args.rows.elements(), 1],
        SUM_SHARED,
        &params,
        &[k.span(), args.pages.view().span(), args.rows.span(), sums.span()],
    )
}

pub(super) fn select_blocks(
    args: &mut SelectBlocks<'_>,
    chosen: &mut ViewMut<'_>,
    context: &mut Context,
) -> Result<()> {
    let device = context.device().clone();
    let streams = args.streams();
    if matches!(args.scores, Scores::Dot { .. }) {
        score(args, &device)?;
    }
    let (scores, score_span) = match &args.scores {
        Scores::Given(scores) => (scores.clone(), scores.span()),
        Scores::Dot { scores, .. } => (scores.view(), scores.span()),
    };
    let (max_pages, max_segments, page_tokens) = (context.max_pages(), context.max_segments(), context.page_tokens());
    let (mut pages, mut segments, mut counts) = (
        context.pages.view_mut(),
        context.segments.view_mut(),
        context.counts.view_mut(),
    );
    let [draft_pages, draft_segments, draft_counts] = args.draft.spans();
    let slot_pages = args.slot_pages.view();
    let params = ffi::SelectBlocksParams {
        scores: scores.address(),
        candidates: args.candidates.address(),
        counts: args.counts.address(),
        slot_pages: slot_pages.address(),
        draft_pages: draft_pages.address,
        draft_segments: draft_segments.address,
        draft_counts: draft_counts.address,
        draft_prefix: args.draft_prefix.address(),
        chosen: chosen.address(),
        pages: pages.reborrow().address(),
        segments: segments.reborrow().address(),
        segment_counts: counts.reborrow().address(),
        score_stride: scores.strides()[0] as i64,
        candidate_stride: args.candidates.strides()[0] as i64,
        chosen_stride: chosen.strides()[0] as i64,
        selected: args.selected as i32,
        max_candidates: args.max_candidates() as i32,
        slots: args.slot_pages.streams() as i32,
        slot_max_pages: args.slot_pages.length() as i32,
        block_pages: args.block_pages() as i32,
        block_tokens: args.shape.tokens as i32,
        page_tokens: page_tokens as i32,
        draft_max_pages: args.draft.max_pages() as i32,
        draft_max_segments: args.draft.max_segments() as i32,
        max_pages: max_pages as i32,
        max_segments: max_segments as i32,
        slot_bias: args.shape.slot_bias.into(),
        key_bias: args.shape.key_bias,
        block_frames: args.shape.frames,
    };
    launch(
        &device,
        "select_blocks",
        [streams, 1, 1],
        SELECT_SHARED,
        &params,
        &[
            score_span,
            args.candidates.span(),
            args.counts.span(),
            slot_pages.span(),
            draft_pages,
            draft_segments,
            draft_counts,
            args.draft_prefix.span(),
            chosen.span(),
            pages.span(),
            segments.span(),
            counts.span(),
        ],
    )
}

/// Sums the queries, then multiplies them with the candidates' key sums.
fn score(args: &mut SelectBlocks<'_>, device: &Device) -> Result<()> {
    let (streams, max_candidates, slots) = (args.streams(), args.max_candidates(), args.slot_pages.streams());
    let Scores::Dot {
        q,
        key_sums,
        query_sums,
        scores,
    } = &mut args.scores
    else {
        return Ok(());
    };
    let &[_, chunks, q_heads, dim] = query_sums.shape() else {
        unreachable!("checked")
    };
    let params = ffi::SumTokensParams {
        x: q.address(),
        sums: query_sums.address(),
        x_strides: strides(q),
        sum_strides: strides(query_sums),
        tokens: q.shape()[1] as i32,
        dim: dim as i32,
        chunk_tokens: chunk_tokens(q.shape()[1], chunks) as i32,
        vectors: vectors(q, q.address()).into(),
    };
    launch(
        device,
        kernel_of!("sum_tokens", q.dtype()),
        [q_heads, chunks, streams],
        SUM_SHARED,
        &params,
        &[q.span(), query_sums.span()],
    )?;
    let params = ffi::ScoreBlocksParams {
        query_sums: query_sums.address(),
        key_sums: key_sums.address(),
        candidates: args.candidates.address(),
        counts: args.counts.address(),
        scores: scores.address(),
        query_sum_strides: strides(query_sums),
        key_sum_strides: strides(key_sums),
        candidate_stride: args.candidates.strides()[0] as i64,
        score_stride: scores.strides()[0] as i64,
        chunks: chunks as i32,
        q_heads: q_heads as i32,
        kv_heads: key_sums.shape()[1] as i32,
        dim: dim as i32,
        slots: slots as i32,
        max_candidates: max_candidates as i32,
    };
    launch(
        device,
        "score_blocks",
        [max_candidates.div_ceil(THREADS / WARP), streams, 1],
        SCORE_SHARED,
        &params,
        &[
            query_sums.span(),
            key_sums.span(),
            args.candidates.span(),
            args.counts.span(),
            scores.span(),
        ],
    )
}
