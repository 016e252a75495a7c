//! The CPU path. Sources are scored against tiles of destinations, several at a time; only the best of each
//! is kept. Products and sums are rounded one by one in the order of the head dim, so the bits are the same
//! for any instruction set.

use std::cmp::Ordering;

use rayon::prelude::*;

use super::{MatchTokens, Matching, Merges, Mode, Shape, UnmergeTokens};
use crate::dtype::Float;
use crate::paging::KvPagesMut;
use crate::rope::Turn;
use crate::tensor::{View, ViewMut};

/// Destinations of a tile: numbers that move together.
const WIDTH: usize = 16;
/// Sources that are scored at a time.
const ROWS: usize = 4;
/// Sources of one task.
const CHUNK: usize = 64;

/// A pool for reading, by the token of a block.
struct Rows<'a, T> {
    data: &'a [T],
    strides: [usize; 3],
    source: &'a [i32], // [batch, source_pages]
    source_pages: usize,
    page_tokens: usize,
    n: usize,
}

impl<'a, T: Float> Rows<'a, T> {
    /// Of keys, values or (with `n` of 1) biases.
    fn new(pages: &'a View<'_>, args: &'a MatchTokens<'_>, shape: &Shape, n: usize) -> Rows<'a, T> {
        Rows {
            data: pages.host(),
            strides: std::array::from_fn(|i| pages.strides()[i]),
            source: args.source.view().host(),
            source_pages: args.source.length(),
            page_tokens: shape.page_tokens,
            n,
        }
    }

    fn row(&self, block: usize, head: usize, token: usize) -> &'a [T] {
        let page = self.source[block * self.source_pages + token / self.page_tokens] as usize;
        let slot = token % self.page_tokens;
        &self.data[page * self.strides[0] + head * self.strides[1] + slot * self.strides[2]..][..self.n]
    }
}

/// The turns of a token's pairs.
struct Turns<'a> {
    table: &'a [f32],
    grid: [usize; 3],
    pairs: [usize; 3],
}

impl<'a> Turns<'a> {
    fn new(matching: &'a Matching) -> Turns<'a> {
        Turns {
            table: matching.turns.view().host(),
            grid: matching.grid.extents(),
            pairs: matching.rope.pairs(),
        }
    }

    fn place(&self, token: usize) -> [usize; 3] {
        let [_, rows, cols] = self.grid;
        [token / (rows * cols), token / cols % rows, token % cols]
    }

    /// Turns a key of `token` back, into `out`.
    fn back<T: Float>(&self, token: usize, key: &[T], out: &mut [f32]) {
        let (mut axis_first, mut pair) = (0, 0);
        for (axis, at) in self.place(token).into_iter().enumerate() {
            let n = self.pairs[axis];
            let turns = self.table[2 * (axis_first + at * n)..][..2 * n].chunks_exact(2);
            let keys = key[2 * pair..][..2 * n].chunks_exact(2);
            for ((turn, k), out) in turns.zip(keys).zip(out[2 * pair..][..2 * n].chunks_exact_mut(2)) {
                let back = Turn {
                    cos: turn[0],
                    sin: -turn[1],
                };
                (out[0], out[1]) = back.apply(k[0].to_f32(), k[1].to_f32());
            }
            axis_first += self.grid[axis] * n;
            pair += n;
        }
    }
}

/// 1 / |x|; 0 for a row of zeros.
fn reciprocal_norm(x: &[f32]) -> f32 {
    let square: f32 = x.iter().map(|x| x * x).sum();
    if square == 0.0 { 0.0 } else { 1.0 / square.sqrt() }
}

/// The destinations of one head of one block.
struct Tiles {
    keys: Vec<f32>,  // [tiles, dim, WIDTH]
    norms: Vec<f32>, // reciprocal, [tiles * WIDTH]
}

/// `out[r][j] = sum_d a[r][d] tile[d][j]`.
#[inline(always)]
fn products(a: &[f32], tile: &[f32], dim: usize, out: &mut [[f32; WIDTH]; ROWS]) {
    let mut sums = [[0.0; WIDTH]; ROWS];
    let rows: [&[f32]; ROWS] = std::array::from_fn(|r| &a[r * dim..][..dim]);
    for (d, b) in tile.chunks_exact(WIDTH).enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += row[d] * b;
            }
        }
    }
    *out = sums;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn products_avx2(a: &[f32], tile: &[f32], dim: usize, out: &mut [[f32; WIDTH]; ROWS]) {
    products(a, tile, dim, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn products_avx512(a: &[f32], tile: &[f32], dim: usize, out: &mut [[f32; WIDTH]; ROWS]) {
    products(a, tile, dim, out);
}

/// [`products`] by the widest instructions that are here.
fn products_here(a: &[f32], tile: &[f32], dim: usize, out: &mut [[f32; WIDTH]; ROWS]) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has these instructions.
            return unsafe { products_avx512(a, tile, dim, out) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has these instructions.
            return unsafe { products_avx2(a, tile, dim, out) };
        }
    }
    products(a, tile, dim, out);
}

