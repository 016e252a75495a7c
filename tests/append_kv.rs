//! `append_kv` against its f64 reference, on every device.
mod common;

use common::{Errors, Rng, TokenMajor, rounded, widen};
use packforcing::ops::append_kv::{AppendKv, Lattice, Norm, append_kv, reference};
use packforcing::paging::{KvPagesMut, PageLists};
use packforcing::{DType, Device, DeviceKind, Error, Grid, Result, Rope3d, Tensor, View};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
/// Values stay below 16 or so: a few roundings of f32, where the plain result is exact by chance.
const FLOOR: f64 = 2e-6;

/// Sizes and choices of one call.
#[derive(Debug, Clone)]
struct Case {
    dtype: DType,
    streams: usize,
    lattice: Lattice,
    /// `None`: no queries.
    q_heads: Option<usize>,
    kv_heads: usize,
    rope: Rope3d,
    page_tokens: usize,
    norm: bool,
    origins: bool,
    /// Elements of NaN between heads, tokens and streams, and slots of NaN after each page.
    margins: bool,
}

impl Case {
    fn new(dtype: DType, grid: [usize; 3], heads: usize, dim: usize, page_tokens: usize) -> Case {
        Case {
            dtype,
            streams: 1,
            lattice: Lattice::whole(grid_of(grid)),
            q_heads: Some(heads),
            kv_heads: heads,
            rope: Rope3d::wan(dim),
            page_tokens,
            norm: true,
            origins: false,
            margins: false,
        }
    }

    fn dim(&self) -> usize {
        self.rope.dim()
    }

    fn tokens(&self) -> usize {
        self.lattice.grid.tokens().0
    }

    fn used_pages(&self) -> usize {
        self.tokens().div_ceil(self.page_tokens)
    }

    /// One page more than is used.
    fn pool_pages(&self) -> usize {
        self.streams * self.used_pages() + 1
    }
}

fn grid_of([frames, rows, cols]: [usize; 3]) -> Grid {
    Grid { frames, rows, cols }
}

/// What goes in, dense, rounded to the dtype.
#[derive(Clone)]
struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    q_weight: Vec<f32>,
    k_weight: Vec<f32>,
    origins: Vec<f32>,
    lists: Vec<Vec<u32>>,
}

const EPS: f32 = 1e-6;

impl Inputs {
    fn random(case: &Case, rng: &mut Rng) -> Inputs {
        let rows = case.streams * case.tokens();
        let mut numbers = |n: usize, scale: f32, add: f32| -> Vec<f32> {
            let numbers: Vec<f32> = rng.normals(n).iter().map(|x| x * scale + add).collect();
            rounded(case.dtype, &numbers)
        };
        let (q_width, k_width) = (case.q_heads.unwrap_or(0) * case.dim(), case.kv_heads * case.dim());
        let (q, k) = (numbers(rows * q_width, 2.0, 0.1), numbers(rows * k_width, 0.5, 0.0));
        let v = numbers(rows * k_width, 1.0, 0.0);
        let (q_weight, k_weight) = (numbers(q_width, 0.2, 1.0), numbers(k_width, 0.2, 1.0));
        let origins = (0..case.streams).map(|s| 7.0 + 100_000.0 * s as f32).collect();
        let mut pages: Vec<u32> = (0..case.pool_pages() as u32).collect();
        rng.shuffle(&mut pages);
        let lists = (0..case.streams)
            .map(|s| pages[s * case.used_pages()..][..case.used_pages()].to_vec())
            .collect();
        Inputs {
            q,
            k,
            v,
            q_weight,
            k_weight,
            origins,
            lists,
        }
    }
}

/// What came out, as f32; pages `[pages, heads, page_tokens (+ 1 with margins), dim]`.
#[derive(Debug, Clone)]
struct Outputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

impl Outputs {
    fn bits(&self) -> [Vec<u32>; 3] {
        [bits(&self.q), bits(&self.k), bits(&self.v)]
    }
}

/// `[streams, tokens, heads, dim]` in a tensor that is larger by one in every outer dimension.
fn spread(x: &[f32], [s, t, h, d]: [usize; 4]) -> Vec<f32> {
    let mut out = vec![f32::NAN; (s + 1) * (t + 1) * (h + 1) * d];
    for (i, row) in x.chunks_exact(d.max(1)).enumerate() {
        let (stream, token, head) = (i / (t * h), i / h % t, i % h);
        out[((stream * (t + 1) + token) * (h + 1) + head) * d..][..d].copy_from_slice(row);
    }
    out
}

