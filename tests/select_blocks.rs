//! `sum_keys` and `select_blocks` on every device against plain host code.
mod common;

use common::{Errors, Rng, Suite, rounded, widen};
use packforcing::ops::select_blocks::{
    BlockShape, Scores, SelectBlocks, SumKeys, query_chunks, reference, select_blocks, sum_keys,
};
use packforcing::paging::{Context, KvPages, PageLists, Segment};
use packforcing::{DType, Device, Error, Result, Tensor, View};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn main() -> std::process::ExitCode {
    let mut suite = Suite::new();
    suite
        .on_devices("small choices by hand", by_hand)
        .on_devices("random choices equal a context built on the host", random_choices)
        .on_devices("thousands of candidates", thousands)
        .on_devices("what the host cannot see is clamped", clamped)
        .on_devices("streams past the batch stay as they are", streams_past_the_batch)
        .on_devices("scores of integers are exact", exact_scores)
        .on_devices("scores are as good as plain f32 sums", score_errors)
        .on_devices("a stream does not see its neighbours", neighbours)
        .on_devices("a query that is not a number chooses the oldest", nan_query)
        .on_devices("sum_keys: integers are exact in any page order", exact_key_sums)
        .on_devices("sum_keys is as good as plain f32 sums", key_sum_errors)
        .on_devices("sum_keys refuses what does not fit", sum_keys_errors)
        .on_devices("select_blocks refuses what does not fit", select_errors)
        .plain("rotations of the paper's context", wan_rotations)
        .run()
}

/// A tensor in the middle of NaN: every dimension a little longer than `shape`.
struct Margins {
    whole: Tensor,
    shape: Vec<usize>,
}

impl Margins {
    fn new(device: &Device, dtype: DType, data: &[f32], shape: &[usize], margin: usize) -> Margins {
        let padded: Vec<usize> = shape.iter().map(|n| n + margin).collect();
        let mut whole = vec![f32::NAN; padded.iter().product()];
        for (i, &x) in data.iter().enumerate() {
            let (mut rest, mut at, mut stride) = (i, 0, 1);
            for (n, p) in shape.iter().zip(&padded).rev() {
                at += rest % n * stride;
                rest /= n;
                stride *= p;
            }
            whole[at] = x;
        }
        Margins {
            whole: Tensor::from_f32(device, dtype, &whole, &padded).unwrap(),
            shape: shape.to_vec(),
        }
    }

    fn view(&self) -> View<'_> {
        let mut view = self.whole.view();
        for (d, &n) in self.shape.iter().enumerate() {
            view = view.narrow(d, 0, n).unwrap();
        }
        view
    }
}

/// Everything of a choice but the scores, on the host.
#[derive(Clone)]
struct Case {
    pool: (usize, usize),
    candidates: Vec<Vec<i32>>, // [streams][count]
    max_candidates: usize,
    slots: Vec<Vec<u32>>,
    shape: BlockShape,
    selected: usize,
    draft: Vec<Vec<Segment>>,
    prefix: Vec<i32>,
}

impl Case {
    fn random(rng: &mut Rng, streams: usize, max_candidates: usize, selected: usize) -> Case {
        let page_tokens = [1, 3, 8, 96][rng.below(0..4)];
        let slot_pages = rng.below(1..4);
        let slots = max_candidates.max(1) + rng.below(0..3);
        let pool_pages = slots * slot_pages + 40;
        let mut pages: Vec<u32> = (0..pool_pages as u32).collect();
        rng.shuffle(&mut pages);
        let segment = |rng: &mut Rng| {
            let tokens = rng.below(0..4 * page_tokens);
            let first = rng.below(0..30);
            // A page more than the tokens need, now and then: lists are compacted.
            let n = tokens.div_ceil(page_tokens) + rng.below(0..2);
            Segment {
                pages: pages[first..first + n].to_vec(),
                tokens,
                rotation: rng.below(0..64) as f32 / 4.0,
                key_bias: rng.normal() as f32,
                slot_bias: rng.below(0..2) == 1,
            }
        };
        let draft: Vec<Vec<Segment>> = (0..streams)
            .map(|_| (0..rng.below(0..5)).map(|_| segment(rng)).collect())
            .collect();
        let prefix = draft.iter().map(|s| rng.below(0..s.len() + 1) as i32).collect();
        let slots: Vec<Vec<u32>> = (0..slots)
            .map(|s| pages[40 + s * slot_pages..][..slot_pages].to_vec())
            .collect();
        let candidates = (0..streams)
            .map(|_| {
                let mut all: Vec<i32> = (0..slots.len() as i32).collect();
                rng.shuffle(&mut all);
                all.truncate(rng.below(0..max_candidates + 1));
                all
            })
            .collect();
        Case {
            pool: (pool_pages, page_tokens),
            candidates,
            max_candidates,
            slots,
            shape: BlockShape {
                tokens: rng.below(1..slot_pages * page_tokens + 1),
                frames: rng.below(1..9) as f32 / 2.0,
                key_bias: 0.25,
                slot_bias: rng.below(0..2) == 1,
            },
            selected,
            draft,
            prefix,
        }
    }

