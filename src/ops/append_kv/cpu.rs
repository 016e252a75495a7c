//! The CPU path: f32 between load and store, pages and tokens in parallel.

use rayon::prelude::*;

use super::{AppendKv, Shape};
use crate::dtype::Float;
use crate::paging::KvPagesMut;
use crate::rope::{Rope3d, Turn};
use crate::tensor::{View, ViewMut};

/// The turns of every place along each axis; a token's turns are a row of each.
struct Turns {
    axes: [Vec<Turn>; 3], // [extent, pairs(axis)]
    pairs: [usize; 3],
    grid: [usize; 3],
}

impl Turns {
    fn new(rope: &Rope3d, args: &AppendKv<'_>, origin: f64) -> Turns {
        let (grid, start, step) = (args.lattice.grid.extents(), args.lattice.start, args.lattice.step);
        let along = |axis: usize| {
            let first = start[axis] + if axis == 0 { origin } else { 0.0 };
            rope.turns(axis, (0..grid[axis]).map(|i| first + step[axis] * i as f64))
        };
        Turns {
            axes: [along(0), along(1), along(2)],
            pairs: rope.pairs(),
            grid,
        }
    }

    /// Of every pair of a token, into `out`, `[dim / 2]`.
    fn of(&self, token: usize, out: &mut Vec<Turn>) {
        let [_, rows, cols] = self.grid;
        let place = [token / (rows * cols), token / cols % rows, token % cols];
        out.clear();
        for ((axis, &n), at) in self.axes.iter().zip(&self.pairs).zip(place) {
            out.extend_from_slice(&axis[at * n..][..n]);
        }
    }
}

/// The rows of `[streams, tokens, heads, dim]`, by their strides.
struct Rows<'a, T> {
    data: &'a [T],
    strides: &'a [usize],
    heads: usize,
    dim: usize,
}

impl<'a, T: Float> Rows<'a, T> {
    fn new(x: &'a View<'_>) -> Rows<'a, T> {
        Rows {
            data: x.host(),
            strides: x.strides(),
            heads: x.shape()[2],
            dim: x.shape()[3],
        }
    }

    fn head(&self, stream: usize, token: usize, head: usize) -> &'a [T] {
        let at = stream * self.strides[0] + token * self.strides[1] + head * self.strides[2];
        &self.data[at..][..self.dim]
    }

    /// What the norm multiplies a token with, before its weights.
    fn rms_scale(&self, stream: usize, token: usize, eps: f32) -> f32 {
        let mut sums = [0.0f32; 8];
        for head in 0..self.heads {
            let mut eights = self.head(stream, token, head).chunks_exact(8);
            for x in &mut eights {
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum += x.to_f32() * x.to_f32();
                }
            }
            for (sum, x) in sums.iter_mut().zip(eights.remainder()) {
                *sum += x.to_f32() * x.to_f32();
            }
        }
        let mean = sums.iter().sum::<f32>() / (self.heads * self.dim) as f32;
        1.0 / (mean + eps).sqrt()
    }
}

/// Weights, and what is added to the mean square.
struct Norm<'a, T> {
    weight: &'a [T],
    eps: f32,
}

/// Norms and rotates one token; `to` says where a head goes in `out`.
fn write_token<T: Float>(
    x: &Rows<'_, T>,
    norm: Option<&Norm<'_, T>>,
    (stream, token): (usize, usize),
    turns: &[Turn],
    out: &mut [T],
    to: impl Fn(usize) -> usize,
) {
    let scale = norm.map(|n| x.rms_scale(stream, token, n.eps));
    for head in 0..x.heads {
        let from = x.head(stream, token, head);
        let out = &mut out[to(head)..][..x.dim];
        let weight = norm.map(|n| &n.weight[head * x.dim..][..x.dim]);
        let pairs = from.chunks_exact(2).zip(out.chunks_exact_mut(2)).zip(turns);
        for (pair, ((from, out), turn)) in pairs.enumerate() {
            let (mut a, mut b) = (from[0].to_f32(), from[1].to_f32());
            if let (Some(scale), Some(w)) = (scale, weight) {
                a *= scale * w[2 * pair].to_f32();
                b *= scale * w[2 * pair + 1].to_f32();
            }
            let (a, b) = turn.apply(a, b);
            (out[0], out[1]) = (T::from_f32(a), T::from_f32(b));
        }
    }
}

pub(super) fn run<T: Float>(
    args: &AppendKv<'_>,
    shape: &Shape,
    q_out: Option<&mut ViewMut<'_>>,
    kv: &mut KvPagesMut<'_>,
) {
    let origins: &[f32] = args.origins.as_ref().map_or(&[], View::host);
    let turns: Vec<Turns> = (0..shape.streams)
        .map(|s| Turns::new(args.rope, args, origins.get(s).map_or(0.0, |&o| o.into())))
        .collect();
    if let (Some(q), Some(out)) = (&args.q, q_out) {
        let norm = args.norm.as_ref().map(|n| Norm {
            weight: n.q_weight.host::<T>(),
            eps: n.eps,
        });
        write_queries(q, norm.as_ref(), &turns, out);
    }
    let norm = args.norm.as_ref().map(|n| Norm {
        weight: n.k_weight.host::<T>(),
        eps: n.eps,
    });
    write_pages(args, shape, norm.as_ref(), &turns, kv);
}

