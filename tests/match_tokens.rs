//! `match_tokens` and `unmerge_tokens` against their f64 reference, on every device.
mod common;

use common::{Errors, Rng, TokenMajor, rounded, widen};
use packforcing::ops::append_kv::reference::positions;
use packforcing::ops::attention::{Attention, attention};
use packforcing::ops::match_tokens::{
    Destinations, MatchTokens, Matching, Merges, Metric, Mode, SoftMatch, UnmergeTokens, match_tokens, reference,
    unmerge_tokens,
};
use packforcing::ops::merge_tokens::reference::turn;
use packforcing::paging::{Context, KvPages, KvPagesMut, PageLists, Segment};
use packforcing::{DType, Device, DeviceKind, Error, Grid, Result, Rope3d, Tensor};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
/// Values stay below 8 or so: a few roundings of f32, where the plain result is exact by chance.
const FLOOR: f64 = 2e-6;

/// What the slot bias is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bias {
    /// Not there.
    None,
    /// Written alone.
    Out,
    /// Read as log sizes, and written.
    InOut,
}

#[derive(Debug, Clone)]
struct Case {
    dtype: DType,
    batch: usize,
    grid: Grid,
    how: SoftMatch,
    merges: Merges,
    heads: usize,
    rope: Rope3d,
    page_tokens: usize,
    bias: Bias,
    /// A slot of NaN after each page of the pool.
    margins: bool,
}

impl Case {
    fn new(dtype: DType, grid: [usize; 3], cell: [usize; 3], heads: usize, dim: usize, page_tokens: usize) -> Case {
        Case {
            dtype,
            batch: 1,
            grid: grid_of(grid),
            how: SoftMatch::strided(cell),
            merges: Merges::Top(usize::MAX),
            heads,
            rope: Rope3d::wan(dim),
            page_tokens,
            bias: Bias::Out,
            margins: false,
        }
    }

    /// Rows and columns turn nothing, and there is one frame: stored keys are the keys.
    fn without_turns(mut self) -> Case {
        assert_eq!(self.grid.frames, 1);
        self.rope = Rope3d::new([self.dim() / 2, 0, 0], 10_000.0).expect("pairs");
        self
    }

    fn dim(&self) -> usize {
        self.rope.dim()
    }

    fn width(&self) -> usize {
        self.heads * self.dim()
    }

    fn tokens(&self) -> usize {
        self.grid.tokens().0
    }

    fn maps(&self) -> usize {
        match self.how.metric {
            Metric::PerHead => self.heads,
            Metric::MeanOverHeads => 1,
        }
    }

    fn destinations(&self) -> Vec<usize> {
        self.how.destinations.tokens(self.grid)
    }

    fn chosen(&self) -> reference::Chosen {
        match self.merges {
            Merges::Top(n) => reference::Chosen::Top(n),
            Merges::Above(threshold) => reference::Chosen::Above(threshold.into()),
        }
    }

    /// Merged tokens that there is room for.
    fn capacity(&self) -> usize {
        match self.merges {
            Merges::Top(n) => self.tokens() - n.min(self.tokens() - self.destinations().len()),
            Merges::Above(_) => self.tokens(),
        }
    }

    /// Pages of a source block and of a merged one.
    fn pages(&self) -> [usize; 2] {
        [self.tokens(), self.capacity()].map(|n| n.div_ceil(self.page_tokens))
    }

    /// One page more than is used.
    fn pool_pages(&self) -> usize {
        self.batch * self.pages().iter().sum::<usize>() + 1
    }

    fn slots(&self) -> usize {
        self.page_tokens + usize::from(self.margins)
    }

    /// Positions of all tokens.
    fn places(&self) -> Vec<[f64; 3]> {
        positions(self.grid.extents(), [0.0; 3], [1.0; 3], 0.0)
    }
}

fn grid_of([frames, rows, cols]: [usize; 3]) -> Grid {
    Grid { frames, rows, cols }
}

/// Keys and values of the blocks, `[batch, tokens, heads, dim]`, their log sizes, `[batch, tokens, heads]`,
/// and where they lie.
#[derive(Clone)]
struct Inputs {
    k: Vec<f32>,
    v: Vec<f32>,
    log_sizes: Vec<f32>,
    source: Vec<Vec<u32>>,
    dest: Vec<Vec<u32>>,
}

impl Inputs {
    fn random(case: &Case, rng: &mut Rng) -> Inputs {
        let n = case.batch * case.tokens() * case.width();
        let mut pages: Vec<u32> = (0..case.pool_pages() as u32).collect();
        rng.shuffle(&mut pages);
        let mut pages = pages.into_iter();
        let mut lists = |length: usize| (0..case.batch).map(|_| pages.by_ref().take(length).collect()).collect();
        let [source, dest] = case.pages();
        Inputs {
            source: lists(source),
            dest: lists(dest),
            k: rounded(case.dtype, &rng.normals(n)),
            v: rounded(case.dtype, &rng.normals(n)),
            log_sizes: (0..n / case.dim()).map(|_| (2.2 * rng.uniform()) as f32).collect(),
        }
    }

    /// `[batch, tokens, heads, n]` in the source pages; NaN everywhere else, in the slots after the
    /// tokens too.
    fn paged(&self, case: &Case, rows: &[f32], n: usize) -> Vec<f32> {
        let mut pages = vec![f32::NAN; case.pool_pages() * case.slots() * case.heads * n];
        for (rows, list) in rows.chunks_exact(case.tokens() * case.heads * n).zip(&self.source) {
            for (i, row) in rows.chunks_exact(case.heads * n).enumerate() {
                for (head, x) in row.chunks_exact(n).enumerate() {
                    pages[slot(case, list, i, head) * n..][..n].copy_from_slice(x);
                }
            }
        }
        pages
    }
}

/// The slot of token `i` of a list in the pool.
fn slot(case: &Case, list: &[u32], i: usize, head: usize) -> usize {
    let page = list[i / case.page_tokens] as usize;
    (page * case.heads + head) * case.slots() + i % case.page_tokens
}

struct Call {
    case: Case,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    source: PageLists,
    dest: PageLists,
    matching: Matching,
}

impl Call {
    fn new(device: &Device, case: &Case, inputs: &Inputs) -> Call {
        let shape = [case.pool_pages(), case.heads, case.slots(), case.dim()];
        let pages = |rows: &[f32]| {
            Tensor::from_f32(device, case.dtype, &inputs.paged(case, rows, case.dim()), &shape).expect("a pool")
        };
        let lists = |lists| PageLists::from_host(device, case.pool_pages(), lists).expect("lists");
        let bias = match case.bias {
            Bias::InOut => inputs.paged(case, &inputs.log_sizes, 1),
            _ => vec![f32::NAN; shape[..3].iter().product()],
        };
        let room = (case.batch, case.heads);
        let matching = Matching::new(device, case.how, case.grid, &case.rope, room).expect("a matching");
        assert_eq!(
            matching.bytes(),
            Matching::bytes_of(case.how, case.grid, &case.rope, room)
        );
        Call {
            k: pages(&inputs.k),
            v: pages(&inputs.v),
            bias: Tensor::from_slice(device, &bias, &shape[..3]).expect("a tensor"),
            source: lists(&inputs.source),
            dest: lists(&inputs.dest),
            matching,
            case: case.clone(),
        }
    }