    fn streams(&self) -> usize {
        self.candidates.len()
    }

    /// One stream of it.
    fn alone(&self, stream: usize) -> Case {
        Case {
            candidates: vec![self.candidates[stream].clone()],
            draft: vec![self.draft[stream].clone()],
            prefix: vec![self.prefix[stream]],
            ..self.clone()
        }
    }

    fn draft(&self, device: &Device) -> Context {
        Context::from_host(device, self.pool, &self.draft).unwrap()
    }

    /// A context that is large enough, full of something else.
    fn stale_context(&self, device: &Device) -> Context {
        let draft = self.draft(device);
        let block_pages = self.shape.tokens.div_ceil(self.pool.1);
        let pages = draft.max_pages() + self.selected * block_pages;
        let segments = draft.max_segments() + self.selected;
        let mut context = Context::new(device, self.pool, self.streams(), pages, segments).unwrap();
        let stale = Segment {
            rotation: -3.0,
            // Nothing chosen after segments of nothing: no page, so no token.
            ..Segment::new(vec![0; pages], pages.min(1))
        };
        if segments > 0 {
            context.set(&vec![vec![stale]; self.streams()]).unwrap();
        }
        context
    }

    /// What the context must be for these scores.
    fn expected(&self, scores: &[Vec<f32>]) -> (Vec<i32>, Vec<Vec<Segment>>) {
        let mut indices = Vec::new();
        let mut contexts = Vec::new();
        for (stream, scores) in scores.iter().enumerate() {
            let chosen = reference::choose(scores, self.selected);
            indices.extend((0..self.selected).map(|j| chosen.get(j).map_or(-1, |&m| m as i32)));
            contexts.push(self.expected_context(stream, &chosen));
        }
        (indices, contexts)
    }

    fn expected_context(&self, stream: usize, chosen: &[usize]) -> Vec<Segment> {
        let (draft, prefix) = (&self.draft[stream], self.prefix[stream] as usize);
        let trim = |pages: &[u32], tokens: usize| pages[..tokens.div_ceil(self.pool.1)].to_vec();
        let mut segments: Vec<Segment> = draft
            .iter()
            .map(|s| Segment {
                pages: trim(&s.pages, s.tokens),
                ..s.clone()
            })
            .collect();
        let blocks = chosen.iter().map(|&m| {
            let slot = self.candidates[stream][m] as usize;
            Segment {
                pages: trim(&self.slots[slot], self.shape.tokens),
                tokens: self.shape.tokens,
                rotation: 0.0,
                key_bias: self.shape.key_bias,
                slot_bias: self.shape.slot_bias,
            }
        });
        segments.splice(prefix..prefix, blocks);
        let turned: Vec<f64> = draft.iter().map(|s| s.rotation.into()).collect();
        let turned = reference::rotations(&turned, prefix, chosen.len(), self.shape.frames.into());
        for (segment, turned) in segments.iter_mut().zip(turned) {
            segment.rotation = turned as f32;
        }
        segments
    }

    /// Candidates as a table; what is not in use names no slot at all.
    fn table(&self) -> Vec<i32> {
        let row = |c: &Vec<i32>| {
            let mut row = c.clone();
            row.resize(self.max_candidates, -77);
            row
        };
        self.candidates.iter().flat_map(row).collect()
    }

    fn counts(&self) -> Vec<i32> {
        self.candidates.iter().map(|c| c.len() as i32).collect()
    }

    /// Runs it; `chosen` and the context.
    fn run(&self, device: &Device, scores: Scores<'_>) -> Result<(Vec<i32>, Vec<Vec<Segment>>)> {
        let streams = self.streams();
        let mut context = self.stale_context(device);
        let mut chosen = Tensor::from_slice(
            device,
            &vec![77i32; streams * (self.selected + 1)],
            &[streams, self.selected + 1],
        )?;
        let candidates = Tensor::from_slice(device, &self.table(), &[streams, self.max_candidates])?;
        let counts = Tensor::from_slice(device, &self.counts(), &[streams])?;
        let prefix = Tensor::from_slice(device, &self.prefix, &[streams])?;
        let mut args = SelectBlocks {
            scores,
            candidates: candidates.view(),
            counts: counts.view(),
            slot_pages: &PageLists::from_host(device, self.pool.0, &self.slots)?,
            shape: self.shape,
            selected: self.selected,
            draft: &self.draft(device),
            draft_prefix: prefix.view(),
        };
        let mut out = chosen.view_mut().narrow(1, 0, self.selected)?;
        select_blocks(&mut args, &mut out, &mut context)?;
        drop(out);
        let rows = chosen.to_vec::<i32>()?;
        let rows = rows.chunks(self.selected + 1);
        assert!(rows.clone().all(|row| row[self.selected] == 77), "written past the end");
        let indices = rows.flat_map(|row| row[..self.selected].to_vec()).collect();
        Ok((indices, context.to_host()?))
    }

