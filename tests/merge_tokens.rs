//! `merge_tokens` against its f64 reference, on every device.
mod common;

use common::{Errors, Rng, TokenMajor, rounded, widen};
use packforcing::ops::append_kv::reference::{positions, rotate};
use packforcing::ops::merge_tokens::{MeanPool, MergeTokens, Remainder, merge_tokens, reference};
use packforcing::paging::{KvPagesMut, PageLists};
use packforcing::{DType, Device, DeviceKind, Error, Grid, Result, Rope3d, Tensor};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
/// Values stay below 8 or so: a few roundings of f32, where the plain result is exact by chance.
const FLOOR: f64 = 2e-6;

#[derive(Debug, Clone)]
struct Case {
    dtype: DType,
    batch: usize,
    grid: Grid,
    pool: MeanPool,
    heads: usize,
    rope: Rope3d,
    page_tokens: usize,
    bias: bool,
    /// A slot of NaN after each page of the pool.
    margins: bool,
}

impl Case {
    fn new(dtype: DType, grid: [usize; 3], cell: [usize; 3], heads: usize, dim: usize, page_tokens: usize) -> Case {
        Case {
            dtype,
            batch: 1,
            grid: grid_of(grid),
            pool: MeanPool {
                cell,
                remainder: Remainder::Drop,
            },
            heads,
            rope: Rope3d::wan(dim),
            page_tokens,
            bias: true,
            margins: false,
        }
    }

