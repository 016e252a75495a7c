//! The packed history of a video: early blocks whole, old ones compressed and chosen from, the
//! newest whole, in pages that are reserved once.
//!
//! ```text
//!  time  ────────────────────────────────────────────────────────────▶
//!  sink            mid (compressed, the best k are attended to)   recent   current
//!  ████ ████       ▫ ▫ ▪ ▫ ▪ ▪ ▫ ▫ ▪ ▫ ▫ ▪ ▫ ▪ ▫ ▫ ▪ ▫ ▫          ████      ████
//! ```
//!
//! A [`PagePool`] holds the memory, a [`Stream`] is one video in it, a [`Block`] is its next block
//! ([`PackedKvCache`] is a pool for one video):
//!
//! ```
//! use packforcing::cache::{Compression, Heads, PackConfig, PagePool};
//! use packforcing::{Blocks, DType, Device, Grid, Tensor};
//!
//! # fn main() -> packforcing::Result<()> {
//! let device = Device::cpu();
//! let config = PackConfig::builder()
//!     .layers(1)
//!     .heads(Heads { query: 2, kv: 2, dim: 16 })
//!     .dtype(DType::F32)
//!     .block(Grid { frames: 2, rows: 4, cols: 4 })
//!     .selected(Blocks(2))
//!     .archive(Blocks(8))
//!     .build()?;
//! println!("{} for the cache", config.bytes());
//! let pool = PagePool::new(&device, &config)?;
//! let mut video = pool.stream()?;
//!
//! let qkv = Tensor::zeros(&device, DType::F32, &[1, 32, 2, 16])?; // the model's
//! let mut out = Tensor::zeros(&device, DType::F32, &[1, 32, 2, 16])?;
//! for _ in 0..6 {
//!     let mut block = pool.begin([&mut video])?;
//!     for _step in 0..4 {
//!         let mut pass = block.denoise_pass()?; // reads the history, leaves no trace
//!         pass.attend(0, qkv.view(), qkv.view(), qkv.view(), &mut out.view_mut())?;
//!     }
//!     let mut pass = block.commit_pass()?; // clean latents: keys and values that stay
//!     pass.attend(0, qkv.view(), qkv.view(), qkv.view(), &mut out.view_mut())?;
//!     block.commit()?; // dropped instead: as if it had never begun
//! }
//! assert_eq!(video.blocks(), 6);
//! # Ok(())
//! # }
//! ```
//!
//! Several streams go through the model as one batch, each with its own length: with guidance there
//! are two. [`Stream::fork`] makes two endings of one beginning, which is kept once.
//!
//! Keys never move. A key is stored rotated at its place inside its segment; when blocks between
//! are dropped, the query is turned by another angle instead (see [`crate::paging::Segment`]).

mod block;
mod builder;
mod bytes;
mod config;
mod graph;
mod layer;
mod pass;
mod pool;
mod single;
mod store;
mod timeline;
mod work;

pub use crate::ops::match_tokens::{Destinations, Metric, Mode, SoftMatch};
pub use crate::ops::merge_tokens::{MeanPool, Remainder};
pub use block::Block;
pub use builder::PackConfigBuilder;
pub use bytes::CacheBytes;
pub use config::{Compression, Heads, PackConfig, Policy, Selection};
pub use graph::BlockGraph;
pub use layer::Qkv;
pub use pass::Pass;
pub use pool::{PagePool, Stream};
pub use single::PackedKvCache;
pub use timeline::Place;
