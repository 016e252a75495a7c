//! What a packed cache is made of, and how much memory that takes.

use std::fmt;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::match_tokens::{Merges, SoftMatch};
use crate::ops::merge_tokens::{MeanPool, Remainder};
use crate::rope::Rope3d;
use crate::units::{Blocks, Frames, Grid, Pages, Tokens};

/// Heads of the model's self-attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Heads {
    /// Query heads; a multiple of `kv`.
    pub query: usize,
    /// Key and value heads.
    pub kv: usize,
    /// Numbers a head.
    pub dim: usize,
}

/// What becomes of a block that leaves the recent ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// It stays whole, and takes part in the selection as it is.
    None,
    /// Its cached keys and values are mean-pooled.
    Mean(MeanPool),
    /// Its tokens merge into those of it that are most like them ([`crate::ops::match_tokens`]). As many are
    /// left of every block; they have log sizes of their own, in every layer. Blocks are scored by the keys that
    /// they had before.
    Match {
        /// Into which, by what, and to what.
        how: SoftMatch,
        /// How many merge: those that are most like; all sources if `None`.
        merged: Option<usize>,
    },
    /// The model hands its tokens in during the commit pass, on a grid of this shape spread evenly
    /// over the block.
    External(Grid),
}

impl Compression {
    /// Mean pooling over cells of `[frames, rows, columns]`; what does not fill a cell is dropped.
    pub const fn mean_pool(cell: [usize; 3]) -> Compression {
        Compression::Mean(MeanPool {
            cell,
            remainder: Remainder::Drop,
        })
    }

    /// Matching with the first token of every full cell of `[frames, rows, columns]`, each head by itself;
    /// one token a cell is left. What does not fill a cell merges too.
    pub const fn matching(cell: [usize; 3]) -> Compression {
        Compression::Match {
            how: SoftMatch::strided(cell),
            merged: None,
        }
    }
}

/// Whether layers choose their blocks themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Selection {
    /// Every layer scores and chooses for itself.
    #[default]
    PerLayer,
    /// The first layer that attends chooses for all.
    Shared,
}

/// Which compressed blocks are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Those whose keys answer the block's queries most.
    #[default]
    Top,
    /// The newest.
    Newest,
    /// Any, by seed, block and layer.
    Random {
        /// Decides the draw.
        seed: u64,
    },
}

/// The sizes and choices of a packed cache. Made by [`PackConfig::builder`].
#[derive(Debug, Clone, PartialEq)]
pub struct PackConfig {
    pub(crate) layers: usize,
    pub(crate) heads: Heads,
    pub(crate) dtype: DType,
    pub(crate) block: Grid,
    pub(crate) sink: Blocks,
    pub(crate) recent: Blocks,
    pub(crate) selected: Blocks,
    pub(crate) archive: Blocks,
    pub(crate) streams: usize,
    pub(crate) compression: Compression,
    pub(crate) selection: Selection,
    pub(crate) policy: Policy,
    pub(crate) rope: Rope3d,
    pub(crate) page_tokens: usize,
    pub(crate) mid_frames: Frames,
    pub(crate) key_bias: f32,
}

/// Makes a [`PackConfig`]; every setting has the paper's value until it is set.
#[derive(Debug, Clone)]
pub struct PackConfigBuilder {
    config: PackConfig,
    rope: Option<Rope3d>,
    page_tokens: Option<usize>,
    mid_frames: Option<Frames>,
    key_bias: Option<f32>,
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $t:ty;)*) => {$(
        $(#[$doc])*
        pub fn $name(mut self, $name: $t) -> PackConfigBuilder {
            self.config.$name = $name;
            self
        }
    )*};
}

/// The largest count that a configuration takes.
const MOST: usize = 1_000_000;

impl PackConfigBuilder {
    setters! {
        /// Layers of self-attention. Default 30.
        layers: usize;
        /// Heads. Default 12 x 128.
        heads: Heads;
        /// What keys and values are kept as. Default bf16.
        dtype: DType;
        /// Tokens of a block. Default 4 x 30 x 52.
        block: Grid;
        /// Blocks that never leave. Default 2.
        sink: Blocks;
        /// Newest blocks that stay whole. Default 1.
        recent: Blocks;
        /// Compressed blocks that are attended to. Default 16.
        selected: Blocks;
        /// Compressed blocks that are kept to choose from; the oldest leaves first. Default 120.
        archive: Blocks;
        /// Full videos that the pool has room for, and the largest batch; of forks, which share
        /// pages, more may fit ([`PagePool`](super::PagePool)). Default 1.
        streams: usize;
        /// What becomes of old blocks. Default: mean pooling over 2 x 4 x 4.
        compression: Compression;
        /// Whether layers choose for themselves. Default: they do.
        selection: Selection;
        /// Which compressed blocks are chosen. Default: the best.
        policy: Policy;
    }

