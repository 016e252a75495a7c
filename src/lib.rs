//! Hand-written CUDA kernels and a packed KV cache for long video generation.
//!
//! An autoregressive video model attends to all that it has made. This crate keeps that history
//! bounded, after [PackForcing](https://arxiv.org/abs/2603.25730): the first blocks stay whole, old
//! ones are compressed and the best of them attended to, the newest stay whole. It brings the
//! kernels, the cache that feeds them, and a CPU path; it has a small tensor type and no model
//! framework in it.
//!
//! # The map
//!
//! | | |
//! | --- | --- |
//! | [`Device`] | where things run: CPU, CUDA, or SIMT, which runs the CUDA kernels' source on the CPU |
//! | [`Tensor`], [`View`], [`ViewMut`] | owned and borrowed memory: this crate's, a slice's, cudarc's, or a raw address |
//! | [`ops`] | every kernel as a free function on views |
//! | [`paging`] | pages, page lists and segments: what ops and cache both speak of |
//! | [`cache`] | the packed history of one or several videos: [`cache::PackedKvCache`], [`cache::PagePool`] |
//! | [`schedule`], [`sampler`] | time steps, coefficients of solvers, and their loop |
//! | [`rollout`] | block after block with a model of yours |
//!
//! Data goes down: a model calls the cache (append, select, attend), the cache calls ops, ops check
//! and launch on the device. Whoever brings a cache of their own starts at [`ops`].
//!
//! # A first example
//!
//! Two queries attend to 40 keys that lie in pages 3 and 1 of a pool, in this order:
//!
//! ```
//! use packforcing::ops::attention::{Attention, attention};
//! use packforcing::paging::{Context, KvPages, Segment};
//! use packforcing::{DType, Device, Rope3d, Tensor};
//!
//! # fn main() -> packforcing::Result<()> {
//! let device = Device::cpu();
//! let pool = Tensor::zeros(&device, DType::F32, &[4, 1, 32, 16])?; // pages, heads, tokens, dim
//! let q = Tensor::zeros(&device, DType::F32, &[1, 2, 1, 16])?; // streams, tokens, heads, dim
//! let mut out = Tensor::zeros(&device, DType::F32, &[1, 2, 1, 16])?;
//! let mut lse = Tensor::zeros(&device, DType::F32, &[1, 2, 1])?;
//!
//! let context = Context::from_host(&device, (4, 32), &[vec![Segment::new(vec![3, 1], 40)]])?;
//! let arguments = Attention {
//!     q: q.view(),
//!     kv: KvPages { k: pool.view(), v: pool.view(), slot_bias: None },
//!     context: &context,
//!     rope: &Rope3d::wan(16),
//!     scale: 0.25,
//! };
//! attention(&arguments, &mut out.view_mut(), Some(&mut lse.view_mut()))?;
//! assert!((lse.to_vec::<f32>()?[0] - 40f32.ln()).abs() < 1e-6); // 40 logits of 0
//! # Ok(())
//! # }
//! ```
//!
//! # The contract
//!
//! - What you can get wrong is an [`Error`] that names the operation, the argument, what was
//!   expected and what came, before anything has changed. A panic is a bug of this crate.
//! - The same inputs give the same bits on a given device, in every run and under any order of
//!   pages. Devices agree within the rounding of the dtype, not to the bit.
//! - Memory is reserved once. A block of the cache allocates nothing on the device.
//! - A fault that a GPU reports late is [`Error::DeviceLost`] on the next call that waits, and on
//!   every call after it.
//!
//! # cudarc
//!
//! With the feature `cuda` this crate stands on cudarc 0.19 and exports it as `packforcing::cudarc`.
//! Slices and streams of your own are shared types as long as your cudarc is the same minor version;
//! a new one here is a new minor version of this crate. Under another version, or another stack
//! altogether, [`View::from_raw`] and `Device::from_raw_cuda_stream` take addresses and streams.

pub mod cache;
pub mod device;
pub mod dtype;
pub mod error;
#[allow(
    missing_docs,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    clippy::unnecessary_operation,
    clippy::identity_op,
    clippy::undocumented_unsafe_blocks
)]
mod ffi;
pub mod ops;
pub mod paging;
pub mod rollout;
pub mod rope;
pub mod sampler;
pub mod schedule;
pub mod tensor;
pub mod units;

#[cfg(feature = "vectors")]
pub use device::vectors::{Instructions, instructions};
pub use device::{Device, DeviceKind, SimtCard, SimtOptions};
pub use dtype::DType;
pub use error::{Error, Result};
pub use rope::Rope3d;
pub use tensor::{Tensor, View, ViewMut};
pub use units::{Blocks, Frames, Grid, Pages, Tokens};

#[cfg(feature = "cuda")]
pub use cudarc;

/// The README's example and the guide's are tests too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
#[cfg(doctest)]
#[doc = include_str!("../docs/linking.md")]
struct Linking;