pub(super) fn run<T: Float>(args: &MatchTokens<'_>, shape: &Shape, matching: &mut Matching, kv: &mut KvPagesMut<'_>) {
    score::<T>(args, shape, matching, kv);
    choose(args, shape, matching);
    merge::<T>(args, shape, matching, kv);
}

// -- scores -------------------------------------------------------------------------------------

/// Every source's best destination and how like it is.
fn score<T: Float>(args: &MatchTokens<'_>, shape: &Shape, matching: &mut Matching, kv: &KvPagesMut<'_>) {
    let view = kv.k.view();
    let keys = Rows::<T>::new(&view, args, shape, shape.dim);
    let mut nearest = vec![0i32; shape.batch * shape.maps * shape.tokens];
    let mut similarity = vec![0f32; nearest.len()];
    let destinations: &[i32] = matching.destinations.view().host();
    let turns = Turns::new(matching);
    let tiles: Vec<Tiles> = (0..shape.batch * shape.heads)
        .into_par_iter()
        .map(|i| {
            tiles_of(
                &keys,
                &turns,
                destinations,
                (i / shape.heads, i % shape.heads),
                shape.dim,
            )
        })
        .collect();

    let heads = shape.heads / shape.maps;
    nearest
        .par_chunks_mut(shape.tokens)
        .zip(similarity.par_chunks_mut(shape.tokens))
        .enumerate()
        .for_each(|(i, (nearest, similarity))| {
            let (block, first) = (i / shape.maps, i % shape.maps * heads);
            nearest
                .par_chunks_mut(CHUNK)
                .zip(similarity.par_chunks_mut(CHUNK))
                .enumerate()
                .for_each_init(Vec::new, |rows, (chunk, (nearest, similarity))| {
                    let tiles = &tiles[block * shape.heads + first..][..heads];
                    let begin = chunk * CHUNK;
                    let count = nearest.len();
                    stage(&keys, &turns, (block, first, heads), begin..begin + count, rows);
                    best_of(rows, tiles, shape.dim, destinations, (nearest, similarity));
                });
            for &token in destinations {
                nearest[token as usize] = token;
                similarity[token as usize] = f32::INFINITY;
            }
        });
    let used = nearest.len();
    matching.nearest.view_mut().host()[..used].copy_from_slice(&nearest);
    matching.similarity.view_mut().host()[..used].copy_from_slice(&similarity);
}

/// A head's destinations, turned back; what a tile has no destination for is zero.
fn tiles_of<T: Float>(
    keys: &Rows<'_, T>,
    turns: &Turns<'_>,
    destinations: &[i32],
    (block, head): (usize, usize),
    dim: usize,
) -> Tiles {
    let count = destinations.len().div_ceil(WIDTH);
    let mut tiles = Tiles {
        keys: vec![0.0; count * dim * WIDTH],
        norms: vec![0.0; count * WIDTH],
    };
    let mut key = vec![0.0; dim];
    for (j, &token) in destinations.iter().enumerate() {
        let token = token as usize;
        turns.back(token, keys.row(block, head, token), &mut key);
        tiles.norms[j] = reciprocal_norm(&key);
        for (d, &x) in key.iter().enumerate() {
            tiles.keys[(j / WIDTH * dim + d) * WIDTH + j % WIDTH] = x;
        }
    }
    tiles
}