    /// The rotation of queries and keys. Default: Wan's split of the head dim.
    pub fn rope(mut self, rope: Rope3d) -> PackConfigBuilder {
        self.rope = Some(rope);
        self
    }

    /// Tokens of a page. Default: of 16, 32, 48, 64, 96 and 128 the largest that wastes least.
    pub fn page_tokens(mut self, tokens: usize) -> PackConfigBuilder {
        self.page_tokens = Some(tokens);
        self
    }

    /// Packed time that a compressed block takes up. Default: the block's frames.
    pub fn mid_frames(mut self, frames: Frames) -> PackConfigBuilder {
        self.mid_frames = Some(frames);
        self
    }

    /// Added to the logits of compressed tokens, natural log. Default: the log of the tokens that
    /// one stands for (proportional attention) for mean pooling, 0 else.
    pub fn key_bias(mut self, bias: f32) -> PackConfigBuilder {
        self.key_bias = Some(bias);
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    ///
    /// Names the setting that does not fit.
    pub fn build(self) -> Result<PackConfig> {
        const OP: &str = "PackConfig::build";
        let ensure = |holds: bool, argument, expected: &str, got: String| {
            if holds {
                Ok(())
            } else {
                Err(Error::argument(OP, argument, expected, got))
            }
        };
        let mut c = self.config;
        let Heads { query, kv, dim } = c.heads;
        // Far above what anyone has, and products of them stay countable.
        for (argument, n) in [
            ("layers", c.layers),
            ("heads", query.max(kv).max(dim)),
            ("sink", c.sink.0),
            ("recent", c.recent.0),
            ("archive", c.archive.0),
            ("selected", c.selected.0),
            ("streams", c.streams),
        ] {
            ensure(n <= MOST, argument, "at most a million", n.to_string())?;
        }
        ensure(c.layers > 0, "layers", "at least 1", c.layers.to_string())?;
        ensure(c.streams > 0, "streams", "at least 1", c.streams.to_string())?;
        let heads_fit = kv > 0 && query > 0 && query % kv == 0 && dim > 0;
        ensure(
            heads_fit,
            "heads",
            "query heads a multiple of kv heads, a dim above 0",
            format!("{:?}", c.heads),
        )?;
        ensure(c.dtype.is_float(), "dtype", "f32, f16 or bf16", c.dtype.to_string())?;
        let extents = c.block.extents();
        let block_tokens = extents.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let block_fits = block_tokens.is_some_and(|n| n > 0 && n <= i32::MAX as usize);
        ensure(block_fits, "block", "extents above 0", format!("{:?}", c.block))?;
        ensure(
            c.archive >= c.selected,
            "archive",
            "at least as many blocks as are selected",
            format!("{} for {}", c.archive, c.selected),
        )?;
        c.rope = self.rope.unwrap_or_else(|| Rope3d::wan(dim));
        ensure(
            c.rope.dim() == dim,
            "rope",
            &format!("a rotation of {dim} numbers"),
            format!("{:?}", c.rope),
        )?;
        if let Compression::Match { how, merged } = c.compression {
            let (tokens, destinations) = (c.block_tokens().0, how.destinations.count(c.block));
            ensure(
                destinations > 0 && merged.unwrap_or(0) <= tokens - destinations,
                "compression",
                "destinations, and no more to merge than there are sources",
                format!("{:?} of {:?}", c.compression, c.block),
            )?;
        }
        let mid = c.mid_grid();
        let cells = match c.compression {
            Compression::Mean(pool) => pool.cell,
            Compression::None | Compression::Match { .. } | Compression::External(_) => [1; 3],
        };
        let mid_fits = mid
            .extents()
            .iter()
            .zip(extents)
            .zip(cells)
            .all(|((&m, b), cell)| m > 0 && m <= b && cell > 0);
        ensure(
            mid_fits || matches!(c.compression, Compression::Match { .. }),
            "compression",
            "cells that fit into a block",
            format!("{:?} of {:?}", c.compression, c.block),
        )?;
        c.mid_frames = self.mid_frames.unwrap_or(Frames(c.block.frames));
        c.key_bias = self.key_bias.unwrap_or(match c.compression {
            Compression::Mean(MeanPool {
                cell,
                remainder: Remainder::Drop,
            }) => (cell.iter().product::<usize>() as f64).ln() as f32,
            _ => 0.0,
        });
        ensure(
            c.key_bias.is_finite(),
            "key_bias",
            "a finite number",
            c.key_bias.to_string(),
        )?;
        c.page_tokens = self.page_tokens.unwrap_or_else(|| c.best_page());
        let page_fits = (1..=MOST).contains(&c.page_tokens);
        ensure(page_fits, "page_tokens", "1 to a million", c.page_tokens.to_string())?;
        // Streams may be too many to multiply before they are known to fit.
        let pages = c.stream_pages() as u128 * c.streams as u128;
        let pages_fit = pages <= i32::MAX as u128;
        let bytes = |c: &PackConfig| pages * (c.page_tokens * c.token_bytes()) as u128 + super::work::bytes(c);
        let bytes_fit =
            pages_fit && c.page_tokens.checked_mul(c.token_bytes()).is_some() && { bytes(&c) <= isize::MAX as u128 };
        ensure(
            bytes_fit,
            "archive",
            "pages that can be counted in 31 bits and addressed, tables included",
            format!("{pages} pages of {} tokens of {} bytes", c.page_tokens, c.token_bytes()),
        )?;
        Ok(c)
    }
}

impl PackConfig {
    /// Starts from the configuration of the paper: Wan2.1-T2V-1.3B at 832 x 480.
    ///
    /// ```
    /// let config = packforcing::cache::PackConfig::builder().build()?;
    /// assert_eq!(config.frame_tokens().0, 1_560);
    /// assert_eq!(config.mid_tokens().0, 182);
    /// assert_eq!(config.context_tokens().0, 27_872);
    /// assert_eq!(config.history_bytes(), 21_632 * 184_320); // 3.99 GB
    /// # Ok::<(), packforcing::Error>(())
    /// ```
    pub fn builder() -> PackConfigBuilder {
        PackConfigBuilder {
            config: PackConfig {
                layers: 30,
                heads: Heads {
                    query: 12,
                    kv: 12,
                    dim: 128,
                },
                dtype: DType::BF16,
                block: Grid {
                    frames: 4,
                    rows: 30,
                    cols: 52,
                },
                sink: Blocks(2),
                recent: Blocks(1),
                selected: Blocks(16),
                archive: Blocks(120),
                streams: 1,
                compression: Compression::mean_pool([2, 4, 4]),
                selection: Selection::PerLayer,
                policy: Policy::Top,
                rope: Rope3d::wan(128),
                page_tokens: 0,
                mid_frames: Frames(0),
                key_bias: 0.0,
            },
            rope: None,
            page_tokens: None,
            mid_frames: None,
            key_bias: None,
        }
    }

