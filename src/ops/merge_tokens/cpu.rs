//! The CPU path: cells in parallel into a buffer, which is then written to the pages.

use std::ops::Range;

use rayon::prelude::*;

use super::{MergeTokens, Shape};
use crate::dtype::Float;
use crate::paging::{KvPages, KvPagesMut};
use crate::rope::{Rope3d, Turn};
use crate::tensor::{View, ViewMut};

/// Turns from the tokens of a cell to its centroid, `[tokens along the axis, pairs(axis)]`. With R(p) the
/// rotation by p, `R(c) mean(R(-p) k) = mean(R(c - p) k)`: one turn a key instead of two, and c - p
/// depends on the cell's extent alone.
struct ToCentroid {
    full: Vec<Turn>,
    rest: Vec<Turn>,
}

impl ToCentroid {
    fn new(rope: &Rope3d, axis: usize, extent: usize, cell: usize) -> ToCentroid {
        let turns = |n: usize| rope.turns(axis, (0..n).map(|i| (n as f64 - 1.0) / 2.0 - i as f64));
        ToCentroid {
            full: turns(cell.min(extent)),
            rest: turns(extent % cell),
        }
    }
}

/// A pool for reading: rows of `dim` numbers by page, head and slot.
struct Rows<'a, T> {
    data: &'a [T],
    strides: [usize; 3],
    dim: usize,
}

impl<'a, T: Float> Rows<'a, T> {
    fn new(pages: &'a View<'_>) -> Rows<'a, T> {
        Rows {
            data: pages.host(),
            strides: std::array::from_fn(|i| pages.strides()[i]),
            dim: pages.shape()[3],
        }
    }

    fn row(&self, page: usize, head: usize, slot: usize) -> &'a [T] {
        let at = page * self.strides[0] + head * self.strides[1] + slot * self.strides[2];
        &self.data[at..][..self.dim]
    }
}

/// What every cell is computed from.
struct Cells<'a, T> {
    k: Rows<'a, T>,
    v: Rows<'a, T>,
    source: &'a [i32], // [batch, source_pages]
    source_pages: usize,
    cell: [usize; 3],
    to_centroid: [ToCentroid; 3],
    pairs: [usize; 3],
    shape: &'a Shape,
}

/// Sums of one cell, `[heads, dim]`, and one token's turns, `[dim / 2]`.
#[derive(Default)]
struct Sums {
    k: Vec<f32>,
    v: Vec<f32>,
    turns: Vec<Turn>,
}

impl<T: Float> Cells<'_, T> {
    /// The range of merged token `i` along each axis.
    fn ranges(&self, i: usize) -> [Range<usize>; 3] {
        let [_, rows, cols] = self.shape.out;
        let at = [i / (rows * cols), i / cols % rows, i % cols];
        std::array::from_fn(|a| {
            let first = at[a] * self.cell[a];
            first..first.saturating_add(self.cell[a]).min(self.shape.grid[a])
        })
    }

    fn sum(&self, block: usize, ranges: &[Range<usize>; 3], sums: &mut Sums) {
        let (dim, page_tokens, grid) = (self.shape.dim, self.shape.page_tokens, self.shape.grid);
        let list = &self.source[block * self.source_pages..];
        let along: [&[Turn]; 3] = std::array::from_fn(|a| {
            let ToCentroid { full, rest } = &self.to_centroid[a];
            let whole = ranges[a].len() == self.cell[a];
            if whole { full.as_slice() } else { rest }
        });
        for sums in [&mut sums.k, &mut sums.v] {
            sums.clear();
            sums.resize(self.shape.heads * dim, 0.0);
        }
        for place in places(ranges) {
            let token = (place[0] * grid[1] + place[1]) * grid[2] + place[2];
            let (page, slot) = (list[token / page_tokens] as usize, token % page_tokens);
            sums.turns.clear();
            for a in 0..3 {
                let (n, at) = (self.pairs[a], place[a] - ranges[a].start);
                sums.turns.extend_from_slice(&along[a][at * n..][..n]);
            }
            for (head, out) in sums.k.chunks_exact_mut(dim).enumerate() {
                let pairs = self
                    .k
                    .row(page, head, slot)
                    .chunks_exact(2)
                    .zip(out.chunks_exact_mut(2));
                for ((k, out), turn) in pairs.zip(&sums.turns) {
                    let (x, y) = turn.apply(k[0].to_f32(), k[1].to_f32());
                    out[0] += x;
                    out[1] += y;
                }
            }
            for (head, out) in sums.v.chunks_exact_mut(dim).enumerate() {
                for (out, v) in out.iter_mut().zip(self.v.row(page, head, slot)) {
                    *out += v.to_f32();
                }
            }
        }
    }
}

