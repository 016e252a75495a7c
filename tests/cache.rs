//! The packed cache against a model of it that keeps everything, places keys explicitly and
//! attends in f64; and what must leave no trace.

mod common;

use std::process::ExitCode;

use common::{Errors, Rng, Suite, widen};
use packforcing::cache::{
    Compression, Destinations, Heads, MeanPool, Metric, Mode, PackConfig, PackConfigBuilder, PackedKvCache, PagePool,
    Place, Policy, Qkv, Remainder, Selection, SoftMatch, Stream,
};
use packforcing::ops::match_tokens::{Matching, reference as matching};
use packforcing::{Blocks, DType, Device, DeviceKind, Error, Grid, Rope3d, SimtOptions, Tensor};

const GRID: Grid = Grid {
    frames: 2,
    rows: 4,
    cols: 5,
};
const HEADS: Heads = Heads {
    query: 4,
    kv: 2,
    dim: 64,
};
const LAYERS: usize = 2;

fn dtypes(device: &Device) -> &'static [DType] {
    match device.kind() {
        DeviceKind::Cpu => &[DType::F32, DType::BF16, DType::F16],
        _ => &[DType::BF16, DType::F16],
    }
}

/// Relative error of attention in a dtype: queries, keys and weights are rounded once each.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        DType::F16 => 3.0 * 2f64.powi(-11),
        _ => 3.0 * 2f64.powi(-8),
    }
}

/// What does not fill a cell is left out.
const WHOLE_CELLS: MeanPool = MeanPool {
    cell: [2, 2, 2],
    remainder: Remainder::Drop,
};

fn builder() -> PackConfigBuilder {
    PackConfig::builder()
        .layers(LAYERS)
        .heads(HEADS)
        .block(GRID)
        .sink(Blocks(2))
        .recent(Blocks(1))
        .selected(Blocks(2))
        .archive(Blocks(4))
        .compression(Compression::Mean(WHOLE_CELLS))
}

fn config(dtype: DType) -> PackConfig {
    builder().dtype(dtype).build().expect("it fits")
}

/// One layer of one block: [streams, tokens, heads, dim].
#[derive(Clone)]
struct Input {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    streams: usize,
    dtype: DType,
}

impl Input {
    fn random(rng: &mut Rng, dtype: DType) -> Input {
        let tokens = GRID.tokens().0;
        let mut draw = |heads| common::rounded(dtype, &rng.normals(tokens * heads * HEADS.dim));
        Input {
            q: draw(HEADS.query),
            k: draw(HEADS.kv),
            v: draw(HEADS.kv),
            streams: 1,
            dtype,
        }
    }

    /// With keys that leave no doubt about which destination a source is like: each is another one's with
    /// noise. On sources of even index there is little of it, on the others more.
    fn alike(mut self, rng: &mut Rng, how: SoftMatch) -> Input {
        let destinations = how.destinations.tokens(GRID);
        for token in (0..GRID.tokens().0).filter(|i| !destinations.contains(i)) {
            for head in 0..HEADS.kv {
                let like = destinations[rng.below(0..destinations.len())];
                let noise = if token % 2 == 0 { 0.1 } else { 0.5 };
                for d in 0..HEADS.dim {
                    let at = |token: usize| (token * HEADS.kv + head) * HEADS.dim + d;
                    self.k[at(token)] = self.k[at(like)] + noise * rng.normal() as f32;
                }
            }
        }
        self.k = common::rounded(self.dtype, &self.k);
        self
    }

    /// Several streams as one batch.
    fn batch(inputs: &[&Input]) -> Input {
        let all = |part: fn(&Input) -> &Vec<f32>| inputs.iter().flat_map(|i| part(i).clone()).collect();
        Input {
            q: all(|i| &i.q),
            k: all(|i| &i.k),
            v: all(|i| &i.v),
            streams: inputs.len(),
            dtype: inputs[0].dtype,
        }
    }

    fn tensor(&self, device: &Device, data: &[f32]) -> Tensor {
        let tokens = GRID.tokens().0;
        let heads = data.len() / (self.streams * tokens * HEADS.dim);
        Tensor::from_f32(device, self.dtype, data, &[self.streams, tokens, heads, HEADS.dim]).expect("it fits")
    }

    fn tensors(&self, device: &Device) -> [Tensor; 3] {
        [&self.q, &self.k, &self.v].map(|data| self.tensor(device, data))
    }
}

fn output(device: &Device, input: &Input) -> Tensor {
    input.tensor(device, &vec![f32::NAN; input.q.len()])
}

/// One block of a batch of streams: a denoise pass and a commit. What attention gave, of each
/// layer, and what was chosen.
fn step(pool: &PagePool, streams: &mut [&mut Stream], layers: &[Input]) -> (Vec<Vec<f32>>, Vec<Vec<Vec<usize>>>) {
    let device = pool.device();
    let mut block = pool.begin(streams.iter_mut().map(|s| &mut **s)).expect("there is room");
    let (mut outs, mut chosen) = (Vec::new(), Vec::new());
    for commits in [false, true] {
        let mut pass = if commits {
            block.commit_pass()
        } else {
            block.denoise_pass()
        }
        .expect("it begins");
        outs.clear();
        for (layer, input) in layers.iter().enumerate() {
            let [q, k, v] = input.tensors(device);
            let mut out = output(device, input);
            pass.attend(layer, q.view(), k.view(), v.view(), &mut out.view_mut())
                .expect("it attends");
            outs.push(out.to_f32_vec().expect("it is float"));
        }
    }
    for layer in 0..layers.len() {
        chosen.push(block.chosen(layer).expect("it has attended"));
    }
    block.commit().expect("every layer has attended");
    (outs, chosen)
}

