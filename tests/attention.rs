//! Attention against its formula, on every device.
mod common;
#[path = "common/problem.rs"]
mod problem;

use approx::assert_abs_diff_eq;
use common::{Errors, Golden, Rng, Suite, rounded, widen};
use packforcing::ops::attention::reference::{self, rotated};
use packforcing::ops::attention::{Attention, Kernel, attention};
use packforcing::paging::{Context, KvPages};
use packforcing::{DType, Device, DeviceKind, Error, Rope3d, Tensor, View, ViewMut};
use problem::{Part, Problem, absolute, check, dtypes, mixed, part, same, tensor, turned};

fn golden_attention(golden: &Golden) {
    for case in golden.cases("attention") {
        let n = |name: &str| case[name].as_u64().expect(name) as usize;
        let get = |name: &str| {
            golden
                .tensor("attention.safetensors", &format!("{}.{name}", n("case")))
                .0
        };
        let narrow = |name: &str| get(name).iter().map(|&x| x as f32).collect::<Vec<_>>();
        let bias = narrow("key_bias");
        let problem = Problem {
            dtype: DType::F32,
            tokens: n("q_tokens"),
            q_heads: n("q_heads"),
            kv_heads: n("kv_heads"),
            dim: n("head_dim"),
            scale: case["scale"].as_f64().expect("scale") as f32,
            streams: vec![vec![Part {
                slot_bias: true,
                ..part(n("kv_tokens"))
            }]],
            q: narrow("q"),
            k: vec![narrow("k")],
            v: vec![narrow("v")],
            bias: vec![bias.iter().flat_map(|&b| vec![b; n("kv_heads")]).collect()],
        };
        // The scale passed as f32 is all that differs from the golden run: 6e-8 of a logit.
        let (out, lse) = problem.truth();
        assert_abs_diff_eq!(out[..], get("out")[..], epsilon = 1e-6);
        assert_abs_diff_eq!(lse[..], get("lse")[..], epsilon = 1e-6);
        let (out, lse) = problem.placed(&Device::cpu(), 16, &mut Rng::new("golden")).run();
        assert_abs_diff_eq!(widen(&out)[..], get("out")[..], epsilon = 2e-6);
        assert_abs_diff_eq!(widen(&lse)[..], get("lse")[..], epsilon = 2e-6);
    }
}

fn golden_rope(golden: &Golden) {
    for case in golden.cases("rope3d") {
        let n = |name: &str| case[name].as_u64().expect(name) as usize;
        let get = |name: &str| golden.tensor("rope3d.safetensors", &format!("{}.{name}", n("case"))).0;
        let pairs = [0, 1, 2].map(|i| case["pairs"][i].as_u64().expect("pairs") as usize);
        let rope = Rope3d::new(pairs, case["theta"].as_f64().expect("theta")).expect("a rope");
        let (x, out) = (get("x"), get("out"));
        let rows = x.chunks_exact(rope.dim()).zip(out.chunks_exact(rope.dim()));
        for (row, (x, out)) in rows.enumerate() {
            let token = row / n("heads");
            let at = [
                n("start_frame") + token / (n("height") * n("width")),
                token / n("width") % n("height"),
                token % n("width"),
            ];
            // Unit steps: each pair's angle is its own "frequency".
            let angles: Vec<f64> = (0..rope.dim() / 2)
                .map(|p| at[rope.axis(p)] as f64 * rope.frequency(p))
                .collect();
            assert_abs_diff_eq!(rotated(x, &angles, 1.0)[..], *out, epsilon = 1e-10);
        }
    }
}

/// What a device takes.
fn shapes_that_hurt(device: &Device) {
    let mut rng = Rng::new("shapes");
    let large = [(239, 1), (799, 3), (113, 203), (1023, 1024)];
    let small = [
        (1, 1),
        (1, 200),
        (130, 1),
        (127, 63),
        (128, 64),
        (129, 65),
        (31, 129),
        (48, 96),
        (49, 97),
    ];
    for (i, &(tokens, keys)) in small.iter().chain(&large).enumerate() {
        if i >= small.len() && device.kind() == DeviceKind::Simt {
            break;
        }
        let dtype = dtypes(device)[i % dtypes(device).len()];
        let problem = Problem::random(&mut rng, dtype, tokens, [1, 1], [64, 128][i % 2], &[vec![part(keys)]]);
        check(&problem, device, [8, 16, 32, 96, 7][i % 5], &mut rng);
    }
}