    fn run(&mut self) -> Result<()> {
        self.run_with(|_| {})
    }

    /// The call, with its arguments changed first.
    fn run_with<'a>(&'a mut self, change: impl FnOnce(&mut MatchTokens<'a>)) -> Result<()> {
        let case = &self.case;
        let mut args = MatchTokens {
            source: &self.source,
            dest: &self.dest,
            merges: case.merges,
            weighted: case.bias == Bias::InOut,
        };
        change(&mut args);
        let mut kv = KvPagesMut {
            k: self.k.view_mut().narrow(2, 0, case.page_tokens)?,
            v: self.v.view_mut().narrow(2, 0, case.page_tokens)?,
            slot_bias: match case.bias {
                Bias::None => None,
                _ => Some(self.bias.view_mut().narrow(2, 0, case.page_tokens)?),
            },
        };
        match_tokens(&args, &mut self.matching, &mut kv)
    }

    /// The whole pool: keys, values, bias.
    fn pools(&self) -> [Vec<f32>; 3] {
        [&self.k, &self.v, &self.bias].map(|t| t.to_f32_vec().expect("a download"))
    }

    fn bits(&self) -> Vec<u32> {
        self.pools().concat().iter().map(|x| x.to_bits()).collect()
    }
}

/// What a matching says, `[batch, maps, ...]`.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    map: Vec<i32>,
    counts: Vec<i32>,
    nearest: Vec<i32>,
    similarity: Vec<f32>,
}

/// Merged rows of all blocks, `[batch, capacity, width]`, and their log sizes, `[batch, capacity, heads]`.
struct Merged {
    k: Vec<f32>,
    v: Vec<f32>,
    bias: Vec<f32>,
    found: Found,
}

impl Merged {
    fn bits(&self) -> Vec<u32> {
        let rows = self
            .k
            .iter()
            .chain(&self.v)
            .chain(&self.bias)
            .chain(&self.found.similarity);
        let found = self
            .found
            .map
            .iter()
            .chain(&self.found.counts)
            .chain(&self.found.nearest);
        rows.map(|x| x.to_bits()).chain(found.map(|&i| i as u32)).collect()
    }
}

/// Runs a case; checks that the sources and everything else outside the dest pages are as they were, and
/// that slots past the counts weigh nothing; gives what was written.
fn run(device: &Device, case: &Case, inputs: &Inputs) -> Merged {
    let mut call = Call::new(device, case, inputs);
    let before = call.pools();
    call.run().unwrap_or_else(|e| panic!("{case:?}: {e}"));
    let [mut k, mut v, mut bias] = call.pools();
    let found = Found {
        map: call.matching.map().to_vec().expect("a download"),
        counts: call.matching.counts().to_vec().expect("a download"),
        nearest: call.matching.nearest().to_vec().expect("a download"),
        similarity: call.matching.similarity().to_vec().expect("a download"),
    };
    let (capacity, dim) = (case.capacity(), case.dim());
    let mut merged = Merged {
        k: vec![],
        v: vec![],
        bias: vec![],
        found,
    };
    for (block, list) in inputs.dest.iter().enumerate() {
        for i in 0..list.len() * case.page_tokens {
            for head in 0..case.heads {
                let of_head = block * case.maps() + head % case.maps();
                let used = i < merged.found.counts[of_head] as usize;
                let at = slot(case, list, i, head);
                for (pool, rows) in [(&mut k, &mut merged.k), (&mut v, &mut merged.v)] {
                    let row = &mut pool[at * dim..][..dim];
                    if !used {
                        assert_eq!(row, vec![0.0; dim], "past the count of {case:?}");
                    }
                    if i < capacity {
                        rows.extend_from_slice(row);
                    }
                    row.fill(f32::NAN);
                }
                let log_size = std::mem::replace(&mut bias[at], f32::NAN);
                match case.bias {
                    Bias::None => assert!(log_size.is_nan()),
                    _ if !used => assert_eq!(log_size, f32::NEG_INFINITY, "past the count of {case:?}"),
                    _ => assert!(log_size.is_finite(), "{log_size}"),
                }
                if i < capacity && case.bias != Bias::None {
                    merged.bias.push(log_size);
                }
            }
        }
    }
    // With the dest pages poisoned again, nothing differs from before.
    for (after, before) in [k, v, bias].iter_mut().zip(&before) {
        let same = after
            .iter()
            .zip(before)
            .all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
        assert!(same, "something outside the dest pages has changed: {case:?}");
    }
    merged
}

/// How far a device's cosines are from those of its keys: the kernels round keys of 16 bits once more when
/// they turn them back (each vector moves by a unit at most, and the cosine by the sum of both), and then
/// there are as many roundings of f32 as numbers of a head.
fn tolerance(device: &Device, dtype: DType) -> f64 {
    let unit = match (device.kind(), dtype) {
        (DeviceKind::Cpu, _) | (_, DType::F32) => 0.0,
        (_, DType::F16) => 0.5f64.powi(11),
        _ => 0.5f64.powi(8),
    };
    2.0 * unit + 1e-5
}

/// The rows of one head of one block: `[tokens, dim]` of `[batch, tokens, heads, dim]`.
fn of_head(case: &Case, x: &[f32], tokens: usize, n: usize, (block, head): (usize, usize)) -> Vec<f32> {
    let block = &x[block * tokens * case.heads * n..][..tokens * case.heads * n];
    let rows = block.chunks_exact(case.heads * n);
    rows.flat_map(|row| row[head * n..][..n].to_vec()).collect()
}

/// Keys turned back, in f64: `[batch, tokens, heads, dim]`.
fn keys_turned_back(case: &Case, k: &[f32]) -> Vec<f64> {
    let mut keys = widen(k);
    let places = case.places().repeat(case.batch);
    turn(
        &mut keys,
        case.heads,
        case.rope.pairs(),
        case.rope.theta(),
        &places,
        -1.0,
    );
    keys
}

/// The plain implementation of the mean, in f32: turn back, add up, divide, turn to the centroid, round.
/// `x`: `[tokens, dim]` of one head.
fn plain(case: &Case, x: &[f32], sizes: &[f32], map: &[usize], keys: bool) -> Vec<f32> {
    let dim = case.dim();
    let turn = |x: &mut [f32], place: [f64; 3], sign: f64| {
        for (pair, xy) in x.chunks_exact_mut(2).enumerate() {
            let angle = sign * place[case.rope.axis(pair)] * case.rope.frequency(pair);
            let (sin, cos) = (angle.sin() as f32, angle.cos() as f32);
            (xy[0], xy[1]) = (xy[0] * cos - xy[1] * sin, xy[0] * sin + xy[1] * cos);
        }
    };
    let count = map.iter().max().map_or(0, |last| last + 1);
    let (mut sums, mut totals) = (vec![0.0f32; count * dim], vec![0.0f32; count]);
    let mut centroids = vec![[0.0f64; 3]; count];
    for ((i, &to), place) in map.iter().enumerate().zip(case.places()) {
        let mut row = x[i * dim..][..dim].to_vec();
        if keys {
            turn(&mut row, place, -1.0);
        }
        let sum = sums[to * dim..][..dim].iter_mut();
        sum.zip(&row).for_each(|(sum, x)| *sum += sizes[i] * x);
        totals[to] += sizes[i];
        (0..3).for_each(|a| centroids[to][a] += f64::from(sizes[i]) * place[a]);
    }
    for ((sum, total), place) in sums.chunks_exact_mut(dim).zip(&totals).zip(&centroids) {
        sum.iter_mut().for_each(|x| *x /= total);
        if keys {
            turn(sum, place.map(|x| x / f64::from(*total)), 1.0);
        }
    }
    rounded(case.dtype, &sums)
}