/// Every place of a cell, the column innermost.
fn places(ranges: &[Range<usize>; 3]) -> impl Iterator<Item = [usize; 3]> {
    let [frames, rows, cols] = ranges.clone();
    frames.flat_map(move |t| {
        let cols = cols.clone();
        rows.clone().flat_map(move |r| cols.clone().map(move |c| [t, r, c]))
    })
}

/// The merged tokens of all blocks.
struct Merged<T> {
    k: Vec<T>,           // [batch, merged, heads, dim]
    v: Vec<T>,           // [batch, merged, heads, dim]
    log_sizes: Vec<f32>, // [batch, merged]
}

pub(super) fn run<T: Float>(args: &MergeTokens<'_>, shape: &Shape, kv: &mut KvPagesMut<'_>) {
    let Merged { k, v, log_sizes } = merge::<T>(args, shape, &kv.view());
    let (dest, dest_pages): (&[i32], _) = (args.dest.view().host(), args.dest.length());
    write(&mut kv.k, &k, dest, dest_pages, shape);
    write(&mut kv.v, &v, dest, dest_pages, shape);
    if let Some(bias) = &mut kv.slot_bias {
        let per_head: Vec<f32> = log_sizes
            .iter()
            .flat_map(|&log_size| std::iter::repeat_n(log_size, shape.heads))
            .collect();
        write(bias, &per_head, dest, dest_pages, shape);
    }
}

fn merge<T: Float>(args: &MergeTokens<'_>, shape: &Shape, pool: &KvPages<'_>) -> Merged<T> {
    let (cell, merged, width) = (args.pool.cell, shape.merged(), shape.heads * shape.dim);
    let mut k = vec![T::zeroed(); shape.batch * merged * width];
    let mut v = k.clone();
    let mut log_sizes = vec![0f32; shape.batch * merged];
    let cells = Cells::<T> {
        k: Rows::new(&pool.k),
        v: Rows::new(&pool.v),
        source: args.source.view().host(),
        source_pages: args.source.length(),
        cell,
        to_centroid: std::array::from_fn(|a| ToCentroid::new(args.rope, a, shape.grid[a], cell[a])),
        pairs: args.rope.pairs(),
        shape,
    };
    k.par_chunks_mut(width)
        .zip(v.par_chunks_mut(width))
        .zip(&mut log_sizes)
        .enumerate()
        .for_each_init(Sums::default, |sums, (i, ((k, v), log_size))| {
            let ranges = cells.ranges(i % merged);
            cells.sum(i / merged, &ranges, sums);
            let size = ranges.iter().map(Range::len).product::<usize>();
            for (out, sum) in k.iter_mut().zip(&sums.k).chain(v.iter_mut().zip(&sums.v)) {
                *out = T::from_f32(sum / size as f32);
            }
            *log_size = (size as f64).ln() as f32;
        });
    Merged { k, v, log_sizes }
}

/// Writes `rows`, `[batch, merged, heads, n]`, into pages, `[pages, heads, page_tokens, n]` (no `n` for
/// the bias), and zeroes what is left of the last page.
fn write<T: Float>(pages: &mut ViewMut<'_>, rows: &[T], dest: &[i32], dest_pages: usize, shape: &Shape) {
    let (merged, page_tokens) = (shape.merged(), shape.page_tokens);
    let n = rows.len() / (shape.batch * merged * shape.heads);
    let stride: [usize; 3] = std::array::from_fn(|i| pages.strides()[i]);
    let pages = pages.host::<T>();
    for (block, list) in dest.chunks_exact(dest_pages).enumerate() {
        for i in 0..shape.used_pages * page_tokens {
            for head in 0..shape.heads {
                let page = list[i / page_tokens] as usize;
                let to = page * stride[0] + head * stride[1] + i % page_tokens * stride[2];
                let out = &mut pages[to..][..n];
                if i < merged {
                    let from = ((block * merged + i) * shape.heads + head) * n;
                    out.copy_from_slice(&rows[from..][..n]);
                } else {
                    out.fill(T::zeroed());
                }
            }
        }
    }
}