    /// Runs it on these scores and compares with the host.
    fn check_given(&self, device: &Device, scores: &[Vec<f32>]) {
        let mut table = vec![f32::INFINITY; self.streams() * self.max_candidates];
        for (row, scores) in table.chunks_mut(self.max_candidates.max(1)).zip(scores) {
            row[..scores.len()].copy_from_slice(scores);
        }
        let shape = [self.streams(), self.max_candidates];
        let table = Tensor::from_slice(device, &table, &shape).unwrap();
        let got = self.run(device, Scores::Given(table.view())).unwrap();
        let expected = self.expected(scores);
        assert_eq!(got.0, expected.0, "chosen of {scores:?}");
        assert_eq!(got.1, expected.1);
    }
}

/// One stream, `count` candidates, a sink, a recent and a current segment.
fn simple(count: usize, selected: usize) -> Case {
    Case {
        pool: (count + 9, 8),
        candidates: vec![(0..count as i32).collect()],
        max_candidates: count,
        slots: (0..count.max(1) as u32).map(|s| vec![8 + s]).collect(),
        shape: BlockShape {
            tokens: 5,
            frames: 4.0,
            key_bias: 0.0,
            slot_bias: false,
        },
        selected,
        draft: vec![vec![
            Segment {
                rotation: 12.0,
                ..Segment::new(vec![3, 1], 16)
            },
            Segment {
                rotation: 4.0,
                ..Segment::new(vec![5], 8)
            },
            Segment::new(vec![0], 8),
        ]],
        prefix: vec![1],
    }
}

fn by_hand(device: &Device) {
    let nan = f32::NAN;
    let cases: [(&[f32], usize, &[i32]); 12] = [
        (&[3.0, 1.0, 2.0], 2, &[0, 2]),
        (&[1.0, 1.0, 1.0, 1.0], 2, &[0, 1]),
        (&[0.0, 1.0, 0.0, 1.0, 1.0], 2, &[1, 3]),
        (&[2.0, 1.0, 1.0, 3.0, 1.0], 3, &[0, 1, 3]),
        (&[-0.0, 0.0, -0.0], 2, &[0, 1]),
        (&[nan, 1.0, nan, f32::NEG_INFINITY], 2, &[1, 3]),
        (&[nan, nan, -nan, nan], 2, &[0, 1]),
        (&[nan, -1.0, nan], 2, &[0, 1]),
        (&[f32::INFINITY, f32::MAX, -f32::MIN_POSITIVE, 1e-45], 3, &[0, 1, 3]),
        (&[5.0, 4.0], 4, &[0, 1, -1, -1]),
        (&[], 2, &[-1, -1]),
        (&[1.0, 2.0], 0, &[]),
    ];
    for (scores, selected, expected) in cases {
        let case = simple(scores.len(), selected);
        let table = Tensor::from_slice(device, scores, &[1, scores.len()]).unwrap();
        let (chosen, context) = case.run(device, Scores::Given(table.view())).unwrap();
        assert_eq!(chosen, expected, "of {scores:?}");
        let n = expected.iter().filter(|&&m| m >= 0).count();
        assert_eq!(context[0].len(), 3 + n);
        // Packed to the right: every segment ends where the next one begins.
        let turned: Vec<f32> = context[0].iter().map(|s| s.rotation).collect();
        assert_eq!(turned[0], 12.0 + 4.0 * n as f32);
        for (j, turned) in turned[1..].iter().enumerate() {
            assert_eq!(*turned, 4.0 * (n + 1 - j) as f32);
        }
        case.check_given(device, &[scores.to_vec()]);
    }
}

fn random_choices(device: &Device) {
    let mut rng = Rng::new("choices");
    for round in 0..30 {
        let (streams, most, selected) = (rng.below(1..4), rng.below(0..40), rng.below(0..12));
        let case = Case::random(&mut rng, streams, most, selected);
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0];
        let scores: Vec<Vec<f32>> = case
            .candidates
            .iter()
            .map(|c| {
                let score = |_| match (round % 3, rng.below(0..6)) {
                    (0, _) => rng.normal() as f32,
                    (1, _) => rng.below(0..4) as f32,
                    (_, i) => odd.get(i).copied().unwrap_or(rng.normal() as f32),
                };
                (0..c.len()).map(score).collect()
            })
            .collect();
        case.check_given(device, &scores);
    }
}

fn thousands(device: &Device) {
    let mut rng = Rng::new("thousands");
    for (count, selected) in [(255, 16), (256, 16), (257, 256), (5_000, 64), (8_192, 1_024)] {
        let case = simple(count, selected);
        let many_ties = |rng: &mut Rng| (rng.normal() * 3.0).round() as f32;
        let scores = (0..count).map(|_| many_ties(&mut rng)).collect();
        case.check_given(device, &[scores]);
    }
}