/// What becomes of old blocks.
#[derive(Clone, Copy)]
enum Old {
    Whole,
    Pooled(MeanPool),
    /// So many sources merge.
    Matched(SoftMatch, usize),
}

impl From<Option<MeanPool>> for Old {
    fn from(pool: Option<MeanPool>) -> Old {
        pool.map_or(Old::Whole, Old::Pooled)
    }
}

/// The model of one layer: every block's keys and values as they came. A sink of two blocks, one
/// recent block.
struct Model {
    old: Old,
    k: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
}

/// A key that stands somewhere.
struct Key {
    place: [f64; 3],
    k: Vec<f64>,
    v: Vec<f64>,
    bias: f64,
}

impl Key {
    /// What stands for all of them.
    fn mean(keys: &[&Key]) -> Key {
        let n = keys.len() as f64;
        let mean = |of: &dyn Fn(&Key) -> &[f64]| -> Vec<f64> {
            (0..of(keys[0]).len())
                .map(|d| keys.iter().map(|k| of(k)[d]).sum::<f64>() / n)
                .collect()
        };
        let place = mean(&|k| &k.place);
        Key {
            place: [place[0], place[1], place[2]],
            k: mean(&|k| &k.k),
            v: mean(&|k| &k.v),
            bias: n.ln(),
        }
    }
}

impl Model {
    /// A block's tokens, moved in time.
    fn whole(&self, block: usize, time: f64, head: usize) -> Vec<Key> {
        let mut keys = Vec::new();
        let at = |token: usize| (token * HEADS.kv + head) * HEADS.dim;
        for t in 0..GRID.frames {
            for r in 0..GRID.rows {
                for c in 0..GRID.cols {
                    let row = at((t * GRID.rows + r) * GRID.cols + c);
                    keys.push(Key {
                        place: [time + t as f64, r as f64, c as f64],
                        k: self.k[block][row..row + HEADS.dim].to_vec(),
                        v: self.v[block][row..row + HEADS.dim].to_vec(),
                        bias: 0.0,
                    });
                }
            }
        }
        keys
    }

    /// A block's pooled tokens, moved in time: means at the centroids of their cells.
    fn pooled(&self, block: usize, time: f64, head: usize, pool: MeanPool) -> Vec<Key> {
        let whole = self.whole(block, time, head);
        let out = pool.output(GRID).extents();
        let mut keys = Vec::new();
        for cell in 0..out.iter().product() {
            let cell: [usize; 3] = [cell / (out[1] * out[2]), cell / out[2] % out[1], cell % out[2]];
            let inside: Vec<&Key> = whole
                .iter()
                .enumerate()
                .filter(|(i, _)| {
                    let index = [i / (GRID.rows * GRID.cols), i / GRID.cols % GRID.rows, i % GRID.cols];
                    (0..3).all(|a| index[a] / pool.cell[a] == cell[a])
                })
                .map(|(_, key)| key)
                .collect();
            keys.push(Key::mean(&inside));
        }
        keys
    }

    /// A block's tokens, merged into those that they are like, moved in time.
    fn matched(&self, block: usize, time: f64, head: usize, how: SoftMatch, merged: usize) -> Vec<Key> {
        let whole = self.whole(block, time, head);
        let destinations = how.destinations.tokens(GRID);
        let rows = |keys: &mut dyn Iterator<Item = &Key>| keys.flat_map(|key| key.k.clone()).collect::<Vec<f64>>();
        let sources = rows(&mut whole.iter());
        let cosines = matching::cosines(
            &sources,
            &rows(&mut destinations.iter().map(|&i| &whole[i])),
            1,
            HEADS.dim,
        );
        let best = cosines.chunks_exact(destinations.len()).map(|c| (matching::best(c), c));
        let best: Vec<(usize, f64)> = best.map(|(j, c)| (destinations[j], c[j])).collect();
        let similarity: Vec<f64> = best.iter().map(|b| b.1).collect();
        let nearest: Vec<usize> = best.iter().map(|b| b.0).collect();
        let merging = matching::merging(&similarity, &destinations, matching::Chosen::Top(merged));
        let map = matching::map(&merging, &nearest);
        (0..whole.len() - merged)
            .map(|m| {
                let members = whole.iter().zip(&map).filter(|(_, to)| **to == m);
                Key::mean(&members.map(|(key, _)| key).collect::<Vec<_>>())
            })
            .collect()
    }

    /// Everything that a head of the newest block attends to, at its packed place. Time 0 is the
    /// newest block's first frame.
    fn context(&self, chosen: &[usize], head: usize) -> Vec<Key> {
        let newest = self.k.len() - 1;
        let (sink, recent) = (newest.min(2), newest.saturating_sub(2).min(1));
        let whole = |block| self.whole(block, 0.0, head);
        // From the newest to the oldest, each right before the one after it.
        let mut blocks = vec![whole(newest)];
        blocks.extend((newest - recent..newest).rev().map(whole));
        blocks.extend(chosen.iter().rev().map(|&block| match self.old {
            Old::Pooled(pool) => self.pooled(block, 0.0, head, pool),
            Old::Matched(how, merged) => self.matched(block, 0.0, head, how, merged),
            Old::Whole => whole(block),
        }));
        blocks.extend((0..sink).rev().map(whole));
        for (distance, block) in blocks.iter_mut().enumerate() {
            block
                .iter_mut()
                .for_each(|key| key.place[0] -= (distance * GRID.frames) as f64);
        }
        blocks.into_iter().flatten().collect()
    }

