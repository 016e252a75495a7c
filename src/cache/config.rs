//! What a packed cache is made of.

use crate::dtype::DType;
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
    /// Mean pooling over cells of `[frames, rows, columns]`; what does not fill a cell makes smaller ones, so that
    /// everything a block showed is remembered. [`Compression::Mean`] with [`Remainder::Drop`] leaves it out, as the
    /// paper does.
    pub const fn mean_pool(cell: [usize; 3]) -> Compression {
        Compression::Mean(MeanPool {
            cell,
            remainder: Remainder::Keep,
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

/// The sizes and choices of a packed cache. Made by [`PackConfig::builder`], checked.
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

impl PackConfig {
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
            Compression::Mean(pool) if pool.uneven(self.block) => 1,
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
    pub(super) fn stream_pages(&self) -> usize {
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
    pub(super) fn best_page(&self) -> usize {
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