fn clamped(device: &Device) {
    let case = simple(4, 2);
    let scores = Tensor::from_slice(device, &[1.0f32, 2.0, 3.0, 4.0], &[1, 4]).unwrap();
    let slot_pages = PageLists::from_host(device, case.pool.0, &case.slots).unwrap();
    let draft = case.draft(device);
    let run = |slots: [i32; 4], count: i32, prefix: i32| {
        let mut context = case.stale_context(device);
        let mut chosen = Tensor::zeros(device, DType::I32, &[1, 2]).unwrap();
        let candidates = Tensor::from_slice(device, &slots, &[1, 4]).unwrap();
        let counts = Tensor::from_slice(device, &[count], &[1]).unwrap();
        let prefix = Tensor::from_slice(device, &[prefix], &[1]).unwrap();
        let mut args = SelectBlocks {
            scores: Scores::Given(scores.view()),
            candidates: candidates.view(),
            counts: counts.view(),
            slot_pages: &slot_pages,
            shape: case.shape,
            selected: 2,
            draft: &draft,
            draft_prefix: prefix.view(),
        };
        select_blocks(&mut args, &mut chosen.view_mut(), &mut context).unwrap();
        (chosen.to_vec::<i32>().unwrap(), context.to_host().unwrap())
    };
    let plain = run([0, 1, 2, 3], 4, 1);
    assert_eq!(plain.0, [2, 3]);
    assert_eq!(run([0, 1, 2, i32::MAX], 4, 1), plain);
    assert_eq!(run([0, 1, 2, 3], i32::MAX, 1), plain);
    assert_eq!(run([i32::MIN, 1, 2, 3], 1, 1), run([0, 1, 2, 3], 1, 1));
    assert_eq!(run([0, 1, 2, 3], -5, 1), run([0, 1, 2, 3], 0, 1));
    assert_eq!(run([0, 1, 2, 3], 4, 9), run([0, 1, 2, 3], 4, 3));
    assert_eq!(run([0, 1, 2, 3], 4, -9), run([0, 1, 2, 3], 4, 0));
}

fn streams_past_the_batch(device: &Device) {
    let case = simple(3, 1);
    let other = vec![Segment::new(vec![7, 2], 9)];
    let mut context = Context::new(device, case.pool, 3, 8, 5).unwrap();
    context.set(&[vec![], other.clone(), other.clone()]).unwrap();
    let mut draft = Context::new(device, case.pool, 2, 5, 4).unwrap();
    draft.set(&[case.draft[0].clone(), other.clone()]).unwrap();
    let scores = Tensor::from_slice(device, &[0.0f32, 2.0, 1.0], &[1, 3]).unwrap();
    let candidates = Tensor::from_slice(device, &case.table(), &[1, 3]).unwrap();
    let counts = Tensor::from_slice(device, &[3i32], &[1]).unwrap();
    let prefix = Tensor::from_slice(device, &case.prefix, &[1]).unwrap();
    let mut args = SelectBlocks {
        scores: Scores::Given(scores.view()),
        candidates: candidates.view(),
        counts: counts.view(),
        slot_pages: &PageLists::from_host(device, case.pool.0, &case.slots).unwrap(),
        shape: case.shape,
        selected: 1,
        draft: &draft,
        draft_prefix: prefix.view(),
    };
    let mut chosen = Tensor::zeros(device, DType::I32, &[1, 1]).unwrap();
    select_blocks(&mut args, &mut chosen.view_mut(), &mut context).unwrap();
    let got = context.to_host().unwrap();
    assert_eq!(got[0], case.expected_context(0, &[1]));
    assert_eq!(got[1..], [other.clone(), other]);
}

/// Queries and cached key sums of a case.
struct Queries {
    dtype: DType,
    tokens: usize,
    chunks: usize,
    heads: (usize, usize),
    dim: usize,
    margin: usize,
    q: Vec<f32>,        // [streams, tokens, q_heads, dim]
    key_sums: Vec<f32>, // [slots, kv_heads, dim]
}

impl Queries {
    fn width(&self) -> usize {
        self.heads.0 * self.dim
    }

    /// Scores on the device; checks the choice against them.
    fn run(&self, device: &Device, case: &Case) -> Vec<Vec<f32>> {
        let (streams, m) = (case.streams(), case.max_candidates);
        let (q_heads, kv_heads) = self.heads;
        let q_shape = [streams, self.tokens, q_heads, self.dim];
        let q = Margins::new(device, self.dtype, &self.q, &q_shape, self.margin);
        let sum_shape = [case.slots.len(), kv_heads, self.dim];
        let key_sums = Margins::new(device, DType::F32, &self.key_sums, &sum_shape, self.margin);
        let nan = |shape: &[usize]| Tensor::from_slice(device, &vec![f32::NAN; shape.iter().product()], shape).unwrap();
        let mut query_sums = nan(&[streams, self.chunks, q_heads, self.dim]);
        let mut scores = nan(&[streams, m + 1]);
        let dot = Scores::Dot {
            q: q.view(),
            key_sums: key_sums.view(),
            query_sums: query_sums.view_mut(),
            scores: scores.view_mut().narrow(1, 0, m).unwrap(),
        };
        let got = case.run(device, dot).unwrap();
        let table = scores.to_vec::<f32>().unwrap();
        let rows = table.chunks(m + 1).zip(&case.candidates);
        let made: Vec<Vec<f32>> = rows.map(|(row, c)| row[..c.len()].to_vec()).collect();
        for (row, c) in table.chunks(m + 1).zip(&case.candidates) {
            assert!(row[c.len()..].iter().all(|x| x.is_nan()), "a score of no candidate");
        }
        assert_eq!(got, case.expected(&made), "not the best by its own scores");
        made
    }