    /// Tokens of one frame.
    pub fn frame_tokens(&self) -> Tokens {
        Tokens(self.block.rows * self.block.cols)
    }

    /// Tokens of a whole block.
    pub fn block_tokens(&self) -> Tokens {
        self.block.tokens()
    }

    /// The grid of a block, as the model makes it.
    pub fn block(&self) -> Grid {
        self.block
    }

    /// Layers of self-attention.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Full videos that a pool has room for, and its largest batch.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// Heads of self-attention.
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// What keys and values are kept as.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The rotation of queries and keys.
    pub fn rope(&self) -> &Rope3d {
        &self.rope
    }

    /// Tokens of a page.
    pub fn page_tokens(&self) -> Tokens {
        Tokens(self.page_tokens)
    }

    /// The grid of a compressed block; one row of tokens where they are merged by likeness.
    pub fn mid_grid(&self) -> Grid {
        match self.compression {
            Compression::None => self.block,
            Compression::Mean(pool) => pool.output(self.block),
            Compression::Match { how, .. } => Grid {
                frames: 1,
                rows: 1,
                cols: how.merged_tokens(self.block, self.merges()),
            },
            Compression::External(grid) => grid,
        }
    }

    /// Tokens of a compressed block.
    pub fn mid_tokens(&self) -> Tokens {
        self.mid_grid().tokens()
    }