fn random_problems(device: &Device) {
    let mut rng = Rng::new("random");
    let (rounds, most) = match device.kind() {
        DeviceKind::Simt => (10, 90),
        _ => (24, 300),
    };
    for round in 0..rounds {
        let streams: Vec<_> = (0..rng.below(1..4)).map(|_| mixed(&mut rng, most)).collect();
        let kv_heads = rng.below(1..3);
        let heads = [kv_heads * rng.below(1..4), kv_heads];
        let dim = match device.kind() {
            DeviceKind::Cpu => [64, 128, 6, 34][rng.below(0..4)],
            _ => [64, 128][rng.below(0..2)],
        };
        let dtype = dtypes(device)[round % dtypes(device).len()];
        let tokens = rng.below(1..140);
        let problem = Problem::random(&mut rng, dtype, tokens, heads, dim, &streams);
        if problem.truth().1.contains(&f64::NEG_INFINITY) {
            continue; // a stream without keys has a test of its own
        }
        let page_tokens = [8, 16, 32, 96, 1, 13, 65][rng.below(0..7)];
        check(&problem, device, page_tokens, &mut rng);
    }
}

/// Scales that nobody wants still are what they say. A logit range of some 60 would overflow f16 if
/// weights were taken against anything but the maximum.
fn any_scale(device: &Device) {
    let mut rng = Rng::new("scale");
    for scale in [-1.0, 0.0, 1.0] {
        for &dtype in dtypes(device) {
            let mut problem = Problem::random(&mut rng, dtype, 20, [1, 1], 64, &[vec![part(200)]]);
            problem.scale = scale;
            check(&problem, device, 32, &mut rng);
        }
    }
}

/// Pages of any size in any order, and none at all (a page as long as the longest segment), and a
/// second run.
fn paged_equals_contiguous(device: &Device) {
    // A page size that another kernel does not take would have this one's bits.
    let any_page = match device.kind() {
        DeviceKind::Cpu => Kernel::Auto,
        _ => Kernel::Sm80,
    };
    let mut rng = Rng::new("pages");
    for &dtype in dtypes(device) {
        let stream = vec![turned(150, 3.0), turned(1, -7.5), part(64), turned(70, 900.0)];
        let problem = Problem::random(&mut rng, dtype, 70, [2, 1], 64, &[stream]);
        let whole = problem.placed(device, 150, &mut rng);
        let expected = whole.run_by(any_page);
        same(&whole.run_by(any_page), &expected, "a second run");
        for page_tokens in [8, 16, 32, 96, 37] {
            let paged = problem.placed(device, page_tokens, &mut rng);
            let got = paged.run_by(any_page);
            same(&got, &expected, &format!("{dtype}, pages of {page_tokens}"));
        }
    }
}

fn streams_do_not_meet(device: &Device) {
    let mut rng = Rng::new("streams");
    for &dtype in dtypes(device) {
        let streams = [
            vec![part(40), turned(100, 5.0)],
            vec![],
            vec![turned(3, 1.0)],
            vec![part(130)],
        ];
        let together = Problem::random(&mut rng, dtype, 33, [2, 2], 64, &streams);
        let (out, lse) = together.placed(device, 16, &mut rng).run();
        for (i, stream) in streams.iter().enumerate() {
            let rows = 33 * 2;
            let alone = Problem {
                streams: vec![stream.clone()],
                q: together.q[i * rows * 64..][..rows * 64].to_vec(),
                k: vec![together.k[i].clone()],
                v: vec![together.v[i].clone()],
                bias: vec![together.bias[i].clone()],
                ..together.clone()
            };
            let mine = (
                out[i * rows * 64..][..rows * 64].to_vec(),
                lse[i * rows..][..rows].to_vec(),
            );
            same(&alone.placed(device, 16, &mut rng).run(), &mine, &format!("stream {i}"));
        }
    }
}