    fn truth(&self, case: &Case, stream: usize, candidate: usize) -> f64 {
        let (q_heads, kv_heads) = self.heads;
        let size = self.tokens * self.width();
        let slot = case.candidates[stream][candidate] as usize;
        let keys = &self.key_sums[slot * kv_heads * self.dim..][..kv_heads * self.dim];
        reference::score(&self.q[stream * size..][..size], keys, q_heads, kv_heads, self.dim)
    }
}

fn exact_scores(device: &Device) {
    let mut rng = Rng::new("exact scores");
    // tokens, chunks, q_heads, kv_heads, dim, margin: margins make rows that are not aligned.
    let shapes = [
        (1, 1, 1, 1, 1, 0),
        (7, 3, 4, 2, 16, 0),
        (33, 5, 6, 6, 8, 1),
        (20, 40, 2, 1, 5, 2),
        (0, 2, 2, 2, 8, 0),
        (70, 2, 3, 1, 128, 0),
        (9, 1, 1, 1, 256, 0),
        (9, 1, 2, 1, 251, 0),
    ];
    for (i, (tokens, chunks, q_heads, kv_heads, dim, margin)) in shapes.into_iter().enumerate() {
        let case = Case::random(&mut rng, 1 + i % 3, 21, 4);
        let mut small = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.below(0..7) as f32 - 3.0).collect() };
        let queries = Queries {
            dtype: FLOATS[i % 3],
            tokens,
            chunks,
            heads: (q_heads, kv_heads),
            dim,
            margin,
            q: small(case.streams() * tokens * q_heads * dim),
            key_sums: small(case.slots.len() * kv_heads * dim),
        };
        for (stream, scores) in queries.run(device, &case).iter().enumerate() {
            for (m, &score) in scores.iter().enumerate() {
                assert_eq!(f64::from(score), queries.truth(&case, stream, m), "shape {i}");
            }
        }
    }
}

/// f32, one number after the other: sums of all queries, then the dot product.
fn plain_score(q: &[f32], keys: &[f32], q_heads: usize, kv_heads: usize, dim: usize) -> f32 {
    let mut sums = vec![0.0f32; q_heads * dim];
    for token in q.chunks_exact(q_heads * dim) {
        for (sum, x) in sums.iter_mut().zip(token) {
            *sum += x;
        }
    }
    let key = |i: usize| keys[i / dim / (q_heads / kv_heads) * dim + i % dim];
    let mut score = 0.0f32;
    for (i, sum) in sums.iter().enumerate() {
        score += sum * key(i);
    }
    score
}

fn normal_queries(rng: &mut Rng, case: &Case, dtype: DType) -> Queries {
    let (tokens, heads, dim) = (150, (4, 2), 64);
    Queries {
        dtype,
        tokens,
        chunks: query_chunks(tokens),
        heads,
        dim,
        margin: 0,
        q: rounded(dtype, &rng.normals(case.streams() * tokens * heads.0 * dim)),
        key_sums: rng.normals(case.slots.len() * heads.1 * dim),
    }
}

fn score_errors(device: &Device) {
    let mut rng = Rng::new("score errors");
    for dtype in FLOATS {
        let mut case = Case::random(&mut rng, 2, 200, 16);
        case.candidates = vec![(0..200).collect(); 2];
        let queries = normal_queries(&mut rng, &case, dtype);
        let size = queries.tokens * queries.width();
        let got = queries.run(device, &case);
        let (mut truth, mut plain) = (Vec::new(), Vec::new());
        for stream in 0..2 {
            for m in 0..200 {
                let keys = &queries.key_sums[m * 2 * 64..][..2 * 64];
                truth.push(queries.truth(&case, stream, m));
                plain.push(plain_score(&queries.q[stream * size..][..size], keys, 4, 2, 64));
            }
        }
        let largest = truth.iter().fold(0.0f64, |a, t| a.max(t.abs()));
        // A score cannot be better than half a unit in the last place.
        let floor = 0.5 * f64::from(f32::EPSILON) * largest;
        Errors::of(&got.concat(), &truth).within(Errors::of(&plain, &truth), floor);
        assert_eq!(bits(&queries.run(device, &case)), bits(&got), "another run");
    }
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let bits = |row: &Vec<f32>| row.iter().map(|x| x.to_bits()).collect();
    rows.iter().map(bits).collect()
}

fn neighbours(device: &Device) {
    let mut rng = Rng::new("neighbours");
    let case = Case::random(&mut rng, 3, 30, 5);
    let together = normal_queries(&mut rng, &case, DType::BF16);
    let size = together.tokens * together.width();
    let all = together.run(device, &case);
    for (stream, scores) in all.iter().enumerate() {
        let alone = Queries {
            q: together.q[stream * size..][..size].to_vec(),
            key_sums: together.key_sums.clone(),
            ..together
        };
        let own = alone.run(device, &case.alone(stream));
        assert_eq!(bits(&own)[0], bits(std::slice::from_ref(scores))[0]);
    }
}

