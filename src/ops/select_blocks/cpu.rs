//! The CPU: loops as plain as the work is small, in parallel over what is independent.

use rayon::prelude::*;

use super::{Scores, SelectBlocks, SumKeys, chunk_tokens};
use crate::dtype::{Float, with_float};
use crate::ffi;
use crate::paging::{Context, PageShape};
use crate::tensor::{View, ViewMut};

pub(super) fn sum_keys(args: &SumKeys<'_>, pool: PageShape, sums: &mut ViewMut<'_>) {
    with_float!(args.kv.k.dtype(), T => sum_keys_of::<T>(args, pool, sums), else unreachable!("checked"));
}

fn sum_keys_of<T: Float>(args: &SumKeys<'_>, pool: PageShape, sums: &mut ViewMut<'_>) {
    let k = args.kv.k.host::<T>();
    let [page_stride, head_stride, token_stride, _] = four(args.kv.k.strides());
    let lists = args.pages.view();
    let lists = lists.host::<i32>();
    let (rows, row_stride, sum_stride) = (sums.shape()[0], sums.strides()[0], sums.strides()[1]);
    let sums = sums.host::<f32>();
    for (block, &row) in args.rows.host::<i32>().iter().enumerate() {
        let Some(row) = usize::try_from(row).ok().filter(|&row| row < rows) else {
            continue;
        };
        let pages = &lists[block * args.pages.length()..][..args.pages.length()];
        for head in 0..pool.heads {
            let token = |t: usize| {
                let page = pages[t / pool.page_tokens] as usize;
                &k[page * page_stride + head * head_stride + t % pool.page_tokens * token_stride..][..pool.dim]
            };
            let sum = &mut sums[row * row_stride + head * sum_stride..][..pool.dim];
            sum.fill(0.0);
            (0..args.tokens).for_each(|t| add(sum, token(t)));
        }
    }
}

fn add<T: Float>(sum: &mut [f32], x: &[T]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += x.to_f32();
    }
}

pub(super) fn select_blocks(args: &mut SelectBlocks<'_>, chosen: &mut ViewMut<'_>, context: &mut Context) {
    if let Scores::Dot { q, query_sums, .. } = &mut args.scores {
        with_float!(q.dtype(), T => sum_queries::<T>(q, query_sums), else unreachable!("checked"));
    }
    score(args);
    let (scores, score_stride) = match &args.scores {
        Scores::Given(scores) => (scores.clone(), scores.strides()[0]),
        Scores::Dot { scores, .. } => (scores.view(), scores.strides()[0]),
    };
    let scores = scores.host::<f32>();
    let chosen_stride = chosen.strides()[0];
    for stream in 0..args.streams() {
        let count = candidates(args, stream);
        let own = stream * score_stride..stream * score_stride + count;
        // A view without elements has no rows to slice.
        let taken = choose(scores.get(own).unwrap_or(&[]), args.selected);
        lay_out(args, stream, &taken, context);
        let own = stream * chosen_stride..stream * chosen_stride + args.selected;
        let row = chosen.host::<i32>().get_mut(own).unwrap_or_default();
        row.fill(-1);
        for (entry, &m) in row.iter_mut().zip(&taken) {
            *entry = m as i32;
        }
    }
}

/// Candidates in use; none where there is no slot that they could be.
fn candidates(args: &SelectBlocks<'_>, stream: usize) -> usize {
    let most = if args.slot_pages.streams() == 0 {
        0
    } else {
        args.max_candidates()
    };
    (args.counts.host::<i32>()[stream].max(0) as usize).min(most)
}

fn slot(args: &SelectBlocks<'_>, stream: usize, candidate: usize) -> usize {
    let slot = args.candidates.host::<i32>()[stream * args.candidates.strides()[0] + candidate];
    (slot.max(0) as usize).min(args.slot_pages.streams() - 1)
}

fn sum_queries<T: Float>(q: &View<'_>, sums: &mut ViewMut<'_>) {
    let (tokens, dim) = (q.shape()[1], q.shape()[3]);
    let &[streams, chunks, heads, _] = sums.shape() else {
        unreachable!("checked")
    };
    let (from, to) = (four(q.strides()), four(sums.strides()));
    let (q, length) = (q.host::<T>(), chunk_tokens(tokens, chunks));
    let sum = |i: usize| {
        let (stream, first) = (i / chunks, i % chunks * length);
        let mut sum = vec![0.0; heads * dim];
        // Token by token, all heads of it: in the order of memory.
        for token in first..(first + length).min(tokens) {
            for (head, sum) in sum.chunks_exact_mut(dim).enumerate() {
                let x = &q[stream * from[0] + token * from[1] + head * from[2]..][..dim];
                add(sum, x);
            }
        }
        sum
    };
    let made: Vec<Vec<f32>> = (0..streams * chunks).into_par_iter().map(sum).collect();
    let sums = sums.host::<f32>();
    for (i, made) in made.iter().enumerate() {
        for (head, made) in made.chunks_exact(dim).enumerate() {
            let at = i / chunks * to[0] + i % chunks * to[1] + head * to[2];
            sums[at..at + dim].copy_from_slice(made);
        }
    }
}

