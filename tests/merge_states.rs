//! Merging of two attention results, on every device.
mod common;

use common::{Errors, Rng, Suite, rounded, widen};
use packforcing::dtype::{bf16, f16};
use packforcing::ops::attention::{Attention, attention};
use packforcing::ops::merge_states::{State, merge_states, reference};
use packforcing::paging::{Context, KvPages, Segment};
use packforcing::{DType, Device, DeviceKind, Error, Rope3d, Tensor};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn tensor(device: &Device, dtype: DType, data: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_f32(device, dtype, data, shape).expect("a tensor")
}

/// Two sides in host memory.
struct Problem {
    dtype: DType,
    shape: [usize; 3],
    out: [Vec<f32>; 2],
    lse: [Vec<f32>; 2],
}

impl Problem {
    fn random(rng: &mut Rng, dtype: DType, shape: [usize; 3]) -> Problem {
        let [rows, heads, dim] = shape;
        let mut out = || rounded(dtype, &rng.normals(rows * heads * dim));
        let out = [out(), out()];
        let mut lse = || (0..rows * heads).map(|_| (10.0 * rng.normal()) as f32).collect();
        Problem {
            dtype,
            shape,
            out,
            lse: [lse(), lse()],
        }
    }

    /// The result, poisoned before. The inputs stand inside NaN: one row, head and 8 numbers more.
    fn run(&self, device: &Device) -> (Vec<f32>, Vec<f32>) {
        let [rows, heads, dim] = self.shape;
        let frame = |data: &[f32], dtype: DType, inner: &[usize], margin: &[usize]| {
            let outer: Vec<usize> = inner.iter().zip(margin).map(|(n, m)| n + m).collect();
            let mut framed = vec![f32::NAN; outer.iter().product()];
            for (mut i, &x) in data.iter().enumerate() {
                let (mut at, mut stride) = (0, 1);
                for d in (0..inner.len()).rev() {
                    at += i % inner[d] * stride;
                    (i, stride) = (i / inner[d], stride * outer[d]);
                }
                framed[at] = x;
            }
            tensor(device, dtype, &framed, &outer)
        };
        let margin = [1, 1, 8];
        let a = frame(&self.out[0], self.dtype, &self.shape, &margin);
        let b = frame(&self.out[1], self.dtype, &self.shape, &margin);
        let a_lse = frame(&self.lse[0], DType::F32, &self.shape[..2], &[1, 3]);
        let b_lse = frame(&self.lse[1], DType::F32, &self.shape[..2], &[1, 2]);
        let mut out = frame(&[], self.dtype, &self.shape, &margin);
        let mut lse = frame(&[], DType::F32, &self.shape[..2], &[1, 5]);
        fn part<'a>(view: packforcing::View<'a>, shape: &[usize]) -> packforcing::View<'a> {
            let narrow = |view: packforcing::View<'a>, d: usize| view.narrow(d, 0, shape[d]).expect("a part");
            (0..shape.len()).fold(view, narrow)
        }
        let (whole, flat) = (&[rows, heads, dim][..], &[rows, heads][..]);
        {
            let out = out.view_mut().narrow(0, 0, rows).and_then(|v| v.narrow(1, 0, heads));
            let mut out = out.and_then(|v| v.narrow(2, 0, dim)).expect("a part");
            let lse = lse.view_mut().narrow(0, 0, rows).and_then(|v| v.narrow(1, 0, heads));
            let a = State {
                out: part(a.view(), whole),
                lse: part(a_lse.view(), flat),
            };
            let b = State {
                out: part(b.view(), whole),
                lse: part(b_lse.view(), flat),
            };
            merge_states(&a, &b, &mut out, &mut lse.expect("a part")).expect("merge_states");
        }
        let inner = part(out.view(), whole).to_f32_vec().expect("out");
        let inner_lse: Vec<f32> = part(lse.view(), flat).to_vec().expect("lse");
        let numbers = |x: &[f32]| x.iter().filter(|x| !x.is_nan()).count();
        assert_eq!(
            numbers(&out.to_f32_vec().expect("out")),
            numbers(&inner),
            "a margin was written"
        );
        assert_eq!(
            numbers(&lse.to_f32_vec().expect("lse")),
            numbers(&inner_lse),
            "a margin was written"
        );
        (inner, inner_lse)
    }

    fn truth(&self) -> (Vec<f64>, Vec<f64>) {
        let dim = self.shape[2];
        let side = |side: usize, row: usize| {
            let out = widen(&self.out[side][row * dim..][..dim]);
            (out, f64::from(self.lse[side][row]))
        };
        let rows = 0..self.lse[0].len();
        let merged = rows.map(|row| {
            let ((a, lse_a), (b, lse_b)) = (side(0, row), side(1, row));
            reference::merge_states((&a, lse_a), (&b, lse_b))
        });
        let (out, lse): (Vec<_>, Vec<_>) = merged.unzip();
        (out.concat(), lse)
    }

    /// The formula in f32, its result rounded to the dtype.
    fn plain(&self) -> (Vec<f32>, Vec<f32>) {
        let dim = self.shape[2];
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for (row, (&lse_a, &lse_b)) in self.lse[0].iter().zip(&self.lse[1]).enumerate() {
            let max = lse_a.max(lse_b);
            let (w_a, w_b) = ((lse_a - max).exp(), (lse_b - max).exp());
            for i in row * dim..(row + 1) * dim {
                let x = (w_a * self.out[0][i] + w_b * self.out[1][i]) / (w_a + w_b);
                out.push(match self.dtype {
                    DType::F32 => x,
                    DType::F16 => f16::from_f32(x).to_f32(),
                    _ => bf16::from_f32(x).to_f32(),
                });
            }
            lse.push(max + (w_a + w_b).ln());
        }
        (out, lse)
    }
}