    fn keep(mut self) -> Case {
        self.pool.remainder = Remainder::Keep;
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

    fn cells(&self) -> Vec<[std::ops::Range<usize>; 3]> {
        let keep = self.pool.remainder == Remainder::Keep;
        reference::cells(self.grid.extents(), self.pool.cell, keep)
    }

    /// Pages of a source block and of a merged one.
    fn pages(&self) -> [usize; 2] {
        [self.tokens(), self.pool.output(self.grid).tokens().0].map(|n| n.div_ceil(self.page_tokens))
    }

    /// One page more than is used.
    fn pool_pages(&self) -> usize {
        self.batch * self.pages().iter().sum::<usize>() + 1
    }

    fn slots(&self) -> usize {
        self.page_tokens + usize::from(self.margins)
    }
}

fn grid_of([frames, rows, cols]: [usize; 3]) -> Grid {
    Grid { frames, rows, cols }
}

/// Keys and values of the blocks, `[batch, tokens, heads, dim]`, and where they lie.
#[derive(Clone)]
struct Inputs {
    k: Vec<f32>,
    v: Vec<f32>,
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
        }
    }

    /// `[batch, tokens, width]` in the source pages; NaN everywhere else, in the slots after the
    /// tokens too.
    fn paged(&self, case: &Case, rows: &[f32]) -> Vec<f32> {
        let mut pages = vec![f32::NAN; case.pool_pages() * case.slots() * case.width()];
        for (rows, list) in rows.chunks_exact(case.tokens() * case.width()).zip(&self.source) {
            for (i, row) in rows.chunks_exact(case.width()).enumerate() {
                for (head, x) in row.chunks_exact(case.dim()).enumerate() {
                    let at = slot(case, list, i, head) * case.dim();
                    pages[at..][..case.dim()].copy_from_slice(x);
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
}

impl Call {
    fn new(device: &Device, case: &Case, inputs: &Inputs) -> Call {
        let shape = [case.pool_pages(), case.heads, case.slots(), case.dim()];
        let pages =
            |rows: &[f32]| Tensor::from_f32(device, case.dtype, &inputs.paged(case, rows), &shape).expect("a pool");
        let lists = |lists| PageLists::from_host(device, case.pool_pages(), lists).expect("lists");
        let bias = vec![f32::NAN; shape[..3].iter().product()];
        Call {
            k: pages(&inputs.k),
            v: pages(&inputs.v),
            bias: Tensor::from_slice(device, &bias, &shape[..3]).expect("a tensor"),
            source: lists(&inputs.source),
            dest: lists(&inputs.dest),
            case: case.clone(),
        }
    }

    fn run(&mut self) -> Result<()> {
        self.run_with(|_| {})
    }

    /// The call, with its arguments changed first.
    fn run_with<'a>(&'a mut self, change: impl FnOnce(&mut MergeTokens<'a>)) -> Result<()> {
        let case = &self.case;
        let mut args = MergeTokens {
            source: &self.source,
            dest: &self.dest,
            grid: case.grid,
            pool: case.pool,
            rope: &case.rope,
        };
        change(&mut args);
        let mut kv = KvPagesMut {
            k: self.k.view_mut().narrow(2, 0, case.page_tokens)?,
            v: self.v.view_mut().narrow(2, 0, case.page_tokens)?,
            slot_bias: match case.bias {
                true => Some(self.bias.view_mut().narrow(2, 0, case.page_tokens)?),
                false => None,
            },
        };
        merge_tokens(&args, &mut kv)
    }

    /// The whole pool: keys, values, bias.
    fn pools(&self) -> [Vec<f32>; 3] {
        [&self.k, &self.v, &self.bias].map(|t| t.to_f32_vec().expect("a download"))
    }

    fn bits(&self) -> Vec<u32> {
        self.pools().concat().iter().map(|x| x.to_bits()).collect()
    }
}

/// Merged keys and values of all blocks, `[batch, merged, width]`.
struct Merged {
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Runs a case; checks that the sources and everything else outside the dest pages are as they were,
/// that tails are zero, and the bias; gives the merged rows.
fn run(device: &Device, case: &Case, inputs: &Inputs) -> Merged {
    let mut call = Call::new(device, case, inputs);
    let before = call.pools();
    call.run().unwrap_or_else(|e| panic!("{case:?}: {e}"));
    let [mut k, mut v, mut bias] = call.pools();

    let (cells, dim) = (case.cells(), case.dim());
    let log_sizes = reference::log_sizes(&cells);
    let mut merged = Merged { k: vec![], v: vec![] };
    for list in &inputs.dest {
        for i in 0..list.len() * case.page_tokens {
            for head in 0..case.heads {
                let at = slot(case, list, i, head);
                let log_size = std::mem::replace(&mut bias[at], f32::NAN);
                for (pool, rows) in [(&mut k, &mut merged.k), (&mut v, &mut merged.v)] {
                    let row = &mut pool[at * dim..][..dim];
                    if i < cells.len() {
                        rows.extend_from_slice(row);
                    } else {
                        assert_eq!(row, vec![0.0; dim], "the tail of {case:?}");
                    }
                    row.fill(f32::NAN);
                }
                match (case.bias, log_sizes.get(i)) {
                    (true, Some(&truth)) => {
                        assert!(
                            (f64::from(log_size) - truth).abs() <= 1e-6 * truth,
                            "{log_size} for {truth}"
                        );
                    }
                    (true, None) => assert_eq!(log_size, 0.0, "the tail of {case:?}"),
                    (false, _) => assert!(log_size.is_nan()),
                }
            }
        }
    }
    // With the dest pages poisoned again, nothing differs from before.
    for (after, before) in [k, v, bias].iter().zip(&before) {
        let same = after
            .iter()
            .zip(before)
            .all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
        assert!(same, "something outside the dest pages has changed: {case:?}");
    }
    merged
}

/// The plain implementation, in f32: turn back, add up, divide, turn to the centroid, round. Values are
/// not turned.
fn plain(case: &Case, x: &[f32], keys: bool) -> Vec<f32> {
    let [_, rows, cols] = case.grid.extents();
    let turn = |x: &mut [f32], position: [f64; 3], sign: f64| {
        for head in x.chunks_exact_mut(case.dim()) {
            for (pair, xy) in head.chunks_exact_mut(2).enumerate() {
                let angle = sign * position[case.rope.axis(pair)] * case.rope.frequency(pair);
                let (sin, cos) = (angle.sin() as f32, angle.cos() as f32);
                (xy[0], xy[1]) = (xy[0] * cos - xy[1] * sin, xy[0] * sin + xy[1] * cos);
            }
        }
    };
    let mut out = Vec::new();
    for cell in case.cells() {
        let mut sum = vec![0.0f32; case.width()];
        let mut n = 0;
        for t in cell[0].clone() {
            for r in cell[1].clone() {
                for c in cell[2].clone() {
                    let at = (t * rows + r) * cols + c;
                    let mut row = x[at * case.width()..][..case.width()].to_vec();
                    if keys {
                        turn(&mut row, [t, r, c].map(|x| x as f64), -1.0);
                    }
                    sum.iter_mut().zip(&row).for_each(|(sum, x)| *sum += x);
                    n += 1;
                }
            }
        }
        sum.iter_mut().for_each(|x| *x /= n as f32);
        if keys {
            turn(&mut sum, centroid(&cell), 1.0);
        }
        out.extend(sum);
    }
    rounded(case.dtype, &out)
}

fn centroid(cell: &[std::ops::Range<usize>; 3]) -> [f64; 3] {
    std::array::from_fn(|a| (cell[a].start + cell[a].end - 1) as f64 / 2.0)
}

/// Runs a case and holds it against the reference.
fn check(device: &Device, case: &Case, inputs: &Inputs) {
    let got = run(device, case, inputs);
    let (cells, grid) = (case.cells(), case.grid.extents());
    let block = case.tokens() * case.width();
    let merged = cells.len() * case.width();
    for i in 0..case.batch {
        let (k, v) = (&inputs.k[i * block..][..block], &inputs.v[i * block..][..block]);
        let truth = reference::merge_keys(
            &widen(k),
            grid,
            &cells,
            case.heads,
            case.rope.pairs(),
            case.rope.theta(),
        );
        Errors::of(&got.k[i * merged..][..merged], &truth).within(Errors::of(&plain(case, k, true), &truth), FLOOR);
        let truth = reference::mean_pool(&widen(v), grid, &cells, case.width());
        Errors::of(&got.v[i * merged..][..merged], &truth).within(Errors::of(&plain(case, v, false), &truth), FLOOR);
    }
}

fn against_reference(device: &Device) {
    let mut rng = Rng::new("against_reference");
    for dtype in FLOATS {
        let case = Case::new(dtype, [4, 6, 9], [2, 4, 4], 2, 128, 16);
        let cases = [
            case.clone(),
            case.clone().keep(),
            Case {
                bias: false,
                margins: true,
                batch: 2,
                ..case.clone()
            },
            // Heads in two groups of blocks; one cell for all, in two stages; cells of one token.
            Case::new(dtype, [2, 2, 2], [2, 2, 2], 20, 128, 4),
            Case::new(dtype, [3, 8, 8], [3, 8, 8], 1, 64, 96),
            Case::new(dtype, [2, 1, 3], [1, 1, 1], 1, 64, 3),
            // Cells larger than the grid, an odd number of heads, a head dim of 12 lanes in 16 bits.
            Case::new(dtype, [2, 3, 5], [4, 4, 9], 3, 96, 7).keep(),
        ];
        for case in &cases {
            check(device, case, &Inputs::random(case, &mut rng));
        }
    }
}

fn random_shapes(device: &Device) {
    let mut rng = Rng::new("random_shapes");
    let rounds = if device.kind() == DeviceKind::Simt { 40 } else { 100 };
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
        let cell = [rng.below(1..4), rng.below(1..5), rng.below(1..5)];
        let keep = rng.below(0..2) > 0;
        let grid = cell.map(|n| rng.below(if keep { 1 } else { n }..n + 6));
        let mut case = Case {
            batch: rng.below(1..3),
            rope: Rope3d::new([time, row, dim / 2 - time - row], 10_000.0).expect("pairs"),
            bias: rng.below(0..2) > 0,
            margins: rng.below(0..2) > 0,
            ..Case::new(dtype, grid, cell, rng.below(1..4), dim, rng.below(1..20))
        };
        if keep {
            case = case.keep();
        }
        check(device, &case, &Inputs::random(&case, &mut rng));
    }
}

/// Integers whose sums and means every dtype holds come out exactly.
fn integers(device: &Device) {
    let mut rng = Rng::new("integers");
    for dtype in FLOATS {
        let case = Case::new(dtype, [4, 8, 12], [2, 4, 4], 2, 32, 10);
        let mut inputs = Inputs::random(&case, &mut rng);
        inputs
            .v
            .iter_mut()
            .for_each(|x| *x = 32.0 * (rng.below(0..9) as f32 - 4.0));
        let truth = reference::mean_pool(&widen(&inputs.v), [4, 8, 12], &case.cells(), case.width());
        assert_eq!(widen(&run(device, &case, &inputs).v), truth);
    }
}

/// Identical tokens pool to themselves; keys that are one key at every place, to that key at the
/// centroid: no norm is lost.
fn one_token_many_times(device: &Device) {
    let mut rng = Rng::new("one_token");
    for (dtype, unit) in FLOATS.into_iter().zip([24, 11, 8].map(|bits| 0.5f64.powi(bits))) {
        let case = Case::new(dtype, [4, 6, 9], [4, 3, 2], 1, 128, 25).keep();
        let mut inputs = Inputs::random(&case, &mut rng);
        // 24 additions of 12 bits are exact in f32.
        let value = rounded(DType::F16, &rng.normals(128));
        let value = rounded(dtype, &value);
        let key: Vec<f64> = (0..128).map(|_| rng.normal()).collect();
        let at = |position| {
            let mut key = key.clone();
            rotate(&mut key, case.rope.pairs(), case.rope.theta(), position);
            key
        };
        let places = positions(case.grid.extents(), [0.0; 3], [1.0; 3], 0.0);
        let keys: Vec<f32> = places.iter().flat_map(|&p| at(p)).map(|x| x as f32).collect();
        inputs.k = rounded(dtype, &keys);
        inputs.v = value.repeat(case.tokens());
        let got = run(device, &case, &inputs);
        for (i, cell) in case.cells().iter().enumerate() {
            assert_eq!(got.v[i * 128..][..128], value);
            let truth = at(centroid(cell));
            for (got, truth) in got.k[i * 128..][..128].chunks_exact(2).zip(truth.chunks_exact(2)) {
                // A rounding of the keys and one of the result, each a unit of the pair at most, and
                // those of f32 between.
                let norm = truth[0].hypot(truth[1]);
                let error = (f64::from(got[0]) - truth[0]).hypot(f64::from(got[1]) - truth[1]);
                assert!(error <= (2.0 * unit + 1e-6) * norm, "{got:?} for {truth:?}");
            }
        }
    }
}

/// Keys and values may lie in memory differently.
fn values_have_strides_of_their_own(device: &Device) {
    let mut rng = Rng::new("values_have_strides_of_their_own");
    for dtype in FLOATS {
        let case = Case::new(dtype, [2, 5, 7], [2, 2, 3], 3, 64, 8);
        let inputs = Inputs::random(&case, &mut rng);
        let (mut first, mut call) = (Call::new(device, &case, &inputs), Call::new(device, &case, &inputs));
        first.run().expect("it is taken");
        let mut v = TokenMajor::of(&call.v);
        let args = MergeTokens {
            source: &call.source,
            dest: &call.dest,
            grid: case.grid,
            pool: case.pool,
            rope: &case.rope,
        };
        let mut kv = KvPagesMut {
            k: call.k.view_mut(),
            v: v.view_mut(),
            slot_bias: None,
        };
        merge_tokens(&args, &mut kv).expect("it is taken");
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
        let case = Case {
            batch: 3,
            ..Case::new(dtype, [2, 5, 7], [2, 2, 3], 3, 64, 8).keep()
        };
        let inputs = Inputs::random(&case, &mut rng);
        let bits = |m: &Merged| -> Vec<u32> { m.k.iter().chain(&m.v).map(|x| x.to_bits()).collect() };
        let first = run(device, &case, &inputs);
        assert_eq!(bits(&first), bits(&run(device, &case, &inputs)), "a second run");

        let mut permuted = inputs.clone();
        permuted.source.reverse();
        permuted.dest.reverse();
        permuted
            .dest
            .iter_mut()
            .chain(&mut permuted.source)
            .for_each(|list| list.reverse());
        assert_eq!(bits(&first), bits(&run(device, &case, &permuted)), "other pages");

        for block in 0..3 {
            let part = |x: &[f32]| x[block * x.len() / 3..(block + 1) * x.len() / 3].to_vec();
            let alone = Case {
                batch: 1,
                ..case.clone()
            };
            let pages: Vec<u32> = (0..alone.pool_pages() as u32).collect();
            let (source, dest) = pages.split_at(alone.pages()[0]);
            let own = Inputs {
                k: part(&inputs.k),
                v: part(&inputs.v),
                source: vec![source.to_vec()],
                dest: vec![dest[..alone.pages()[1]].to_vec()],
            };
            let own = run(device, &alone, &own);
            let neighboured = Merged {
                k: part(&first.k),
                v: part(&first.v),
            };
            assert_eq!(bits(&own), bits(&neighboured), "block {block} without its neighbours");
        }
    }
}

/// Two blocks may be one: what a fork shares.
fn shared_source(device: &Device) {
    let case = Case {
        batch: 2,
        ..Case::new(DType::BF16, [2, 2, 2], [1, 2, 2], 1, 64, 8)
    };
    let mut inputs = Inputs::random(&case, &mut Rng::new("shared"));
    inputs.k.truncate(inputs.k.len() / 2);
    inputs.k = inputs.k.repeat(2);
    inputs.v.truncate(inputs.v.len() / 2);
    inputs.v = inputs.v.repeat(2);
    inputs.source[1] = inputs.source[0].clone();
    check(device, &case, &inputs);
}

/// NaN stays in its cell.
fn not_a_number(device: &Device) {
    let case = Case::new(DType::F32, [2, 2, 4], [2, 2, 2], 1, 32, 16);
    let mut inputs = Inputs::random(&case, &mut Rng::new("not_a_number"));
    let clean = run(device, &case, &inputs);
    inputs.v[2 * 32 + 5] = f32::NAN;
    inputs.k[32] = f32::NAN;
    let got = run(device, &case, &inputs);
    for i in 0..64 {
        assert_eq!(got.v[i].is_nan(), i == 32 + 5);
        assert_eq!(got.k[i].is_nan(), i < 2);
        assert!(got.v[i].is_nan() || got.v[i] == clean.v[i]);
    }
}

fn refused(result: Result<()>) -> &'static str {
    match result {
        Err(Error::Argument {
            op: "merge_tokens",
            argument,
            ..
        }) => argument,
        Err(Error::UnsupportedDType {
            op: "merge_tokens",
            argument,
            ..
        }) => argument,
        other => panic!("{other:?} where an argument should have been refused"),
    }
}

fn refusals(device: &Device) {
    let case = Case {
        batch: 2,
        ..Case::new(DType::BF16, [2, 4, 4], [2, 2, 2], 1, 64, 4)
    };
    let inputs = Inputs::random(&case, &mut Rng::new("refusals"));
    let mut call = Call::new(device, &case, &inputs);
    let before = call.bits();
    let rope = Rope3d::wan(32);
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

    assert_eq!(refused(call.run_with(|a| a.rope = &rope)), "rope");
    assert_eq!(refused(call.run_with(|a| a.pool.cell[1] = 0)), "pool.cell");
    assert_eq!(refused(call.run_with(|a| a.pool.cell = [2, 5, 2])), "grid");
    assert_eq!(refused(call.run_with(|a| a.grid.frames = 0)), "grid");
    assert_eq!(refused(call.run_with(|a| a.grid.cols = usize::MAX)), "grid");
    assert_eq!(refused(call.run_with(|a| a.grid.cols = 5)), "source");
    assert_eq!(refused(call.run_with(|a| a.source = &short)), "source");
    assert_eq!(refused(call.run_with(|a| a.source = &none)), "source");
    assert_eq!(refused(call.run_with(|a| a.dest = &empty)), "dest");
    assert_eq!(refused(call.run_with(|a| a.dest = &one)), "dest");
    assert_eq!(refused(call.run_with(|a| a.dest = &three)), "dest");
    assert_eq!(refused(call.run_with(|a| a.dest = &large)), "dest");
    if device.is_host() {
        let (a, b, page) = (inputs.source[1][3], inputs.dest[1][0], inputs.dest[0][0]);
        for overlap in [[vec![a], vec![b]], [vec![page], vec![page]]] {
            let dest = lists(pool, &overlap);
            assert_eq!(refused(call.run_with(|a| a.dest = &dest)), "dest");
        }
    }
    let wrong = |k: DType, v: DType| -> &'static str {
        let shape = [pool, 1, 4, 64];
        let mut k = Tensor::zeros(device, k, &shape).expect("a pool");
        let mut v = Tensor::zeros(device, v, &shape).expect("a pool");
        let (source, dest) = (lists(pool, &inputs.source), lists(pool, &inputs.dest));
        let args = MergeTokens {
            source: &source,
            dest: &dest,
            grid: case.grid,
            pool: case.pool,
            rope: &case.rope,
        };
        refused(merge_tokens(
            &args,
            &mut KvPagesMut {
                k: k.view_mut(),
                v: v.view_mut(),
                slot_bias: None,
            },
        ))
    };
    assert_eq!(wrong(DType::I32, DType::I32), "kv.k");
    assert_eq!(wrong(DType::BF16, DType::F16), "kv.v");
    assert_eq!(call.bits(), before, "a refused call has written");
    call.run().expect("the same call with nothing changed");
    assert_ne!(call.bits(), before);
}

/// What the CPU takes and the kernels do not.
fn kernel_limits(device: &Device) {
    let refuse = |case: &Case| {
        let inputs = Inputs::random(case, &mut Rng::new("limits"));
        refused(Call::new(device, case, &inputs).run())
    };
    assert_eq!(refuse(&Case::new(DType::BF16, [2, 2, 2], [2, 2, 2], 1, 12, 4)), "kv.k");
    assert_eq!(
        refuse(&Case::new(DType::BF16, [1, 1, 65], [1, 1, 65], 1, 128, 8)),
        "pool.cell"
    );
    let most = Case::new(DType::BF16, [1, 2, 64], [1, 1, 64], 1, 128, 8);
    check(device, &most, &Inputs::random(&most, &mut Rng::new("limits")));
    // A cell that is larger than the grid counts as the grid.
    let huge = Case::new(DType::BF16, [1, 2, 3], [usize::MAX; 3], 1, 128, 8).keep();
    check(device, &huge, &Inputs::random(&huge, &mut Rng::new("limits")));
}

/// The reference and every device against torch's pooling.
fn golden_pooling(golden: &common::Golden) {
    let devices = [
        Ok(Device::cpu()),
        Device::simt(packforcing::SimtOptions::default()),
        Device::cuda(0),
    ];
    let devices: Vec<Device> = devices.into_iter().flatten().collect();
    let mut found = 0;
    for case in golden.cases("merge_tokens") {
        let Some(name) = case["case"].as_str() else { continue };
        found += 1;
        let triple =
            |name: &str| -> [usize; 3] { std::array::from_fn(|i| case[name][i].as_u64().expect("a number") as usize) };
        let (x, shape) = golden.tensor("merge_tokens.safetensors", &format!("{name}.x"));
        let (out, _) = golden.tensor("merge_tokens.safetensors", &format!("{name}.out"));
        let (grid, cell, dim) = (triple("grid"), triple("stride"), shape[3]);
        let ours = Case::new(DType::F32, grid, cell, 1, dim, 12);
        assert_eq!(ours.pool.output(ours.grid).extents(), triple("out"));
        for (a, b) in reference::mean_pool(&x, grid, &ours.cells(), dim).iter().zip(&out) {
            assert!((a - b).abs() < 1e-12, "{a} where torch has {b}");
        }
        let x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        let mut inputs = Inputs::random(&ours, &mut Rng::new("golden"));
        inputs.v = x.clone();
        for device in &devices {
            let got = run(device, &ours, &inputs);
            Errors::of(&got.v, &out).within(Errors::of(&plain(&ours, &x, false), &out), FLOOR);
        }
    }
    assert!(found > 0, "no case of pooling");
}

fn main() -> std::process::ExitCode {
    common::Suite::new()
        .on_devices("against_reference", against_reference)
        .on_devices("random_shapes", random_shapes)
        .on_devices("integers", integers)
        .on_devices("one_token_many_times", one_token_many_times)
        .on_devices("values_have_strides_of_their_own", values_have_strides_of_their_own)
        .on_devices("bit_for_bit", bit_for_bit)
        .on_devices("shared_source", shared_source)
        .on_devices("not_a_number", not_a_number)
        .on_devices("refusals", refusals)
        .on_kernels("kernel_limits", kernel_limits)
        .golden("pooling", golden_pooling)
        .run()
}
