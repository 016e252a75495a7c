//! Attention against its formula, on every device.
mod common;

use approx::assert_abs_diff_eq;
use common::{Errors, Golden, Rng, Suite, rounded, widen};
use packforcing::ops::attention::reference::{self, rotated};
use packforcing::ops::attention::{Attention, attention};
use packforcing::paging::{Context, KvPages, Segment};
use packforcing::{DType, Device, Error, Rope3d, Tensor};

/// What one segment of a stream is like.
#[derive(Debug, Clone, Copy)]
struct Part {
    tokens: usize,
    rotation: f32,
    key_bias: f32,
    slot_bias: bool,
}

const fn part(tokens: usize) -> Part {
    Part {
        tokens,
        rotation: 0.0,
        key_bias: 0.0,
        slot_bias: false,
    }
}

/// A whole problem in host memory, keys in the order of their segments.
#[derive(Debug, Clone)]
struct Problem {
    dtype: DType,
    tokens: usize,
    q_heads: usize,
    kv_heads: usize,
    dim: usize,
    scale: f32,
    streams: Vec<Vec<Part>>,
    q: Vec<f32>,         // [streams, tokens, q_heads, dim]
    k: Vec<Vec<f32>>,    // a stream: [keys, kv_heads, dim]
    v: Vec<Vec<f32>>,    // a stream: [keys, kv_heads, dim]
    bias: Vec<Vec<f32>>, // a stream: [keys, kv_heads]
}

impl Problem {
    fn random(
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

    fn rope(&self) -> Rope3d {
        Rope3d::wan(self.dim)
    }

    fn frequencies(&self) -> Vec<f64> {
        (0..self.rope().pairs()[0]).map(|p| self.rope().frequency(p)).collect()
    }

    fn row(&self, stream: usize, token: usize, head: usize) -> usize {
        (stream * self.tokens + token) * self.q_heads + head
    }

    /// `f(stream, q, keys of its head as (segment, key, value, bias))` for every query, in order.
    fn each(&self, mut f: impl FnMut(usize, usize, &[f32])) {
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
    fn truth(&self) -> (Vec<f64>, Vec<f64>) {
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

    /// Pages and a context in a random order, NaN in every slot that no segment holds.
    fn placed(&self, device: &Device, page_tokens: usize, rng: &mut Rng) -> Placed {
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

fn tensor(device: &Device, dtype: DType, data: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_f32(device, dtype, data, shape).expect("a tensor")
}

/// A problem in a device's memory.
struct Placed {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slot_bias: Tensor,
    context: Context,
    rope: Rope3d,
    scale: f32,
}

impl Placed {
    fn args(&self) -> Attention<'_> {
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
    fn run(&self) -> (Vec<f32>, Vec<f32>) {
        let (shape, device) = (self.q.shape(), self.q.device());
        let poison = vec![f32::NAN; self.q.elements()];
        let mut out = tensor(device, self.q.dtype(), &poison, shape);
        let mut lse = tensor(device, DType::F32, &poison[..poison.len() / shape[3]], &shape[..3]);
        attention(&self.args(), &mut out.view_mut(), Some(&mut lse.view_mut())).expect("attention");
        (out.to_f32_vec().expect("out"), lse.to_vec().expect("lse"))
    }
}

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

fn main() -> std::process::ExitCode {
    Suite::new()
        .golden("attention", golden_attention)
        .golden("rope3d", golden_rope)
        .run()
}