fn random_states(device: &Device) {
    let mut rng = Rng::new("states");
    for shape in [[1, 1, 8], [1, 3, 64], [257, 2, 64], [33, 12, 128], [5, 1, 1024]] {
        for dtype in DTYPES {
            let problem = Problem::random(&mut rng, dtype, shape);
            let (got, plain, truth) = (problem.run(device), problem.plain(), problem.truth());
            let floor = |x: &[f64]| 4.0 * f64::from(f32::EPSILON) * x.iter().fold(1.0f64, |m, x| m.max(x.abs()));
            Errors::of(&got.0, &truth.0).within(Errors::of(&plain.0, &truth.0), floor(&truth.0));
            Errors::of(&got.1, &truth.1).within(Errors::of(&plain.1, &truth.1), floor(&truth.1));
            assert!(bits(&problem.run(device)) == bits(&got), "a second run differs");
        }
    }
}

fn bits(x: &(Vec<f32>, Vec<f32>)) -> Vec<u32> {
    x.0.iter().chain(&x.1).map(|x| x.to_bits()).collect()
}

/// Sides without keys have no part, whatever stands in them; NaN shows. Their LSE is -inf, or +inf as FlashAttention 2 has it.
fn empty_sides(device: &Device) {
    let mut rng = Rng::new("empty");
    let (none, other) = (f32::NEG_INFINITY, f32::INFINITY);
    for (dtype, empty) in DTYPES
        .into_iter()
        .flat_map(|dtype| [[none; 2], [other; 2], [none, other]].map(|empty| (dtype, empty)))
    {
        let mut problem = Problem::random(&mut rng, dtype, [4, 2, 64]);
        for (side, rows) in [(0, 0..4), (1, 2..6)] {
            for row in rows {
                problem.lse[side][row] = empty[side];
                problem.out[side][row * 64..][..64].fill(f32::NAN);
            }
        }
        problem.lse[0][6] = f32::NAN;
        problem.out[1][7 * 64 + 3] = f32::NAN;
        let (out, lse) = problem.run(device);
        let row = |x: &[f32], row: usize| x[row * 64..][..64].to_vec();
        let merged = |r: usize| (row(&out, r), lse[r]);
        let side = |side: usize, r: usize| (row(&problem.out[side], r), problem.lse[side][r]);
        (0..2).for_each(|r| assert_eq!(merged(r), side(1, r)));
        (2..4).for_each(|r| assert_eq!(merged(r), (vec![0.0; 64], f32::NEG_INFINITY)));
        (4..6).for_each(|r| assert_eq!(merged(r), side(0, r)));
        assert!(row(&out, 6).iter().all(|x| x.is_nan()) && lse[6].is_nan());
        let nan: Vec<usize> = (0..64).filter(|&d| row(&out, 7)[d].is_nan()).collect();
        assert_eq!(nan, [3]);
        assert!(!lse[7].is_nan());
    }
}

