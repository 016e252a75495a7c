//! Three-axis rotary position embedding.

use crate::error::{Error, Result};
use crate::ffi;

/// How a head's dimensions turn with a token's place: interleaved pairs (2i, 2i + 1), first those of
/// time, then row, then column. Pair i of an axis with n pairs turns by `theta^(-i / n)` radians a
/// unit of position.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope3d {
    pairs: [usize; 3],
    theta: f64,
}

impl Rope3d {
    /// The split of Wan2.1: 22 / 21 / 21 pairs for a head dim of 128, 12 / 10 / 10 for 64; theta
    /// 10,000. A third of the pairs (rounded down) goes to rows and to columns, the rest to time.
    ///
    /// ```
    /// assert_eq!(packforcing::rope::Rope3d::wan(128).pairs(), [22, 21, 21]);
    /// ```
    pub fn wan(dim: usize) -> Rope3d {
        let space = dim / 6;
        Rope3d {
            pairs: [dim / 2 - 2 * space, space, space],
            theta: 10_000.0,
        }
    }

    /// Any split. Pairs past the last axis do not exist: `2 * (pairs[0] + pairs[1] + pairs[2])` is
    /// the head dim.
    ///
    /// # Errors
    ///
    /// No pair at all, more than a head dim of 128 holds, a theta that is not above 0, or whose
    /// inverse is not finite.
    pub fn new(pairs: [usize; 3], theta: f64) -> Result<Rope3d> {
        let most = ffi::PF_MAX_PAIRS as usize;
        let total = pairs
            .iter()
            .try_fold(0usize, |n, &axis| n.checked_add(axis))
            .unwrap_or(usize::MAX);
        if total == 0 || total > most {
            return Err(Error::argument(
                "Rope3d::new",
                "pairs",
                "1 to 64 pairs in all",
                format!("{pairs:?}"),
            ));
        }
        if !(theta.is_normal() && theta > 0.0) {
            return Err(Error::argument(
                "Rope3d::new",
                "theta",
                "a finite number above 0 whose inverse is finite",
                theta.to_string(),
            ));
        }
        Ok(Rope3d { pairs, theta })
    }

    /// Pairs of time, row and column.
    pub fn pairs(&self) -> [usize; 3] {
        self.pairs
    }

    /// The base of the frequencies.
    pub fn theta(&self) -> f64 {
        self.theta
    }

    /// The head dim that it turns.
    pub fn dim(&self) -> usize {
        2 * self.pairs.iter().sum::<usize>()
    }

    /// 0, 1, 2 for a pair of the time, row, column axis.
    pub fn axis(&self, pair: usize) -> usize {
        match pair {
            p if p < self.pairs[0] => 0,
            p if p < self.pairs[0] + self.pairs[1] => 1,
            _ => 2,
        }
    }

    /// Radians that a pair turns by a unit of position.
    pub fn frequency(&self, pair: usize) -> f64 {
        let axis = self.axis(pair);
        let first: usize = self.pairs[..axis].iter().sum();
        self.theta.powf(-((pair - first) as f64) / self.pairs[axis] as f64)
    }

    /// The turns of an axis' pairs at each of `positions`, `[positions, pairs(axis)]`.
    pub(crate) fn turns(&self, axis: usize, positions: impl IntoIterator<Item = f64>) -> Vec<Turn> {
        let first: usize = self.pairs[..axis].iter().sum();
        let frequencies: Vec<f64> = (first..first + self.pairs[axis]).map(|p| self.frequency(p)).collect();
        positions
            .into_iter()
            .flat_map(|position| frequencies.iter().map(move |f| Turn::by(position * f)))
            .collect()
    }

    pub(crate) fn params(&self) -> ffi::RopeParams {
        let mut turns = [0.0; ffi::PF_MAX_PAIRS as usize];
        for (pair, turn) in turns.iter_mut().enumerate().take(self.dim() / 2) {
            *turn = self.frequency(pair) / std::f64::consts::TAU;
        }
        ffi::RopeParams {
            turns,
            pairs: self.pairs.map(|n| n as i32),
            reserved: 0,
        }
    }
}

/// A rotation of one pair: what the CPU device keeps of an angle.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Turn {
    pub cos: f32,
    pub sin: f32,
}

impl Turn {
    /// Of an angle in radians, so that large ones keep the accuracy of f32.
    pub fn by(angle: f64) -> Turn {
        let (sin, cos) = angle.sin_cos();
        Turn {
            cos: cos as f32,
            sin: sin as f32,
        }
    }

    /// (x, y) turned ahead.
    #[inline(always)]
    pub fn apply(self, x: f32, y: f32) -> (f32, f32) {
        (x * self.cos - y * self.sin, x * self.sin + y * self.cos)
    }
}
