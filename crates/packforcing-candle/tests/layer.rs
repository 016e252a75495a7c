//! Attention over the packed cache against softmax in candle's own ops, while the sink holds every
//! block: two videos of one batch, grouped heads, keys rotated by their place in the video.
mod common;

use candle_core::{D, DType, Device, IndexOp, Result, Tensor};
use common::{Rng, numbers};
use packforcing::cache::{Compression, Heads, PackConfig, PagePool};
use packforcing::{Blocks, Grid, Rope3d};
use packforcing_candle::{attend, device, dtype};

const BLOCK: Grid = Grid {
    frames: 2,
    rows: 3,
    cols: 4,
};
const TOKENS: usize = 24;
const DIM: usize = 16;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const BLOCKS: usize = 4;

/// Pairs of neighbours turned by time, row and column in the video, `[streams, tokens, heads, DIM]`.
fn rotate(x: &Tensor, block: usize) -> Result<Tensor> {
    let rope = Rope3d::wan(DIM);
    let mut angles = Vec::new();
    for frame in 0..BLOCK.frames {
        for (row, col) in (0..BLOCK.rows).flat_map(|r| (0..BLOCK.cols).map(move |c| (r, c))) {
            let at = [block * BLOCK.frames + frame, row, col];
            angles.extend((0..DIM / 2).map(|pair| at[rope.axis(pair)] as f64 * rope.frequency(pair)));
        }
    }
    let angles = Tensor::from_vec(angles, (1, TOKENS, 1, DIM / 2), &Device::Cpu)?;
    let (cos, sin) = (angles.cos()?.to_dtype(DType::F32)?, angles.sin()?.to_dtype(DType::F32)?);
    let (streams, tokens, heads, _) = x.dims4()?;
    let pairs = x.reshape((streams, tokens, heads, DIM / 2, 2))?;
    let (a, b) = (pairs.i((.., .., .., .., 0))?, pairs.i((.., .., .., .., 1))?);
    let ahead = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let aside = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
    Tensor::stack(&[ahead, aside], 4)?.reshape(x.shape())
}

/// Softmax attention in candle's f32, `q` over all of `k` and `v`.
fn softmax_attention(q: &Tensor, k: &[Tensor], v: &[Tensor]) -> Result<Tensor> {
    let heads = |x: &Tensor| -> Result<Tensor> {
        let groups = HEADS / x.dims()[2];
        let (streams, tokens, n, dim) = x.dims4()?;
        let repeated = x.unsqueeze(3)?.broadcast_as((streams, tokens, n, groups, dim))?;
        let repeated = repeated.reshape((streams, tokens, HEADS, dim))?;
        repeated.transpose(1, 2)?.contiguous()
    };
    let (q, k, v) = (heads(q)?, heads(&Tensor::cat(k, 1)?)?, heads(&Tensor::cat(v, 1)?)?);
    let logits = (q.matmul(&k.t()?.contiguous()?)? * (DIM as f64).sqrt().recip())?;
    let weights = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
    let out = weights.matmul(&v)?.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    out.transpose(1, 2)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let pairs = numbers(a).into_iter().zip(numbers(b));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn agrees(of: DType, tolerance: f32) -> packforcing_candle::Result<()> {
    let config = PackConfig::builder()
        .layers(1)
        .heads(Heads {
            query: HEADS,
            kv: KV_HEADS,
            dim: DIM,
        })
        .dtype(dtype(of).expect("a dtype of both sides"))
        .block(BLOCK)
        .compression(Compression::mean_pool([2, 3, 2]))
        .sink(Blocks(BLOCKS))
        .streams(2)
        .build()?;
    let pool = PagePool::new(&device(&Device::Cpu)?, &config)?;
    let mut videos = [pool.stream()?, pool.stream()?];
    let mut rng = Rng(11);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for number in 0..BLOCKS {
        // Wide queries make a softmax that is far from a mean.
        let q = (rng.tensor(DType::F32, &[2, TOKENS, HEADS, DIM]) * 3.0)?.to_dtype(of)?;
        let kv = rng.tensor(of, &[2, TOKENS, 2 * KV_HEADS, DIM]);
        let (k, v) = (kv.narrow(2, 0, KV_HEADS)?, kv.narrow(2, KV_HEADS, KV_HEADS)?);

        let mut block = pool.begin(&mut videos)?;
        let noisy = (&kv * 0.5)?; // leaves no trace
        attend(
            &mut block.denoise_pass()?,
            0,
            &q,
            &noisy.narrow(2, 0, KV_HEADS)?,
            &noisy.narrow(2, 1, KV_HEADS)?,
        )?;
        let out = attend(&mut block.commit_pass()?, 0, &q, &k, &v)?;
        block.commit()?;

        let wide = |x: &Tensor| x.to_dtype(DType::F32);
        keys.push(rotate(&wide(&k)?, number)?);
        values.push(wide(&v)?);
        let q = rotate(&wide(&q)?, number)?;
        let difference = largest_difference(&out, &softmax_attention(&q, &keys, &values)?);
        assert!(difference <= tolerance, "{of:?}, block {number}: {difference:e}");
        // What a cache that forgets the past would say is far off.
        if number > 0 {
            let alone = largest_difference(&out, &softmax_attention(&q, &keys[number..], &values[number..])?);
            assert!(alone > 20.0 * tolerance, "{of:?}, block {number}: {alone:e}");
        }
    }
    Ok(())
}

/// A logit is a sum of 16 products of about 0.25: rounding moves it by some 16 x 0.25 x 2^-24, and the
/// output, a mean of numbers below 1, by no more than that and its own rounding.
#[test]
fn f32_agrees_with_candles_softmax() {
    agrees(DType::F32, 1e-6).expect("attention");
}

/// Rotated queries and keys are rounded to the dtype: products of about 0.25, each off by some
/// 2^-9 of itself in bf16 (half a last bit of either factor), move a logit of 16 of them by 1.6e-3. Of
/// that a mean over 24 keys or more keeps a part, the output's own rounding adds 2^-9 x 0.5, and the
/// largest of some thousands of outputs is four times the usual. f16 has three bits more.
#[test]
fn half_precision_agrees_within_its_rounding() {
    agrees(DType::BF16, 5e-3).expect("attention");
    agrees(DType::F16, 5e-3 / 8.0).expect("attention");
}
