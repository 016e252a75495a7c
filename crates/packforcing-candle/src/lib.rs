//! The packed KV cache and the kernels of [packforcing] on candle tensors: candle's
//! memory in, candle's memory out, on candle's device and stream, and nothing copied.
//!
//! | | |
//! | --- | --- |
//! | [`device()`] | packforcing's device for candle's |
//! | [`attend`], [`attend_with`], [`hand_in`] | a layer over the packed cache |
//! | [`attention`], [`merge_states`], [`denoise_step`] | ops whose outputs are new tensors |
//! | [`with_views`] | any tensors as views, in place: every other op, and pools of one's own |
//! | [`Error`], [`cause`] | errors, and how they pass through candle's |
//!
//! All the rest (page pools, contexts, schedules) is packforcing's own and holds no candle tensor.
//!
//! # A layer, before and after
//!
//! A causal video model attends from a block of frames to all blocks before it. In plain candle the
//! layer turns queries and keys by their positions, and its caller keeps every key and value:
//!
//! ```
//! # use candle_core::{D, IndexOp, Result, Tensor};
//! struct Attention {
//!     qkv: Tensor, // [width, 3 * width]
//!     out: Tensor, // [width, width]
//!     heads: usize,
//! }
//!
//! impl Attention {
//!     fn forward(&self, x: &Tensor, past: &mut Vec<(Tensor, Tensor)>) -> Result<Tensor> {
//!         let (b, tokens, width) = x.dims3()?;
//!         let shape = (b, tokens, 3, self.heads, width / self.heads);
//!         let qkv = x.broadcast_matmul(&self.qkv)?.reshape(shape)?.transpose(1, 3)?; // [b, heads, 3, tokens, dim]
//!         let part = |i| qkv.i((.., .., i))?.contiguous();
//!         let (q, k, v) = (rotate(&part(0)?, past.len())?, rotate(&part(1)?, past.len())?, part(2)?);
//!         past.push((k, v)); // for ever
//!         let k = Tensor::cat(&past.iter().map(|(k, _)| k).collect::<Vec<_>>(), 2)?;
//!         let v = Tensor::cat(&past.iter().map(|(_, v)| v).collect::<Vec<_>>(), 2)?;
//!         let scale = ((width / self.heads) as f64).sqrt().recip();
//!         let a = softmax(&(q.matmul(&k.t()?)? * scale)?)?.matmul(&v)?;
//!         a.transpose(1, 2)?.flatten_from(2)?.broadcast_matmul(&self.out)
//!     }
//! }
//! # fn rotate(x: &Tensor, _block: usize) -> Result<Tensor> { Ok(x.clone()) }
//! # fn softmax(x: &Tensor) -> Result<Tensor> {
//! #     let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
//! #     e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
//! # }
//! # let x = Tensor::randn(0f32, 1.0, (1, 32, 24), &candle_core::Device::Cpu)?;
//! # let w = |n| Tensor::randn(0f32, 0.2, (24, n), &candle_core::Device::Cpu);
//! # let layer = Attention { qkv: w(72)?, out: w(24)?, heads: 2 };
//! # assert_eq!(layer.forward(&x, &mut Vec::new())?.dims(), [1, 32, 24]);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! Over the packed cache the projections stay, and rotation, history and softmax become one call.
//! Memory is bounded, however long the video:
//!
//! ```
//! use candle_core::{DType, Device, IndexOp, Result, Tensor};
//! use packforcing::cache::{Heads, PackConfig, PackedKvCache, Pass};
//! use packforcing::{Blocks, Grid};
//! use packforcing_candle::{attend, device};
//! # struct Attention { qkv: Tensor, out: Tensor, heads: usize }
//!
//! impl Attention {
//!     fn forward(&self, x: &Tensor, pass: &mut Pass<'_, '_>, layer: usize) -> Result<Tensor> {
//!         let (b, tokens, width) = x.dims3()?;
//!         let shape = (b, tokens, 3, self.heads, width / self.heads);
//!         let qkv = x.broadcast_matmul(&self.qkv)?.reshape(shape)?;
//!         let part = |i| qkv.i((.., .., i)); // three views of one tensor: no copy
//!         let a = attend(pass, layer, &part(0)?, &part(1)?, &part(2)?)?; // [b, tokens, heads, dim]
//!         a.flatten_from(2)?.broadcast_matmul(&self.out)
//!     }
//! }
//!
//! # fn main() -> packforcing_candle::Result<()> {
//! # let weight = |n| Tensor::randn(0f32, 0.2, (24, n), &Device::Cpu);
//! # let layer = Attention { qkv: weight(72)?, out: weight(24)?, heads: 2 };
//! # let x = Tensor::randn(0f32, 1.0, (1, 32, 24), &Device::Cpu)?;
//! let config = PackConfig::builder()
//!     .layers(1)
//!     .heads(Heads { query: 2, kv: 2, dim: 12 })
//!     .dtype(packforcing::DType::F32)
//!     .block(Grid { frames: 2, rows: 4, cols: 4 })
//!     .archive(Blocks(20))
//!     .build()?;
//! let mut cache = PackedKvCache::new(&device(x.device())?, &config)?;
//! for _ in 0..5 {
//!     let mut block = cache.begin()?;
//!     layer.forward(&x, &mut block.denoise_pass()?, 0)?; // noisy latents: leaves no trace
//!     layer.forward(&x, &mut block.commit_pass()?, 0)?; // clean ones: keys and values that stay
//!     block.commit()?;
//! }
//! assert_eq!(cache.blocks(), 5);
//! # Ok(())
//! # }
//! ```
//!
//! Where the model norms queries and keys over all heads, [`attend_with`] does it on the way. As long as
//! the sink holds everything the two layers agree to rounding; the example `tiny_video` shows it.
//!
//! # What to know
//!
//! - **Inference.** There is no backward pass, and tensors that candle tracks are refused by name:
//!   `detach` them, or load weights as tensors rather than variables.
//! - **The loop is yours.** `packforcing::rollout` keeps latents in memory of its own; with candle write
//!   the few lines that the example `tiny_video` has.
//! - **On the CPU** ops run on rayon's threads. Call them from outside of rayon jobs that share a
//!   page pool.
//! - **On a GPU** packforcing's kernels take f16 and bf16, head dims 64 and 128, and rows on 16-byte
//!   boundaries, which candle's memory has.
//! - **Per-thread streams**: with `candle_core::Device::new_cuda`, everything that packforcing makes
//!   stays on the thread that made it. Prefer `new_cuda_with_stream`; [`device()`] says why.
//!
//! # cudarc
//!
//! The feature `cuda` is candle's and packforcing's own. Both stand on cudarc 0.19 (candle 0.11.1 and
//! this version ask for 0.19.10 or later), cargo unifies them to one crate, and so a `CudaSlice` of
//! candle's *is* a `CudaSlice` of `packforcing::cudarc`: this crate opens it in place, in the order of
//! cudarc's events. A new minor version of candle or of cudarc makes a new minor version of this crate;
//! two cudarcs in `cargo tree -d` mean that versions were mixed, and do not compile here. Candle links
//! libcuda, cuBLAS and cuRAND at build time: a program with the feature `cuda` does not start where
//! they are missing, while packforcing alone would say so and use the CPU.
//!
//! Another version of candle or cudarc, or another stack altogether, comes in without this crate:
//! `packforcing::Device::from_raw_cuda_stream` takes its stream and [`packforcing::View::from_raw`] its
//! addresses. That is `unsafe`, because nothing checks what they point at.

#![forbid(unsafe_code)]

mod cache;
mod convert;
mod error;
mod ops;
mod views;

pub use cache::{Norm, attend, attend_with, hand_in};
pub use convert::{candle_dtype, device, dtype};
pub use error::{Error, Result, cause};
pub use ops::{Pages, attention, denoise_step, merge_states};
pub use views::{Named, with_views};