fn nothing_to_attend_to(device: &Device) {
    let mut rng = Rng::new("empty");
    let closed = Part {
        key_bias: f32::NEG_INFINITY,
        ..turned(70, 2.0)
    };
    let by_slot = Part {
        slot_bias: true,
        ..part(5)
    };
    let streams = [
        vec![],
        vec![part(0), turned(0, 4.0)],
        vec![closed],
        vec![by_slot, closed],
    ];
    let mut problem = Problem::random(&mut rng, dtypes(device)[0], 5, [2, 1], 64, &streams);
    problem.bias[3].fill(f32::NEG_INFINITY);
    let (out, lse) = problem.placed(device, 8, &mut rng).run();
    assert!(out.iter().all(|x| x.to_bits() == 0), "{out:?}");
    assert!(lse.iter().all(|&x| x == f32::NEG_INFINITY), "{lse:?}");

    // Closed keys before and after open ones change nothing but the last bits.
    problem.streams = vec![vec![closed, part(9), closed, by_slot]];
    let keys = 2 * 70 + 9 + 5;
    let mut rows = || rounded(problem.dtype, &rng.normals(keys * 64));
    (problem.k, problem.v) = (vec![rows()], vec![rows()]);
    problem.bias = vec![vec![f32::NEG_INFINITY; keys]];
    problem.q.truncate(5 * 2 * 64);
    let (out, lse) = problem.placed(device, 8, &mut rng).run();
    let (plain, truth) = (problem.plain(), problem.truth());
    let floor = 4.0 * f64::from(f32::EPSILON);
    Errors::of(&out, &truth.0).within(Errors::of(&plain.0, &truth.0), 4.0 * floor);
    absolute(&lse, &truth.1).within(absolute(&plain.1, &truth.1), 4.0 * floor);
}

/// Zero queries weigh 2^m keys alike: sums of small integers, divided by a power of two. One key far
/// above the others: its value.
fn exact_cases(device: &Device) {
    let mut rng = Rng::new("exact");
    for (dtype, keys) in dtypes(device).iter().flat_map(|&d| [(d, 64), (d, 128), (d, 1)]) {
        let mut problem = Problem::random(&mut rng, dtype, 3, [2, 1], 64, &[vec![part(keys)]]);
        problem.q.fill(0.0);
        problem.v[0].iter_mut().for_each(|v| *v = v.round());
        let (out, lse) = problem.placed(device, 16, &mut rng).run();
        let means: Vec<f32> = (0..64)
            .map(|d| (0..keys).map(|j| problem.v[0][j * 64 + d]).sum::<f32>() / keys as f32)
            .collect();
        assert_eq!(out, rounded(dtype, &means).repeat(6));
        for lse in lse {
            assert_abs_diff_eq!(f64::from(lse), (keys as f64).ln(), epsilon = 1e-6);
        }
    }
    for &dtype in dtypes(device) {
        let mut problem = Problem::random(&mut rng, dtype, 1, [1, 1], 64, &[vec![part(150)]]);
        problem.q.fill(0.0);
        problem.q[0] = 64.0;
        problem.scale = 1.0;
        problem.k[0].iter_mut().step_by(64).for_each(|x| *x = 0.0);
        let chosen = rng.below(0..150);
        problem.k[0][chosen * 64] = 16.0; // a logit of 1024: e^-1024 is 0 in every dtype
        let (out, lse) = problem.placed(device, 16, &mut rng).run();
        assert_eq!(out, problem.v[0][chosen * 64..][..64]);
        assert_abs_diff_eq!(f64::from(lse[0]), 1024.0, epsilon = 2e-4);
    }
}