    /// Attention of the newest block: [tokens, heads, dim].
    fn attend(&mut self, input: &Input, chosen: &[usize]) -> Vec<f64> {
        self.k.push(widen(&input.k));
        self.v.push(widen(&input.v));
        let rope = Rope3d::wan(HEADS.dim);
        let mut out = vec![0.0; input.q.len()];
        for head in 0..HEADS.query {
            let mut keys = self.context(chosen, head / (HEADS.query / HEADS.kv));
            keys.iter_mut().for_each(|key| rotate(&rope, &mut key.k, key.place));
            for token in 0..GRID.tokens().0 {
                let row = (token * HEADS.query + head) * HEADS.dim;
                let mut q = widen(&input.q[row..row + HEADS.dim]);
                let index = [
                    token / (GRID.rows * GRID.cols),
                    token / GRID.cols % GRID.rows,
                    token % GRID.cols,
                ];
                rotate(&rope, &mut q, index.map(|i| i as f64));
                let logits: Vec<f64> = keys
                    .iter()
                    .map(|key| dot(&q, &key.k) / (HEADS.dim as f64).sqrt() + key.bias)
                    .collect();
                let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = logits.iter().map(|l| (l - top).exp()).sum();
                for (key, logit) in keys.iter().zip(&logits) {
                    let weight = (logit - top).exp() / total;
                    out[row..row + HEADS.dim]
                        .iter_mut()
                        .zip(&key.v)
                        .for_each(|(o, v)| *o += weight * v);
                }
            }
        }
        out
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn rotate(rope: &Rope3d, x: &mut [f64], place: [f64; 3]) {
    for (pair, xy) in x.chunks_exact_mut(2).enumerate() {
        let (sin, cos) = (place[rope.axis(pair)] * rope.frequency(pair)).sin_cos();
        (xy[0], xy[1]) = (xy[0] * cos - xy[1] * sin, xy[0] * sin + xy[1] * cos);
    }
}

/// Runs a stream beside the model and holds every layer of every block against it.
fn follows_the_model(device: &Device, name: &str, dtype: DType, builder: PackConfigBuilder, old: impl Into<Old>) {
    let old = old.into();
    let config = builder.dtype(dtype).build().expect("it fits");
    let pages = PagePool::new(device, &config).expect("there is memory");
    let mut stream = pages.stream().expect("the device is there");
    let mut models: Vec<Model> = (0..LAYERS)
        .map(|_| Model {
            old,
            k: vec![],
            v: vec![],
        })
        .collect();
    let mut rng = Rng::new(name);
    for number in 0..9 {
        let mut draw = || match (Input::random(&mut rng, dtype), old) {
            (input, Old::Matched(how, _)) => input.alike(&mut rng, how),
            (input, _) => input,
        };
        let layers: Vec<Input> = (0..LAYERS).map(|_| draw()).collect();
        let before = stream.timeline();
        let (outs, chosen) = step(&pages, &mut [&mut stream], &layers);
        for (layer, model) in models.iter_mut().enumerate() {
            let chosen = &chosen[layer][0];
            let mid = before.iter().filter(|(_, place)| *place == Place::Mid).count();
            assert_eq!(chosen.len(), mid.min(2), "{name}: block {number}");
            assert!(chosen.iter().all(|&b| before.contains(&(b, Place::Mid))) && chosen.is_sorted());
            let errors = Errors::of(&outs[layer], &model.attend(&layers[layer], chosen));
            assert!(
                errors.rel_l2 < tolerance(dtype),
                "{name} {dtype}: block {number}, layer {layer}: {errors:?}"
            );
        }
    }
}

/// A stream after `n` blocks of random input, and the inputs of one more.
fn after(pool: &PagePool, n: usize, rng: &mut Rng) -> (Stream, Vec<Input>) {
    let dtype = pool.config().dtype();
    let mut stream = pool.stream().expect("the device is there");
    let mut draw = || (0..LAYERS).map(|_| Input::random(rng, dtype)).collect::<Vec<_>>();
    for _ in 0..n {
        step(pool, &mut [&mut stream], &draw());
    }
    let next = draw();
    (stream, next)
}

fn pool(device: &Device, config: &PackConfig) -> PagePool {
    PagePool::new(device, config).expect("there is memory")
}

fn simt(options: SimtOptions) -> Device {
    Device::simt(options).expect("it was there a moment ago")
}

fn main() -> ExitCode {
    let mut suite = Suite::new();

    suite.on_cards("mean_pooled_history_is_the_models", |device| {
        for &dtype in dtypes(device) {
            follows_the_model(device, "mean", dtype, builder(), Some(WHOLE_CELLS));
        }
    });

    suite.on_devices("a_remainder_that_is_kept_has_its_own_log_size", |device| {
        let cells = MeanPool {
            cell: [2, 2, 2],
            remainder: Remainder::Keep,
        };
        let builder = builder().compression(Compression::mean_pool([2, 2, 2]));
        follows_the_model(device, "keep", dtypes(device)[0], builder, Some(cells));
    });

    suite.on_cards("matched_history_is_the_models", |device| {
        let how = SoftMatch::strided([2, 2, 2]);
        for &dtype in dtypes(device) {
            let all = builder().compression(Compression::matching([2, 2, 2]));
            follows_the_model(device, "match", dtype, all, Old::Matched(how, 36));
            // 36 sources; those of even index are the more alike.
            let destinations = how.destinations.tokens(GRID);
            let even = (0..40).filter(|i| i % 2 == 0 && !destinations.contains(i)).count();
            let some = builder().compression(Compression::Match {
                how,
                merged: Some(even),
            });
            follows_the_model(
                device,
                "match some",
                dtype,
                some.page_tokens(24),
                Old::Matched(how, even),
            );
        }
    });

    suite.on_devices("matched_blocks_are_chosen_as_whole_ones_are", |device| {
        let dtype = dtypes(device)[0];
        let chosen = [Compression::None, Compression::matching([2, 2, 2])].map(|compression| {
            let config = builder()
                .dtype(dtype)
                .compression(compression)
                .build()
                .expect("it fits");
            let pool = pool(device, &config);
            let mut stream = pool.stream().expect("the device is there");
            let mut rng = Rng::new("chosen as whole");
            let mut chosen = Vec::new();
            for _ in 0..9 {
                let layers: Vec<Input> = (0..LAYERS).map(|_| Input::random(&mut rng, dtype)).collect();
                chosen.push(step(&pool, &mut [&mut stream], &layers).1);
            }
            chosen
        });
        assert_eq!(chosen[0], chosen[1]);
    });

    suite.on_devices("whole_history_is_the_models", |device| {
        let builder = builder().compression(Compression::None);
        follows_the_model(device, "whole", dtypes(device)[0], builder, None);
    });

    suite.on_cards("blocks_that_end_inside_a_page_are_the_models", |device| {
        let builder = builder().page_tokens(24);
        follows_the_model(device, "pages", dtypes(device)[0], builder, Some(WHOLE_CELLS));
    });

    suite.on_devices("other_policies_are_the_models", |device| {
        for policy in [Policy::Newest, Policy::Random { seed: 3 }] {
            let builder = builder().policy(policy);
            follows_the_model(device, "policy", dtypes(device)[0], builder, Some(WHOLE_CELLS));
        }
    });

    suite.on_devices("newest_takes_the_newest", |device| {
        let config = builder()
            .dtype(dtypes(device)[0])
            .policy(Policy::Newest)
            .build()
            .expect("it fits");
        let pool = pool(device, &config);
        let (mut stream, next) = after(&pool, 8, &mut Rng::new("newest"));
        let (_, chosen) = step(&pool, &mut [&mut stream], &next);
        assert_eq!(chosen, vec![vec![vec![5, 6]]; LAYERS]);
    });

    suite.on_devices("one_choice_serves_all_layers_where_it_is_shared", |device| {
        let config = builder()
            .dtype(dtypes(device)[0])
            .selection(Selection::Shared)
            .build()
            .expect("it fits");
        let pool = pool(device, &config);
        let (mut stream, next) = after(&pool, 7, &mut Rng::new("shared"));
        let (_, chosen) = step(&pool, &mut [&mut stream], &next);
        assert_eq!(chosen[0], chosen[1]);
    });

    suite.on_cards("tokens_that_the_model_hands_in_stand_like_pooled_ones", |device| {
        let dtype = dtypes(device)[0];
        let grid = Grid {
            frames: 1,
            rows: 2,
            cols: 5,
        };
        let pooled = builder().compression(Compression::mean_pool([2, 2, 1])).key_bias(0.0);
        let handed = builder().compression(Compression::External(grid));
        let pools =
            [pooled, handed].map(|b| pool(device, &b.dtype(dtype).policy(Policy::Newest).build().expect("it fits")));
        let mut rng = Rng::new("external");
        let mut streams = pools.each_ref().map(|p| p.stream().expect("the device is there"));
        for _ in 0..6 {
            // Keys that do not vary inside a cell, so that pooling is exact.
            let layers: Vec<Input> = (0..LAYERS)
                .map(|_| {
                    let mut input = Input::random(&mut rng, dtype);
                    for part in [&mut input.k, &mut input.v] {
                        let width = HEADS.kv * HEADS.dim;
                        for token in 0..GRID.tokens().0 {
                            let (r, c) = (token / GRID.cols % GRID.rows, token % GRID.cols);
                            let first = (r / 2 * 2 * GRID.cols + c) * width;
                            part.copy_within(first..first + width, token * width);
                        }
                    }
                    input
                })
                .collect();
            let (outs, _) = step(&pools[0], &mut [&mut streams[0]], &layers);
            let mut block = pools[1].begin([&mut streams[1]]).expect("there is room");
            let mut pass = block.commit_pass().expect("it begins");
            for (layer, input) in layers.iter().enumerate() {
                let [q, k, v] = input.tensors(device);
                let mut out = output(device, input);
                pass.attend(layer, q.view(), k.view(), v.view(), &mut out.view_mut())
                    .expect("it attends");
                let errors = Errors::of(&out.to_f32_vec().expect("float"), &widen(&outs[layer]));
                assert!(errors.rel_l2 < 2.0 * tolerance(dtype), "layer {layer}: {errors:?}");
                // The first row of every pair of rows, of the first frame.
                let width = HEADS.kv * HEADS.dim;
                let rows = |x: &[f32]| -> Vec<f32> {
                    [0, 2]
                        .iter()
                        .flat_map(|r| x[r * GRID.cols * width..][..GRID.cols * width].to_vec())
                        .collect()
                };
                let mid =
                    |x: &[f32]| Tensor::from_f32(device, dtype, &rows(x), &[1, 10, HEADS.kv, HEADS.dim]).expect("fits");
                pass.hand_in(layer, mid(&input.k).view(), mid(&input.v).view())
                    .expect("it fits");
            }
            block.commit().expect("every layer is there");
        }
    });

    suite.on_devices("a_block_that_is_dropped_leaves_no_trace", |device| {
        let pool = pool(device, &config(dtypes(device)[0]));
        let (mut plain, next) = after(&pool, 6, &mut Rng::new("trace"));
        let (expected, _) = step(&pool, &mut [&mut plain], &next);
        drop(plain);

        let (mut stream, next) = after(&pool, 6, &mut Rng::new("trace"));
        let (free, places) = (pool.free_pages(), stream.timeline());
        let nan = Input {
            q: vec![f32::NAN; next[0].q.len()],
            k: vec![f32::NAN; next[0].k.len()],
            v: vec![f32::NAN; next[0].v.len()],
            ..next[0].clone()
        };
        let [q, k, v] = nan.tensors(device);
        for commits in [false, true] {
            let mut block = pool.begin([&mut stream]).expect("there is room");
            let mut pass = if commits {
                block.commit_pass()
            } else {
                block.denoise_pass()
            }
            .expect("it begins");
            for layer in 0..LAYERS {
                let mut out = output(device, &nan);
                pass.attend(layer, q.view(), k.view(), v.view(), &mut out.view_mut())
                    .expect("it attends");
            }
            drop(block);
            assert_eq!((pool.free_pages(), stream.timeline()), (free, places.clone()));
        }
        assert_eq!(step(&pool, &mut [&mut stream], &next).0, expected);
    });

    suite.on_cards("streams_of_a_batch_do_not_see_each_other", |device| {
        let config = builder().dtype(dtypes(device)[0]).streams(2).build().expect("it fits");
        let pool = pool(device, &config);
        let (mut old, old_next) = after(&pool, 6, &mut Rng::new("old"));
        let (expected_old, _) = step(&pool, &mut [&mut old], &old_next);
        let (mut young, young_next) = after(&pool, 1, &mut Rng::new("young"));
        let (expected_young, _) = step(&pool, &mut [&mut young], &young_next);
        drop((old, young));

        let (mut old, _) = after(&pool, 6, &mut Rng::new("old"));
        let (mut young, _) = after(&pool, 1, &mut Rng::new("young"));
        let both: Vec<Input> = old_next
            .iter()
            .zip(&young_next)
            .map(|(a, b)| Input::batch(&[a, b]))
            .collect();
        let (outs, _) = step(&pool, &mut [&mut old, &mut young], &both);
        for layer in 0..LAYERS {
            let (first, second) = outs[layer].split_at(old_next[0].q.len());
            assert_eq!(
                (first, second),
                (&expected_old[layer][..], &expected_young[layer][..]),
                "layer {layer}"
            );
        }
    });

    suite.on_devices("a_reset_stream_is_a_new_one", |device| {
        let pool = pool(device, &config(dtypes(device)[0]));
        let all = pool.free_pages();
        let (mut stream, next) = after(&pool, 3, &mut Rng::new("reset"));
        let (expected, _) = step(&pool, &mut [&mut stream], &next);
        stream.reset();
        assert_eq!((pool.free_pages(), stream.blocks()), (all, 0));
        let mut rng = Rng::new("reset");
        for _ in 0..3 {
            let layers: Vec<Input> = (0..LAYERS).map(|_| Input::random(&mut rng, next[0].dtype)).collect();
            step(&pool, &mut [&mut stream], &layers);
        }
        assert_eq!(step(&pool, &mut [&mut stream], &next).0, expected);
        drop(stream);
        assert_eq!(pool.free_pages(), all);
    });

    // Bookkeeping, which is the same on the SIMT device and ten times as slow there; a double of the driver goes a part of
    // the way.
    suite.on(&["cpu", "cuda"], "block_300_computes_what_block_30_does", |device| {
        let config = builder()
            .dtype(dtypes(device)[0])
            .policy(Policy::Newest)
            .build()
            .expect("it fits");
        let pool = pool(device, &config);
        let layers: Vec<Input> = (0..LAYERS)
            .map(|_| Input::random(&mut Rng::new("same"), config.dtype()))
            .collect();
        let mut stream = pool.stream().expect("the device is there");
        let mut outs = Vec::new();
        let last = if device.kind() == DeviceKind::CudaDouble {
            40
        } else {
            300
        };
        for number in 0..=last {
            let (out, _) = step(&pool, &mut [&mut stream], &layers);
            if number == 30 || number == last {
                outs.push(out);
            }
        }
        assert_eq!(outs[0], outs[1]);
    });

    suite.on_devices("what_does_not_fit_is_refused_and_changes_nothing", |device| {
        let dtype = dtypes(device)[0];
        let pool = pool(device, &config(dtype));
        let (mut stream, next) = after(&pool, 4, &mut Rng::new("refuse"));
        let (free, places) = (pool.free_pages(), stream.timeline());
        let input = &next[0];
        let [q, k, v] = input.tensors(device);
        let mut out = output(device, input);

        let mut block = pool.begin([&mut stream]).expect("there is room");
        let mut pass = block.commit_pass().expect("it begins");
        let argument = |result: packforcing::Result<()>| match result {
            Err(Error::Argument { argument, .. }) => argument,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            argument(pass.attend(LAYERS, q.view(), k.view(), v.view(), &mut out.view_mut())),
            "layer"
        );
        assert_eq!(
            argument(pass.attend(0, k.view(), k.view(), v.view(), &mut out.view_mut())),
            "q"
        );
        assert_eq!(
            argument(pass.attend(0, q.view(), q.view(), v.view(), &mut out.view_mut())),
            "k"
        );
        assert_eq!(
            argument(pass.attend(0, q.view(), k.view(), q.view(), &mut out.view_mut())),
            "v"
        );
        let short = v.view().narrow(1, 1, GRID.tokens().0 - 1).expect("inside");
        assert_eq!(
            argument(pass.attend(0, q.view(), k.view(), short, &mut out.view_mut())),
            "v"
        );
        let mut wrong = Tensor::zeros(device, DType::F32, &[1, 1, 1, 1]).expect("one number");
        assert_eq!(
            argument(pass.attend(0, q.view(), k.view(), v.view(), &mut wrong.view_mut())),
            "out"
        );
        let lse = &mut wrong.view_mut();
        let qkv = Qkv {
            q: q.view(),
            k: k.view(),
            v: v.view(),
            norm: None,
        };
        assert_eq!(
            argument(pass.attend_with(0, &qkv, &mut out.view_mut(), Some(lse))),
            "lse"
        );
        assert!(pass.context(0).is_none(), "a refused call chooses nothing");
        let elsewhere = if device.kind() == DeviceKind::Cpu {
            Device::simt(SimtOptions::default())
        } else {
            Ok(Device::cpu())
        };
        if let Ok(elsewhere) = elsewhere {
            let foreign = input.tensor(&elsewhere, &input.q);
            assert_eq!(
                argument(pass.attend(0, foreign.view(), k.view(), v.view(), &mut out.view_mut())),
                "q"
            );
        }
        let order = |result: packforcing::Result<()>, part: &str| match result {
            Err(Error::Order { reason, .. }) => assert!(reason.contains(part), "{reason}"),
            other => panic!("{other:?}"),
        };
        order(
            pass.hand_in(0, k.view(), v.view()),
            "the cache makes compressed tokens itself",
        );
        assert!(
            out.to_f32_vec().expect("float").iter().all(|x| x.is_nan()),
            "nothing was written"
        );
        let mut second = pool.stream().expect("the device is there");
        order(pool.begin([&mut second]).map(drop), "under way");
        pass.attend(0, q.view(), k.view(), v.view(), &mut out.view_mut())
            .expect("it fits");
        order(block.chosen(1).map(drop), "layer 1");
        order(block.commit(), "layer 1");
        assert_eq!((pool.free_pages(), stream.timeline()), (free, places));

        let other = PagePool::new(device, &config(dtype)).expect("there is memory");
        assert_eq!(argument(other.begin([&mut stream]).map(drop)), "streams");
        assert_eq!(argument(pool.begin([]).map(drop)), "streams");
        assert_eq!(argument(pool.begin([&mut stream, &mut second]).map(drop)), "streams");
        let (mut plain, next) = after(&other, 4, &mut Rng::new("refuse"));
        let (expected, _) = step(&other, &mut [&mut plain], &next);
        assert_eq!(step(&pool, &mut [&mut stream], &next).0, expected);
    });

    suite.on_devices("a_cache_for_one_video_is_a_pool_with_one_stream", |device| {
        let config = config(dtypes(device)[0]);
        let pool = pool(device, &config);
        let (mut stream, next) = after(&pool, 0, &mut Rng::new("single"));
        let mut cache = PackedKvCache::new(device, &config).expect("there is memory");
        for _ in 0..5 {
            let (expected, _) = step(&pool, &mut [&mut stream], &next);
            let mut block = cache.begin().expect("there is room");
            let mut pass = block.commit_pass().expect("it begins");
            for (layer, input) in next.iter().enumerate() {
                let [q, k, v] = input.tensors(device);
                let mut out = output(device, input);
                pass.attend(layer, q.view(), k.view(), v.view(), &mut out.view_mut())
                    .expect("it attends");
                assert_eq!(out.to_f32_vec().expect("it is float"), expected[layer]);
            }
            block.commit().expect("every layer has attended");
            assert_eq!(
                (cache.timeline(), cache.context_tokens()),
                (stream.timeline(), stream.context_tokens())
            );
        }
        cache.reset();
        assert_eq!((cache.blocks(), cache.timeline()), (0, Vec::new()));
    });

    suite.on_devices("a_later_pass_undoes_the_commit_pass", |device| {
        // A denoise pass, one that attends nowhere, and a second commit pass that attends nowhere.
        for (commits, attends) in [(false, true), (false, false), (true, false)] {
            let pool = pool(device, &config(dtypes(device)[0]));
            let (mut stream, next) = after(&pool, 2, &mut Rng::new("undo"));
            let mut block = pool.begin([&mut stream]).expect("there is room");
            for (commits, attends) in [(true, true), (commits, attends)] {
                let pass = if commits {
                    block.commit_pass()
                } else {
                    block.denoise_pass()
                };
                let mut pass = pass.expect("it begins");
                for (layer, input) in next.iter().enumerate().filter(|_| attends) {
                    let [q, k, v] = input.tensors(device);
                    let mut out = output(device, input);
                    pass.attend(layer, q.view(), k.view(), v.view(), &mut out.view_mut())
                        .expect("it attends");
                }
            }
            assert!(matches!(block.commit(), Err(Error::Order { op: "commit", .. })));
            assert_eq!(stream.blocks(), 2);
        }
    });

    suite.on_kernels("a_pool_refuses_what_the_kernels_do_not_take", |device| {
        let refused = |builder: PackConfigBuilder, what: &str| {
            let config = builder.build().expect("the numbers are sound");
            let error = PagePool::new(device, &config)
                .map(drop)
                .expect_err("no kernel takes it");
            assert!(error.to_string().contains(what), "{error}");
        };
        let narrow = Heads {
            query: 1,
            kv: 1,
            dim: 32,
        };
        refused(builder().heads(narrow), "head dim");
        refused(builder().dtype(DType::F32), "f32");
        refused(builder().selected(Blocks(2000)).archive(Blocks(2000)), "selected");
    });

    suite.on_devices("a_full_pool_refuses_a_block", |device| {
        let pool = pool(device, &config(dtypes(device)[0]));
        let (first, _) = after(&pool, 10, &mut Rng::new("full"));
        let mut rng = Rng::new("second");
        let mut second = pool.stream().expect("the device is there");
        let mut blocks = 0;
        let refused = loop {
            let layers: Vec<Input> = (0..LAYERS)
                .map(|_| Input::random(&mut rng, pool.config().dtype()))
                .collect();
            match pool.begin([&mut second]) {
                Ok(block) => drop(block),
                Err(error) => break error,
            }
            step(&pool, &mut [&mut second], &layers);
            blocks += 1;
            assert!(blocks < 10, "the pool has room for one stream");
        };
        assert!(
            matches!(refused, Error::PoolFull { needed, free, .. } if needed > free),
            "{refused}"
        );
        assert_eq!(second.blocks(), blocks);
        drop(first);
        assert!(pool.begin([&mut second]).is_ok());
    });

    suite.on(&["simt"], "a_fault_in_a_pass_leaves_the_history", |_| {
        // Launches of one stream are counted on a device of its own; then the same again with a
        // fault in each launch of the last block in turn.
        let sound = simt(SimtOptions::default());
        let dtype = DType::BF16;
        let run = |device: &Device| -> (usize, Vec<Vec<f32>>) {
            let pool = pool(device, &config(dtype));
            let (mut stream, next) = after(&pool, 2, &mut Rng::new("fault"));
            let mut faults = 0;
            loop {
                let places = stream.timeline();
                let mut block = pool.begin([&mut stream]).expect("there is room");
                let mut pass = block.denoise_pass().expect("it begins");
                let [q, k, v] = next[0].tensors(device);
                let mut out = output(device, &next[0]);
                match pass.attend(0, q.view(), k.view(), v.view(), &mut out.view_mut()) {
                    Ok(()) => break,
                    Err(Error::Simt { .. }) => faults += 1,
                    Err(other) => panic!("{other}"),
                }
                drop(block);
                assert_eq!(stream.timeline(), places);
            }
            (faults, step(&pool, &mut [&mut stream], &next).0)
        };
        let (_, expected) = run(&sound);
        // Two blocks of a denoise and a commit pass, in two layers, of three launches or more.
        let mut hit = 0;
        for launch in 24..44 {
            let options = SimtOptions {
                fail_launch: Some(launch),
                ..SimtOptions::default()
            };
            let (faults, outs) = match std::panic::catch_unwind(|| run(&Device::simt(options).expect("it was there"))) {
                Ok(run) => run,
                // The fault fell into another pass, which takes none.
                Err(panic)
                    if panic
                        .downcast_ref::<String>()
                        .is_some_and(|p| p.contains("told to fail")) =>
                {
                    continue;
                }
                Err(panic) => std::panic::resume_unwind(panic),
            };
            hit += faults;
            if faults > 0 {
                assert_eq!(outs, expected, "a fault in launch {launch}");
            }
        }
        assert!(hit >= 3, "{hit} faults fell into the pass");
    });

    suite.on(&["simt"], "a_lost_device_is_told_by_the_cache", |_| {
        let options = SimtOptions {
            deferred_faults: true,
            fail_launch: Some(20),
            ..SimtOptions::default()
        };
        let device = simt(options);
        let pool = pool(&device, &config(DType::BF16));
        let mut stream = pool.stream().expect("the device is there");
        let input = Input::random(&mut Rng::new("lost"), DType::BF16);
        let [q, k, v] = input.tensors(&device);
        let lost =
            |result: packforcing::Result<()>| assert!(matches!(result, Err(Error::DeviceLost { .. })), "{result:?}");
        loop {
            let mut block = pool.begin([&mut stream]).expect("nothing was told yet");
            let mut pass = block.commit_pass().expect("nothing was told yet");
            let mut out = Tensor::zeros(&device, DType::BF16, q.shape()).expect("there is memory");
            for layer in 0..LAYERS {
                pass.attend(layer, q.view(), k.view(), v.view(), &mut out.view_mut())
                    .expect("a card says nothing yet");
            }
            if device.synchronize().is_ok() {
                block.commit().expect("no fault so far");
                continue;
            }
            lost(out.to_f32_vec().map(drop));
            lost(block.commit());
            break;
        }
        lost(pool.begin([&mut stream]).map(drop));
        lost(pool.stream().map(drop));
        let free = pool.free_pages();
        lost(stream.fork().map(drop));
        assert_eq!(pool.free_pages(), free);
    });

    suite.plain("wan_480p_matched_in_numbers", || {
        let matching = Compression::matching([2, 4, 4]);
        let config = PackConfig::builder()
            .compression(matching)
            .build()
            .expect("it is the paper's");
        assert_eq!(config.mid_tokens().0, 182);
        // Log sizes of every layer, and one matching.
        let mean = PackConfig::builder().build().expect("it is the paper's");
        let more = config.bytes().total() - mean.bytes().total();
        let how = SoftMatch::strided([2, 4, 4]);
        let matching = Matching::bytes_of(how, config.block(), config.rope(), (1, 12));
        let pages = 4 * 65 + 122 * 2; // sink, recent and current whole; archive, recent and current merged
        assert_eq!(more, 4 * 30 * pages * 12 * 96 + matching);
        assert_eq!(more / 1_000_000, 71);
    });

    suite.plain("wan_480p_in_numbers", || {
        let config = PackConfig::builder().build().expect("it is the paper's");
        assert_eq!(config.frame_tokens().0, 1_560);
        assert_eq!(config.block_tokens().0, 6_240);
        assert_eq!(config.mid_tokens().0, 182);
        assert_eq!(config.history_tokens().0, 21_632);
        assert_eq!(config.context_tokens().0, 27_872);
        assert_eq!(config.token_bytes(), 184_320);
        assert_eq!(format!("{:.2} GB", config.history_bytes() as f64 / 1e9), "3.99 GB");
        assert_eq!(config.page_tokens().0, 96);
        let total = config.bytes().total() as f64 / 1e9;
        assert!((8.5..9.5).contains(&total), "{total} GB with an archive of 120 blocks");
        // Rows 28 and 29 of 30 too, in cells of their own.
        let all = PackConfig::builder().compression(Compression::mean_pool([2, 4, 4]));
        let all = all.build().expect("it fits");
        assert_eq!(all.mid_grid().extents(), [2, 8, 13]);
    });

    // Cells that are all alike need no log sizes: a bias for all.
    suite.on_devices("a_remainder_of_nothing_costs_nothing", |device| {
        let kept = builder().compression(Compression::mean_pool([1, 2, 5]));
        let pool = MeanPool {
            cell: [1, 2, 5],
            remainder: Remainder::Drop,
        };
        let dropped = builder().compression(Compression::Mean(pool));
        let bytes = |builder: &PackConfigBuilder| builder.clone().build().expect("it fits").bytes();
        assert_eq!(bytes(&kept), bytes(&dropped));
        follows_the_model(device, "even", dtypes(device)[0], kept, Some(pool));
    });

    suite.on_devices("bytes_are_told_before_they_are_reserved", |device| {
        for builder in [
            builder().streams(2),
            builder().compression(Compression::None),
            builder().compression(Compression::Mean(MeanPool {
                cell: [2, 3, 2],
                remainder: Remainder::Keep,
            })),
            builder().streams(2).compression(Compression::matching([1, 2, 2])),
            builder().compression(Compression::Match {
                how: SoftMatch {
                    destinations: Destinations::Random {
                        cell: [2, 2, 2],
                        seed: 1,
                    },
                    metric: Metric::MeanOverHeads,
                    mode: Mode::Replace,
                },
                merged: Some(5),
            }),
            builder()
                .selection(Selection::Shared)
                .page_tokens(7)
                .selected(Blocks(0)),
        ] {
            let config = builder.build().expect("it fits");
            assert_eq!(config.bytes().total(), pool(device, &config).bytes());
        }
    });

    suite.plain("a_configuration_that_does_not_fit_is_refused", || {
        let refused = |builder: PackConfigBuilder, name: &str| match builder.build() {
            Err(Error::Argument {
                op: "PackConfig::build",
                argument,
                ..
            }) => assert_eq!(argument, name),
            other => panic!("{name}: {other:?}"),
        };
        let heads = |query, kv, dim| Heads { query, kv, dim };
        refused(builder().layers(0), "layers");
        refused(builder().layers(usize::MAX / 2), "layers");
        refused(builder().heads(heads(1 << 62, 1 << 62, 64)), "heads");
        refused(builder().page_tokens(usize::MAX), "page_tokens");
        refused(builder().sink(Blocks(usize::MAX)), "sink");
        refused(builder().streams(0), "streams");
        refused(builder().heads(heads(3, 2, 64)), "heads");
        refused(builder().heads(heads(2, 0, 64)), "heads");
        refused(builder().dtype(DType::I32), "dtype");
        refused(builder().block(Grid { frames: 0, ..GRID }), "block");
        refused(
            builder().block(Grid {
                frames: usize::MAX,
                ..GRID
            }),
            "block",
        );
        refused(builder().archive(Blocks(1)), "archive");
        refused(builder().archive(Blocks(usize::MAX)), "archive");
        refused(builder().rope(Rope3d::wan(128)), "rope");
        let whole_cells = MeanPool {
            cell: [4, 1, 1],
            remainder: Remainder::Drop,
        };
        refused(builder().compression(Compression::Mean(whole_cells)), "compression");
        refused(builder().compression(Compression::mean_pool([0, 1, 1])), "compression");
        refused(
            builder().compression(Compression::External(Grid { rows: 9, ..GRID })),
            "compression",
        );
        for (cell, merged) in [([4, 1, 1], None), ([0, 1, 1], None), ([2, 2, 2], Some(37))] {
            let how = SoftMatch::strided(cell);
            refused(builder().compression(Compression::Match { how, merged }), "compression");
        }
        refused(builder().key_bias(f32::NAN), "key_bias");
        refused(builder().page_tokens(0), "page_tokens");
    });

    suite.run()
}
