//! Attention with threads and vector instructions, in f32.
//!
//! Queries stand side by side in the lanes of vectors: a panel holds them transposed, `[dim][lane]`.
//! Both products are then outer products of lanes with single numbers of K and V, which are read as
//! they lie; nothing of K or V is ever transposed, softmax never reduces across lanes, and a query's
//! arithmetic does not depend on its neighbours. Keys come in tiles of [`KEYS`] that are widened
//! to f32 once for all panels of a job. A job is the queries of one stream that share a kv head, a
//! few panels of them; query heads of a group are as good as more tokens.

use std::array::from_fn;
use std::f64::consts::{LN_2, LOG2_E};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::lanes::{Lanes, Portable};
use super::{Attention, Shape};
use crate::dtype::{DType, Float, bf16, f16};
use crate::ffi;
use crate::rope::Rope3d;
use crate::tensor::{View, ViewMut};

/// Keys of a tile, counted from the start of their segment.
const KEYS: usize = 96;
/// Vectors that make up a panel.
const VECTORS: usize = 3;
/// Panels of one job at most.
const PANELS: usize = 4;

/// How a tile is folded into a panel on one kind of processor.
#[derive(Clone, Copy)]
struct Isa {
    /// Queries of a panel.
    lanes: usize,
    /// Numbers of K or V that are multiplied into one panel at a time; divides [`KEYS`].
    rows: usize,
    fold: fn(&Tile, &mut Panel, &mut [f32]),
}

/// One tile of keys.
struct Tile {
    k: Vec<f32>, // [KEYS, dim]
    v: Vec<f32>, // [KEYS, padded]
    dim: usize,
    padded: usize,     // dim rounded up to whole passes
    bias: [f32; KEYS], // base 2; -inf past the end
    scale: f32,        // of the logits, base 2
    tokens: usize,     // keys in use
}

/// A panel of queries, and what the keys so far made of it.
struct Panel {
    q: Vec<f32>,      // [dim, lanes]
    turned: Vec<f32>, // [dim, lanes]: q as the current segment sees it
    out: Vec<f32>,    // [padded, lanes], not yet divided by `sum`
    max: Vec<f32>,    // [lanes], base 2
    sum: Vec<f32>,    // [lanes]
}

/// The queries `rows` of one stream and kv head: row r is token r / group, head r % group.
struct Job {
    stream: usize,
    kv_head: usize,
    rows: Range<usize>,
}

/// Where results go. They are small beside the work, so one lock serves all jobs.
struct Results<'a, T> {
    out: &'a mut [T],
    out_strides: [usize; 4],
    lse: Option<(&'a mut [f32], [usize; 3])>,
}

pub(super) fn attention<T: Float>(
    args: &Attention<'_>,
    shape: Shape,
    out: &mut ViewMut<'_>,
    lse: Option<&mut ViewMut<'_>>,
) {
    let isa = isas()[0];
    let results = Mutex::new(Results {
        out_strides: from_fn(|i| out.strides()[i]),
        out: out.host::<T>(),
        lse: lse.map(|lse| {
            let strides = from_fn(|i| lse.strides()[i]);
            (lse.host::<f32>(), strides)
        }),
    });
    jobs(shape, isa.lanes).into_par_iter().for_each_init(
        || Worker::new(args, shape, isa),
        |worker, job| {
            let panels = worker.run::<T>(&job);
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            results.take(shape, &job, &worker.panels[..panels], isa.lanes);
        },
    );
}

/// Splits the queries so that all threads have work to the end. That is free to depend on their
/// number: no query's result depends on the split.
fn jobs(shape: Shape, lanes: usize) -> Vec<Job> {
    let rows = shape.tokens * (shape.q_heads / shape.kv_heads);
    let panels = shape.streams * shape.kv_heads * rows.div_ceil(lanes);
    let step = lanes * (panels / (8 * rayon::current_num_threads())).clamp(1, PANELS);
    let pairs = (0..shape.streams).flat_map(|s| (0..shape.kv_heads).map(move |h| (s, h)));
    pairs
        .flat_map(|(stream, kv_head)| {
            (0..rows).step_by(step).map(move |first| Job {
                stream,
                kv_head,
                rows: first..rows.min(first + step),
            })
        })
        .collect()
}

/// A thread's memory.
struct Worker<'a> {
    args: &'a Attention<'a>,
    shape: Shape,
    isa: Isa,
    tile: Tile,
    panels: Vec<Panel>,
    weights: Vec<f32>, // [KEYS, lanes]
}