/// Runs a case and holds it against the reference: the choice must be the best for the device's own
/// similarities, these must be right, and so must be what is merged.
fn check(device: &Device, case: &Case, inputs: &Inputs) -> Merged {
    let got = run(device, case, inputs);
    let (tokens, dim, capacity) = (case.tokens(), case.dim(), case.capacity());
    let destinations = case.destinations();
    let keys = keys_turned_back(case, &inputs.k);
    let tolerance = tolerance(device, case.dtype);
    for block in 0..case.batch {
        let keys = &keys[block * tokens * case.width()..][..tokens * case.width()];
        let rows = destinations
            .iter()
            .flat_map(|&i| &keys[i * case.width()..][..case.width()]);
        let rows: Vec<f64> = rows.copied().collect();
        let mut cosines = reference::cosines(keys, &rows, case.heads, dim);
        if case.maps() == 1 {
            cosines = reference::mean_over_heads(&cosines, case.heads);
        }
        for map in 0..case.maps() {
            let at = (block * case.maps() + map) * tokens;
            let nearest: Vec<usize> = got.found.nearest[at..][..tokens].iter().map(|&i| i as usize).collect();
            let similarity = &got.found.similarity[at..][..tokens];
            for (i, scores) in cosines[map * tokens * destinations.len()..]
                .chunks_exact(destinations.len())
                .take(tokens)
                .enumerate()
            {
                if destinations.contains(&i) {
                    assert_eq!((nearest[i], similarity[i]), (i, f32::INFINITY), "{case:?}");
                    continue;
                }
                let own = destinations.binary_search(&nearest[i]).expect("a destination");
                let best = scores[reference::best(scores)];
                assert!(
                    (f64::from(similarity[i]) - scores[own]).abs() <= tolerance
                        && scores[own] >= best - 2.0 * tolerance,
                    "token {i} is {} like {}: truly {}, and {best} at best; {case:?}",
                    similarity[i],
                    nearest[i],
                    scores[own],
                );
            }
            let merging = reference::merging(&widen(similarity), &destinations, case.chosen());
            let truth = reference::map(&merging, &nearest);
            let found: Vec<usize> = got.found.map[at..][..tokens].iter().map(|&i| i as usize).collect();
            assert_eq!(found, truth, "{case:?}");
            let count = merging.iter().filter(|&&merges| !merges).count();
            assert_eq!(got.found.counts[block * case.maps() + map] as usize, count);
        }
        for head in 0..case.heads {
            let at = (block * case.maps() + head % case.maps()) * tokens;
            let map: Vec<usize> = got.found.map[at..][..tokens].iter().map(|&i| i as usize).collect();
            let count = map.iter().max().expect("a token") + 1;
            let place = (block, head);
            let sizes = match case.bias {
                Bias::InOut => of_head(case, &inputs.log_sizes, tokens, 1, place),
                _ => vec![0.0; tokens],
            };
            let sizes: Vec<f32> = sizes.iter().map(|x| x.exp()).collect();
            let [k, v] = [&inputs.k, &inputs.v].map(|x| of_head(case, x, tokens, dim, place));
            let [got_k, got_v] = [&got.k, &got.v].map(|x| of_head(case, x, capacity, dim, place));
            let wide = widen(&sizes);
            if case.bias != Bias::None {
                let bias = of_head(case, &got.bias, capacity, 1, place);
                for (bias, size) in bias.iter().zip(reference::sum_sizes(&wide, &map)) {
                    assert!(
                        (f64::from(*bias) - size.ln()).abs() <= 2e-6,
                        "{bias} for {size}: {case:?}"
                    );
                }
            }
            // A token alone, or a destination that replaces, is as it was; alone, its size too.
            let log_sizes = of_head(case, &inputs.log_sizes, tokens, 1, place);
            let nearest = &got.found.nearest[at..][..tokens];
            for m in 0..count {
                let members: Vec<usize> = (0..tokens).filter(|&i| map[i] == m).collect();
                let stays = match (members.len(), case.how.mode) {
                    (1, _) => members[0],
                    (_, Mode::Replace) => nearest[members[0]] as usize,
                    _ => continue,
                };
                if members.len() == 1 && case.bias == Bias::InOut {
                    let bias = of_head(case, &got.bias, capacity, 1, place);
                    assert_eq!(bias[m].to_bits(), log_sizes[stays].to_bits(), "{case:?}");
                }
                for (got, x) in [(&got_k, &k), (&got_v, &v)] {
                    assert_eq!(got[m * dim..][..dim], x[stays * dim..][..dim], "{case:?}");
                }
            }
            if case.how.mode == Mode::Replace {
                continue;
            }
            let truth = reference::merge(&widen(&v), &wide, &map, dim);
            let by_plain = Errors::of(&plain(case, &v, &sizes, &map, false), &truth);
            Errors::of(&got_v[..count * dim], &truth).within(by_plain, FLOOR);

            let keys: Vec<f64> = (0..tokens)
                .flat_map(|i| keys[(i * case.heads + head) * dim..][..dim].to_vec())
                .collect();
            let mut truth = reference::merge(&keys, &wide, &map, dim);
            let centroids = reference::merge(&case.places().concat(), &wide, &map, 3);
            let centroids: Vec<[f64; 3]> = centroids.chunks_exact(3).map(|c| [c[0], c[1], c[2]]).collect();
            turn(&mut truth, 1, case.rope.pairs(), case.rope.theta(), &centroids, 1.0);
            let by_plain = Errors::of(&plain(case, &k, &sizes, &map, true), &truth);
            Errors::of(&got_k[..count * dim], &truth).within(by_plain, FLOOR);
        }
    }
    got
}

fn against_reference(device: &Device) {
    let mut rng = Rng::new("against_reference");
    for dtype in FLOATS {
        let case = Case::new(dtype, [2, 6, 9], [2, 2, 4], 2, 128, 16);
        let cases = [
            case.clone(),
            Case {
                merges: Merges::Top(40),
                bias: Bias::InOut,
                margins: true,
                batch: 2,
                ..case.clone()
            },
            Case {
                merges: Merges::Above(0.1),
                how: SoftMatch {
                    metric: Metric::MeanOverHeads,
                    ..case.how
                },
                ..case.clone()
            },
            Case {
                how: SoftMatch {
                    mode: Mode::Replace,
                    destinations: Destinations::Random {
                        cell: [1, 2, 3],
                        seed: rng.bits(),
                    },
                    ..case.how
                },
                merges: Merges::Above(0.05),
                bias: Bias::InOut,
                ..case.clone()
            },
            // More destinations than a tile has, more sources than a tile has, more than one wave of threads.
            Case {
                how: SoftMatch {
                    destinations: Destinations::Frames(0b01),
                    ..case.how
                },
                ..Case::new(dtype, [2, 11, 13], [1, 1, 1], 1, 64, 96)
            },
            // An odd number of heads, a head dim that is no whole tile.
            Case::new(dtype, [2, 3, 5], [1, 3, 2], 3, 40, 7),
            Case::new(dtype, [1, 9, 9], [1, 3, 3], 1, 96, 5),
        ];
        for case in &cases {
            check(device, case, &Inputs::random(case, &mut rng));
        }
    }
}