/// Rows of tokens turned back, `[heads, rows, dim]`, the rows a multiple of [`ROWS`].
fn stage<T: Float>(
    keys: &Rows<'_, T>,
    turns: &Turns<'_>,
    (block, first, heads): (usize, usize, usize),
    tokens: std::ops::Range<usize>,
    rows: &mut Vec<f32>,
) {
    let (count, dim) = (tokens.len().next_multiple_of(ROWS), keys.n);
    rows.clear();
    rows.resize(heads * count * dim, 0.0);
    for (head, rows) in rows.chunks_exact_mut(count * dim).enumerate() {
        for (token, row) in tokens.clone().zip(rows.chunks_exact_mut(dim)) {
            turns.back(token, keys.row(block, first + head, token), row);
        }
    }
}

/// Scores staged rows against all destinations: the mean over heads of cosines.
fn best_of(
    rows: &[f32],
    tiles: &[Tiles],
    dim: usize,
    destinations: &[i32],
    (nearest, similarity): (&mut [i32], &mut [f32]),
) {
    let heads = tiles.len();
    let count = rows.len() / (heads * dim);
    let norms: Vec<f32> = rows.chunks_exact(dim).map(reciprocal_norm).collect();
    nearest.fill(destinations[0]);
    similarity.fill(f32::NEG_INFINITY);
    let mut dots = [[0.0; WIDTH]; ROWS];
    for first in (0..nearest.len()).step_by(ROWS) {
        for (tile, destinations) in destinations.chunks(WIDTH).enumerate() {
            let mut scores = [[0.0; WIDTH]; ROWS];
            for (head, tiles) in tiles.iter().enumerate() {
                let row = head * count + first;
                let keys = &tiles.keys[tile * dim * WIDTH..][..dim * WIDTH];
                products_here(&rows[row * dim..][..ROWS * dim], keys, dim, &mut dots);
                let columns = &tiles.norms[tile * WIDTH..][..WIDTH];
                for ((scores, dots), norm) in scores.iter_mut().zip(&dots).zip(&norms[row..]) {
                    for ((score, dot), column) in scores.iter_mut().zip(dots).zip(columns) {
                        *score += dot * column * norm;
                    }
                }
            }
            let rows = nearest[first..].iter_mut().zip(&mut similarity[first..]);
            for ((nearest, best), scores) in rows.zip(&scores) {
                for (&score, &token) in scores.iter().zip(destinations) {
                    if score > *best {
                        (*best, *nearest) = (score, token);
                    }
                }
            }
        }
    }
    if heads > 1 {
        similarity.iter_mut().for_each(|x| *x /= heads as f32);
    }
}

// -- choice -------------------------------------------------------------------------------------

/// Says of every token which merged token it goes into, and lists the members of each.
fn choose(args: &MatchTokens<'_>, shape: &Shape, matching: &mut Matching) {
    let tokens = shape.tokens;
    let (nearest, similarity) = (matching.nearest.view(), matching.similarity.view());
    let (nearest, similarity): (&[i32], &[f32]) = (nearest.host(), similarity.host());
    let (mut map, mut members) = (matching.map.view_mut(), matching.members.view_mut());
    let (mut starts, mut counts) = (matching.starts.view_mut(), matching.counts.view_mut());
    let rows = map.host::<i32>().par_chunks_mut(tokens);
    let rows = rows.zip(members.host::<i32>().par_chunks_mut(tokens));
    let rows = rows.zip(starts.host::<i32>().par_chunks_mut(tokens + 1));
    let rows = rows.zip(counts.host::<i32>().par_iter_mut());
    rows.take(shape.batch * shape.maps)
        .enumerate()
        .for_each(|(i, (((map, members), starts), count))| {
            let nearest = &nearest[i * tokens..][..tokens];
            let similarity = &similarity[i * tokens..][..tokens];
            // Marked first: -1 for what merges.
            map.fill(0);
            let mut sources: Vec<usize> = (0..tokens).filter(|&i| nearest[i] as usize != i).collect();
            match (args.merges, shape.top) {
                (Merges::Above(threshold), _) => sources.retain(|&i| similarity[i] >= threshold),
                (Merges::Top(_), top) => {
                    let better = |&i: &usize, &j: &usize| {
                        let by_score = similarity[j].partial_cmp(&similarity[i]).unwrap_or(Ordering::Equal);
                        by_score.then(i.cmp(&j))
                    };
                    let top = top.unwrap_or(0);
                    if top < sources.len() {
                        sources.select_nth_unstable_by(top, better);
                        sources.truncate(top);
                    }
                }
            }
            sources.iter().for_each(|&i| map[i] = -1);
            *count = 0;
            for to in map.iter_mut().filter(|to| **to == 0) {
                *to = *count;
                *count += 1;
            }
            sources.iter().for_each(|&i| map[i] = map[nearest[i] as usize]);

            // Counting sort by merged token, stable: `starts[m + 1]` runs from the first member's place.
            let merged = *count as usize;
            starts[..=merged].fill(0);
            map.iter().for_each(|&to| starts[to as usize + 1] += 1);
            (0..merged).for_each(|m| starts[m + 1] += starts[m]);
            starts.copy_within(..merged, 1);
            for (i, &to) in map.iter().enumerate() {
                let at = &mut starts[to as usize + 1];
                members[*at as usize] = i as i32;
                *at += 1;
            }
        });
}