impl<'a> Worker<'a> {
    fn new(args: &'a Attention<'a>, shape: Shape, isa: Isa) -> Worker<'a> {
        let padded = shape.dim.next_multiple_of(isa.rows);
        let panel = || Panel {
            q: vec![0.0; shape.dim * isa.lanes],
            turned: vec![0.0; shape.dim * isa.lanes],
            out: vec![0.0; padded * isa.lanes],
            max: vec![0.0; isa.lanes],
            sum: vec![0.0; isa.lanes],
        };
        Worker {
            args,
            shape,
            isa,
            tile: Tile {
                k: vec![0.0; KEYS * shape.dim],
                v: vec![0.0; KEYS * padded],
                dim: shape.dim,
                padded,
                bias: [0.0; KEYS],
                scale: args.scale * LOG2_E as f32,
                tokens: 0,
            },
            panels: (0..PANELS).map(|_| panel()).collect(),
            weights: vec![0.0; KEYS * isa.lanes],
        }
    }

    /// Attention of one job; returns how many panels hold its results.
    fn run<T: Float>(&mut self, job: &Job) -> usize {
        let panels = job.rows.len().div_ceil(self.isa.lanes);
        for (i, panel) in self.panels[..panels].iter_mut().enumerate() {
            let first = job.rows.start + i * self.isa.lanes;
            let rows = first..job.rows.end.min(first + self.isa.lanes);
            panel.start::<T>(&self.args.q, self.shape, job, rows, self.isa.lanes);
        }
        let (pages, segments) = self.args.context.host_stream(job.stream);
        for segment in segments {
            for panel in &mut self.panels[..panels] {
                panel.turn(self.args.rope, segment.rotation, self.isa.lanes);
            }
            let tokens = segment.tokens as usize;
            for first in (0..tokens).step_by(KEYS) {
                self.load::<T>(job.kv_head, pages, segment, first..tokens.min(first + KEYS));
                for panel in &mut self.panels[..panels] {
                    (self.isa.fold)(&self.tile, panel, &mut self.weights);
                }
            }
        }
        panels
    }

    /// Widens the tile of these tokens of a segment.
    fn load<T: Float>(&mut self, head: usize, pages: &[i32], segment: &ffi::Segment, tokens: Range<usize>) {
        self.tile.tokens = tokens.len();
        let Tile { k, v, bias, padded, .. } = &mut self.tile;
        let (kv, dim) = (&self.args.kv, self.shape.dim);
        let slot_bias = kv.slot_bias.as_ref().filter(|_| segment.slot_bias != 0);
        let at = |view: &View<'_>, (page, slot): (usize, usize)| {
            let strides = view.strides();
            page * strides[0] + head * strides[1] + slot * strides[2]
        };
        bias.fill(f32::NEG_INFINITY);
        for (j, token) in tokens.enumerate() {
            let page = pages[segment.first_page as usize + token / self.shape.page_tokens] as usize;
            let place = (page, token % self.shape.page_tokens);
            widen(&kv.k.host::<T>()[at(&kv.k, place)..][..dim], &mut k[j * dim..][..dim]);
            widen(
                &kv.v.host::<T>()[at(&kv.v, place)..][..dim],
                &mut v[j * *padded..][..dim],
            );
            let slot = slot_bias.map_or(0.0, |b| b.host::<f32>()[at(b, place)]);
            bias[j] = (segment.key_bias + slot) * LOG2_E as f32;
        }
    }
}

fn widen<T: Float>(from: &[T], to: &mut [f32]) {
    match T::DTYPE {
        DType::F32 => to.copy_from_slice(bytemuck::cast_slice(from)),
        DType::F16 => bytemuck::cast_slice::<T, f16>(from).convert_to_f32_slice(to),
        _ => bytemuck::cast_slice::<T, bf16>(from).convert_to_f32_slice(to),
    }
}

impl Panel {
    /// Takes in queries and forgets the last ones.
    fn start<T: Float>(&mut self, q: &View<'_>, shape: Shape, job: &Job, rows: Range<usize>, lanes: usize) {
        self.q.fill(0.0);
        for (lane, row) in rows.enumerate() {
            let at = place(shape, job, row, q.strides());
            for (d, x) in q.host::<T>()[at..][..shape.dim].iter().enumerate() {
                self.q[d * lanes + lane] = x.to_f32();
            }
        }
        self.out.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }

    /// Turns the temporal pairs ahead, from the original.
    fn turn(&mut self, rope: &Rope3d, rotation: f32, lanes: usize) {
        self.turned.copy_from_slice(&self.q);
        for (pair, xy) in self
            .turned
            .chunks_exact_mut(2 * lanes)
            .take(rope.pairs()[0])
            .enumerate()
        {
            let (sin, cos) = (f64::from(rotation) * rope.frequency(pair)).sin_cos();
            let (sin, cos) = (sin as f32, cos as f32);
            let (xs, ys) = xy.split_at_mut(lanes);
            for (x, y) in xs.iter_mut().zip(ys) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
    }
}

/// Offset of a job's row in a tensor `[streams, tokens, q_heads, ..]`.
fn place(shape: Shape, job: &Job, row: usize, strides: &[usize]) -> usize {
    let group = shape.q_heads / shape.kv_heads;
    let (token, head) = (row / group, job.kv_head * group + row % group);
    job.stream * strides[0] + token * strides[1] + head * strides[2]
}

impl<T: Float> Results<'_, T> {
    fn take(&mut self, shape: Shape, job: &Job, panels: &[Panel], lanes: usize) {
        for (i, row) in job.rows.clone().enumerate() {
            let (panel, lane) = (&panels[i / lanes], i % lanes);
            let sum = panel.sum[lane];
            let at = place(shape, job, row, &self.out_strides);
            for (d, to) in self.out[at..][..shape.dim].iter_mut().enumerate() {
                let x = panel.out[d * lanes + lane];
                *to = T::from_f32(if sum == 0.0 { 0.0 } else { x / sum });
            }
            if let Some((lse, strides)) = &mut self.lse {
                let natural = f64::from(panel.max[lane]) * LN_2 + f64::from(sum).ln();
                lse[place(shape, job, row, strides)] = natural as f32;
            }
        }
    }
}

/// What this processor can run, the fastest first.
fn isas() -> Vec<Isa> {
    let portable = Isa {
        lanes: VECTORS * Portable::W,
        rows: 4,
        fold: fold::<Portable, 4>,
    };
    let mut isas: Vec<Isa> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            isas.push(Isa {
                lanes: VECTORS * 16,
                rows: 8,
                // SAFETY: the processor has AVX-512.
                fold: |tile, panel, weights| unsafe { fold_avx512(tile, panel, weights) },
            });
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            isas.push(Isa {
                lanes: VECTORS * 8,
                rows: 3,
                // SAFETY: the processor has AVX2 and FMA.
                fold: |tile, panel, weights| unsafe { fold_avx2(tile, panel, weights) },
            });
        }
    }
    isas.push(portable);
    isas
}

// 8 x 3 sums, 3 vectors of queries and the number they are multiplied by: 28 of 32 registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fold_avx512(tile: &Tile, panel: &mut Panel, weights: &mut [f32]) {
    fold::<std::arch::x86_64::__m512, 8>(tile, panel, weights);
}

// 3 x 3 sums, 3 vectors of queries and the number they are multiplied by: 13 of 16 registers. With
// 4 x 3 none is left over, and what then goes to memory halves the speed.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fold_avx2(tile: &Tile, panel: &mut Panel, weights: &mut [f32]) {
    fold::<std::arch::x86_64::__m256, 3>(tile, panel, weights);
}

/// Folds a tile of keys into a panel of `VECTORS` vectors of queries: logits, weights, weighted
/// values.
#[inline(always)]
fn fold<V: Lanes, const ROWS: usize>(tile: &Tile, panel: &mut Panel, weights: &mut [f32]) {
    let lanes = VECTORS * V::W;

    // Logits, ROWS keys at a time, and their maximum. Rows past the end hold anything; their bias
    // of -inf makes them -inf or NaN, which the maximum passes over.
    let old: [V; VECTORS] = load(&panel.max);
    let mut max = old;
    let scale = V::splat(tile.scale);
    let passes = tile.k.chunks_exact(ROWS * tile.dim).zip(tile.bias.chunks_exact(ROWS));
    for ((k, bias), logits) in passes
        .zip(weights.chunks_exact_mut(ROWS * lanes))
        .take(tile.tokens.div_ceil(ROWS))
    {
        let k: [&[f32]; ROWS] = from_fn(|r| &k[r * tile.dim..][..tile.dim]);
        let mut sums = [[V::splat(0.0); VECTORS]; ROWS];
        for (d, q) in (0..tile.dim).zip(panel.turned.chunks_exact(lanes)) {
            let q: [V; VECTORS] = load(q);
            for (sums, k) in sums.iter_mut().zip(k) {
                multiply_add(sums, k[d], &q);
            }
        }
        for (r, logits) in logits.chunks_exact_mut(lanes).enumerate() {
            for n in 0..VECTORS {
                let logit = sums[r][n].mul_add(scale, V::splat(bias[r]));
                max[n] = max[n].max(logit);
                logit.store(&mut logits[n * V::W..]);
            }
        }
    }

    // Weights. Where nothing is above -inf yet, 0 stands in for the maximum: -inf - -inf is NaN.
    let (mut base, mut shrink, mut sum) = (max, old, load::<V>(&panel.sum));
    for n in 0..VECTORS {
        base[n] = max[n].zero_below(max[n], f32::MIN);
        shrink[n] = old[n].sub(base[n]).exp2();
        sum[n] = sum[n].mul(shrink[n]);
    }
    for weights in weights.chunks_exact_mut(lanes).take(tile.tokens) {
        for n in 0..VECTORS {
            let weight = V::load(&weights[n * V::W..]).sub(base[n]).exp2();
            sum[n] = sum[n].add(weight);
            weight.store(&mut weights[n * V::W..]);
        }
    }
    store(max, &mut panel.max);
    store(sum, &mut panel.sum);

    // Weighted values, ROWS dimensions at a time.
    for (pass, out) in panel.out.chunks_exact_mut(ROWS * lanes).enumerate() {
        let mut sums = [shrink; ROWS];
        for (sums, out) in sums.iter_mut().zip(out.chunks_exact(lanes)) {
            for n in 0..VECTORS {
                sums[n] = sums[n].mul(V::load(&out[n * V::W..]));
            }
        }
        let keys = tile.v.chunks_exact(tile.padded).zip(weights.chunks_exact(lanes));
        for (v, weights) in keys.take(tile.tokens) {
            let v = &v[pass * ROWS..][..ROWS];
            let weights: [V; VECTORS] = load(weights);
            for (sums, &v) in sums.iter_mut().zip(v) {
                multiply_add(sums, v, &weights);
            }
        }
        for (sums, out) in sums.into_iter().zip(out.chunks_exact_mut(lanes)) {
            store(sums, out);
        }
    }
}