/// Attention over keys in two halves, merged, is attention over all of them.
fn halves_make_a_whole(device: &Device) {
    let mut rng = Rng::new("halves");
    let (tokens, heads, dim, page_tokens) = (20, 2, 64, 16);
    let kinds: &[DType] = if device.kind() == DeviceKind::Cpu {
        &DTYPES
    } else {
        &DTYPES[1..]
    };
    for &dtype in kinds {
        let pool = [8, heads, page_tokens, dim];
        let q_shape = [1, tokens, heads, dim];
        let mut random = |shape: &[usize]| tensor(device, dtype, &rng.normals(shape.iter().product()), shape);
        let (q, k, v) = (random(&q_shape), random(&pool), random(&pool));
        let first = Segment {
            rotation: 3.0,
            ..Segment::new(vec![5, 2, 7], 41)
        };
        let second = Segment::new(vec![1, 0, 3], 48);
        let attend = |segments: Vec<Segment>| {
            let mut out = tensor(device, dtype, &vec![f32::NAN; tokens * heads * dim], &q_shape);
            let mut lse = Tensor::zeros(device, DType::F32, &[1, tokens, heads]).expect("lse");
            let args = Attention {
                q: q.view(),
                kv: KvPages {
                    k: k.view(),
                    v: v.view(),
                    slot_bias: None,
                },
                context: &Context::from_host(device, (8, page_tokens), &[segments]).expect("a context"),
                rope: &Rope3d::wan(dim),
                scale: 0.125,
            };
            attention(&args, &mut out.view_mut(), Some(&mut lse.view_mut())).expect("attention");
            (out, lse)
        };
        let (a, b) = (attend(vec![first.clone()]), attend(vec![second.clone()]));
        let whole = attend(vec![first, second]);
        let state = |(out, lse): &(Tensor, Tensor)| (out.to_f32_vec().expect("out"), lse.to_vec::<f32>().expect("lse"));
        let (a, b, whole) = (state(&a), state(&b), state(&whole));
        let problem = Problem {
            dtype,
            shape: [tokens, heads, dim],
            out: [a.0, b.0],
            lse: [a.1, b.1],
        };
        let (out, lse) = problem.run(device);
        // Both halves and the merged result are rounded to the dtype: three half units in the last
        // place of numbers below 2, and one for the whole.
        let unit = match dtype {
            DType::F32 => f64::from(f32::EPSILON) * 4.0,
            DType::F16 => 2f64.powi(-10),
            _ => 2f64.powi(-7),
        };
        assert!(Errors::of(&out, &widen(&whole.0)).max <= 2.0 * unit);
        assert!(Errors::of(&lse, &widen(&whole.1)).max <= 4e-6);
    }
}