// -- means --------------------------------------------------------------------------------------

/// Sums over the members of one merged token of one head.
struct Sums {
    k: Vec<f32>,
    v: Vec<f32>,
    key: Vec<f32>,
}

fn merge<T: Float>(args: &MatchTokens<'_>, shape: &Shape, matching: &Matching, kv: &mut KvPagesMut<'_>) {
    let (dim, merged) = (shape.dim, shape.merged);
    let mut k = vec![T::zeroed(); shape.batch * shape.heads * merged * dim];
    let mut v = k.clone();
    // What stays past the count weighs nothing in attention.
    let mut bias = vec![f32::NEG_INFINITY; shape.batch * shape.heads * merged];
    {
        let pool = kv.view();
        let keys = Rows::<T>::new(&pool.k, args, shape, dim);
        let values = Rows::<T>::new(&pool.v, args, shape, dim);
        let log_sizes = pool.slot_bias.as_ref().filter(|_| args.weighted);
        let log_sizes = log_sizes.map(|bias| Rows::<f32>::of_bias(bias, args, shape));
        let (members, starts) = (matching.members.view(), matching.starts.view());
        let (members, starts): (&[i32], &[i32]) = (members.host(), starts.host());
        let counts: &[i32] = matching.counts.view().host();
        let turns = Turns::new(matching);
        k.par_chunks_mut(merged * dim)
            .zip(v.par_chunks_mut(merged * dim))
            .zip(bias.par_chunks_mut(merged))
            .enumerate()
            .for_each(|(i, ((k, v), bias))| {
                let (block, head) = (i / shape.heads, i % shape.heads);
                let map = block * shape.maps + if shape.maps > 1 { head } else { 0 };
                let starts = &starts[map * (shape.tokens + 1)..];
                let members = &members[map * shape.tokens..][..shape.tokens];
                let new = || Sums {
                    k: vec![0.0; dim],
                    v: vec![0.0; dim],
                    key: vec![0.0; dim],
                };
                k.par_chunks_mut(dim)
                    .zip(v.par_chunks_mut(dim))
                    .zip(bias)
                    .take(counts[map] as usize)
                    .enumerate()
                    .for_each_init(new, |sums, (m, ((k, v), bias))| {
                        let members = &members[starts[m] as usize..starts[m + 1] as usize];
                        let row = |token: i32| (block, head, token as usize);
                        let log_size = |token: i32| match &log_sizes {
                            Some(rows) => rows.row(block, head, token as usize)[0],
                            None => 0.0,
                        };
                        *bias = log_size(members[0]);
                        let size: f32 = match members.len() {
                            1 => 1.0,
                            _ => members.iter().map(|&i| log_size(i).exp()).sum(),
                        };
                        if members.len() > 1 {
                            *bias = size.ln();
                        }
                        // Tokens that all stand for nothing make nothing, not 0 / 0.
                        let size = if size == 0.0 { 1.0 } else { size };
                        let stays = match (members.len(), matching.how.mode) {
                            (1, _) => Some(members[0]),
                            (_, Mode::Mean) => None,
                            (_, Mode::Replace) => {
                                let nearest: &[i32] = matching.nearest.view().host();
                                Some(nearest[map * shape.tokens + members[0] as usize])
                            }
                        };
                        if let Some((block, head, token)) = stays.map(row) {
                            k.copy_from_slice(keys.row(block, head, token));
                            v.copy_from_slice(values.row(block, head, token));
                            return;
                        }
                        sums.k.fill(0.0);
                        sums.v.fill(0.0);
                        let mut place = [0f32; 3];
                        for &token in members {
                            let (block, head, token) = row(token);
                            let weight = log_size(token as i32).exp();
                            turns.back(token, keys.row(block, head, token), &mut sums.key);
                            sums.k.iter_mut().zip(&sums.key).for_each(|(sum, x)| *sum += weight * x);
                            let values = values.row(block, head, token).iter();
                            sums.v
                                .iter_mut()
                                .zip(values)
                                .for_each(|(sum, x)| *sum += weight * x.to_f32());
                            let at = turns.place(token);
                            (0..3).for_each(|a| place[a] += weight * at[a] as f32);
                        }
                        let pairs = (0..3).flat_map(|axis| {
                            let centroid = f64::from(place[axis]) / f64::from(size);
                            matching.rope.turns(axis, [centroid])
                        });
                        let sum = sums.k.chunks_exact(2);
                        for ((turn, sum), out) in pairs.zip(sum).zip(k.chunks_exact_mut(2)) {
                            let (x, y) = turn.apply(sum[0] / size, sum[1] / size);
                            (out[0], out[1]) = (T::from_f32(x), T::from_f32(y));
                        }
                        v.iter_mut()
                            .zip(&sums.v)
                            .for_each(|(out, sum)| *out = T::from_f32(sum / size));
                    });
            });
    }
    write(&mut kv.k, &k, args, shape, T::zeroed());
    write(&mut kv.v, &v, args, shape, T::zeroed());
    if let Some(out) = &mut kv.slot_bias {
        write(out, &bias, args, shape, f32::NEG_INFINITY);
    }
}