fn score(args: &mut SelectBlocks<'_>) {
    let made: Vec<Vec<f32>> = match &args.scores {
        Scores::Given(_) => return,
        Scores::Dot {
            key_sums, query_sums, ..
        } => (0..args.streams())
            .map(|stream| {
                let query = query_sum(&query_sums.view(), stream, key_sums.shape()[1]);
                let (keys, row, head) = (key_sums.host::<f32>(), key_sums.strides()[0], key_sums.strides()[1]);
                let dim = key_sums.shape()[2];
                let dot = |m| {
                    let keys = &keys[slot(args, stream, m) * row..];
                    let heads = query.chunks_exact(dim).enumerate();
                    let products = heads.flat_map(|(h, q)| q.iter().zip(&keys[h * head..]));
                    products.map(|(q, k)| q * k).sum()
                };
                (0..candidates(args, stream)).map(dot).collect()
            })
            .collect(),
    };
    if let Scores::Dot { scores, .. } = &mut args.scores {
        let stride = scores.strides()[0];
        for (stream, made) in made.iter().enumerate().filter(|(_, made)| !made.is_empty()) {
            scores.host::<f32>()[stream * stride..][..made.len()].copy_from_slice(made);
        }
    }
}

/// The queries of a stream summed over chunks and over the heads that share a key head.
fn query_sum(partial: &View<'_>, stream: usize, kv_heads: usize) -> Vec<f32> {
    let &[_, chunks, q_heads, dim] = partial.shape() else {
        unreachable!("checked")
    };
    let strides = four(partial.strides());
    let data = partial.host::<f32>();
    let mut sum = vec![0.0; kv_heads * dim];
    for chunk in 0..chunks {
        for head in 0..q_heads {
            let at = stream * strides[0] + chunk * strides[1] + head * strides[2];
            let to = &mut sum[head / (q_heads / kv_heads) * dim..][..dim];
            for (sum, x) in to.iter_mut().zip(&data[at..]) {
                *sum += x;
            }
        }
    }
    sum
}

fn choose(scores: &[f32], selected: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| {
        let (x, y) = (scores[a], scores[b]);
        // Where one is NaN, the other is better; a stable sort leaves equal ones in time order.
        y.partial_cmp(&x).unwrap_or_else(|| x.is_nan().cmp(&y.is_nan()))
    });
    order.truncate(selected);
    order.sort_unstable();
    order
}

fn lay_out(args: &SelectBlocks<'_>, stream: usize, chosen: &[usize], context: &mut Context) {
    let page_tokens = context.page_tokens();
    let (draft_pages, draft) = args.draft.host_stream(stream);
    let prefix = (args.draft_prefix.host::<i32>()[stream].max(0) as usize).min(draft.len());
    let (before, behind) = draft.split_at(prefix);
    let first = behind.first().map_or(0.0, |s| s.rotation);
    let (frames, count) = (args.shape.frames, chosen.len());
    let slot_lists = args.slot_pages.view();

    let mut list = Vec::new();
    let mut segments = Vec::new();
    let mut push = |segment: ffi::Segment, pages: &[i32]| {
        let pages = &pages[..(segment.tokens as usize).div_ceil(page_tokens)];
        segments.push(ffi::Segment {
            first_page: list.len() as i32,
            ..segment
        });
        list.extend_from_slice(pages);
    };
    for s in before {
        let rotation = s.rotation + count as f32 * frames;
        push(ffi::Segment { rotation, ..*s }, &draft_pages[s.first_page as usize..]);
    }
    for (j, &m) in chosen.iter().enumerate() {
        let segment = ffi::Segment {
            first_page: 0,
            tokens: args.shape.tokens as i32,
            rotation: first + (count - j) as f32 * frames,
            key_bias: args.shape.key_bias,
            slot_bias: args.shape.slot_bias.into(),
            reserved: 0,
        };
        let row = slot(args, stream, m) * args.slot_pages.length();
        push(segment, &slot_lists.host::<i32>()[row..]);
    }
    for s in behind {
        push(*s, &draft_pages[s.first_page as usize..]);
    }

    let (max_pages, max_segments) = (context.max_pages(), context.max_segments());
    context.pages.view_mut().host::<i32>()[stream * max_pages..][..list.len()].copy_from_slice(&list);
    let bytes: &[u8] = bytemuck::cast_slice(&segments);
    let first = stream * max_segments * size_of::<ffi::Segment>();
    context.segments.view_mut().host::<u8>()[first..][..bytes.len()].copy_from_slice(bytes);
    context.counts.view_mut().host::<i32>()[stream] = segments.len() as i32;
}

fn four(strides: &[usize]) -> [usize; 4] {
    std::array::from_fn(|i| strides[i])
}
