//! A causal video transformer in candle with random weights makes a video twice: over the packed
//! cache, and with attention over everything, kept by candle itself. The same layers, the same noise:
//! while the cache still holds every block whole the two are one video, to rounding.
//!
//! `cargo run -p packforcing-candle --example tiny_video [blocks] [seed]`

use std::time::{Duration, Instant};

use candle_core::{D, DType, IndexOp, Result, Tensor};
use packforcing::cache::{Heads, PackConfig, PackedKvCache};
use packforcing::ops::denoise_step::{Coefficients, Noise};
use packforcing::schedule::Schedule;
use packforcing::{Blocks, Grid, Rope3d};
use packforcing_candle::{Error, attend, denoise_step, device};

const LAYERS: usize = 3;
const HEADS: usize = 2;
const DIM: usize = 32;
const WIDTH: usize = HEADS * DIM;
const CHANNELS: usize = 16; // of a token's latent
const BLOCK: Grid = Grid {
    frames: 2,
    rows: 8,
    cols: 8,
};
const SINK: usize = 3;
const RECENT: usize = 1;

/// Normal numbers of packforcing's own, which are the same on every device.
struct Random {
    device: packforcing::Device,
    noise: Noise,
}

impl Random {
    fn normal(&mut self, rows: usize, columns: usize, scale: f64) -> Result<Tensor> {
        let zeros = Tensor::zeros((1, rows, columns), DType::F32, &candle_core::Device::Cpu)?;
        let numbers = Coefficients::new(&self.device, &[vec![vec![0.0], vec![scale]]]).map_err(Error::from)?;
        let drawn = denoise_step(&self.device, &[&zeros], 0, &numbers, Some(self.noise))?;
        self.noise = self.noise.after(rows * columns);
        drawn[0].i(0)
    }
}

struct Layer {
    qkv: Tensor,  // [WIDTH, 3 * WIDTH]
    out: Tensor,  // [WIDTH, WIDTH]
    up: Tensor,   // [WIDTH, 4 * WIDTH]
    down: Tensor, // [4 * WIDTH, WIDTH]
}

/// A layer's attention: its number, queries, keys, values, `[1, tokens, HEADS, DIM]`.
type Attend<'a> = &'a mut dyn FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor>;

impl Layer {
    fn new(random: &mut Random) -> Result<Layer> {
        let mut weight = |from: usize, to: usize| random.normal(from, to, (from as f64).sqrt().recip());
        Ok(Layer {
            qkv: weight(WIDTH, 3 * WIDTH)?,
            out: weight(WIDTH, WIDTH)?,
            up: weight(WIDTH, 4 * WIDTH)?,
            down: weight(4 * WIDTH, WIDTH)?,
        })
    }

    fn forward(&self, number: usize, x: &Tensor, attend: Attend<'_>) -> Result<Tensor> {
        let qkv = norm(x)?.broadcast_matmul(&self.qkv)?;
        let qkv = qkv.reshape((1, BLOCK.tokens().0, 3, HEADS, DIM))?;
        let part = |i| qkv.i((.., .., i));
        let a = attend(number, &part(0)?, &part(1)?, &part(2)?)?;
        let x = (x + a.flatten_from(2)?.broadcast_matmul(&self.out)?)?;
        &x + norm(&x)?
            .broadcast_matmul(&self.up)?
            .gelu()?
            .broadcast_matmul(&self.down)?
    }
}

fn norm(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?)
}

struct Model {
    embed: Tensor, // [CHANNELS, WIDTH]
    time: Tensor,  // [1, WIDTH]
    layers: Vec<Layer>,
    head: Tensor, // [WIDTH, CHANNELS]
}

impl Model {
    fn new(random: &mut Random) -> Result<Model> {
        Ok(Model {
            embed: random.normal(CHANNELS, WIDTH, (CHANNELS as f64).sqrt().recip())?,
            time: random.normal(1, WIDTH, 1.0)?,
            layers: (0..LAYERS).map(|_| Layer::new(random)).collect::<Result<_>>()?,
            head: random.normal(WIDTH, CHANNELS, (WIDTH as f64).sqrt().recip())?,
        })
    }