fn random_shapes(device: &Device) {
    let mut rng = Rng::new("random_shapes");
    let rounds = if device.kind() == DeviceKind::Simt { 30 } else { 100 };
    for _ in 0..rounds {
        let dtype = FLOATS[rng.below(0..3)];
        // The CPU takes any even head dim, the kernels whole vectors.
        let quantum = if device.kind() == DeviceKind::Cpu {
            2
        } else {
            16 / dtype.bytes()
        };
        let dim = rng.below(1..128 / quantum + 1) * quantum;
        let time = rng.below(0..dim / 2 + 1);
        let row = rng.below(0..dim / 2 - time + 1);
        let cell = [rng.below(1..3), rng.below(1..4), rng.below(1..4)];
        let grid = cell.map(|n| rng.below(n..n + 6));
        let destinations = match rng.below(0..3) {
            0 => Destinations::Strided(cell),
            1 => Destinations::Random { cell, seed: rng.bits() },
            _ => Destinations::Frames(rng.bits() | 1),
        };
        let case = Case {
            batch: rng.below(1..3),
            rope: Rope3d::new([time, row, dim / 2 - time - row], 10_000.0).expect("pairs"),
            bias: [Bias::None, Bias::Out, Bias::InOut][rng.below(0..3)],
            margins: rng.below(0..2) > 0,
            how: SoftMatch {
                destinations,
                metric: [Metric::PerHead, Metric::MeanOverHeads][rng.below(0..2)],
                mode: [Mode::Mean, Mode::Mean, Mode::Replace][rng.below(0..3)],
            },
            merges: match rng.below(0..3) {
                0 => Merges::Top(usize::MAX),
                1 => Merges::Top(rng.below(0..grid.iter().product::<usize>() + 1)),
                _ => Merges::Above(rng.uniform() as f32 * 0.8 - 0.4),
            },
            ..Case::new(dtype, grid, cell, rng.below(1..4), dim, rng.below(1..20))
        };
        check(device, &case, &Inputs::random(&case, &mut rng));
    }
}

/// Where products are exact, a score is two rounded multiplications: every device makes the same choice, ties
/// included. Few different keys make many ties.
fn integers(device: &Device) {
    let mut rng = Rng::new("integers");
    for (dtype, range) in FLOATS.into_iter().flat_map(|dtype| [(dtype, 1), (dtype, 100)]) {
        for metric in [Metric::PerHead, Metric::MeanOverHeads] {
            let mut case = Case::new(dtype, [1, 12, 11], [1, 2, 3], 2, 32, 10).without_turns();
            case.how.metric = metric;
            case.merges = Merges::Top(rng.below(1..100));
            let mut inputs = Inputs::random(&case, &mut rng);
            let width = if range == 1 { 1 } else { 32 }; // numbers that are not 0
            for (i, x) in inputs.k.iter_mut().enumerate() {
                let any = rng.below(0..2 * range + 1) as f32 - range as f32;
                *x = if i % 32 < width { any } else { 0.0 };
            }
            let got = check(device, &case, &inputs);
            let (tokens, dim, destinations) = (case.tokens(), case.dim(), case.destinations());
            let row = |i: usize, head: usize| &inputs.k[(i * 2 + head) * dim..][..dim];
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
            let by_norm = |a: &[f32]| if dot(a, a) == 0.0 { 0.0 } else { 1.0 / dot(a, a).sqrt() };
            let mut ties = 0;
            for map in 0..case.maps() {
                let heads = if case.maps() > 1 { map..map + 1 } else { 0..2 };
                for i in (0..tokens).filter(|i| !destinations.contains(i)) {
                    let score = |&j: &usize| {
                        let of_head = heads.clone().map(|head| {
                            let (a, b) = (row(i, head), row(j, head));
                            dot(a, b) * by_norm(b) * by_norm(a)
                        });
                        of_head.fold(0.0, |sum, x| sum + x)
                    };
                    let scores: Vec<f32> = destinations.iter().map(score).collect();
                    let best = reference::best(&widen(&scores));
                    ties += scores.iter().filter(|&&score| score == scores[best]).count() - 1;
                    let at = map * tokens + i;
                    assert_eq!(got.found.nearest[at] as usize, destinations[best]);
                    assert_eq!(got.found.similarity[at], scores[best] / heads.len() as f32);
                }
            }
            assert!(range > 1 || ties > 100, "{ties} ties");
        }
    }
}

/// All tokens alike: the first destination gets all, the first sources merge.
fn all_alike(device: &Device) {
    for dtype in FLOATS {
        let mut case = Case::new(dtype, [1, 6, 8], [1, 2, 2], 2, 64, 16).without_turns();
        let mut inputs = Inputs::random(&case, &mut Rng::new("all_alike"));
        inputs.k = inputs.k[..case.width()].repeat(case.tokens());
        let destinations = case.destinations();
        for n in [0, 1, 17, 36, 100] {
            case.merges = Merges::Top(n);
            let own = Inputs {
                dest: vec![(0..case.pages()[1] as u32).collect()],
                source: vec![(0..3).map(|i| (case.pages()[1] + i) as u32).collect()],
                ..inputs.clone()
            };
            let got = check(device, &case, &own);
            for map in got.found.map.chunks_exact(case.tokens()) {
                let mut left = n;
                let mut merged = 0;
                for (i, &to) in map.iter().enumerate() {
                    if !destinations.contains(&i) && left > 0 {
                        assert_eq!(to, 0, "source {i}");
                        left -= 1;
                    } else {
                        assert_eq!(to, merged, "token {i}");
                        merged += 1;
                    }
                }
            }
        }
    }
}

/// Nothing merges, or all, by count and by threshold.
fn extremes(device: &Device) {
    let mut rng = Rng::new("extremes");
    for dtype in FLOATS {
        for (merges, all) in [
            (Merges::Top(0), false),
            (Merges::Above(f32::INFINITY), false),
            (Merges::Above(1.1), false),
            (Merges::Above(-1.1), true),
            (Merges::Above(f32::NEG_INFINITY), true),
            (Merges::Top(usize::MAX), true),
        ] {
            // One destination, and several.
            for cell in [[2, 5, 7], [1, 2, 2]] {
                let case = Case {
                    merges,
                    ..Case::new(dtype, [2, 5, 7], cell, 2, 64, 9)
                };
                let inputs = Inputs::random(&case, &mut rng);
                let got = check(device, &case, &inputs);
                let left = if all { case.destinations().len() } else { case.tokens() };
                assert_eq!(got.found.counts, vec![left as i32; 2]);
                if !all {
                    assert_eq!((got.k, got.v), (inputs.k, inputs.v));
                    assert_eq!(got.bias, vec![0.0; got.bias.len()]);
                }
            }
        }
    }
}

