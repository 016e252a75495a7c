//! Counts that must not be mixed up, and the grid of a block.

macro_rules! units {
    ($($(#[$doc:meta])* $name:ident, $word:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub usize);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!("{} ", $word), self.0)
            }
        }

        impl std::ops::Add for $name {
            type Output = $name;
            fn add(self, other: $name) -> $name {
                $name(self.0 + other.0)
            }
        }

        impl std::ops::Mul<usize> for $name {
            type Output = $name;
            fn mul(self, n: usize) -> $name {
                $name(self.0 * n)
            }
        }
    )*};
}

units! {
    /// Latent frames.
    Frames, "frames";
    /// Blocks of frames, as the model makes them.
    Blocks, "blocks";
    /// Tokens: what attention sees.
    Tokens, "tokens";
    /// Pages of the pool.
    Pages, "pages";
}

/// The tokens of a block: frames, and in each frame rows and columns. Tokens lie in this order, the
/// column innermost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Latent frames.
    pub frames: usize,
    /// Rows of tokens in a frame.
    pub rows: usize,
    /// Columns of tokens in a frame.
    pub cols: usize,
}

impl Grid {
    /// All tokens of the block; `usize::MAX` where they cannot be counted, which every op refuses.
    ///
    /// ```
    /// let block = packforcing::Grid { frames: 4, rows: 30, cols: 52 };
    /// assert_eq!(block.tokens().0, 6_240);
    /// ```
    pub const fn tokens(&self) -> Tokens {
        Tokens(self.frames.saturating_mul(self.rows).saturating_mul(self.cols))
    }

    /// Extents in the order frames, rows, columns.
    pub const fn extents(&self) -> [usize; 3] {
        [self.frames, self.rows, self.cols]
    }
}