fn write_queries<T: Float>(q: &View<'_>, norm: Option<&Norm<'_, T>>, turns: &[Turns], out: &mut ViewMut<'_>) {
    let x = Rows::<T>::new(q);
    let strides: [usize; 3] = std::array::from_fn(|i| out.strides()[i]);
    let tokens = out.shape()[1];
    // Where tokens lie one after the other, each is a piece of its own.
    let row = (x.heads - 1) * strides[2] + x.dim;
    let apart = strides[1] >= row;
    for (stream, turns) in turns.iter().enumerate() {
        let all = &mut out.host::<T>()[stream * strides[0]..];
        let write = |token: usize, at: &mut Vec<Turn>, out: &mut [T], first: usize| {
            turns.of(token, at);
            write_token(&x, norm, (stream, token), at, out, |head| first + head * strides[2]);
        };
        if apart {
            all[..(tokens - 1) * strides[1] + row]
                .par_chunks_mut(strides[1])
                .enumerate()
                .for_each_init(Vec::new, |at, (token, out)| write(token, at, out, 0));
        } else {
            let at = &mut Vec::new();
            (0..tokens).for_each(|token| write(token, at, all, token * strides[1]));
        }
    }
}

/// What fills a page: a stream and its first token there.
#[derive(Clone, Copy)]
struct Fill {
    page: usize,
    stream: usize,
    first: usize,
}

fn write_pages<T: Float>(
    args: &AppendKv<'_>,
    shape: &Shape,
    norm: Option<&Norm<'_, T>>,
    turns: &[Turns],
    kv: &mut KvPagesMut<'_>,
) {
    let (k, v) = (Rows::<T>::new(&args.k), Rows::<T>::new(&args.v));
    let lists: &[i32] = args.pages.view().host();
    let mut fills: Vec<Fill> = lists
        .chunks_exact(args.pages.length())
        .take(shape.streams)
        .enumerate()
        .flat_map(|(stream, list)| {
            (0..shape.used_pages).map(move |i| Fill {
                page: list[i] as usize,
                stream,
                first: i * shape.page_tokens,
            })
        })
        .collect();
    fills.sort_unstable_by_key(|f| f.page);

    let k_strides: [usize; 3] = std::array::from_fn(|i| kv.k.strides()[i]);
    let v_strides: [usize; 3] = std::array::from_fn(|i| kv.v.strides()[i]);
    let one = |fill: Fill, k_page: &mut [T], v_page: &mut [T]| {
        let mut at = Vec::with_capacity(shape.dim / 2);
        for slot in 0..shape.page_tokens {
            let k_to = |head: usize| head * k_strides[1] + slot * k_strides[2];
            let v_to = |head: usize| head * v_strides[1] + slot * v_strides[2];
            let token = fill.first + slot;
            if token < shape.tokens {
                turns[fill.stream].of(token, &mut at);
                write_token(&k, norm, (fill.stream, token), &at, k_page, k_to);
            }
            for head in 0..shape.kv_heads {
                let v_out = &mut v_page[v_to(head)..][..shape.dim];
                if token < shape.tokens {
                    v_out.copy_from_slice(v.head(fill.stream, token, head));
                } else {
                    v_out.fill(T::zeroed());
                    k_page[k_to(head)..][..shape.dim].fill(T::zeroed());
                }
            }
        }
    };
    let inner = |s: &[usize; 3]| (shape.kv_heads - 1) * s[1] + (shape.page_tokens - 1) * s[2] + shape.dim;
    let apart = k_strides[0] >= inner(&k_strides) && v_strides[0] >= inner(&v_strides);
    if !apart {
        for fill in fills {
            let (k_at, v_at) = (fill.page * k_strides[0], fill.page * v_strides[0]);
            one(fill, &mut kv.k.host()[k_at..], &mut kv.v.host()[v_at..]);
        }
        return;
    }
    // Every page that is filled, as a piece of its own.
    let k_pages = pieces(kv.k.host(), k_strides[0], &fills);
    let v_pages = pieces(kv.v.host(), v_strides[0], &fills);
    fills
        .into_par_iter()
        .zip(k_pages.into_par_iter().zip(v_pages))
        .for_each(|(fill, (k_page, v_page))| one(fill, k_page, v_page));
}

/// The pages of `fills`, which go up.
fn pieces<'a, T>(mut data: &'a mut [T], stride: usize, fills: &[Fill]) -> Vec<&'a mut [T]> {
    let mut pages = Vec::with_capacity(fills.len());
    let mut skipped = 0;
    for fill in fills {
        let rest = std::mem::take(&mut data);
        let (_, rest) = rest.split_at_mut((fill.page - skipped) * stride);
        let (page, rest) = rest.split_at_mut(stride.min(rest.len()));
        pages.push(page);
        (data, skipped) = (rest, fill.page + 1);
    }
    pages
}