fn nan_query(device: &Device) {
    let mut rng = Rng::new("nan query");
    let case = simple(9, 3);
    let mut queries = normal_queries(&mut rng, &case, DType::F16);
    queries.q[1234] = f32::NAN;
    let scores = queries.run(device, &case);
    assert!(scores[0].iter().all(|s| s.is_nan()));
    assert_eq!(reference::choose(&scores[0], 3), [0, 1, 2]);
}

/// A pool full of NaN with these keys in it. Returns keys `[pages, kv_heads, page_tokens, dim]`.
struct Keys {
    dtype: DType,
    heads: usize,
    page_tokens: usize,
    dim: usize,
    tokens: usize,
    blocks: Vec<Vec<f32>>, // [tokens, heads, dim] each
}

impl Keys {
    /// Sums on the device, with every block's pages wherever `order` puts them.
    fn sums(&self, device: &Device, order: &[u32], rows: &[i32], row_count: usize, margin: usize) -> Vec<f32> {
        let (heads, dim, page_tokens) = (self.heads, self.dim, self.page_tokens);
        let block_pages = self.tokens.div_ceil(page_tokens);
        let shape = [order.len() + 1, heads, page_tokens, dim];
        let mut pool = vec![f32::NAN; shape.iter().product()];
        let lists: Vec<Vec<u32>> = (0..self.blocks.len())
            .map(|b| order[b * block_pages..][..block_pages].to_vec())
            .collect();
        for (block, list) in self.blocks.iter().zip(&lists) {
            for (i, &x) in block.iter().enumerate() {
                let (t, h, d) = (i / dim / heads, i / dim % heads, i % dim);
                let page = list[t / page_tokens] as usize;
                pool[((page * heads + h) * page_tokens + t % page_tokens) * dim + d] = x;
            }
        }
        let k = Margins::new(device, self.dtype, &pool, &shape, margin);
        let rows = Tensor::from_slice(device, rows, &[rows.len()]).unwrap();
        let mut sums = Tensor::from_slice(
            device,
            &vec![f32::NAN; row_count * heads * dim],
            &[row_count, heads, dim],
        )
        .unwrap();
        let args = SumKeys {
            kv: KvPages {
                k: k.view(),
                v: k.view(),
                slot_bias: None,
            },
            pages: &PageLists::from_host(device, shape[0], &lists).unwrap(),
            rows: rows.view(),
            tokens: self.tokens,
        };
        sum_keys(&args, &mut sums.view_mut()).unwrap();
        sums.to_vec().unwrap()
    }

    fn truth(&self, block: usize) -> Vec<f64> {
        reference::sum_tokens(&self.blocks[block], self.heads * self.dim)
    }
}

fn shuffled(rng: &mut Rng, n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    rng.shuffle(&mut order);
    order
}

fn exact_key_sums(device: &Device) {
    let mut rng = Rng::new("key sums");
    // heads, page_tokens, dim, tokens, margin
    let shapes = [
        (1, 1, 1, 1, 0),
        (2, 96, 128, 182, 0),
        (3, 8, 24, 8, 0),
        (2, 5, 7, 23, 1),
        (1, 16, 256, 17, 0),
        (1, 4, 250, 6, 0),
        (2, 4, 8, 0, 0),
    ];
    for (i, (heads, page_tokens, dim, tokens, margin)) in shapes.into_iter().enumerate() {
        let size = tokens * heads * dim;
        let mut block = || (0..size).map(|_| rng.below(0..9) as f32 - 4.0).collect();
        let keys = Keys {
            dtype: FLOATS[i % 3],
            heads,
            page_tokens,
            dim,
            tokens,
            blocks: vec![block(), block(), block()],
        };
        let pages = 3 * tokens.div_ceil(page_tokens);
        // Block 1 is skipped, blocks 2 and 0 go to rows 1 and 3.
        let sums = keys.sums(device, &shuffled(&mut rng, pages), &[3, -1, 1], 4, margin);
        let rows: Vec<&[f32]> = sums.chunks(heads * dim).collect();
        assert_eq!(widen(rows[3]), keys.truth(0), "shape {i}");
        assert_eq!(widen(rows[1]), keys.truth(2), "shape {i}");
        assert!(rows[0].iter().chain(rows[2]).all(|x| x.is_nan()), "a row of no block");
        let outside = keys.sums(device, &shuffled(&mut rng, pages), &[i32::MAX, 4, i32::MIN], 4, margin);
        assert!(outside.iter().all(|x| x.is_nan()));
        // A row for each of the first two lists only.
        let fewer = keys.sums(device, &shuffled(&mut rng, pages), &[0, 1], 2, margin);
        assert_eq!(widen(&fewer[heads * dim..]), keys.truth(1));
    }
}