impl<'a> Rows<'a, f32> {
    fn of_bias(pages: &'a View<'_>, args: &'a MatchTokens<'_>, shape: &Shape) -> Rows<'a, f32> {
        Rows::new(pages, args, shape, 1)
    }
}

/// Writes `rows`, `[batch, heads, merged, n]`, into pages, `[pages, heads, page_tokens, n]` (no `n` for the
/// bias), and fills what is left of the last page.
fn write<T: Float>(pages: &mut ViewMut<'_>, rows: &[T], args: &MatchTokens<'_>, shape: &Shape, rest: T) {
    let (dest, dest_pages): (&[i32], _) = (args.dest.view().host(), args.dest.length());
    let n = rows.len() / (shape.batch * shape.heads * shape.merged);
    let stride: [usize; 3] = std::array::from_fn(|i| pages.strides()[i]);
    let pages = pages.host::<T>();
    for (i, rows) in rows.chunks_exact(shape.merged * n).enumerate() {
        let (block, head) = (i / shape.heads, i % shape.heads);
        for slot in 0..shape.used_pages * shape.page_tokens {
            let page = dest[block * dest_pages + slot / shape.page_tokens] as usize;
            let to = page * stride[0] + head * stride[1] + slot % shape.page_tokens * stride[2];
            match rows.get(slot * n..(slot + 1) * n) {
                Some(row) => pages[to..][..n].copy_from_slice(row),
                None => pages[to..][..n].fill(rest),
            }
        }
    }
}

// -- back ---------------------------------------------------------------------------------------

pub(super) fn unmerge<T: Float>(args: &UnmergeTokens<'_>, out: &mut ViewMut<'_>) {
    let &[_, tokens, heads, dim] = out.shape() else { return };
    let stride: [usize; 3] = std::array::from_fn(|i| out.strides()[i]);
    let (x, x_stride) = (args.x.host::<T>(), args.x.strides());
    let (map, map_stride) = (args.map.host::<i32>(), args.map.strides());
    let maps = args.map.shape()[1];
    let batch = out.shape()[0];
    let out = out.host::<T>();
    for block in 0..batch {
        for token in 0..tokens {
            for head in 0..heads {
                let of_head = if maps > 1 { head } else { 0 };
                let from = map[block * map_stride[0] + of_head * map_stride[1] + token] as usize;
                let from = block * x_stride[0] + from * x_stride[1] + head * x_stride[2];
                let to = block * stride[0] + token * stride[1] + head * stride[2];
                out[to..][..dim].copy_from_slice(&x[from..][..dim]);
            }
        }
    }
}