fn bad_arguments(device: &Device) {
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(device, dtype, shape).expect("zeros");
    let (good, good_lse) = (zeros(DType::F16, &[4, 2, 64]), zeros(DType::F32, &[4, 2]));
    let (other, short, short_lse) = (
        zeros(DType::BF16, &[4, 2, 64]),
        zeros(DType::F16, &[4, 1, 64]),
        zeros(DType::F32, &[4, 1]),
    );
    let flat = zeros(DType::F16, &[4, 128]);
    let cases = [
        ("a.out", [&other, &good_lse, &good, &good_lse]),
        ("a.out", [&flat, &good_lse, &good, &good_lse]),
        ("a.lse", [&good, &short_lse, &good, &good_lse]),
        ("b.out", [&good, &good_lse, &short, &good_lse]),
        ("b.lse", [&good, &good_lse, &good, &good]),
    ];
    let nan = vec![f32::NAN; 4 * 2 * 64];
    let mut out = tensor(device, DType::F16, &nan, &[4, 2, 64]);
    let mut lse = tensor(device, DType::F32, &nan[..8], &[4, 2]);
    fn state<'a>(out: &'a Tensor, lse: &'a Tensor) -> State<'a> {
        State {
            out: out.view(),
            lse: lse.view(),
        }
    }
    for (argument, [a, a_lse, b, b_lse]) in cases {
        let result = merge_states(
            &state(a, a_lse),
            &state(b, b_lse),
            &mut out.view_mut(),
            &mut lse.view_mut(),
        );
        refused(argument, result);
    }
    let good = state(&good, &good_lse);
    let mut bytes = zeros(DType::U8, &[4, 2, 64]);
    refused(
        "out",
        merge_states(&good, &good, &mut bytes.view_mut(), &mut lse.view_mut()),
    );
    let none = State {
        out: good.out.narrow(0, 0, 0).expect("no row"),
        lse: good.lse.narrow(0, 0, 0).expect("no row"),
    };
    let (mut no_out, mut no_lse) = (zeros(DType::F16, &[0, 2, 64]), zeros(DType::F32, &[0, 2]));
    refused(
        "out",
        merge_states(&none, &none, &mut no_out.view_mut(), &mut no_lse.view_mut()),
    );
    let mut flat_out = zeros(DType::F16, &[8, 64]);
    refused(
        "out",
        merge_states(&good, &good, &mut flat_out.view_mut(), &mut lse.view_mut()),
    );
    let mut half_lse = zeros(DType::F16, &[4, 2]);
    refused(
        "lse",
        merge_states(&good, &good, &mut out.view_mut(), &mut half_lse.view_mut()),
    );
    assert!(
        out.to_f32_vec().expect("out").iter().all(|x| x.is_nan()),
        "out was written"
    );
    assert!(
        lse.to_f32_vec().expect("lse").iter().all(|x| x.is_nan()),
        "lse was written"
    );
}

fn limits_of_the_kernel(device: &Device) {
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(device, dtype, shape).expect("zeros");
    let (x, lse) = (zeros(DType::F16, &[4, 2, 12]), zeros(DType::F32, &[4, 2]));
    let state = State {
        out: x.view(),
        lse: lse.view(),
    };
    let (mut out, mut out_lse) = (zeros(DType::F16, &[4, 2, 12]), zeros(DType::F32, &[4, 2]));
    refused(
        "a.out",
        merge_states(&state, &state, &mut out.view_mut(), &mut out_lse.view_mut()),
    );
}

fn refused(name: &str, result: packforcing::Result<()>) {
    match result {
        Err(Error::Argument { op, argument, .. } | Error::UnsupportedDType { op, argument, .. }) => {
            assert_eq!((op, argument), ("merge_states", name));
        }
        other => panic!("expected a refusal of {name}, got {other:?}"),
    }
}

fn main() -> std::process::ExitCode {
    Suite::new()
        .on_devices("random_states", random_states)
        .on_devices("empty_sides", empty_sides)
        .on_devices("halves_make_a_whole", halves_make_a_whole)
        .on_devices("bad_arguments", bad_arguments)
        .on_kernels("limits_of_the_kernel", limits_of_the_kernel)
        .run()
}