    /// The velocity of a block's latent, `[1, tokens, CHANNELS]`.
    fn velocity(&self, latent: &Tensor, timestep: f64, attend: Attend<'_>) -> Result<Tensor> {
        let time = (&self.time * (timestep / 1000.0))?;
        let mut x = latent.broadcast_matmul(&self.embed)?.broadcast_add(&time)?;
        for (number, layer) in self.layers.iter().enumerate() {
            x = layer.forward(number, &x, attend)?;
        }
        norm(&x)?.broadcast_matmul(&self.head)
    }
}

/// What candle alone has to keep: for each layer the rotated keys and the values of all blocks,
/// `[1, HEADS, tokens, DIM]`.
#[derive(Default)]
struct Everything {
    kept: Vec<Vec<(Tensor, Tensor)>>,
}

impl Everything {
    fn attend(&mut self, block: usize, layer: usize, qkv: [&Tensor; 3], keep: bool) -> Result<Tensor> {
        let [q, k, v] = qkv;
        let (q, k) = (rotate(q, block)?, rotate(k, block)?);
        let heads = |x: &Tensor| x.transpose(1, 2)?.contiguous();
        let (q, now) = (heads(&q)?, (heads(&k)?, heads(v)?));
        self.kept.resize(LAYERS, Vec::new());
        let past = &mut self.kept[layer];
        let all: Vec<&(Tensor, Tensor)> = past.iter().chain([&now]).collect();
        let k = Tensor::cat(&all.iter().map(|kv| &kv.0).collect::<Vec<_>>(), 2)?;
        let v = Tensor::cat(&all.iter().map(|kv| &kv.1).collect::<Vec<_>>(), 2)?;
        let logits = (q.matmul(&k.t()?)? * (DIM as f64).sqrt().recip())?;
        let weights = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
        let out = weights.matmul(&v)?.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        if keep {
            past.push(now);
        }
        out.transpose(1, 2)
    }

    fn bytes(&self) -> usize {
        let tensors = self.kept.iter().flatten().flat_map(|(k, v)| [k, v]);
        tensors.map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
    }
}

/// Turns pairs of neighbours by time, row and column, `[1, tokens, HEADS, DIM]`; packforcing's cache
/// does this itself.
fn rotate(x: &Tensor, block: usize) -> Result<Tensor> {
    let rope = Rope3d::wan(DIM);
    let angles: Vec<f64> = (0..BLOCK.tokens().0)
        .flat_map(|token| {
            let (frame, place) = (token / (BLOCK.rows * BLOCK.cols), token % (BLOCK.rows * BLOCK.cols));
            let at = [block * BLOCK.frames + frame, place / BLOCK.cols, place % BLOCK.cols];
            let rope = &rope;
            (0..DIM / 2).map(move |pair| at[rope.axis(pair)] as f64 * rope.frequency(pair))
        })
        .collect();
    let turn = |f: fn(f64) -> f64| {
        let turns: Vec<f32> = angles.iter().map(|&a| f(a) as f32).collect();
        Tensor::from_vec(turns, (1, BLOCK.tokens().0, 1, DIM / 2), x.device())
    };
    let (cos, sin) = (turn(f64::cos)?, turn(f64::sin)?);
    let pairs = x.reshape((1, BLOCK.tokens().0, HEADS, DIM / 2, 2))?;
    let (a, b) = (pairs.i((.., .., .., .., 0))?, pairs.i((.., .., .., .., 1))?);
    let ahead = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let aside = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
    Tensor::stack(&[ahead, aside], 4)?.reshape(x.shape())
}