/// Tensors of a case, ready to be called with.
struct Call {
    case: Case,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    origins: Tensor,
    lists: PageLists,
    q_out: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
}

impl Call {
    fn new(device: &Device, case: &Case, inputs: &Inputs) -> Call {
        let (dtype, s, t, d) = (case.dtype, case.streams, case.tokens(), case.dim());
        let tensor = |x: &[f32], heads: usize| {
            let made = if case.margins {
                Tensor::from_f32(
                    device,
                    dtype,
                    &spread(x, [s, t, heads, d]),
                    &[s + 1, t + 1, heads + 1, d],
                )
            } else {
                Tensor::from_f32(device, dtype, x, &[s, t, heads, d])
            };
            made.expect("a tensor")
        };
        let q_heads = case.q_heads.unwrap_or(0);
        let plain = |x: &[f32]| Tensor::from_f32(device, dtype, x, &[x.len()]).expect("a tensor");
        let slots = case.page_tokens + usize::from(case.margins);
        let page_shape = [case.pool_pages(), case.kv_heads, slots, d];
        let poison = |n: usize| vec![f32::NAN; n];
        let pages =
            || Tensor::from_f32(device, dtype, &poison(page_shape.iter().product()), &page_shape).expect("a pool");
        Call {
            q: tensor(&inputs.q, q_heads),
            k: tensor(&inputs.k, case.kv_heads),
            v: tensor(&inputs.v, case.kv_heads),
            q_weight: plain(&inputs.q_weight),
            k_weight: plain(&inputs.k_weight),
            origins: Tensor::from_slice(device, &inputs.origins, &[s]).expect("a tensor"),
            lists: PageLists::from_host(device, case.pool_pages(), &inputs.lists).expect("lists"),
            q_out: tensor(&poison(s * t * q_heads * d), q_heads),
            k_pages: pages(),
            v_pages: pages(),
            case: case.clone(),
        }
    }

    fn run(&mut self) -> Result<()> {
        self.run_with(|_| {})
    }

    /// The call, with its arguments changed first.
    fn run_with<'a>(&'a mut self, change: impl FnOnce(&mut AppendKv<'a>)) -> Result<()> {
        let case = &self.case;
        let (s, t) = (case.streams, case.tokens());
        fn inner<'a>(x: &'a Tensor, case: &Case, heads: usize) -> Result<View<'a>> {
            x.view()
                .narrow(0, 0, case.streams)?
                .narrow(1, 0, case.tokens())?
                .narrow(2, 0, heads)
        }
        let mut args = AppendKv {
            q: case.q_heads.map(|heads| inner(&self.q, case, heads)).transpose()?,
            k: inner(&self.k, case, case.kv_heads)?,
            v: inner(&self.v, case, case.kv_heads)?,
            norm: case.norm.then(|| Norm {
                q_weight: self.q_weight.view(),
                k_weight: self.k_weight.view(),
                eps: EPS,
            }),
            rope: &case.rope,
            lattice: case.lattice,
            origins: case.origins.then(|| self.origins.view()),
            pages: &self.lists,
        };
        change(&mut args);
        let q_out = self.q_out.view_mut().narrow(0, 0, s)?.narrow(1, 0, t)?;
        let mut q_out = q_out.narrow(2, 0, case.q_heads.unwrap_or(0))?;
        let mut kv = KvPagesMut {
            k: self.k_pages.view_mut().narrow(2, 0, case.page_tokens)?,
            v: self.v_pages.view_mut().narrow(2, 0, case.page_tokens)?,
            slot_bias: None,
        };
        append_kv(&args, case.q_heads.map(|_| &mut q_out), &mut kv)
    }

    /// All memory that the call may write, margins too.
    fn outputs(&self) -> Outputs {
        let read = |t: &Tensor| t.to_f32_vec().expect("a download");
        Outputs {
            q: read(&self.q_out),
            k: read(&self.k_pages),
            v: read(&self.v_pages),
        }
    }
}

fn run(device: &Device, case: &Case, inputs: &Inputs) -> Outputs {
    let mut call = Call::new(device, case, inputs);
    call.run().unwrap_or_else(|e| panic!("{case:?}: {e}"));
    call.outputs()
}