/// Logits that f32 rounds to hundreds: keys that are alike weigh alike, those one step below nothing.
fn large_logits(device: &Device) {
    let mut rng = Rng::new("large");
    let by_slot = Part {
        slot_bias: true,
        ..part(20)
    };
    let streams = [vec![part(64)], vec![part(150), part(37)], vec![by_slot, part(130)]];
    for (&dtype, dim, stream) in dtypes(device)
        .iter()
        .flat_map(|d| [64, 128].map(|dim| (d, dim)))
        .flat_map(|(d, dim)| streams.iter().map(move |stream| (d, dim, stream)))
    {
        for sign in [1.0, -1.0] {
            let mut problem = Problem::random(&mut rng, dtype, 70, [2, 1], dim, std::slice::from_ref(stream));
            let (top, below) = if sign > 0.0 {
                (29_952.0, 29_696.0)
            } else {
                (-29_696.0, -29_952.0)
            };
            problem.scale = (dim as f32).sqrt().recip();
            problem.q.fill(29_952.0);
            problem.bias[0].fill(0.0);
            // Every third key is one step below the others.
            let keys = problem.k[0].chunks_mut(dim).zip(problem.v[0].chunks_mut(dim));
            for (j, (k, v)) in keys.enumerate() {
                k.fill(if j % 3 == 1 { below } else { top });
                v.fill(if j % 3 == 1 { 100.0 } else { 1.5 });
            }
            let (out, lse) = problem.placed(device, 32, &mut rng).run();
            assert!(out.iter().all(|&x| x == 1.5), "{dtype}, {dim}, {stream:?}: {out:?}");
            let right = 29_952.0 * top * (dim as f32).sqrt();
            let near = |x: &f32| (x - right).abs() <= 1e-6 * right.abs();
            assert!(lse.iter().all(near), "{dtype}, {dim}, {stream:?}: {lse:?} for {right}");
        }
    }
}

/// NaN shows where the formula has it and nowhere else; infinities end.
fn not_numbers(device: &Device) {
    let mut rng = Rng::new("nan");
    for (i, poison) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        let dtype = dtypes(device)[i % dtypes(device).len()];
        let streams = vec![vec![part(90), part(20)]; 2];
        for place in 0..4 {
            let mut problem = Problem::random(&mut rng, dtype, 20, [2, 2], 64, &streams);
            let target = match place {
                0 => &mut problem.q,
                1 => &mut problem.k[1],
                2 => &mut problem.v[1],
                _ => &mut problem.bias[0],
            };
            if place == 3 {
                problem.streams[0][1].slot_bias = true;
            }
            let at = rng.below(0..target.len());
            target[at] = poison;
            let (out, lse) = problem.placed(device, 32, &mut rng).run();
            let truth = problem.truth();
            for (got, truth) in [(&out, &truth.0), (&lse, &truth.1)] {
                let got: Vec<bool> = got.iter().map(|x| x.is_nan()).collect();
                let expected: Vec<bool> = truth.iter().map(|x| x.is_nan()).collect();
                assert_eq!(got, expected, "{poison} at {at} of input {place}, {dtype}");
            }
        }
    }
}

/// A tensor inside a larger one, with NaN on either side of every dimension.
struct Framed {
    whole: Tensor,
    inner: Vec<usize>,
    margin: &'static [usize],
}

impl Framed {
    fn new(inner: &Tensor, margin: &'static [usize]) -> Framed {
        let shape = inner.shape().to_vec();
        let whole: Vec<usize> = shape.iter().zip(margin).map(|(n, m)| n + 2 * m).collect();
        let mut data = vec![f32::NAN; whole.iter().product()];
        for (mut i, x) in inner.to_f32_vec().expect("values").into_iter().enumerate() {
            let (mut at, mut stride) = (0, 1);
            for d in (0..shape.len()).rev() {
                at += (i % shape[d] + margin[d]) * stride;
                stride *= whole[d];
                i /= shape[d];
            }
            data[at] = x;
        }
        Framed {
            whole: tensor(inner.device(), inner.dtype(), &data, &whole),
            inner: shape,
            margin,
        }
    }

    fn poisoned(like: &Tensor, margin: &'static [usize]) -> Framed {
        let nan = vec![f32::NAN; like.elements()];
        Framed::new(&tensor(like.device(), like.dtype(), &nan, like.shape()), margin)
    }

