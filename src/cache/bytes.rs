//! How much memory a packed cache takes.

use std::fmt;

use crate::ops::match_tokens::Matching;

use super::config::{Compression, PackConfig};
use super::work;

/// What [`PackConfig::bytes`] counts, in bytes, over all layers and streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheBytes {
    /// Sink and recent blocks, whole.
    pub whole: usize,
    /// The block that is being made.
    pub current: usize,
    /// Compressed blocks, chosen or not.
    pub archive: usize,
    /// Page lists, segments, scores and work space.
    pub tables: usize,
}

impl CacheBytes {
    /// All of it.
    pub fn total(&self) -> usize {
        self.whole + self.current + self.archive + self.tables
    }
}

impl fmt::Display for CacheBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: usize| bytes as f64 / 1e6;
        write!(
            f,
            "{:.1} MB (whole {:.1}, current {:.1}, archive {:.1}, tables {:.1})",
            mb(self.total()),
            mb(self.whole),
            mb(self.current),
            mb(self.archive),
            mb(self.tables)
        )
    }
}

impl PackConfig {
    /// Bytes that the pool reserves, tables and work space included.
    pub fn bytes(&self) -> CacheBytes {
        let page = self.page_tokens * self.token_bytes();
        let per_stream = |pages: usize| pages * self.streams * page;
        let whole_kept = (self.sink + self.recent).0 * self.block_pages().0;
        let archive = (self.pool_pages().0 / self.streams) - whole_kept - self.block_pages().0;
        CacheBytes {
            whole: per_stream(whole_kept),
            current: per_stream(self.block_pages().0),
            archive: per_stream(archive),
            tables: table_bytes(self) as usize, // `build` has seen that it fits
        }
    }
}

/// All bytes of it. Wide, so that a configuration can be refused by it that is too large to count in a word; its
/// pages must have been found to be countable, and each of them to have its bytes in a word.
pub(super) fn wide_bytes(config: &PackConfig) -> u128 {
    let pages = config.stream_pages() as u128 * config.streams as u128;
    pages * (config.page_tokens * config.token_bytes()) as u128 + table_bytes(config)
}

/// Bytes of the work space and of the pool's own tables.
fn table_bytes(config: &PackConfig) -> u128 {
    let product = |factors: &[usize]| factors.iter().map(|&n| n as u128).product::<u128>();
    let (streams, heads) = (config.streams, config.heads);
    let slots = config.slots_per_stream();
    let slot_pages = product(&[slots, streams, config.mid_pages().0, 4]);
    let key_sums = product(&[config.layers, slots, streams, heads.kv, heads.dim, 4]);
    let slot_bias = product(&[
        config.bias_layers(),
        config.pool_pages().0,
        heads.kv,
        config.page_tokens,
        4,
    ]);
    let context = |(segments, pages): (usize, usize)| {
        product(&[streams, segments * size_of::<crate::ffi::Segment>() + pages * 4 + 4])
    };
    let tensors: u128 = work::shapes(config)
        .iter()
        .map(|(dtype, shape)| dtype.bytes() as u128 * product(shape))
        .sum();
    let lists = product(&[streams, config.block_pages().0 + config.mid_pages().0, 4]);
    let contexts =
        context(config.draft_capacity()) + work::choices(config) as u128 * context(config.context_capacity());
    let matching = match config.compression {
        Compression::Match { how, .. } => Matching::wide_bytes_of(how, config.block, &config.rope, (streams, heads.kv)),
        _ => 0,
    };
    slot_pages + key_sums + slot_bias + tensors + lists + contexts + matching
}