#[inline(always)]
fn load<V: Lanes>(from: &[f32]) -> [V; VECTORS] {
    [V::load(from), V::load(&from[V::W..]), V::load(&from[2 * V::W..])]
}

#[inline(always)]
fn store<V: Lanes>(values: [V; VECTORS], to: &mut [f32]) {
    for (value, to) in values.into_iter().zip(to.chunks_exact_mut(V::W)) {
        value.store(to);
    }
}

/// `sums += a * b`
#[inline(always)]
fn multiply_add<V: Lanes>(sums: &mut [V; VECTORS], a: f32, b: &[V; VECTORS]) {
    let a = V::splat(a);
    for n in 0..VECTORS {
        sums[n] = a.mul_add(b[n], sums[n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Out, max and sum of the first queries after two tiles, the second not full.
    fn folded(isa: Isa) -> Vec<f32> {
        const DIM: usize = 34;
        let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
        let padded = DIM.next_multiple_of(isa.rows);
        let (k, v) = (wave(KEYS * DIM, 0.7), wave(KEYS * DIM, 0.3));
        let mut tile = Tile {
            k,
            v: vec![0.0; KEYS * padded],
            dim: DIM,
            padded,
            bias: from_fn(|j| j as f32 * 0.01),
            scale: 0.9,
            tokens: KEYS,
        };
        for (to, from) in tile.v.chunks_exact_mut(padded).zip(v.chunks_exact(DIM)) {
            to[..DIM].copy_from_slice(from);
        }
        let mut panel = Panel {
            q: Vec::new(),
            turned: (0..DIM * isa.lanes)
                .map(|i| ((i / isa.lanes * 5 + i % isa.lanes) as f32).cos())
                .collect(),
            out: vec![0.0; padded * isa.lanes],
            max: vec![f32::NEG_INFINITY; isa.lanes],
            sum: vec![0.0; isa.lanes],
        };
        let mut weights = vec![0.0; KEYS * isa.lanes];
        (isa.fold)(&tile, &mut panel, &mut weights);
        tile.tokens = 41;
        tile.bias[41..].fill(f32::NEG_INFINITY);
        (isa.fold)(&tile, &mut panel, &mut weights);
        let lane = |lane: usize| (0..DIM).map(|d| panel.out[d * isa.lanes + lane]).collect::<Vec<f32>>();
        let rows = (0..12).map(|l| [lane(l), vec![panel.max[l], panel.sum[l]]].concat());
        rows.collect::<Vec<_>>().concat()
    }

    #[test]
    fn all_instruction_sets_agree() {
        let results: Vec<Vec<f32>> = isas().into_iter().map(folded).collect();
        let portable = &results[results.len() - 1];
        assert!(portable.iter().all(|x| x.is_finite()));
        for result in &results {
            for (a, b) in result.iter().zip(portable) {
                assert!((a - b).abs() <= 2e-5 * b.abs().max(1.0), "{a} and {b}");
            }
        }
    }
}