fn key_sum_errors(device: &Device) {
    let mut rng = Rng::new("key sum errors");
    for dtype in FLOATS {
        let (heads, dim, tokens) = (2, 64, 182);
        let size = tokens * heads * dim;
        let keys = Keys {
            dtype,
            heads,
            page_tokens: 16,
            dim,
            tokens,
            blocks: vec![rounded(dtype, &rng.normals(size))],
        };
        let order = shuffled(&mut rng, 12);
        let got = keys.sums(device, &order, &[0], 1, 0);
        let mut plain = vec![0.0f32; heads * dim];
        for token in keys.blocks[0].chunks_exact(heads * dim) {
            plain.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
        }
        let truth = keys.truth(0);
        let largest = truth.iter().fold(0.0f64, |a, t| a.max(t.abs()));
        // Sums of 182 numbers of f16 are exact in most orders, and the plain one's may all be: then two
        // roundings of another order, each of half a unit in the last place, are more than twice nothing.
        let floor = 2.0 * f64::from(f32::EPSILON) * largest;
        Errors::of(&got, &truth).within(Errors::of(&plain, &truth), floor);
        let moved = keys.sums(device, &shuffled(&mut rng, 12), &[0], 1, 0);
        assert_eq!(bits(&[moved]), bits(&[got]), "pages in another order");
    }
}

/// The argument that an error names.
fn argument<T: std::fmt::Debug>(result: Result<T>, op: &str) -> &'static str {
    match result.unwrap_err() {
        Error::Argument { op: got, argument, .. } | Error::UnsupportedDType { op: got, argument, .. } => {
            assert_eq!(got, op);
            argument
        }
        other => panic!("{other}"),
    }
}

fn sum_keys_errors(device: &Device) {
    let pool = |dtype, dim: usize| Tensor::zeros(device, dtype, &[4, 2, 8, dim]).unwrap();
    let lists = |pool_pages| PageLists::from_host(device, pool_pages, &[vec![0, 1], vec![2, 3]]).unwrap();
    let attempt = |k: &Tensor, pages: &PageLists, rows: &Tensor, tokens: usize, shape: &[usize]| {
        let mut sums = Tensor::from_slice(device, &vec![7.0f32; shape.iter().product()], shape).unwrap();
        let kv = KvPages {
            k: k.view(),
            v: k.view(),
            slot_bias: None,
        };
        let args = SumKeys {
            kv,
            pages,
            rows: rows.view(),
            tokens,
        };
        let result = sum_keys(&args, &mut sums.view_mut());
        let untouched = sums.to_vec::<f32>().unwrap().iter().all(|&x| x == 7.0);
        assert!(result.is_ok() || untouched);
        result
    };
    let good = (
        pool(DType::F32, 16),
        lists(4),
        Tensor::zeros(device, DType::I32, &[2]).unwrap(),
    );
    let (k, pages, rows) = &good;
    attempt(k, pages, rows, 16, &[3, 2, 16]).unwrap();
    let refused = |result| argument(result, "sum_keys");
    let none = Tensor::zeros(device, DType::I32, &[0]).unwrap();
    assert_eq!(refused(attempt(k, pages, &none, 16, &[3, 2, 16])), "rows");
    assert_eq!(refused(attempt(k, pages, rows, 17, &[3, 2, 16])), "tokens");
    assert_eq!(refused(attempt(k, pages, rows, 16, &[3, 1, 16])), "sums");
    assert_eq!(refused(attempt(k, &lists(5), rows, 16, &[3, 2, 16])), "pages");
    let floats = Tensor::zeros(device, DType::F32, &[2]).unwrap();
    assert_eq!(refused(attempt(k, pages, &floats, 16, &[3, 2, 16])), "rows");
    let many = Tensor::zeros(device, DType::I32, &[3]).unwrap();
    assert_eq!(refused(attempt(k, pages, &many, 16, &[3, 2, 16])), "rows");
    assert_eq!(
        refused(attempt(&pool(DType::I32, 16), pages, rows, 16, &[3, 2, 16])),
        "kv.k"
    );
    assert_eq!(
        refused(attempt(&pool(DType::F32, 257), pages, rows, 16, &[3, 2, 257])),
        "kv.k"
    );
}

/// What a call of `select_blocks` is made of, to be spoilt one thing at a time.
struct Call {
    q: Tensor,
    key_sums: Tensor,
    query_sums: Tensor,
    scores: Tensor,
    candidates: Tensor,
    counts: Tensor,
    prefix: Tensor,
    slot_pages: PageLists,
    shape: BlockShape,
    selected: usize,
    draft: Context,
    chosen: Tensor,
    context: Context,
}

impl Call {
    fn new(device: &Device) -> Call {
        let zeros = |dtype, shape: &[usize]| Tensor::zeros(device, dtype, shape).unwrap();
        let case = simple(3, 2);
        Call {
            q: zeros(DType::BF16, &[1, 10, 4, 16]),
            key_sums: zeros(DType::F32, &[3, 2, 16]),
            query_sums: zeros(DType::F32, &[1, 2, 4, 16]),
            scores: zeros(DType::F32, &[1, 3]),
            candidates: zeros(DType::I32, &[1, 3]),
            counts: Tensor::from_slice(device, &[3i32], &[1]).unwrap(),
            prefix: zeros(DType::I32, &[1]),
            slot_pages: PageLists::from_host(device, case.pool.0, &case.slots).unwrap(),
            shape: case.shape,
            selected: 2,
            draft: case.draft(device),
            chosen: Tensor::from_slice(device, &[9i32, 9], &[1, 2]).unwrap(),
            context: case.stale_context(device),
        }
    }