/// Norm and rotation of all streams in f64, `[streams, tokens, heads, dim]`.
fn truth(case: &Case, x: &[f32], weight: &[f32], heads: usize, origins: &[f32]) -> Vec<f64> {
    let mut x = widen(x);
    if case.norm && !x.is_empty() {
        x = reference::rms_norm(&x, &widen(weight), EPS.into());
    }
    let Lattice { grid, start, step } = case.lattice;
    for (stream, x) in x
        .chunks_exact_mut((case.tokens() * heads * case.dim()).max(1))
        .enumerate()
    {
        let origin = if case.origins { origins[stream].into() } else { 0.0 };
        let positions = reference::positions(grid.extents(), start, step, origin);
        for (token, position) in x.chunks_exact_mut(heads * case.dim()).zip(positions) {
            for head in token.chunks_exact_mut(case.dim()) {
                reference::rotate(head, case.rope.pairs(), case.rope.theta(), position);
            }
        }
    }
    x
}

/// The plain implementation: everything in f32 one after the other, but for the angle's phase, and
/// rounded to the dtype at the end.
fn plain(case: &Case, x: &[f32], weight: &[f32], heads: usize, origins: &[f32]) -> Vec<f32> {
    let (width, dim) = (heads * case.dim(), case.dim());
    let Lattice { grid, start, step } = case.lattice;
    let mut out = x.to_vec();
    for (i, row) in out.chunks_exact_mut(width.max(1)).enumerate() {
        let (stream, token) = (i / case.tokens(), i % case.tokens());
        if case.norm {
            let sum: f32 = row.iter().map(|x| x * x).sum();
            let scale = 1.0 / (sum / width as f32 + EPS).sqrt();
            for (x, w) in row.iter_mut().zip(weight) {
                *x = *x * scale * w;
            }
        }
        let origin = if case.origins { origins[stream].into() } else { 0.0 };
        let position = reference::positions(grid.extents(), start, step, origin)[token];
        for head in row.chunks_exact_mut(dim) {
            for (pair, xy) in head.chunks_exact_mut(2).enumerate() {
                let angle = position[case.rope.axis(pair)] * case.rope.frequency(pair);
                let (sin, cos) = (angle.sin() as f32, angle.cos() as f32);
                (xy[0], xy[1]) = (xy[0] * cos - xy[1] * sin, xy[0] * sin + xy[1] * cos);
            }
        }
    }
    rounded(case.dtype, &out)
}

/// Rows of all streams in their pages, NaN where nothing is written.
fn paged(case: &Case, rows: &[f64], lists: &[Vec<u32>]) -> Vec<f64> {
    let shape = [case.kv_heads, case.page_tokens, case.dim()];
    let mut pages = vec![f64::NAN; case.pool_pages() * shape.iter().product::<usize>()];
    for (rows, list) in rows.chunks_exact(case.tokens() * case.kv_heads * case.dim()).zip(lists) {
        let list: Vec<usize> = list.iter().map(|&p| p as usize).collect();
        reference::write_pages(&mut pages, rows, &list, shape);
    }
    if !case.margins {
        return pages;
    }
    let page = case.page_tokens * case.dim();
    let margin = vec![f64::NAN; case.dim()];
    pages.chunks_exact(page).flat_map(|p| [p, &margin].concat()).collect()
}

/// The same rows with NaN margins where the case has them.
fn framed(case: &Case, rows: &[f32], heads: usize) -> Vec<f32> {
    if case.margins {
        spread(rows, [case.streams, case.tokens(), heads, case.dim()])
    } else {
        rows.to_vec()
    }
}

/// Errors where something is written; everything else is still NaN.
fn compare(got: &[f32], plain: &[f32], truth: &[f64], what: &str) {
    assert_eq!(got.len(), truth.len(), "{what}");
    let written = |i: &usize| !truth[*i].is_nan();
    for (i, (got, truth)) in got.iter().zip(truth).enumerate() {
        assert_eq!(
            got.is_nan(),
            truth.is_nan(),
            "{what}: element {i} is {got}, not {truth}"
        );
    }
    let pick = |x: &[f32]| -> Vec<f32> { (0..x.len()).filter(written).map(|i| x[i]).collect() };
    let truth: Vec<f64> = truth.iter().copied().filter(|x| !x.is_nan()).collect();
    if !truth.is_empty() {
        Errors::of(&pick(got), &truth).within(Errors::of(&pick(plain), &truth), FLOOR);
    }
}