    /// Tokens that a block attends to besides itself once everything is full.
    pub fn history_tokens(&self) -> Tokens {
        self.block_tokens() * (self.sink + self.recent).0 + self.mid_tokens() * self.selected.0
    }

    /// Tokens that a block attends to once everything is full, itself included.
    pub fn context_tokens(&self) -> Tokens {
        self.history_tokens() + self.block_tokens()
    }

    /// Bytes of keys and values that one token takes up in all layers.
    pub fn token_bytes(&self) -> usize {
        2 * self.layers * self.heads.kv * self.heads.dim * self.dtype.bytes()
    }

    /// Bytes of the history that a full context attends to: [`PackConfig::history_tokens`] of
    /// [`PackConfig::token_bytes`].
    pub fn history_bytes(&self) -> usize {
        self.history_tokens().0 * self.token_bytes()
    }

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
            tables: super::work::bytes(self) as usize, // `build` has seen that it fits
        }
    }

    /// Pages of a whole block.
    pub(crate) fn block_pages(&self) -> Pages {
        Pages(self.block_tokens().0.div_ceil(self.page_tokens))
    }

    /// Pages of a compressed block.
    pub(crate) fn mid_pages(&self) -> Pages {
        Pages(self.mid_tokens().0.div_ceil(self.page_tokens))
    }

    /// Whether a compressed block is made beside the whole one.
    pub(crate) fn compresses(&self) -> bool {
        self.compression != Compression::None
    }

    /// How many tokens of a block merge, where they do by likeness.
    pub(crate) fn merges(&self) -> Merges {
        Merges::Top(match self.compression {
            Compression::Match { merged, .. } => merged.unwrap_or(usize::MAX),
            _ => 0,
        })
    }

    /// Whether compressed tokens stand for different numbers of tokens.
    pub(crate) fn slot_bias(&self) -> bool {
        self.bias_layers() > 0
    }

    /// Layers whose compressed tokens have log sizes of their own: none, one for all, or all.
    pub(crate) fn bias_layers(&self) -> usize {
        match self.compression {
            Compression::Mean(MeanPool {
                remainder: Remainder::Keep,
                ..
            }) => 1,
            Compression::Match { .. } => self.layers,
            _ => 0,
        }
    }

    /// Compressed blocks of one stream that exist at once: those of the archive, and those already
    /// made of blocks that are still recent or current.
    pub(crate) fn slots_per_stream(&self) -> usize {
        (self.archive + self.recent).0 + 1
    }

    /// Pages of the pool.
    pub(crate) fn pool_pages(&self) -> Pages {
        Pages(self.stream_pages() * self.streams)
    }

    /// Pages of one stream.
    fn stream_pages(&self) -> usize {
        let whole = (self.sink + self.recent).0 + 1;
        if self.compresses() {
            whole * self.block_pages().0 + self.slots_per_stream() * self.mid_pages().0
        } else {
            (whole + self.archive.0) * self.block_pages().0
        }
    }

    /// Whether blocks end where a page ends, so that the sink is one segment.
    pub(crate) fn whole_pages(&self) -> bool {
        self.block_tokens().0.is_multiple_of(self.page_tokens)
    }

    /// Segments and pages of a context without chosen blocks, at most.
    pub(crate) fn draft_capacity(&self) -> (usize, usize) {
        let sink = if self.whole_pages() {
            self.sink.0.min(1)
        } else {
            self.sink.0
        };
        let whole = (self.sink + self.recent).0 + 1;
        (sink + self.recent.0 + 1, whole * self.block_pages().0)
    }

    /// Segments and pages of a context, at most.
    pub(crate) fn context_capacity(&self) -> (usize, usize) {
        let (segments, pages) = self.draft_capacity();
        (segments + self.selected.0, pages + self.selected.0 * self.mid_pages().0)
    }

    /// Of the usual page sizes the largest that leaves the fewest slots empty.
    fn best_page(&self) -> usize {
        let whole = (self.sink + self.recent).0 + 1;
        let slots = |page: usize| {
            let filled = |tokens: Tokens| tokens.0.div_ceil(page) * page;
            whole * filled(self.block_tokens()) + self.selected.0 * filled(self.mid_tokens())
        };
        [128, 96, 64, 48, 32, 16]
            .into_iter()
            .min_by_key(|&page| slots(page))
            .unwrap_or(16)
    }
}

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