/// Keys and values may lie in memory differently.
fn values_have_strides_of_their_own(device: &Device) {
    let mut rng = Rng::new("values_have_strides_of_their_own");
    for dtype in FLOATS {
        let case = Case {
            bias: Bias::None,
            ..Case::new(dtype, [2, 5, 7], [2, 2, 2], 3, 64, 8)
        };
        let inputs = Inputs::random(&case, &mut rng);
        let (mut first, mut call) = (Call::new(device, &case, &inputs), Call::new(device, &case, &inputs));
        first.run().expect("it is taken");
        let mut v = TokenMajor::of(&call.v);
        let args = MatchTokens {
            source: &call.source,
            dest: &call.dest,
            merges: case.merges,
            weighted: false,
        };
        let mut kv = KvPagesMut {
            k: call.k.view_mut(),
            v: v.view_mut(),
            slot_bias: None,
        };
        match_tokens(&args, &mut call.matching, &mut kv).expect("it is taken");
        drop(kv);
        let [k, values, _] = first.pools().map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        assert_eq!(v.bits(), values);
        assert_eq!(call.pools()[0].iter().map(|x| x.to_bits()).collect::<Vec<_>>(), k);
    }
}

/// Page numbers, a second run and the other blocks of a batch leave no trace.
fn bit_for_bit(device: &Device) {
    let mut rng = Rng::new("bit_for_bit");
    for dtype in FLOATS {
        for metric in [Metric::PerHead, Metric::MeanOverHeads] {
            let mut case = Case {
                batch: 3,
                merges: Merges::Top(31),
                bias: Bias::InOut,
                ..Case::new(dtype, [2, 5, 7], [2, 2, 2], 3, 64, 8)
            };
            case.how.metric = metric;
            let inputs = Inputs::random(&case, &mut rng);
            let first = run(device, &case, &inputs);
            assert_eq!(first.bits(), run(device, &case, &inputs).bits(), "a second run");

            let mut permuted = inputs.clone();
            permuted.source.reverse();
            permuted.dest.reverse();
            permuted
                .dest
                .iter_mut()
                .chain(&mut permuted.source)
                .for_each(|list| list.reverse());
            assert_eq!(first.bits(), run(device, &case, &permuted).bits(), "other pages");

            let part = |x: &[f32], block: usize| x[block * x.len() / 3..(block + 1) * x.len() / 3].to_vec();
            let ints = |x: &[i32], block: usize| x[block * x.len() / 3..(block + 1) * x.len() / 3].to_vec();
            for block in 0..3 {
                let alone = Case {
                    batch: 1,
                    ..case.clone()
                };
                let pages: Vec<u32> = (0..alone.pool_pages() as u32).collect();
                let (source, dest) = pages.split_at(alone.pages()[0]);
                let own = Inputs {
                    k: part(&inputs.k, block),
                    v: part(&inputs.v, block),
                    log_sizes: part(&inputs.log_sizes, block),
                    source: vec![source.to_vec()],
                    dest: vec![dest[..alone.pages()[1]].to_vec()],
                };
                let neighboured = Merged {
                    k: part(&first.k, block),
                    v: part(&first.v, block),
                    bias: part(&first.bias, block),
                    found: Found {
                        map: ints(&first.found.map, block),
                        counts: ints(&first.found.counts, block),
                        nearest: ints(&first.found.nearest, block),
                        similarity: part(&first.found.similarity, block),
                    },
                };
                let own = run(device, &alone, &own);
                assert_eq!(own.bits(), neighboured.bits(), "block {block} without its neighbours");
            }
        }
    }
}

/// Two blocks may be one: what a fork shares. And a matching may have more room than a call needs.
fn shared_source(device: &Device) {
    let case = Case {
        batch: 2,
        ..Case::new(DType::BF16, [2, 4, 4], [1, 2, 2], 1, 64, 8)
    };
    let mut inputs = Inputs::random(&case, &mut Rng::new("shared"));
    inputs.k.truncate(inputs.k.len() / 2);
    inputs.k = inputs.k.repeat(2);
    inputs.v.truncate(inputs.v.len() / 2);
    inputs.v = inputs.v.repeat(2);
    inputs.source[1] = inputs.source[0].clone();
    let got = check(device, &case, &inputs);

    let mut call = Call::new(device, &case, &inputs);
    let lists = |lists: &[Vec<u32>]| PageLists::from_host(device, case.pool_pages(), lists).expect("lists");
    let (source, dest) = (lists(&inputs.source[..1]), lists(&inputs.dest[..1]));
    call.run_with(|a| (a.source, a.dest) = (&source, &dest))
        .expect("half of the blocks");
    let map = call.matching.map().to_vec::<i32>().expect("a download");
    assert_eq!(map[..case.tokens()], got.found.map[..case.tokens()]);
    assert_eq!(
        map[case.tokens()..],
        vec![0; case.tokens()],
        "of the block that was not there"
    );
}

/// Keys that are one key, attended to, say what the merged one says with its log size: the softmax weighs
/// them alike, so their values' mean is all that counts.
fn attention_stays(device: &Device) {
    let mut rng = Rng::new("attention_stays");
    // The CPU takes f32; what the kernels take rounds weights, values and outputs to 16 bits.
    let cases: &[(DType, f32)] = match device.kind() {
        DeviceKind::Cpu => &[(DType::F32, 1e-5), (DType::F16, 4e-3)],
        _ => &[(DType::F16, 4e-3), (DType::BF16, 3.2e-2)],
    };
    for &(dtype, tolerance) in cases {
        for metric in [Metric::PerHead, Metric::MeanOverHeads] {
            let mut case = Case::new(dtype, [1, 8, 12], [1, 2, 2], 2, 64, 16).without_turns();
            case.how.metric = metric;
            let mut inputs = Inputs::random(&case, &mut rng);
            // A token's key is that of its cell's first token; values whose means of four are exact.
            let width = case.width();
            for i in 0..case.tokens() {
                let from = i / 12 / 2 * 2 * 12 + i % 12 / 2 * 2;
                inputs.k.copy_within(from * width..(from + 1) * width, i * width);
            }
            inputs
                .v
                .iter_mut()
                .for_each(|x| *x = (rng.below(0..9) as f32 - 4.0) / 4.0);
            let mut call = Call::new(device, &case, &inputs);
            call.run().expect("a matching");
            assert_eq!(
                call.matching.counts().to_vec::<i32>().expect("a download"),
                vec![24; case.maps()]
            );

            let q = Tensor::from_f32(device, dtype, &rng.normals(20 * width), &[1, 20, 2, 64]).expect("queries");
            let attend = |pages: &[u32], tokens: usize, slot_bias: bool| {
                let segment = Segment {
                    slot_bias,
                    ..Segment::new(pages.to_vec(), tokens)
                };
                let pool = (case.pool_pages(), case.page_tokens);
                let context = Context::from_host(device, pool, &[vec![segment]]).expect("a context");
                let mut out = Tensor::zeros(device, dtype, &[1, 20, 2, 64]).expect("a tensor");
                let args = Attention {
                    q: q.view(),
                    kv: KvPages {
                        k: call.k.view(),
                        v: call.v.view(),
                        slot_bias: Some(call.bias.view()),
                    },
                    context: &context,
                    rope: &case.rope,
                    scale: 0.25,
                };
                attention(&args, &mut out.view_mut(), None).expect("attention");
                out.to_f32_vec().expect("a download")
            };
            let whole = attend(&inputs.source[0], case.tokens(), false);
            let merged = attend(&inputs.dest[0], 24, true);
            // Slots past the count weigh nothing.
            let with_tail = attend(&inputs.dest[0], 32, true);
            for ((a, b), c) in whole.iter().zip(&merged).zip(&with_tail) {
                assert!((a - b).abs() <= tolerance, "{b} for {a} in {dtype}");
                assert!((a - c).abs() <= tolerance, "{c} for {a} in {dtype} with the tail");
            }
            let unbiased = attend(&inputs.dest[0], 24, false);
            let same = unbiased.iter().zip(&whole).all(|(a, b)| (a - b).abs() <= tolerance);
            assert!(same, "all stand for four, so that one bias for all changes nothing");
        }
    }
}