    fn make(&mut self) -> Result<()> {
        let before = self.context.to_host()?;
        let mut args = SelectBlocks {
            scores: Scores::Dot {
                q: self.q.view(),
                key_sums: self.key_sums.view(),
                query_sums: self.query_sums.view_mut(),
                scores: self.scores.view_mut(),
            },
            candidates: self.candidates.view(),
            counts: self.counts.view(),
            slot_pages: &self.slot_pages,
            shape: self.shape,
            selected: self.selected,
            draft: &self.draft,
            draft_prefix: self.prefix.view(),
        };
        let result = select_blocks(&mut args, &mut self.chosen.view_mut(), &mut self.context);
        if result.is_err() {
            assert_eq!(self.context.to_host()?, before, "changed by a refused call");
            assert!(self.chosen.to_vec::<i32>()?.iter().all(|&m| m == 9));
        }
        result
    }
}

fn select_errors(device: &Device) {
    Call::new(device).make().unwrap();
    let zeros = move |device: &Device, dtype, shape: &[usize]| Tensor::zeros(device, dtype, shape).unwrap();
    type Spoil = fn(&mut Call, &Device, &dyn Fn(&Device, DType, &[usize]) -> Tensor);
    let cases: [(&str, Spoil); 20] = [
        ("q", |c, d, z| c.q = z(d, DType::I32, &[1, 10, 4, 16])),
        ("q", |c, d, z| c.q = z(d, DType::BF16, &[2, 10, 4, 16])),
        ("q", |c, d, z| c.q = z(d, DType::BF16, &[10, 4, 16])),
        ("q", |c, _, z| c.q = z(&other_device(), DType::BF16, &[1, 10, 4, 16])),
        ("q", |c, d, z| c.q = z(d, DType::BF16, &[1, 10, 4, 257])),
        ("key_sums", |c, d, z| c.key_sums = z(d, DType::F32, &[2, 2, 16])),
        ("key_sums", |c, d, z| c.key_sums = z(d, DType::F32, &[3, 3, 16])),
        ("key_sums", |c, d, z| c.key_sums = z(d, DType::BF16, &[3, 2, 16])),
        ("query_sums", |c, d, z| c.query_sums = z(d, DType::F32, &[1, 0, 4, 16])),
        ("query_sums", |c, d, z| c.query_sums = z(d, DType::F32, &[1, 2, 2, 16])),
        ("scores", |c, d, z| c.scores = z(d, DType::F32, &[1, 4])),
        ("candidates", |c, d, z| c.candidates = z(d, DType::I32, &[3])),
        ("candidates", |c, d, z| c.candidates = z(d, DType::I32, &[1, 8_193])),
        ("draft_prefix", |c, d, z| c.prefix = z(d, DType::I32, &[2])),
        ("chosen", |c, _, _| c.selected = 1),
        ("shape.tokens", |c, _, _| c.shape.tokens = 9),
        ("shape.tokens", |c, _, _| c.shape.tokens = 0),
        ("shape.frames, shape.key_bias", |c, _, _| c.shape.frames = f32::NAN),
        ("context", |c, d, _| {
            c.context = Context::new(d, (12, 8), 1, 5, 5).unwrap()
        }),
        ("draft", |c, d, _| c.draft = Context::new(d, (13, 8), 1, 4, 3).unwrap()),
    ];
    for (i, (expected, spoil)) in cases.into_iter().enumerate() {
        let mut call = Call::new(device);
        spoil(&mut call, device, &zeros);
        assert_eq!(argument(call.make(), "select_blocks"), expected, "case {i}");
    }
    let mut call = Call::new(device);
    call.slot_pages = PageLists::new(device, 99, 3, 1).unwrap();
    assert_eq!(argument(call.make(), "select_blocks"), "slot_pages");
    let mut call = Call::new(device);
    call.context = Context::new(device, (12, 8), 0, 9, 9).unwrap();
    assert_eq!(argument(call.make(), "select_blocks"), "context");
}

/// A device that no test runs on.
fn other_device() -> Device {
    Device::simt(packforcing::SimtOptions {
        seed: 1,
        ..Default::default()
    })
    .unwrap_or_else(|_| Device::cpu())
}

/// 8 frames of sink, 16 blocks of 4, 4 recent ones: 76 frames before the block.
fn wan_rotations() {
    let turned = reference::rotations(&[12.0, 4.0, 0.0], 1, 16, 4.0);
    let blocks = (0..16).map(|j| f64::from(68 - 4 * j));
    let expected: Vec<f64> = [76.0].into_iter().chain(blocks).chain([4.0, 0.0]).collect();
    assert_eq!(turned, expected);
    assert_eq!(reference::rotations(&[3.0], 1, 2, 4.0), [11.0, 8.0, 4.0]);
}
