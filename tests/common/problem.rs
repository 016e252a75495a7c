//! Problems for attention, in host memory and in a device's: what the tests of all its kernels share.
#![allow(dead_code)]

use packforcing::dtype::{bf16, f16};
use packforcing::ops::attention::reference;
use packforcing::ops::attention::{Attention, Kernel, attention_by};
use packforcing::paging::{Context, KvPages, Segment};
use packforcing::{DType, Device, DeviceKind, Rope3d, Tensor};

use crate::common::{Errors, Rng, rounded, widen};

/// What one segment of a stream is like.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub tokens: usize,
    pub rotation: f32,
    pub key_bias: f32,
    pub slot_bias: bool,
}

pub const fn part(tokens: usize) -> Part {
    Part {
        tokens,
        rotation: 0.0,
        key_bias: 0.0,
        slot_bias: false,
    }
}

/// A whole problem in host memory, keys in the order of their segments.
#[derive(Debug, Clone)]
pub struct Problem {
    pub dtype: DType,
    pub tokens: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub scale: f32,
    pub streams: Vec<Vec<Part>>,
    pub q: Vec<f32>,         // [streams, tokens, q_heads, dim]
    pub k: Vec<Vec<f32>>,    // a stream: [keys, kv_heads, dim]
    pub v: Vec<Vec<f32>>,    // a stream: [keys, kv_heads, dim]
    pub bias: Vec<Vec<f32>>, // a stream: [keys, kv_heads]
}

impl Problem {
    pub fn random(
        rng: &mut Rng,
        dtype: DType,
        tokens: usize,
        heads: [usize; 2],
        dim: usize,
        streams: &[Vec<Part>],
    ) -> Problem {
        let [q_heads, kv_heads] = heads;
        let keys: Vec<usize> = streams.iter().map(|s| s.iter().map(|p| p.tokens).sum()).collect();
        let mut rows = |n: &usize| rounded(dtype, &rng.normals(n * kv_heads * dim));
        let (k, v) = (
            keys.iter().map(&mut rows).collect(),
            keys.iter().map(&mut rows).collect(),
        );
        Problem {
            dtype,
            tokens,
            q_heads,
            kv_heads,
            dim,
            scale: 1.0 / (dim as f32).sqrt(),
            streams: streams.to_vec(),
            q: rounded(dtype, &rng.normals(streams.len() * tokens * q_heads * dim)),
            k,
            v,
            bias: keys.iter().map(|n| rng.normals(n * kv_heads)).collect(),
        }
    }

    pub fn rope(&self) -> Rope3d {
        Rope3d::wan(self.dim)
    }

    pub fn frequencies(&self) -> Vec<f64> {
        (0..self.rope().pairs()[0]).map(|p| self.rope().frequency(p)).collect()
    }

    pub fn row(&self, stream: usize, token: usize, head: usize) -> usize {
        (stream * self.tokens + token) * self.q_heads + head
    }

    /// `f(stream, q, keys of its head as (segment, key, value, bias))` for every query, in order.
    pub fn each(&self, mut f: impl FnMut(usize, usize, &[f32])) {
        for stream in 0..self.streams.len() {
            for token in 0..self.tokens {
                for head in 0..self.q_heads {
                    let q = &self.q[self.row(stream, token, head) * self.dim..][..self.dim];
                    f(stream, head / (self.q_heads / self.kv_heads), q);
                }
            }
        }
    }

    /// The reference: out and lse.
    pub fn truth(&self) -> (Vec<f64>, Vec<f64>) {
        let wide = |x: &Vec<Vec<f32>>| x.iter().map(|x| widen(x)).collect::<Vec<_>>();
        let (k, v, bias) = (wide(&self.k), wide(&self.v), wide(&self.bias));
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        let frequencies = self.frequencies();
        self.each(|stream, head, q| {
            let mut first = 0;
            let segments: Vec<_> = self.streams[stream]
                .iter()
                .map(|part| {
                    let keys = first..first + part.tokens;
                    first = keys.end;
                    let key = |j: usize| {
                        let row = j * self.kv_heads + head;
                        let slot = if part.slot_bias { bias[stream][row] } else { 0.0 };
                        reference::Key {
                            k: &k[stream][row * self.dim..][..self.dim],
                            v: &v[stream][row * self.dim..][..self.dim],
                            bias: f64::from(part.key_bias) + slot,
                        }
                    };
                    reference::Segment {
                        rotation: part.rotation.into(),
                        keys: keys.map(key).collect(),
                    }
                })
                .collect();
            let (o, l) = reference::attention(&widen(q), &segments, &frequencies, self.scale.into());
            out.extend(o);
            lse.push(l);
        });
        (out, lse)
    }