fn narrow64(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// Runs a case and holds all of it against the reference.
fn check(device: &Device, case: &Case, inputs: &Inputs) {
    let got = run(device, case, inputs);
    let (q_heads, heads, origins) = (case.q_heads.unwrap_or(0), case.kv_heads, &inputs.origins);

    let q_plain = plain(case, &inputs.q, &inputs.q_weight, q_heads, origins);
    let q_truth = narrow_margins(
        case,
        &truth(case, &inputs.q, &inputs.q_weight, q_heads, origins),
        q_heads,
    );
    compare(
        &got.q,
        &framed(case, &q_plain, q_heads),
        &q_truth,
        &format!("q of {case:?}"),
    );

    let k_plain = paged(
        case,
        &widen(&plain(case, &inputs.k, &inputs.k_weight, heads, origins)),
        &inputs.lists,
    );
    let k_truth = paged(
        case,
        &truth(case, &inputs.k, &inputs.k_weight, heads, origins),
        &inputs.lists,
    );
    compare(&got.k, &narrow64(&k_plain), &k_truth, &format!("k of {case:?}"));

    let v_truth = narrow64(&paged(case, &widen(&inputs.v), &inputs.lists));
    let same = got
        .v
        .iter()
        .zip(&v_truth)
        .all(|(a, b)| a == b || (a.is_nan() && b.is_nan()));
    assert!(same, "v of {case:?} is not a copy");
}

fn narrow_margins(case: &Case, rows: &[f64], heads: usize) -> Vec<f64> {
    if !case.margins {
        return rows.to_vec();
    }
    // Through indices, which f32 holds exactly.
    let index: Vec<f32> = (0..rows.len()).map(|i| i as f32).collect();
    let place = |x: f32| if x.is_nan() { f64::NAN } else { rows[x as usize] };
    framed(case, &index, heads).into_iter().map(place).collect()
}

fn against_reference(device: &Device) {
    let mut rng = Rng::new("against_reference");
    for dtype in FLOATS {
        let case = Case::new(dtype, [2, 3, 5], 3, 128, 8);
        let cases = [
            case.clone(),
            Case {
                q_heads: None,
                ..case.clone()
            },
            Case {
                norm: false,
                ..case.clone()
            },
            Case {
                margins: true,
                streams: 2,
                origins: true,
                ..case.clone()
            },
            // Grouped heads; a whole number of pages; one token; heads in several passes.
            Case {
                q_heads: Some(6),
                kv_heads: 2,
                page_tokens: 10,
                ..case.clone()
            },
            Case::new(dtype, [1, 1, 1], 1, 64, 96),
            Case::new(dtype, [1, 2, 1], 12, 128, 1),
            Case {
                q_heads: Some(40),
                ..Case::new(dtype, [1, 1, 2], 40, 128, 4)
            },
            // A mid block's lattice: fractions of a token.
            Case {
                lattice: Lattice {
                    grid: grid_of([2, 2, 3]),
                    start: [0.5, 1.5, 1.5],
                    step: [2.0, 4.0, 4.0],
                },
                origins: true,
                ..Case::new(dtype, [1, 1, 1], 2, 96, 5)
            },
        ];
        for case in &cases {
            check(device, case, &Inputs::random(case, &mut rng));
        }
    }
}

fn random_shapes(device: &Device) {
    let mut rng = Rng::new("random_shapes");
    let rounds = if device.kind() == DeviceKind::Simt { 60 } else { 200 };
    for _ in 0..rounds {
        let dtype = FLOATS[rng.below(0..3)];
        // The CPU takes any even head dim, the kernels whole vectors.
        let quantum = if device.kind() == DeviceKind::Cpu {
            2
        } else {
            16 / dtype.bytes()
        };
        let dim = rng.below(1..128 / quantum + 1) * quantum;
        let pairs = [rng.below(0..dim / 2 + 1), 0, 0];
        let row = rng.below(0..dim / 2 - pairs[0] + 1);
        let pairs = [pairs[0], row, dim / 2 - pairs[0] - row];
        let kv_heads = rng.below(1..6);
        let case = Case {
            dtype,
            streams: rng.below(1..4),
            lattice: Lattice {
                grid: grid_of([rng.below(1..4), rng.below(1..4), rng.below(1..5)]),
                start: [rng.normal(), rng.normal(), rng.normal()],
                step: [rng.normal(), rng.normal(), rng.normal()],
            },
            q_heads: (rng.below(0..4) > 0).then(|| kv_heads * rng.below(1..4)),
            kv_heads,
            rope: Rope3d::new(pairs, 10_000.0).expect("pairs"),
            page_tokens: rng.below(1..20),
            norm: rng.below(0..3) > 0,
            origins: rng.below(0..2) > 0,
            margins: rng.below(0..2) > 0,
        };
        check(device, &case, &Inputs::random(&case, &mut rng));
    }
}

/// Without a norm, position 0 changes nothing, bit for bit.
fn at_the_origin(device: &Device) {
    for dtype in FLOATS {
        let case = Case {
            norm: false,
            ..Case::new(dtype, [1, 1, 1], 2, 64, 3)
        };
        let inputs = Inputs::random(&case, &mut Rng::new("origin"));
        let got = run(device, &case, &inputs);
        assert_eq!(got.q, inputs.q);
        let page = inputs.lists[0][0] as usize * 2 * 3 * 64;
        for head in 0..2 {
            let at = page + head * 3 * 64;
            assert_eq!(got.k[at..][..64], inputs.k[head * 64..][..64]);
            assert_eq!(got.k[at + 64..][..2 * 64], [0.0; 2 * 64]);
        }
    }
}

/// The pages of a stream, in the order of its list.
fn gathered(case: &Case, pages: &[f32], list: &[u32]) -> Vec<u32> {
    let size = pages.len() / case.pool_pages();
    list.iter()
        .flat_map(|&p| bits(&pages[p as usize * size..][..size]))
        .collect()
}

/// Keys, values and the pages of each may lie in memory differently.
fn values_have_strides_of_their_own(device: &Device) {
    let mut rng = Rng::new("values_have_strides_of_their_own");
    for dtype in FLOATS {
        let case = Case::new(dtype, [2, 2, 5], 3, 64, 6);
        let inputs = Inputs::random(&case, &mut rng);
        let first = run(device, &case, &inputs);
        let mut call = Call::new(device, &case, &inputs);
        let (v, mut v_pages) = (TokenMajor::of(&call.v), TokenMajor::of(&call.v_pages));
        let args = AppendKv {
            q: None,
            k: call.k.view(),
            v: v.view(),
            norm: case.norm.then(|| Norm {
                q_weight: call.q_weight.view(),
                k_weight: call.k_weight.view(),
                eps: EPS,
            }),
            rope: &case.rope,
            lattice: case.lattice,
            origins: case.origins.then(|| call.origins.view()),
            pages: &call.lists,
        };
        let mut kv = KvPagesMut {
            k: call.k_pages.view_mut(),
            v: v_pages.view_mut(),
            slot_bias: None,
        };
        append_kv(&args, None, &mut kv).expect("it is taken");
        drop(kv);
        assert_eq!(v_pages.bits(), bits(&first.v));
        assert_eq!(bits(&call.outputs().k), bits(&first.k));
    }
}

/// Page numbers, a second run and the other streams of a batch leave no trace.
fn bit_for_bit(device: &Device) {
    let mut rng = Rng::new("bit_for_bit");
    for dtype in FLOATS {
        let case = Case {
            streams: 3,
            origins: true,
            ..Case::new(dtype, [2, 2, 5], 3, 128, 6)
        };
        let inputs = Inputs::random(&case, &mut rng);
        let first = run(device, &case, &inputs);
        assert_eq!(first.bits(), run(device, &case, &inputs).bits(), "a second run");

        let mut permuted = inputs.clone();
        permuted.lists.reverse();
        permuted.lists.iter_mut().for_each(|list| list.reverse());
        let other = run(device, &case, &permuted);
        assert_eq!(bits(&first.q), bits(&other.q));
        for (a, b) in inputs.lists.iter().zip(&permuted.lists) {
            assert_eq!(gathered(&case, &first.k, a), gathered(&case, &other.k, b));
            assert_eq!(gathered(&case, &first.v, a), gathered(&case, &other.v, b));
        }

        let alone = Case {
            streams: 1,
            ..case.clone()
        };
        for stream in 0..3 {
            let part = |x: &[f32]| x[stream * x.len() / 3..(stream + 1) * x.len() / 3].to_vec();
            let own = Inputs {
                q: part(&inputs.q),
                k: part(&inputs.k),
                v: part(&inputs.v),
                origins: part(&inputs.origins),
                lists: vec![(0..alone.used_pages() as u32).collect()],
                ..inputs.clone()
            };
            let got = run(device, &alone, &own);
            assert_eq!(
                bits(&got.q),
                bits(&part(&first.q)),
                "stream {stream} without its neighbours"
            );
            let list = &inputs.lists[stream];
            assert_eq!(gathered(&alone, &got.k, &own.lists[0]), gathered(&case, &first.k, list));
        }
    }
}

/// A block written frame by frame, each at its start, is the block written at once.
fn in_parts(device: &Device) {
    let case = Case::new(DType::BF16, [3, 2, 4], 2, 64, 8);
    let inputs = Inputs::random(&case, &mut Rng::new("in_parts"));
    let whole = run(device, &case, &inputs);
    for frame in 0..3 {
        let lattice = Lattice {
            grid: grid_of([1, 2, 4]),
            start: [frame as f64, 0.0, 0.0],
            step: [1.0; 3],
        };
        let part = |x: &[f32]| x[frame * x.len() / 3..(frame + 1) * x.len() / 3].to_vec();
        let own = Inputs {
            q: part(&inputs.q),
            k: part(&inputs.k),
            v: part(&inputs.v),
            lists: vec![vec![0]],
            ..inputs.clone()
        };
        let small = Case {
            lattice,
            ..case.clone()
        };
        let got = run(device, &small, &own);
        assert_eq!(bits(&got.q), bits(&part(&whole.q)));
        assert_eq!(
            gathered(&small, &got.k, &[0]),
            gathered(&case, &whole.k, &inputs.lists[0][frame..=frame])
        );
    }
}

/// NaN stays in its token (the norm carries it to all heads of it), infinities stay out of others.
fn not_a_number(device: &Device) {
    for dtype in FLOATS {
        let case = Case::new(dtype, [1, 1, 6], 2, 64, 6);
        let mut inputs = Inputs::random(&case, &mut Rng::new("not_a_number"));
        let clean = run(device, &case, &inputs);
        inputs.k[2 * 128 + 3] = f32::NAN;
        inputs.k[4 * 128 + 70] = f32::INFINITY;
        let got = run(device, &case, &inputs);
        assert_eq!(bits(&got.q), bits(&clean.q));
        let page = inputs.lists[0][0] as usize;
        for (head, token) in (0..2).flat_map(|h| (0..6).map(move |t| (h, t))) {
            let at = ((page * 2 + head) * 6 + token) * 64;
            match token {
                2 => assert!(got.k[at..][..64].iter().all(|x| x.is_nan())),
                4 => assert!(got.k[at..][..64].iter().all(|x| x.is_nan() || *x == 0.0)),
                _ => assert_eq!(bits(&got.k[at..][..64]), bits(&clean.k[at..][..64])),
            }
        }
    }
}

fn nothing_to_do(device: &Device) {
    for grid in [[0, 2, 3], [1, 1, 4]] {
        let mut case = Case::new(DType::F16, grid, 1, 64, 4);
        if grid[0] > 0 {
            case.streams = 0;
        }
        let mut inputs = Inputs::random(&case, &mut Rng::new("nothing"));
        inputs.lists = vec![vec![]; case.streams];
        let mut call = Call::new(device, &case, &inputs);
        assert_eq!(refused(call.run()), "k", "{case:?}");
        assert!(call.outputs().k.iter().all(|x| x.is_nan()), "{case:?}");
    }
}

/// The argument that an error names.
fn refused(result: Result<()>) -> &'static str {
    match result {
        Err(Error::Argument {
            op: "append_kv",
            argument,
            ..
        }) => argument,
        Err(Error::UnsupportedDType {
            op: "append_kv",
            argument,
            ..
        }) => argument,
        other => panic!("{other:?} where an argument should have been refused"),
    }
}

