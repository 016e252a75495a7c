//! How tokens are matched, and the memory that a matching is written to.

use super::OP_NEW;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::denoise_step::noise::philox;
use crate::rope::Rope3d;
use crate::tensor::{Tensor, View};
use crate::units::Grid;

/// Which tokens of a block others merge into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destinations {
    /// The first token of every cell of `[frames, rows, columns]`. Tokens of cells that are not full are
    /// sources like any other.
    Strided([usize; 3]),
    /// One token of every full cell, drawn by Philox 4x32-10: the same on every device.
    Random {
        /// Frames, rows, columns.
        cell: [usize; 3],
        /// The key of the draw; the cell's index is the counter.
        seed: u64,
    },
    /// All tokens of some frames: bit t of the mask is frame t.
    Frames(u64),
}

impl Destinations {
    /// Their indices in a grid, in its order (the column innermost). Empty where no cell is full.
    ///
    /// ```
    /// use packforcing::Grid;
    /// use packforcing::ops::match_tokens::Destinations;
    /// let grid = Grid { frames: 2, rows: 2, cols: 5 };
    /// assert_eq!(Destinations::Strided([1, 2, 2]).tokens(grid), [0, 2, 10, 12]);
    /// assert_eq!(Destinations::Frames(0b10).tokens(grid), (10..20).collect::<Vec<_>>());
    /// ```
    pub fn tokens(&self, grid: Grid) -> Vec<usize> {
        let extents @ [frames, rows, cols] = grid.extents();
        let (cell, seed) = match *self {
            Destinations::Frames(mask) => {
                let size = rows.saturating_mul(cols);
                let frame = |t: usize| t.saturating_mul(size)..(t + 1).saturating_mul(size);
                return (0..frames.min(64))
                    .filter(|t| mask >> t & 1 == 1)
                    .flat_map(frame)
                    .collect();
            }
            Destinations::Strided(cell) => (cell, None),
            Destinations::Random { cell, seed } => (cell, Some(seed)),
        };
        let along: [usize; 3] = std::array::from_fn(|a| extents[a].checked_div(cell[a]).unwrap_or(0));
        let mut tokens: Vec<usize> = (0..self.count(grid))
            .map(|i| {
                let inside = seed.map_or(0, |seed| {
                    let mut words = [[i as u32], [(i as u64 >> 32) as u32], [0], [0]];
                    philox(&mut words, [seed as u32, (seed >> 32) as u32]);
                    ((u64::from(words[0][0]) * cell.iter().product::<usize>() as u64) >> 32) as usize
                });
                let first = [i / (along[1] * along[2]), i / along[2] % along[1], i % along[2]];
                let offset = [
                    inside / (cell[1] * cell[2]),
                    inside / cell[2] % cell[1],
                    inside % cell[2],
                ];
                let [t, r, c] = std::array::from_fn(|a| first[a] * cell[a] + offset[a]);
                (t * rows + r) * cols + c
            })
            .collect();
        tokens.sort_unstable();
        tokens
    }

    /// How many there are.
    pub fn count(&self, grid: Grid) -> usize {
        let [frames, rows, cols] = grid.extents();
        match *self {
            Destinations::Frames(mask) => {
                let below = if frames < 64 { (1 << frames) - 1 } else { u64::MAX };
                let masked = (mask & below).count_ones() as usize;
                masked.saturating_mul(rows).saturating_mul(cols)
            }
            Destinations::Strided(cell) | Destinations::Random { cell, .. } => {
                let along = |a: usize| grid.extents()[a].checked_div(cell[a]).unwrap_or(0);
                along(0).saturating_mul(along(1)).saturating_mul(along(2))
            }
        }
    }
}

/// By what two tokens are alike: the cosine of their keys, each turned back at its own place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Each head by itself: heads merge different tokens.
    #[default]
    PerHead,
    /// The mean of all heads' cosines: one matching for all.
    MeanOverHeads,
}

/// What a merged token is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Keys and values of all that went into it, their mean.
    #[default]
    Mean,
    /// The destination's own; those of the sources are dropped. They count in its size all the same: the
    /// destination stands for them.
    Replace,
}

/// Bipartite soft matching (Bolya et al., "Token Merging", arXiv 2210.09461): every token that is not a
/// destination is a source, and may merge into the destination that it is most like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SoftMatch {
    /// Which tokens others merge into.
    pub destinations: Destinations,
    /// By what tokens are alike.
    pub metric: Metric,
    /// What merged tokens are made of.
    pub mode: Mode,
}

impl SoftMatch {
    /// Into the first token of every cell, each head by itself, by the mean.
    pub const fn strided(cell: [usize; 3]) -> SoftMatch {
        SoftMatch {
            destinations: Destinations::Strided(cell),
            metric: Metric::PerHead,
            mode: Mode::Mean,
        }
    }

    /// The most tokens that are left of a grid.
    pub fn merged_tokens(&self, grid: Grid, merges: Merges) -> usize {
        let sources = grid.tokens().0 - self.destinations.count(grid);
        match merges {
            Merges::Top(n) => grid.tokens().0 - n.min(sources),
            Merges::Above(_) => grid.tokens().0,
        }
    }

    /// Heads that are matched by themselves.
    pub(crate) fn maps(&self, kv_heads: usize) -> usize {
        match self.metric {
            Metric::PerHead => kv_heads,
            Metric::MeanOverHeads => 1,
        }
    }
}

/// How many sources merge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Merges {
    /// So many, or all where there are fewer: those that are most like their destinations; of equal
    /// ones those with the lower index.
    Top(usize),
    /// All whose similarity is at least this.
    Above(f32),
}