    /// The same in the dtype, as plainly as can be: turned queries, weights and results are rounded
    /// to the dtype, everything between is f32. What devices' errors are measured by.
    pub fn plain(&self) -> (Vec<f32>, Vec<f32>) {
        let round = |x: f32| match self.dtype {
            DType::F32 => x,
            DType::F16 => f16::from_f32(x).to_f32(),
            _ => bf16::from_f32(x).to_f32(),
        };
        let frequencies = self.frequencies();
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        self.each(|stream, head, q| {
            let (mut logits, mut row) = (Vec::new(), head);
            for part in &self.streams[stream] {
                let mut turned = q.to_vec();
                for (pair, frequency) in turned.chunks_exact_mut(2).zip(&frequencies) {
                    let (sin, cos) = (f64::from(part.rotation) * frequency).sin_cos();
                    let (sin, cos, x, y) = (sin as f32, cos as f32, pair[0], pair[1]);
                    (pair[0], pair[1]) = (round(x * cos - y * sin), round(x * sin + y * cos));
                }
                for _ in 0..part.tokens {
                    let k = &self.k[stream][row * self.dim..][..self.dim];
                    let dot: f32 = turned.iter().zip(k).map(|(q, k)| q * k).sum();
                    let slot = if part.slot_bias { self.bias[stream][row] } else { 0.0 };
                    logits.push(dot * self.scale + part.key_bias + slot);
                    row += self.kv_heads;
                }
            }
            let max = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
            let mut sum = 0.0;
            let mut o = vec![0.0; self.dim];
            for (j, logit) in logits.iter().enumerate() {
                let p = (logit - max).exp();
                sum += p;
                let v = &self.v[stream][(j * self.kv_heads + head) * self.dim..];
                o.iter_mut().zip(v).for_each(|(o, v)| *o += round(p) * v);
            }
            out.extend(o.iter().map(|o| round(o / sum)));
            lse.push(max + sum.ln());
        });
        (out, lse)
    }

    /// Pages and a context in a random order, NaN in every slot that no segment holds.
    pub fn placed(&self, device: &Device, page_tokens: usize, rng: &mut Rng) -> Placed {
        let pages_of = |p: &Part| p.tokens.div_ceil(page_tokens);
        let used: usize = self.streams.iter().flatten().map(pages_of).sum();
        let pages = used + 3;
        let mut free: Vec<u32> = (0..pages as u32).collect();
        rng.shuffle(&mut free);
        let (heads, dim) = (self.kv_heads, self.dim);
        let mut k = vec![f32::NAN; pages * heads * page_tokens * dim];
        let mut v = k.clone();
        let mut slot_bias = vec![f32::NAN; pages * heads * page_tokens];
        let mut streams = Vec::new();
        for (stream, parts) in self.streams.iter().enumerate() {
            let mut key = 0;
            let mut segments = Vec::new();
            for part in parts {
                let list: Vec<u32> = free.split_off(free.len() - pages_of(part));
                for token in 0..part.tokens {
                    for head in 0..heads {
                        let page = list[token / page_tokens] as usize;
                        let slot = (page * heads + head) * page_tokens + token % page_tokens;
                        let row = key * heads + head;
                        k[slot * dim..][..dim].copy_from_slice(&self.k[stream][row * dim..][..dim]);
                        v[slot * dim..][..dim].copy_from_slice(&self.v[stream][row * dim..][..dim]);
                        slot_bias[slot] = self.bias[stream][row];
                    }
                    key += 1;
                }
                segments.push(Segment {
                    rotation: part.rotation,
                    key_bias: part.key_bias,
                    slot_bias: part.slot_bias,
                    ..Segment::new(list, part.tokens)
                });
            }
            streams.push(segments);
        }
        let shape = [pages, heads, page_tokens, dim];
        Placed {
            q: tensor(
                device,
                self.dtype,
                &self.q,
                &[self.streams.len(), self.tokens, self.q_heads, dim],
            ),
            k: tensor(device, self.dtype, &k, &shape),
            v: tensor(device, self.dtype, &v, &shape),
            slot_bias: tensor(device, DType::F32, &slot_bias, &shape[..3]),
            context: Context::from_host(device, (pages, page_tokens), &streams).expect("a context"),
            rope: self.rope(),
            scale: self.scale,
        }
    }
}

