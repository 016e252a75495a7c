//! One video: a pool and its only stream.

use crate::device::Device;
use crate::error::Result;
use crate::units::Tokens;

use super::block::Block;
use super::config::{PackConfig, Policy};
use super::pool::{PagePool, Stream};
use super::timeline::Place;

/// The packed history of one video. Several videos share memory through a [`PagePool`]; this is a
/// pool for one.
///
/// ```
/// use packforcing::cache::{Heads, PackConfig, PackedKvCache};
/// use packforcing::{DType, Device, Grid, Tensor};
///
/// # fn main() -> packforcing::Result<()> {
/// let device = Device::cpu();
/// let config = PackConfig::builder()
///     .layers(1)
///     .heads(Heads { query: 1, kv: 1, dim: 16 })
///     .dtype(DType::F32)
///     .block(Grid { frames: 2, rows: 4, cols: 4 })
///     .build()?;
/// let mut cache = PackedKvCache::new(&device, &config)?;
/// let x = Tensor::zeros(&device, DType::F32, &[1, 32, 1, 16])?;
/// let mut out = Tensor::zeros(&device, DType::F32, &[1, 32, 1, 16])?;
///
/// let mut block = cache.begin()?;
/// let mut pass = block.commit_pass()?;
/// pass.attend(0, x.view(), x.view(), x.view(), &mut out.view_mut())?;
/// block.commit()?;
/// assert_eq!(cache.blocks(), 1);
/// cache.reset();
/// assert_eq!(cache.blocks(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PackedKvCache {
    stream: Stream,
    pool: PagePool,
}

impl PackedKvCache {
    /// Reserves everything that [`PackConfig::bytes`] counts.
    ///
    /// # Errors
    ///
    /// As [`PagePool::new`].
    pub fn new(device: &Device, config: &PackConfig) -> Result<PackedKvCache> {
        let pool = PagePool::new(device, config)?;
        Ok(PackedKvCache {
            stream: pool.stream()?,
            pool,
        })
    }

    /// Begins the next block.
    ///
    /// # Errors
    ///
    /// As [`PagePool::begin`].
    pub fn begin(&mut self) -> Result<Block<'_>> {
        self.pool.begin([&mut self.stream])
    }

    /// Begins the next block with another policy than the configuration's.
    ///
    /// # Errors
    ///
    /// As [`PagePool::begin`].
    pub fn begin_with(&mut self, policy: Policy) -> Result<Block<'_>> {
        self.pool.begin_with([&mut self.stream], policy)
    }

    /// Another video with the same past in the same pages, as [`Stream::fork`]. One of the two has a
    /// block under way at a time. Two that are full want a configuration of two streams.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLost`](crate::Error::DeviceLost).
    pub fn fork(&self) -> Result<PackedKvCache> {
        Ok(PackedKvCache {
            stream: self.stream.fork()?,
            pool: self.pool.clone(),
        })
    }

    /// Forgets the video; the next block is block 0.
    pub fn reset(&mut self) {
        self.stream.reset();
    }

    /// Blocks committed so far.
    pub fn blocks(&self) -> usize {
        self.stream.blocks()
    }

    /// Every block of the past that is still there, in time order, and where it stands.
    pub fn timeline(&self) -> Vec<(usize, Place)> {
        self.stream.timeline()
    }

    /// Tokens that the next block attends to, itself included.
    pub fn context_tokens(&self) -> Tokens {
        self.stream.context_tokens()
    }

    /// What it was made of.
    pub fn config(&self) -> &PackConfig {
        self.pool.config()
    }

    /// Bytes of device memory that it has reserved.
    pub fn bytes(&self) -> usize {
        self.pool.bytes()
    }
}