/// Noise to a clean block: `velocity` is called for each step, then once at time step 0, for keys and
/// values that stay.
fn sample(
    device: &packforcing::Device,
    schedule: &Schedule,
    mut noise: Noise,
    mut velocity: impl FnMut(&Tensor, f64) -> Result<Tensor>,
) -> packforcing_candle::Result<Tensor> {
    let shape = (1, BLOCK.tokens().0, CHANNELS);
    let mut step = |terms: &[&Tensor], rows| -> packforcing_candle::Result<Tensor> {
        let numbers = Coefficients::new(device, &[rows])?;
        let next = denoise_step(device, terms, 0, &numbers, Some(noise))?.swap_remove(0);
        noise = noise.after(next.elem_count());
        Ok(next)
    };
    let zeros = Tensor::zeros(shape, DType::F32, &candle_core::Device::Cpu)?;
    let mut x = step(&[&zeros], vec![vec![0.0], vec![1.0]])?;
    for s in schedule.steps() {
        let v = velocity(&x, s.timestep)?;
        x = step(&[&x, &v], s.renoise(1))?;
    }
    velocity(&x, 0.0)?;
    Ok(x)
}

/// Relative L2 distance.
fn distance(a: &Tensor, b: &Tensor) -> Result<f32> {
    let norm = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>();
    Ok((norm(&(a - b)?)? / norm(b)?).sqrt())
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<u64>());
    let blocks = arguments.next().transpose()?.unwrap_or(16) as usize;
    let seed = arguments.next().transpose()?.unwrap_or(1);

    let device = device(&candle_core::Device::Cpu)?;
    let mut random = Random {
        device: device.clone(),
        noise: Noise { seed, offset: 0 },
    };
    let model = Model::new(&mut random)?;
    let config = PackConfig::builder()
        .layers(LAYERS)
        .heads(Heads {
            query: HEADS,
            kv: HEADS,
            dim: DIM,
        })
        .dtype(packforcing::DType::F32)
        .block(BLOCK)
        .sink(Blocks(SINK))
        .recent(Blocks(RECENT))
        .selected(Blocks(4))
        .archive(Blocks(8))
        .build()?;
    let mut cache = PackedKvCache::new(&device, &config)?;
    let mut everything = Everything::default();
    let schedule = Schedule::few_step(&[1000.0, 750.0, 500.0, 250.0], 5.0)?;
    let (mut packed_time, mut full_time) = (Duration::ZERO, Duration::ZERO);

    println!(
        "seed {seed}: {LAYERS} layers of {HEADS} heads x {DIM}, blocks of {}, on {device}",
        BLOCK.tokens()
    );
    println!("       packed                 everything kept");
    println!("block  context      cache     context     memory  difference");
    for number in 0..blocks {
        // Every block draws from a counter of its own, the same for both.
        let noise = Noise {
            seed,
            offset: (number as u64 + 1) << 32,
        };

        let start = Instant::now();
        let context = cache.context_tokens().0;
        let mut block = cache.begin()?;
        let packed = sample(&device, &schedule, noise, |x, timestep| {
            let commits = timestep == 0.0;
            let pass = if commits {
                block.commit_pass()
            } else {
                block.denoise_pass()
            };
            let mut pass = pass.map_err(Error::from)?;
            model.velocity(x, timestep, &mut |layer, q, k, v| {
                Ok(attend(&mut pass, layer, q, k, v)?)
            })
        })?;
        block.commit()?;
        packed_time += start.elapsed();

        let start = Instant::now();
        let full = sample(&device, &schedule, noise, |x, timestep| {
            let keep = timestep == 0.0;
            model.velocity(x, timestep, &mut |layer, q, k, v| {
                everything.attend(number, layer, [q, k, v], keep)
            })
        })?;
        full_time += start.elapsed();

        let difference = distance(&packed, &full)?;
        let whole = number <= SINK + RECENT;
        println!(
            "{number:5}  {context:7}  {:6.2} MB  {:10}  {:6.2} MB  {difference:.1e}{}",
            cache.bytes() as f64 * 1e-6,
            (number + 1) * BLOCK.tokens().0,
            everything.bytes() as f64 * 1e-6,
            if whole { "  every block is still whole" } else { "" },
        );
        if whole && difference > 1e-5 {
            return Err(format!("block {number} differs by {difference:e} where it must not").into());
        }
    }
    println!("time: {packed_time:.2?} packed, {full_time:.2?} with everything kept");
    Ok(())
}