/// A key that is not a number is like nothing, and merges last; its value and others are as they were.
fn not_a_number(device: &Device) {
    for dtype in FLOATS {
        let mut case = Case::new(dtype, [1, 4, 6], [1, 2, 2], 1, 64, 24);
        case.merges = Merges::Top(17);
        let mut inputs = Inputs::random(&case, &mut Rng::new("not_a_number"));
        inputs.k[64 + 5] = f32::NAN;
        let got = run(device, &case, &inputs);
        assert_eq!(got.found.nearest[1], 0);
        assert_eq!(got.found.similarity[1], f32::NEG_INFINITY);
        // 18 sources, 17 merge.
        assert_eq!(got.found.map[1], 1, "it stays alone");
        assert_eq!(got.v[64..128], inputs.v[64..128]);
        assert!(got.k[64 + 5].is_nan());
        let others = got.k[..64].iter().chain(&got.k[128..]);
        assert!(others.chain(&got.v).all(|x| x.is_finite()));
    }
}

/// Slots that stand for nothing add nothing; where all do, nothing comes of it.
fn weightless(device: &Device) {
    let case = Case {
        bias: Bias::InOut,
        ..Case::new(DType::F32, [1, 2, 4], [1, 2, 2], 1, 32, 8)
    };
    let mut inputs = Inputs::random(&case, &mut Rng::new("weightless"));
    inputs.log_sizes.fill(f32::NEG_INFINITY);
    let mut call = Call::new(device, &case, &inputs);
    call.run().expect("a matching");
    let [k, v, bias] = call.pools();
    for m in 0..2 {
        let at = slot(&case, &inputs.dest[0], m, 0);
        assert_eq!(bias[at], f32::NEG_INFINITY);
        let alone = call.matching.map().to_vec::<i32>().expect("a download");
        if alone.iter().filter(|&&to| to as usize == m).count() > 1 {
            assert_eq!(k[at * 32..][..32], [0.0; 32]);
            assert_eq!(v[at * 32..][..32], [0.0; 32]);
        }
    }
}

/// One token a cell, in its cell; another seed draws others.
fn random_destinations() {
    let grid = grid_of([4, 9, 13]);
    let draw = |seed| {
        let cell = [2, 3, 4];
        Destinations::Random { cell, seed }.tokens(grid)
    };
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200u64 {
        let tokens = draw(seed << 30);
        assert_eq!(tokens.len(), 2 * 3 * 3);
        assert!(tokens.is_sorted());
        let cell = |&i: &usize| [i / 117 / 2, i / 13 % 9 / 3, i % 13 / 4];
        let cells: std::collections::BTreeSet<_> = tokens.iter().map(cell).collect();
        assert_eq!(cells.len(), 18, "one a cell");
        assert!(tokens.iter().all(|i| i % 13 < 12), "a cell that is not full has none");
        seen.extend(tokens);
    }
    // 432 places, each drawn 200 times with chance 1/24: one in 5,000 is never drawn.
    assert!(seen.len() >= 428, "{} of 432 places", seen.len());
    assert_eq!(draw(7), draw(7));
}

fn unmerging(device: &Device) {
    let mut rng = Rng::new("unmerging");
    for dtype in FLOATS {
        for (heads, maps, dim) in [(3, 3, 16), (3, 1, 16), (2, 2, 5), (1, 1, 1), (4, 1, 64)] {
            let (batch, tokens, merged) = (2, 37, 11);
            let x = rounded(dtype, &rng.normals(batch * merged * heads * dim));
            let map: Vec<i32> = (0..batch * maps * tokens)
                .map(|_| rng.below(0..merged) as i32)
                .collect();
            // Views with gaps: of `x` every second head, of `out` all but the last two numbers of each row.
            let spaced: Vec<f32> = x
                .chunks_exact(dim)
                .flat_map(|row| [row, &vec![f32::NAN; dim]].concat())
                .collect();
            let x_at = Tensor::from_f32(device, dtype, &spaced, &[batch, merged, heads, 2 * dim]).expect("a tensor");
            let map_at = Tensor::from_slice(device, &map, &[batch, maps, tokens]).expect("a tensor");
            let shape = [batch, tokens, heads, dim + 2];
            let nan = vec![f32::NAN; shape.iter().product()];
            let mut out = Tensor::from_f32(device, dtype, &nan, &shape).expect("a tensor");
            let args = UnmergeTokens {
                x: x_at.view().narrow(3, 0, dim).expect("a view"),
                map: map_at.view(),
            };
            unmerge_tokens(&args, &mut out.view_mut().narrow(3, 0, dim).expect("a view")).expect("an unmerge");
            let out = out.to_f32_vec().expect("a download");
            for block in 0..batch {
                for head in 0..heads {
                    let row = |x: &[f32], i: usize, n: usize, count: usize| {
                        x[((block * count + i) * heads + head) * n..][..n].to_vec()
                    };
                    let rows: Vec<f32> = (0..merged).flat_map(|i| row(&x, i, dim, merged)).collect();
                    let map = &map[(block * maps + head % maps) * tokens..][..tokens];
                    let map: Vec<usize> = map.iter().map(|&i| i as usize).collect();
                    let truth = reference::unmerge(&widen(&rows), &map, dim);
                    for (i, truth) in truth.chunks_exact(dim).enumerate() {
                        let got = row(&out, i, dim + 2, tokens);
                        assert_eq!(widen(&got[..dim]), truth);
                        assert!(got[dim..].iter().all(|x| x.is_nan()), "written past the head dim");
                    }
                }
            }
        }
    }
}

fn argument(result: Result<()>, name: &str) -> &'static str {
    match result {
        Err(Error::Argument { op, argument, .. } | Error::UnsupportedDType { op, argument, .. }) if op == name => {
            argument
        }
        other => panic!("{other:?} where an argument should have been refused"),
    }
}