    fn view(&self) -> View<'_> {
        (0..self.inner.len()).fold(self.whole.view(), |view, d| {
            view.narrow(d, self.margin[d], self.inner[d]).expect("a part")
        })
    }

    fn view_mut(&mut self) -> ViewMut<'_> {
        (0..self.inner.len()).fold(self.whole.view_mut(), |view, d| {
            view.narrow(d, self.margin[d], self.inner[d]).expect("a part")
        })
    }

    /// The inner elements; those around must still be NaN.
    fn unframed(&self) -> Vec<f32> {
        let whole = self.whole.to_f32_vec().expect("values");
        let inner = self.view().to_f32_vec().expect("values");
        let numbers = |x: &[f32]| x.iter().filter(|x| !x.is_nan()).count();
        assert_eq!(numbers(&whole), numbers(&inner), "a margin was written");
        inner
    }
}

/// Views into larger tensors: what surrounds them is neither read nor written.
fn strided(device: &Device) {
    let mut rng = Rng::new("strided");
    let biased = Part {
        slot_bias: true,
        ..turned(50, -1.0)
    };
    let streams = [vec![turned(80, 2.0)], vec![part(20), biased]];
    for &dtype in dtypes(device) {
        let problem = Problem::random(&mut rng, dtype, 21, [4, 2], 64, &streams);
        let placed = problem.placed(device, 16, &mut rng);
        let expected = placed.run();
        let q = Framed::new(&placed.q, &[1, 2, 1, 8]);
        let k = Framed::new(&placed.k, &[1, 1, 2, 16]);
        let v = Framed::new(&placed.v, &[2, 0, 1, 8]);
        let slot_bias = Framed::new(&placed.slot_bias, &[1, 2, 3]);
        let mut out = Framed::poisoned(&placed.q, &[2, 1, 3, 16]);
        let lse = Tensor::zeros(device, DType::F32, &[2, 21, 4]).expect("lse");
        let mut lse = Framed::poisoned(&lse, &[1, 1, 5]);
        let args = Attention {
            q: q.view(),
            kv: KvPages {
                k: k.view(),
                v: v.view(),
                slot_bias: Some(slot_bias.view()),
            },
            ..placed.args()
        };
        attention(&args, &mut out.view_mut(), Some(&mut lse.view_mut())).expect("attention");
        same(&(out.unframed(), lse.unframed()), &expected, dtype.name());
    }
}

/// No LSE wanted, fewer streams than the context has, flags for a bias that is not there.
fn optional_parts(device: &Device) {
    let mut rng = Rng::new("optional");
    let flagged = Part {
        slot_bias: true,
        ..part(70)
    };
    let mut problem = Problem::random(
        &mut rng,
        dtypes(device)[0],
        9,
        [1, 1],
        64,
        &[vec![flagged], vec![part(5)]],
    );
    problem.bias[0].fill(0.0);
    let placed = problem.placed(device, 16, &mut rng);
    let expected = placed.run().0;
    let mut args = placed.args();
    args.q = args.q.narrow(0, 0, 1).expect("the first stream");
    args.kv.slot_bias = None;
    let mut out = tensor(device, problem.dtype, &[f32::NAN; 9 * 64], &[1, 9, 1, 64]);
    attention(&args, &mut out.view_mut(), None).expect("attention");
    // Without biases the tile goes another way through the softmax, hence no equality of bits.
    let difference = Errors::of(&out.to_f32_vec().expect("out"), &widen(&expected[..9 * 64]));
    assert!(difference.max < 4e-3, "{difference:?}");
    args.q = args.q.narrow(1, 0, 0).expect("no token");
    let mut none = Tensor::zeros(device, problem.dtype, &[1, 0, 1, 64]).expect("no token");
    refused("q", attention(&args, &mut none.view_mut(), None));
}