fn refusals(device: &Device) {
    let case = Case {
        streams: 2,
        origins: true,
        ..Case::new(DType::BF16, [1, 2, 4], 2, 64, 3)
    };
    let inputs = Inputs::random(&case, &mut Rng::new("refusals"));
    let mut call = Call::new(device, &case, &inputs);
    let before = call.outputs().bits();

    let bf16 = |shape: &[usize]| Tensor::zeros(device, DType::BF16, shape).expect("a tensor");
    let (short, narrow) = (bf16(&[2, 7, 2, 64]), bf16(&[2, 8, 2, 32]));
    let (one_stream, no_heads) = (bf16(&[1, 8, 2, 64]), bf16(&[2, 8, 0, 64]));
    let single = Tensor::zeros(device, DType::F32, &[2, 8, 2, 64]).expect("a tensor");
    let bytes = Tensor::zeros(device, DType::U8, &[2, 8, 2, 64]).expect("a tensor");
    let weight = Tensor::zeros(device, DType::F32, &[128]).expect("a tensor");
    let foreign = Tensor::zeros(&other_device(device), DType::BF16, &[2, 8, 2, 64]).expect("a tensor");
    let small_rope = Rope3d::wan(32);
    let lists = |pool: usize, lists: &[Vec<u32>]| PageLists::from_host(device, pool, lists).expect("lists");
    let (few, short_lists) = (lists(7, &[vec![0, 1, 2]]), lists(7, &[vec![0, 1], vec![2, 3]]));
    let large_pool = lists(8, &[vec![0, 1, 2], vec![3, 4, 5]]);

    assert_eq!(refused(call.run_with(|a| a.k = bytes.view())), "k");
    assert_eq!(refused(call.run_with(|a| a.k = single.view())), "kv.k");
    assert_eq!(refused(call.run_with(|a| a.k = short.view())), "k");
    assert_eq!(refused(call.run_with(|a| a.k = narrow.view())), "k");
    assert_eq!(refused(call.run_with(|a| a.k = foreign.view())), "kv.k");
    assert_eq!(refused(call.run_with(|a| a.v = single.view())), "v");
    assert_eq!(refused(call.run_with(|a| a.v = one_stream.view())), "v");
    assert_eq!(refused(call.run_with(|a| a.v = foreign.view())), "v");
    assert_eq!(refused(call.run_with(|a| a.q = None)), "q_out");
    assert_eq!(refused(call.run_with(|a| a.q = Some(no_heads.view()))), "q");
    assert_eq!(refused(call.run_with(|a| a.q = Some(short.view()))), "q");
    assert_eq!(refused(call.run_with(|a| a.rope = &small_rope)), "rope");
    assert_eq!(refused(call.run_with(|a| a.lattice.grid.rows = 3)), "k");
    assert_eq!(
        refused(call.run_with(|a| a.lattice.grid.rows = usize::MAX)),
        "lattice.grid"
    );
    assert_eq!(refused(call.run_with(|a| a.lattice.start[1] = f64::NAN)), "lattice");
    assert_eq!(refused(call.run_with(|a| a.lattice.step[2] = f64::INFINITY)), "lattice");
    assert_eq!(
        refused(call.run_with(|a| a.origins = Some(one_stream.view()))),
        "origins"
    );
    assert_eq!(refused(call.run_with(|a| a.pages = &few)), "pages");
    assert_eq!(refused(call.run_with(|a| a.pages = &short_lists)), "pages");
    assert_eq!(refused(call.run_with(|a| a.pages = &large_pool)), "pages");
    let norm = |change: fn(&mut Norm<'_>)| move |a: &mut AppendKv<'_>| a.norm.iter_mut().for_each(change);
    assert_eq!(refused(call.run_with(norm(|n| n.eps = -1.0))), "norm.eps");
    assert_eq!(refused(call.run_with(norm(|n| n.eps = f32::NAN))), "norm.eps");
    assert_eq!(
        refused(call.run_with(|a| a.norm.as_mut().expect("a norm").k_weight = weight.view())),
        "norm.k_weight"
    );
    assert_eq!(
        refused(call.run_with(|a| a.norm.as_mut().expect("a norm").q_weight = weight.view())),
        "norm.q_weight"
    );
    if device.is_host() {
        for twice in [[vec![0, 1, 2], vec![3, 4, 0]], [vec![0, 0, 1], vec![2, 3, 4]]] {
            let lists = lists(7, &twice);
            assert_eq!(refused(call.run_with(|a| a.pages = &lists)), "pages");
        }
    }
    assert_eq!(call.outputs().bits(), before, "a refused call has written");
    call.run().expect("the same call with nothing changed");
    assert_ne!(call.outputs().bits(), before);

    // No queries: `q_weight` is not looked at, `q_out` must not be there.
    let case = Case { q_heads: None, ..case };
    let inputs = Inputs { q: vec![], ..inputs };
    let mut call = Call::new(device, &case, &inputs);
    call.run_with(|a| a.norm.as_mut().expect("a norm").q_weight = weight.view())
        .expect("no queries");
    assert_eq!(refused(call.run_with(|a| a.q = Some(foreign.view()))), "q_out");
}

/// A device that is not this one.
fn other_device(device: &Device) -> Device {
    match device.kind() {
        DeviceKind::Cpu => Device::simt(packforcing::SimtOptions::default()).expect("the simt device"),
        _ => Device::cpu(),
    }
}

/// What the CPU takes and the kernels do not.
fn kernel_limits(device: &Device) {
    let refuse = |case: &Case, change: fn(&mut Call)| {
        let inputs = Inputs::random(case, &mut Rng::new("limits"));
        let mut call = Call::new(device, case, &inputs);
        change(&mut call);
        refused(call.run())
    };
    let odd = Case {
        rope: Rope3d::wan(12),
        ..Case::new(DType::BF16, [1, 1, 2], 2, 12, 4)
    };
    assert_eq!(refuse(&odd, |_| {}), "k");
    // 4 * (512 / 32) heads of 128 in f32.
    let heads = |q: Option<usize>, kv: usize| Case {
        q_heads: q,
        kv_heads: kv,
        ..Case::new(DType::F32, [1, 1, 1], 1, 128, 2)
    };
    assert_eq!(refuse(&heads(Some(65), 1), |_| {}), "q");
    assert_eq!(refuse(&heads(None, 65), |_| {}), "k");
    let case = heads(Some(64), 64);
    check(device, &case, &Inputs::random(&case, &mut Rng::new("limits")));

    // Rows that start between 16-byte boundaries.
    let case = Case::new(DType::BF16, [1, 1, 3], 1, 64, 4);
    let inputs = Inputs::random(&case, &mut Rng::new("limits"));
    let mut call = Call::new(device, &case, &inputs);
    let wide = Tensor::zeros(device, DType::BF16, &[1, 3, 1, 68]).expect("a tensor");
    let unaligned = wide.view().narrow(3, 0, 64).expect("a view");
    let shifted = wide
        .view()
        .narrow(3, 4, 64)
        .expect("a view")
        .narrow(1, 0, 1)
        .expect("a view");
    assert_eq!(refused(call.run_with(|a| a.k = unaligned.clone())), "k");
    assert_eq!(refused(call.run_with(|a| a.v = unaligned.clone())), "v");
    assert_eq!(refused(call.run_with(|a| a.q = Some(unaligned.clone()))), "q");
    let one = Case::new(DType::BF16, [1, 1, 1], 1, 64, 4);
    let mut call = Call::new(device, &one, &Inputs::random(&one, &mut Rng::new("limits")));
    assert_eq!(refused(call.run_with(|a| a.v = shifted.clone())), "v");
}

/// The reference and every device against torch's rotation.
fn golden_rotation(golden: &common::Golden) {
    let devices: Vec<Device> = [
        Ok(Device::cpu()),
        Device::simt(packforcing::SimtOptions::default()),
        Device::cuda(0),
    ]
    .into_iter()
    .flatten()
    .collect();
    for case in golden.cases("rope3d") {
        let number = |name: &str| case[name].as_u64().expect("a number") as usize;
        let tensor = |name: &str| {
            golden
                .tensor("rope3d.safetensors", &format!("{}.{name}", number("case")))
                .0
        };
        let (x, out) = (tensor("x"), tensor("out"));
        let pairs: [usize; 3] = std::array::from_fn(|a| case["pairs"][a].as_u64().expect("a number") as usize);
        let rope = Rope3d::new(pairs, case["theta"].as_f64().expect("a number")).expect("a rope");
        let (heads, dim) = (number("heads"), number("head_dim"));
        let lattice = Lattice {
            grid: grid_of([number("frames"), number("height"), number("width")]),
            start: [number("start_frame") as f64, 0.0, 0.0],
            step: [1.0; 3],
        };
        let ours = Case {
            lattice,
            rope,
            norm: false,
            ..Case::new(DType::F32, [1, 1, 1], heads, dim, 16)
        };

        let positions = reference::positions(lattice.grid.extents(), lattice.start, lattice.step, 0.0);
        let mut rotated = x.clone();
        for (row, position) in rotated.chunks_exact_mut(heads * dim).zip(positions) {
            for head in row.chunks_exact_mut(dim) {
                reference::rotate(head, pairs, ours.rope.theta(), position);
            }
        }
        // Phases of 100,000 radians are known to 1e-11 in f64.
        for (a, b) in rotated.iter().zip(&out) {
            assert!((a - b).abs() < 1e-10, "{a} where torch has {b}");
        }

        let mut inputs = Inputs::random(&ours, &mut Rng::new("golden"));
        inputs.q = narrow64(&x);
        for device in &devices {
            let got = run(device, &ours, &inputs);
            let mut nearest = vec![0.0; out.len()];
            nearest.copy_from_slice(&narrow64(&out));
            Errors::of(&got.q, &out).within(Errors::of(&nearest, &out), FLOOR);
        }
    }
}

fn main() -> std::process::ExitCode {
    common::Suite::new()
        .on_devices("against_reference", against_reference)
        .on_devices("random_shapes", random_shapes)
        .on_devices("at_the_origin", at_the_origin)
        .on_devices("values_have_strides_of_their_own", values_have_strides_of_their_own)
        .on_devices("bit_for_bit", bit_for_bit)
        .on_devices("in_parts", in_parts)
        .on_devices("not_a_number", not_a_number)
        .on_devices("nothing_to_do", nothing_to_do)
        .on_devices("refusals", refusals)
        .on_kernels("kernel_limits", kernel_limits)
        .golden("rotation", golden_rotation)
        .run()
}