fn refusals(device: &Device) {
    let case = Case {
        batch: 2,
        ..Case::new(DType::BF16, [2, 4, 4], [2, 2, 2], 1, 64, 4)
    };
    let refused = |result| argument(result, "match_tokens");
    let inputs = Inputs::random(&case, &mut Rng::new("refusals"));
    let mut call = Call::new(device, &case, &inputs);
    let before = call.bits();
    let lists = |pool: usize, lists: &[Vec<u32>]| PageLists::from_host(device, pool, lists).expect("lists");
    let pool = case.pool_pages();
    let (one, three) = (
        lists(pool, &inputs.dest[..1]),
        lists(pool, &[vec![0], vec![1], vec![2]]),
    );
    let short = lists(pool, &[inputs.source[0][..7].to_vec(), inputs.source[1][..7].to_vec()]);
    let empty = lists(pool, &[vec![], vec![]]);
    let large = lists(pool + 1, &inputs.dest);
    let none = lists(pool, &[]);

    assert_eq!(refused(call.run_with(|a| a.merges = Merges::Above(f32::NAN))), "merges");
    assert_eq!(refused(call.run_with(|a| a.source = &short)), "source");
    assert_eq!(refused(call.run_with(|a| a.source = &none)), "source");
    assert_eq!(refused(call.run_with(|a| a.dest = &empty)), "dest");
    assert_eq!(refused(call.run_with(|a| a.dest = &one)), "dest");
    assert_eq!(refused(call.run_with(|a| a.dest = &three)), "dest");
    assert_eq!(refused(call.run_with(|a| a.dest = &large)), "dest");
    // One page holds the four that are left, not the 32 that may be.
    assert_eq!(refused(call.run_with(|a| a.merges = Merges::Above(2.0))), "dest");
    assert_eq!(refused(call.run_with(|a| a.merges = Merges::Top(27))), "dest");
    if device.is_host() {
        let (a, b, page) = (inputs.source[1][3], inputs.dest[1][0], inputs.dest[0][0]);
        for overlap in [[vec![a], vec![b]], [vec![page], vec![page]]] {
            let dest = lists(pool, &overlap);
            assert_eq!(refused(call.run_with(|a| a.dest = &dest)), "dest");
        }
    }
    call.case.bias = Bias::None;
    assert_eq!(refused(call.run_with(|a| a.weighted = true)), "kv.slot_bias");
    call.case.bias = Bias::Out;
    for (room, dim) in [((1, 1), 64), ((2, 2), 64), ((2, 1), 32)] {
        let other = Matching::new(device, case.how, case.grid, &Rope3d::wan(dim), room).expect("a matching");
        let own = std::mem::replace(&mut call.matching, other);
        assert_eq!(refused(call.run()), "matching");
        call.matching = own;
    }
    if device.kind() != DeviceKind::Cpu {
        let other = Matching::new(&Device::cpu(), case.how, case.grid, &case.rope, (2, 1)).expect("a matching");
        let own = std::mem::replace(&mut call.matching, other);
        assert_eq!(refused(call.run()), "matching");
        call.matching = own;
    }
    let mut wrong = |k: DType, v: DType| -> &'static str {
        let shape = [pool, 1, 4, 64];
        let mut k = Tensor::zeros(device, k, &shape).expect("a pool");
        let mut v = Tensor::zeros(device, v, &shape).expect("a pool");
        let (source, dest) = (lists(pool, &inputs.source), lists(pool, &inputs.dest));
        let args = MatchTokens {
            source: &source,
            dest: &dest,
            merges: case.merges,
            weighted: false,
        };
        let mut kv = KvPagesMut {
            k: k.view_mut(),
            v: v.view_mut(),
            slot_bias: None,
        };
        refused(match_tokens(&args, &mut call.matching, &mut kv))
    };
    assert_eq!(wrong(DType::I32, DType::I32), "kv.k");
    assert_eq!(wrong(DType::BF16, DType::F16), "kv.v");
    assert_eq!(call.bits(), before, "a refused call has written");
    call.run().expect("the same call with nothing changed");
    assert_ne!(call.bits(), before);

    // Making a matching.
    let make = |how: SoftMatch, grid: [usize; 3], room| {
        let made = Matching::new(device, how, grid_of(grid), &case.rope, room);
        argument(made.map(drop), "Matching::new")
    };
    let strided = |cell| SoftMatch::strided(cell);
    let frames = |mask| SoftMatch {
        destinations: Destinations::Frames(mask),
        ..case.how
    };
    assert_eq!(make(case.how, [0, 4, 4], (1, 1)), "grid");
    assert_eq!(make(case.how, [2, usize::MAX, 4], (1, 1)), "grid");
    assert_eq!(make(strided([1, 5, 1]), [2, 4, 4], (1, 1)), "how.destinations");
    assert_eq!(make(strided([1, 0, 1]), [2, 4, 4], (1, 1)), "how.destinations");
    assert_eq!(make(frames(0), [2, 4, 4], (1, 1)), "how.destinations");
    assert_eq!(make(frames(0b100), [2, 4, 4], (1, 1)), "how.destinations");
    assert_eq!(make(case.how, [2, 4, 4], (0, 1)), "batch");
    assert_eq!(make(case.how, [2, 4, 4], (1, 0)), "batch");

    // The way back.
    let tensor = |dtype, shape: &[usize]| Tensor::zeros(device, dtype, shape).expect("a tensor");
    let unmerge = |x: (DType, &[usize]), map: (DType, &[usize]), out: (DType, &[usize])| {
        let (x, map, mut out) = (tensor(x.0, x.1), tensor(map.0, map.1), tensor(out.0, out.1));
        let args = UnmergeTokens {
            x: x.view(),
            map: map.view(),
        };
        argument(unmerge_tokens(&args, &mut out.view_mut()), "unmerge_tokens")
    };
    let (f32, i32) = (DType::F32, DType::I32);
    let (x, map, out): (&[usize], &[usize], &[usize]) = (&[1, 3, 2, 4], &[1, 2, 9], &[1, 9, 2, 4]);
    assert_eq!(unmerge((f32, x), (i32, map), (i32, out)), "out");
    assert_eq!(unmerge((f32, x), (i32, map), (f32, &[9, 2, 4])), "out");
    assert_eq!(unmerge((f32, x), (i32, map), (f32, &[1, 0, 2, 4])), "out");
    assert_eq!(unmerge((DType::F16, x), (i32, map), (f32, out)), "x");
    assert_eq!(unmerge((f32, &[1, 3, 3, 4]), (i32, map), (f32, out)), "x");
    assert_eq!(unmerge((f32, &[1, 0, 2, 4]), (i32, map), (f32, out)), "x");
    assert_eq!(unmerge((f32, x), (f32, map), (f32, out)), "map");
    assert_eq!(unmerge((f32, x), (i32, &[1, 3, 9]), (f32, out)), "map");
    assert_eq!(unmerge((f32, x), (i32, &[1, 1, 8]), (f32, out)), "map");
    if device.is_host() {
        for outside in [-1, 3] {
            let (x, mut out) = (tensor(f32, x), tensor(f32, out));
            let map = Tensor::from_slice(device, &[[0; 8].as_slice(), &[outside]].concat(), &[1, 1, 9]).expect("a map");
            let args = UnmergeTokens {
                x: x.view(),
                map: map.view(),
            };
            let result = unmerge_tokens(&args, &mut out.view_mut());
            assert_eq!(argument(result, "unmerge_tokens"), "map");
        }
    }
}