/// `R(r) q . k = q . R(-r) k`: what lets stored keys stand still.
fn turning_queries_is_turning_keys() {
    let mut rng = Rng::new("turning");
    let rope = Rope3d::wan(128);
    let frequencies: Vec<f64> = (0..rope.pairs()[0]).map(|p| rope.frequency(p)).collect();
    let mut vectors =
        |n: usize| -> Vec<Vec<f64>> { (0..n).map(|_| (0..128).map(|_| rng.normal()).collect()).collect() };
    let (queries, keys, values) = (vectors(10), vectors(12), vectors(12));
    let rotations = [0.0, 7.0, -3.0, 119.5];
    let moved: Vec<_> = (0..12)
        .map(|j| rotated(&keys[j], &frequencies, -rotations[j / 3]))
        .collect();
    fn segment<'a>(keys: &'a [Vec<f64>], values: &'a [Vec<f64>], rotation: f64) -> reference::Segment<'a> {
        let key = |(k, v): (&'a Vec<f64>, &'a Vec<f64>)| reference::Key { k, v, bias: 0.1 };
        reference::Segment {
            rotation,
            keys: keys.iter().zip(values).map(key).collect(),
        }
    }
    let turned: Vec<_> = (0..4)
        .map(|i| segment(&keys[3 * i..][..3], &values[3 * i..][..3], rotations[i]))
        .collect();
    for q in queries {
        let (a, lse_a) = reference::attention(&q, &turned, &frequencies, 0.1);
        let (b, lse_b) = reference::attention(&q, &[segment(&moved, &values, 0.0)], &frequencies, 0.1);
        assert_abs_diff_eq!(a[..], b[..], epsilon = 1e-12);
        assert_abs_diff_eq!(lse_a, lse_b, epsilon = 1e-12);
    }
}