pub fn tensor(device: &Device, dtype: DType, data: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_f32(device, dtype, data, shape).expect("a tensor")
}

/// A problem in a device's memory.
pub struct Placed {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub slot_bias: Tensor,
    pub context: Context,
    pub rope: Rope3d,
    pub scale: f32,
}

impl Placed {
    pub fn args(&self) -> Attention<'_> {
        Attention {
            q: self.q.view(),
            kv: KvPages {
                k: self.k.view(),
                v: self.v.view(),
                slot_bias: Some(self.slot_bias.view()),
            },
            context: &self.context,
            rope: &self.rope,
            scale: self.scale,
        }
    }

    /// Out and lse, both poisoned before.
    pub fn run(&self) -> (Vec<f32>, Vec<f32>) {
        self.run_by(Kernel::Auto)
    }

    /// The same by this kernel.
    pub fn run_by(&self, kernel: Kernel) -> (Vec<f32>, Vec<f32>) {
        let (shape, device) = (self.q.shape(), self.q.device());
        let poison = vec![f32::NAN; self.q.elements()];
        let mut out = tensor(device, self.q.dtype(), &poison, shape);
        let mut lse = tensor(device, DType::F32, &poison[..poison.len() / shape[3]], &shape[..3]);
        attention_by(kernel, &self.args(), &mut out.view_mut(), Some(&mut lse.view_mut())).expect("attention");
        (out.to_f32_vec().expect("out"), lse.to_vec().expect("lse"))
    }
}

pub fn dtypes(device: &Device) -> &'static [DType] {
    match device.kind() {
        DeviceKind::Cpu => &[DType::F32, DType::F16, DType::BF16],
        _ => &[DType::F16, DType::BF16],
    }
}

pub fn turned(tokens: usize, rotation: f32) -> Part {
    Part {
        rotation,
        ..part(tokens)
    }
}

/// A stream like those of a long video: turned segments, biased ones, empty ones, one of one key.
pub fn mixed(rng: &mut Rng, most: usize) -> Vec<Part> {
    let count = rng.below(1..6);
    (0..count)
        .map(|_| Part {
            tokens: match rng.below(0..4) {
                0 => rng.below(0..2),
                _ => rng.below(0..most + 1),
            },
            rotation: rng.below(0..2000) as f32 - 400.0,
            key_bias: if rng.below(0..2) == 0 { 0.0 } else { rng.normal() as f32 },
            slot_bias: rng.below(0..2) == 0,
        })
        .collect()
}

/// Runs a problem and holds it against the reference by the house's rule.
pub fn check(problem: &Problem, device: &Device, page_tokens: usize, rng: &mut Rng) {
    check_by(Kernel::Auto, problem, device, page_tokens, rng);
}

pub fn check_by(kernel: Kernel, problem: &Problem, device: &Device, page_tokens: usize, rng: &mut Rng) {
    let (got, plain, truth) = (
        problem.placed(device, page_tokens, rng).run_by(kernel),
        problem.plain(),
        problem.truth(),
    );
    let largest = |x: &[f64]| x.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    // Where the plain implementation is exact by luck, a few roundings of f32 are no fault.
    let floor = |truth: &[f64]| 4.0 * f64::from(f32::EPSILON) * largest(truth);
    Errors::of(&got.0, &truth.0).within(Errors::of(&plain.0, &truth.0), floor(&truth.0));
    absolute(&got.1, &truth.1).within(absolute(&plain.1, &truth.1), floor(&truth.1));
}

/// Of a logarithm only absolute errors mean anything.
pub fn absolute(got: &[f32], truth: &[f64]) -> Errors {
    Errors {
        rel_l2: 0.0,
        ..Errors::of(got, truth)
    }
}

/// Two results are the same to the last bit.
#[track_caller]
pub fn same(got: &(Vec<f32>, Vec<f32>), expected: &(Vec<f32>, Vec<f32>), what: &str) {
    let (got, expected) = (bits(got), bits(expected));
    let differing = got.iter().zip(&expected).filter(|(a, b)| a != b).count();
    assert!(
        got.len() == expected.len() && differing == 0,
        "{what}: {differing} differ"
    );
}

pub fn bits(x: &(Vec<f32>, Vec<f32>)) -> Vec<u32> {
    x.0.iter().chain(&x.1).map(|x| x.to_bits()).collect()
}
