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
//! # Every op
//!
//! | op of packforcing | with candle tensors |
//! | --- | --- |
//! | `append_kv`, `select_blocks`, `attention`, `merge_tokens`, `match_tokens` over a packed cache | [`attend`], [`attend_with`]; the cache calls them |
//! | compressed tokens of one's own (`Compression::External`) | [`hand_in`] |
//! | `attention`, `merge_states` over pages of one's own | [`attention`], [`merge_states`] |
//! | `append_kv`, `merge_tokens`, `match_tokens`, `unmerge_tokens`, `sum_keys`, `select_blocks` | [`with_views`], the pages named for writing |
//! | `denoise_step`, out of place | [`denoise_step`] |
//! | `denoise_step` in place, of a solver that remembers, with guidance | [`with_views`], as below |
//! | `guidance_weights` | [`with_views`], the two predictions named for reading |
//! | a fork of a video | `Stream::fork`: no tensor takes part |
//!
//! # A solver that remembers
//!
//! DPM-Solver++ and UniPC keep states beside the latent, in f32 whatever the latent is: they are
//! tensors of the caller, opened for writing with it. This loop does what `packforcing::Sampler`
//! does with memory of its own, to the bit.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, denoise_step};
//! use packforcing::schedule::Schedule;
//! use packforcing_candle::{device, with_views};
//!
//! # fn main() -> packforcing_candle::Result<()> {
//! let schedule = Schedule::unipc(8, 5.0)?; // two states
//! let frames = 2;
//! let latent = Tensor::zeros((frames, 8), DType::BF16, &Device::Cpu)?;
//! let states = [(); 2].map(|()| Tensor::zeros((frames, 8), DType::F32, &Device::Cpu));
//! let [first, second] = states;
//! let written = [("latent", &latent), ("states", &first?), ("states", &second?)];
//! let device = device(latent.device())?;
//! let start = Coefficients::new(&device, &schedule.start_rows(frames))?;
//! let noise = Some(Noise { seed: 1, offset: 0 });
//! with_views(&device, "start", [], written, |[], mut outputs| {
//!     let (terms, in_place, coefficients) = (vec![], 0, &start); // it reads nothing
//!     let step = DenoiseStep { terms, in_place, frame_axis: 0, coefficients, noise, noise_base: None, guidance: None };
//!     denoise_step(&step, &mut outputs)
//! })?;
//! for (i, step) in schedule.steps().iter().enumerate() {
//!     // A model that knows that the clean latent is 3: v = (x - 3) / sigma.
//!     let v = ((&latent - 3.0)? / step.sigma)?;
//!     let coefficients = &Coefficients::new(&device, &schedule.rows(i, frames)?)?;
//!     with_views(&device, "step", [("v", &v)], written, |[v], mut outputs| {
//!         let (terms, in_place, noise) = (vec![v], 3, None); // latent and states change in place
//!         let step = DenoiseStep { terms, in_place, frame_axis: 0, coefficients, noise, noise_base: None, guidance: None };
//!         denoise_step(&step, &mut outputs)
//!     })?;
//! }
//! let worst = (&latent - 3.0)?.abs()?.max_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
//! assert!(worst < 0.02, "{worst}"); // bf16 has steps of 1/64 at 3
//! # Ok(())
//! # }
//! ```
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
//! - **CUDA graphs**: candle allocates a tensor whenever it makes one, which a capture forbids.
//!   Inside `packforcing::Device::capture` use [`with_views`] and `Pass::attend` over tensors that were
//!   there before; candle's own ops, and what here returns a new tensor, stay outside.
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
