//! A packed cache's configuration, setting by setting; what does not fit is refused when it is built.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::merge_tokens::{MeanPool, Remainder};
use crate::rope::Rope3d;
use crate::units::{Blocks, Frames, Grid};

use super::bytes::wide_bytes;
use super::config::{Compression, Heads, PackConfig, Policy, Selection};

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
    /// one stands for (proportional attention) for mean pooling whose cells are all alike, 0 else.
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
            Compression::Mean(pool) if !pool.uneven(c.block) => {
                (pool.cell.iter().product::<usize>() as f64).ln() as f32
            }
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
        let pages_fit = pages <= i32::MAX as u128 && c.page_tokens.checked_mul(c.token_bytes()).is_some();
        let bytes_fit = pages_fit && wide_bytes(&c) <= isize::MAX as u128;
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
                // The paper's 182 tokens of a block: 28 of its 30 rows.
                compression: Compression::Mean(MeanPool {
                    cell: [2, 4, 4],
                    remainder: Remainder::Drop,
                }),
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
}