fn bad_arguments(device: &Device) {
    let mut rng = Rng::new("bad");
    let dtype = dtypes(device)[0];
    let problem = Problem::random(&mut rng, dtype, 4, [2, 2], 64, &[vec![part(10)]]);
    let placed = problem.placed(device, 16, &mut rng);
    let pages = placed.k.shape()[0];
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(device, dtype, shape).expect("zeros");
    let context = |pages, tokens, streams: usize| {
        Context::from_host(device, (pages, tokens), &vec![vec![]; streams]).expect("a context")
    };
    let (other_q, three_heads) = (zeros(DType::I32, &[1, 4, 2, 64]), zeros(dtype, &[1, 4, 3, 64]));
    let (narrow_q, flat_q) = (zeros(dtype, &[1, 4, 2, 128]), zeros(dtype, &[4, 2, 64]));
    let mixed_k = zeros(
        if dtype == DType::F16 { DType::BF16 } else { DType::F16 },
        placed.k.shape(),
    );
    let short_v = zeros(dtype, &[pages, 2, 8, 64]);
    let short_bias = zeros(DType::F32, &[pages, 2, 8]);
    let (no_streams, small_pages, large_pool) =
        (context(pages, 16, 0), context(pages, 8, 1), context(pages + 1, 16, 1));
    let rope = Rope3d::wan(128);
    let args = || placed.args();
    let kv = || placed.args().kv;
    let cases: Vec<(&str, Attention<'_>)> = vec![
        (
            "q",
            Attention {
                q: other_q.view(),
                ..args()
            },
        ),
        (
            "q",
            Attention {
                q: three_heads.view(),
                ..args()
            },
        ),
        (
            "q",
            Attention {
                q: flat_q.view(),
                ..args()
            },
        ),
        (
            "kv.k",
            Attention {
                q: narrow_q.view(),
                ..args()
            },
        ),
        (
            "kv.k",
            Attention {
                kv: KvPages {
                    k: mixed_k.view(),
                    v: mixed_k.view(),
                    ..kv()
                },
                ..args()
            },
        ),
        (
            "kv.v",
            Attention {
                kv: KvPages {
                    v: short_v.view(),
                    ..kv()
                },
                ..args()
            },
        ),
        (
            "kv.slot_bias",
            Attention {
                kv: KvPages {
                    slot_bias: Some(short_bias.view()),
                    ..kv()
                },
                ..args()
            },
        ),
        (
            "context",
            Attention {
                context: &no_streams,
                ..args()
            },
        ),
        (
            "context",
            Attention {
                context: &small_pages,
                ..args()
            },
        ),
        (
            "context",
            Attention {
                context: &large_pool,
                ..args()
            },
        ),
        ("rope", Attention { rope: &rope, ..args() }),
        (
            "scale",
            Attention {
                scale: f32::NAN,
                ..args()
            },
        ),
        (
            "scale",
            Attention {
                scale: f32::INFINITY,
                ..args()
            },
        ),
    ];
    let mut out = tensor(device, dtype, &[f32::NAN; 4 * 2 * 64], &[1, 4, 2, 64]);
    let mut lse = tensor(device, DType::F32, &[f32::NAN; 4 * 2], &[1, 4, 2]);
    for (argument, args) in &cases {
        refused(
            argument,
            attention(args, &mut out.view_mut(), Some(&mut lse.view_mut())),
        );
    }
    refused(
        "out",
        attention(&args(), &mut zeros(dtype, &[1, 4, 1, 64]).view_mut(), None),
    );
    refused(
        "out",
        attention(&args(), &mut zeros(DType::U8, &[1, 4, 2, 64]).view_mut(), None),
    );
    refused(
        "lse",
        attention(
            &args(),
            &mut out.view_mut(),
            Some(&mut zeros(DType::F32, &[1, 4, 1]).view_mut()),
        ),
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

/// What only the kernels do not take.
fn limits_of_the_kernels(device: &Device) {
    let mut rng = Rng::new("limits");
    let run = |problem: &Problem, rng: &mut Rng| {
        let placed = problem.placed(device, 16, rng);
        let mut out = Tensor::zeros(device, problem.dtype, placed.q.shape()).expect("out");
        attention(&placed.args(), &mut out.view_mut(), None)
    };
    let single = Problem::random(&mut rng, DType::F32, 2, [1, 1], 64, &[vec![part(3)]]);
    refused("q", run(&single, &mut rng));
    let odd = Problem::random(&mut rng, DType::F16, 2, [1, 1], 96, &[vec![part(3)]]);
    refused("q", run(&odd, &mut rng));
    let problem = Problem::random(&mut rng, DType::F16, 2, [1, 1], 64, &[vec![part(3)]]);
    let placed = problem.placed(device, 16, &mut rng);
    let shifted = Framed::new(&placed.q, &[0, 0, 0, 4]);
    let mut out = Tensor::zeros(device, DType::F16, placed.q.shape()).expect("out");
    let args = Attention {
        q: shifted.view(),
        ..placed.args()
    };
    refused("q", attention(&args, &mut out.view_mut(), None));
}

/// The error names the op and the argument.
fn refused(name: &str, result: packforcing::Result<()>) {
    match result {
        Err(
            Error::Argument {
                op: "attention",
                argument,
                ..
            }
            | Error::UnsupportedDType {
                op: "attention",
                argument,
                ..
            },
        ) => {
            assert_eq!(argument, name);
        }
        other => panic!("expected a refusal of {name}, got {other:?}"),
    }
}

fn main() -> std::process::ExitCode {
    Suite::new()
        .on_cards("shapes_that_hurt", shapes_that_hurt)
        .on_cards("random_problems", random_problems)
        .on_cards("any_scale", any_scale)
        .on_cards("paged_equals_contiguous", paged_equals_contiguous)
        .on_cards("streams_do_not_meet", streams_do_not_meet)
        .on_cards("nothing_to_attend_to", nothing_to_attend_to)
        .on_cards("exact_cases", exact_cases)
        .on_cards("large_logits", large_logits)
        .on_cards("not_numbers", not_numbers)
        .on_cards("strided", strided)
        .on_cards("optional_parts", optional_parts)
        .on_cards("bad_arguments", bad_arguments)
        .on(
            &["simt", "simt90", "cuda"],
            "limits_of_the_kernels",
            limits_of_the_kernels,
        )
        .plain("turning_queries_is_turning_keys", turning_queries_is_turning_keys)
        .golden("attention", golden_attention)
        .golden("rope3d", golden_rope)
        .run()
}