/// What the CPU takes and the kernels do not.
fn kernel_limits(device: &Device) {
    let refuse = |case: &Case| {
        let inputs = Inputs::random(case, &mut Rng::new("limits"));
        argument(Call::new(device, case, &inputs).run(), "match_tokens")
    };
    assert_eq!(refuse(&Case::new(DType::BF16, [2, 2, 2], [2, 2, 2], 1, 12, 4)), "kv.k");
    let large = Case::new(DType::BF16, [1, 5, 3277], [1, 1, 2], 1, 8, 64);
    assert_eq!(refuse(&large), "matching");
    let most = Case {
        merges: Merges::Top(8000),
        ..Case::new(DType::BF16, [2, 64, 128], [2, 64, 64], 1, 8, 1024)
    };
    let inputs = Inputs::random(&most, &mut Rng::new("limits"));
    let got = run(device, &most, &inputs);
    assert_eq!(got.found.counts, [16_384 - 8000]);
}

/// The reference and every device against tomesd, merge and unmerge. It puts the sources that stay first,
/// the most alike first, and then the destinations as an unstable sort left them; here all lie in the order
/// of the grid.
fn golden_tomesd(golden: &common::Golden) {
    let devices = [
        Ok(Device::cpu()),
        Device::simt(packforcing::SimtOptions::default()),
        Device::cuda(0),
    ];
    let devices: Vec<Device> = devices.into_iter().flatten().collect();
    let mut found = 0;
    for json in golden.cases("merge_tokens") {
        let Some(number) = json["case"].as_u64() else { continue };
        found += 1;
        let n = |name: &str| json[name].as_u64().expect("a number") as usize;
        let stride: [usize; 2] = std::array::from_fn(|i| json["stride"][i].as_u64().expect("a number") as usize);
        let tensor = |name: &str| golden.tensor("merge_tokens.safetensors", &format!("{number}.{name}"));
        let ((metric, shape), (x, x_shape)) = (tensor("metric"), tensor("x"));
        let ((merged, _), (unmerged, _)) = (tensor("merged"), tensor("unmerged"));
        let (tokens, dim, width) = (shape[1], shape[2], x_shape[2]);
        assert_eq!(tokens, n("height") * n("width"));
        // `stride` is (across, down); all cases have it square.
        assert_eq!(stride[0], stride[1]);
        let case = Case {
            merges: Merges::Top(n("r")),
            ..Case::new(
                DType::F32,
                [1, n("height"), n("width")],
                [1, stride[0], stride[1]],
                1,
                dim,
                12,
            )
            .without_turns()
        };
        let destinations = case.destinations();
        assert_eq!(case.capacity(), n("merged_tokens"));

        // The reference, and the order of tomesd's rows.
        let rows: Vec<f64> = destinations
            .iter()
            .flat_map(|&i| &metric[i * dim..][..dim])
            .copied()
            .collect();
        let cosines = reference::cosines(&metric, &rows, 1, dim);
        let best = |i: usize| reference::best(&cosines[i * destinations.len()..][..destinations.len()]);
        let is_destination = |i: &usize| destinations.contains(i);
        let nearest: Vec<usize> = (0..tokens)
            .map(|i| if is_destination(&i) { i } else { destinations[best(i)] })
            .collect();
        let similarity: Vec<f64> = (0..tokens).map(|i| cosines[i * destinations.len() + best(i)]).collect();
        let merging = reference::merging(&similarity, &destinations, case.chosen());
        let map = reference::map(&merging, &nearest);
        // They are f32, and so are the sums behind them.
        let close = |a: f64, b: f64| (a - b).abs() < 2e-6 * b.abs().max(1.0);
        let alike = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(&a, &b)| close(a, b));
        let ours = reference::merge(&x, &vec![1.0; tokens], &map, width);
        let spread = reference::unmerge(&ours, &map, width);
        assert!(alike(&spread, &unmerged), "case {number}: unmerged");
        let mut stay: Vec<usize> = (0..tokens).filter(|i| !merging[*i] && !is_destination(i)).collect();
        stay.sort_by(|&i, &j| similarity[j].total_cmp(&similarity[i]));
        let mut rest: Vec<usize> = destinations.clone();
        for (i, row) in merged.chunks_exact(width).enumerate() {
            let is_row = |token: usize| alike(&ours[map[token] * width..][..width], row);
            match stay.get(i) {
                Some(&token) => assert!(is_row(token), "case {number}: row {i}"),
                None => {
                    let at = rest.iter().position(|&token| is_row(token));
                    rest.swap_remove(at.unwrap_or_else(|| panic!("case {number}: row {i} is no destination's")));
                }
            }
        }
        assert!(rest.is_empty());

        // The devices: the metric as keys, `x` as the first numbers of the values.
        let mut inputs = Inputs::random(&case, &mut Rng::new("golden"));
        inputs.k = metric.iter().map(|&x| x as f32).collect();
        inputs.v = vec![0.0; tokens * dim];
        for (row, x) in inputs.v.chunks_exact_mut(dim).zip(x.chunks_exact(width)) {
            row.iter_mut().zip(x).for_each(|(to, &x)| *to = x as f32);
        }
        for device in &devices {
            let got = run(device, &case, &inputs);
            let found: Vec<usize> = got.found.map.iter().map(|&i| i as usize).collect();
            assert_eq!(found, map, "case {number} on {device}");
            for (got, ours) in got.v.chunks_exact(dim).zip(ours.chunks_exact(width)) {
                assert!(got.iter().zip(ours).all(|(&a, &b)| close(a.into(), b)));
                assert!(got[width..].iter().all(|&x| x == 0.0));
            }
            let x = Tensor::from_slice(device, &got.v, &[1, case.capacity(), 1, dim]).expect("a tensor");
            let map = Tensor::from_slice(device, &got.found.map, &[1, 1, tokens]).expect("a tensor");
            let mut out = Tensor::zeros(device, DType::F32, &[1, tokens, 1, dim]).expect("a tensor");
            let args = UnmergeTokens {
                x: x.view(),
                map: map.view(),
            };
            unmerge_tokens(&args, &mut out.view_mut()).expect("an unmerge");
            let out = out.to_vec::<f32>().expect("a download");
            for (got, truth) in out.chunks_exact(dim).zip(unmerged.chunks_exact(width)) {
                assert!(got.iter().zip(truth).all(|(&a, &b)| close(a.into(), b)));
            }
        }
    }
    assert_eq!(found, 3, "cases of matching");
}

fn main() -> std::process::ExitCode {
    common::Suite::new()
        .on_devices("against_reference", against_reference)
        .on_devices("random_shapes", random_shapes)
        .on_devices("integers", integers)
        .on_devices("all_alike", all_alike)
        .on_devices("extremes", extremes)
        .on_devices("values_have_strides_of_their_own", values_have_strides_of_their_own)
        .on_devices("bit_for_bit", bit_for_bit)
        .on_devices("shared_source", shared_source)
        .on_devices("attention_stays", attention_stays)
        .on_devices("not_a_number", not_a_number)
        .on_devices("weightless", weightless)
        .on_devices("unmerging", unmerging)
        .on_devices("refusals", refusals)
        .on_kernels("kernel_limits", kernel_limits)
        .plain("random_destinations", random_destinations)
        .golden("tomesd", golden_tomesd)
        .run()
}