/// What blocks of one grid are matched by, and the device memory that a matching is written to: reserved
/// once, used for call after call.
#[derive(Debug)]
pub struct Matching {
    pub(super) how: SoftMatch,
    pub(super) grid: Grid,
    pub(super) rope: Rope3d,
    pub(super) kv_heads: usize,
    pub(super) batch: usize,
    /// Destinations in order. i32 [destinations]
    pub(super) destinations: Tensor,
    /// Cosine and sine of every pair of an axis at every place along it, the axes one after the other.
    /// f32 [sum over axes of extent * pairs, 2]
    pub(super) turns: Tensor,
    /// i32 [batch, maps, tokens]
    pub(super) nearest: Tensor,
    /// f32 [batch, maps, tokens]
    pub(super) similarity: Tensor,
    /// i32 [batch, maps, tokens]
    pub(super) map: Tensor,
    /// i32 [batch, maps]
    pub(super) counts: Tensor,
    /// Tokens by merged token, each merged token's in order. i32 [batch, maps, tokens]
    pub(super) members: Tensor,
    /// Where the members of every merged token begin, and the last's end. i32 [batch, maps, tokens + 1]
    pub(super) starts: Tensor,
}

impl Matching {
    /// Room for the matchings of `batch` blocks of `kv_heads` heads.
    ///
    /// # Errors
    ///
    /// A grid of no tokens or of more than 2^31; destinations of which there are none; no heads or
    /// blocks; memory that the device does not have.
    pub fn new(
        device: &Device,
        how: SoftMatch,
        grid: Grid,
        rope: &Rope3d,
        (batch, kv_heads): (usize, usize),
    ) -> Result<Matching> {
        let fail = |argument, expected: &str, got: String| Err(Error::argument(OP_NEW, argument, expected, got));
        let extents = grid.extents();
        let tokens = extents.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
        let Some(tokens) = tokens.filter(|&n| n > 0 && n <= i32::MAX as usize / 2) else {
            return fail("grid", "1 to 2^30 tokens", format!("{extents:?}"));
        };
        if how.destinations.count(grid) == 0 {
            let got = format!("{:?} of {extents:?}", how.destinations);
            return fail("how.destinations", "at least one token of the grid", got);
        }
        if batch == 0 || kv_heads == 0 || batch.checked_mul(kv_heads).is_none() {
            let got = format!("{batch} blocks of {kv_heads} heads");
            return fail("batch", "at least one block of one head", got);
        }
        let destinations: Vec<i32> = how.destinations.tokens(grid).iter().map(|&i| i as i32).collect();
        let turns: Vec<f32> = (0..3)
            .flat_map(|axis| rope.turns(axis, (0..extents[axis]).map(|i| i as f64)))
            .flat_map(|turn| [turn.cos, turn.sin])
            .collect();
        let maps = how.maps(kv_heads);
        let per_token = |dtype, more| Tensor::zeros(device, dtype, &[batch, maps, tokens + more]);
        Ok(Matching {
            how,
            grid,
            rope: rope.clone(),
            kv_heads,
            batch,
            destinations: Tensor::from_slice(device, &destinations, &[destinations.len()])?,
            turns: Tensor::from_slice(device, &turns, &[turns.len() / 2, 2])?,
            nearest: per_token(DType::I32, 0)?,
            similarity: per_token(DType::F32, 0)?,
            map: per_token(DType::I32, 0)?,
            counts: Tensor::zeros(device, DType::I32, &[batch, maps])?,
            members: per_token(DType::I32, 0)?,
            starts: per_token(DType::I32, 1)?,
        })
    }

    /// Bytes that [`Matching::new`] reserves; the largest number there is where they are more.
    pub fn bytes_of(how: SoftMatch, grid: Grid, rope: &Rope3d, extents: (usize, usize)) -> usize {
        usize::try_from(Matching::wide_bytes_of(how, grid, rope, extents)).unwrap_or(usize::MAX)
    }

    pub(crate) fn wide_bytes_of(how: SoftMatch, grid: Grid, rope: &Rope3d, (batch, kv_heads): (usize, usize)) -> u128 {
        let places = grid.extents().into_iter().zip(rope.pairs());
        let turns: u128 = places.map(|(n, pairs)| n as u128 * pairs as u128).sum();
        let maps = batch as u128 * how.maps(kv_heads) as u128;
        4 * ((how.destinations.count(grid) as u128 + 2 * turns) + maps * (5 * grid.tokens().0 as u128 + 2))
    }

    /// Bytes of device memory that it takes up.
    pub fn bytes(&self) -> usize {
        let tensors = [
            &self.destinations,
            &self.turns,
            &self.nearest,
            &self.similarity,
            &self.map,
            &self.counts,
            &self.members,
            &self.starts,
        ];
        tensors.map(Tensor::bytes).iter().sum()
    }

    /// How tokens are matched.
    pub fn how(&self) -> SoftMatch {
        self.how
    }

    /// Tokens of a block.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// The index of the merged token that every token went into, i32. `[batch, maps, tokens]`; `maps` is
    /// the number of heads, or 1 where all are matched together.
    pub fn map(&self) -> View<'_> {
        self.map.view()
    }

    /// How many merged tokens there are, i32. `[batch, maps]`
    pub fn counts(&self) -> View<'_> {
        self.counts.view()
    }

    /// The token that every source is most like among the destinations, merged or not; of equal ones
    /// the first. A destination's own index. i32 `[batch, maps, tokens]`
    pub fn nearest(&self) -> View<'_> {
        self.nearest.view()
    }

    /// How like they are, f32 `[batch, maps, tokens]`; infinite for destinations. A key that is not a
    /// number is like nothing: minus infinity.
    pub fn similarity(&self) -> View<'_> {
        self.similarity.view()
    }
}
