//! [`merge_states`] of two results.

use packforcing::ops::merge_states::{State, merge_states};
use packforcing::{DType, Device, Tensor};

use super::{Numbers, WAN_BLOCK, WAN_DIM, WAN_HEADS, some};
use crate::case::{Call, Case, Results, Work, tell};
use crate::error::Result;
use crate::random::Random;

/// A shape of `merge_states`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Queries whose results are merged.
    pub queries: usize,
    /// Heads.
    pub heads: usize,
    /// Numbers of a head.
    pub dim: usize,
    /// Of the results; their LSE is f32.
    pub dtype: DType,
    /// Decides the numbers.
    pub seed: u64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            queries: WAN_BLOCK.tokens().0,
            heads: WAN_HEADS,
            dim: WAN_DIM,
            dtype: DType::BF16,
            seed: 0,
        }
    }
}

impl Shape {
    /// The case on this device. Two results are read, one is written.
    ///
    /// # Errors
    ///
    /// A shape that makes no case; what the op refuses comes with the first call.
    pub fn case(&self, device: &Device) -> Result<Case> {
        let &Shape {
            queries,
            heads,
            dim,
            dtype,
            ..
        } = self;
        some(&[("queries", queries), ("heads", heads), ("dim", dim)])?;
        let mut random = Random::new(self.seed);
        let mut state = || {
            let out = Numbers::new(&mut random, "queries", &[queries, heads, dim])?;
            let lse = Numbers::new(&mut random, "queries", &[queries, heads])?;
            Ok::<_, crate::Error>((out, lse))
        };
        let (a, b) = (state()?, state()?);
        let moved = 3 * (a.0.data.len() * dtype.bytes() + a.1.data.len() * 4);
        Case::new("merge_states", device, Work::bytes(moved), moved, || {
            let make = |(out, lse): &(Numbers, Numbers)| {
                Ok::<_, crate::Error>((out.tensor(device, dtype)?, lse.tensor(device, DType::F32)?))
            };
            let (a, b) = (make(&a)?, make(&b)?);
            let mut out = Tensor::zeros(device, dtype, &[queries, heads, dim])?;
            let mut lse = Tensor::zeros(device, DType::F32, &[queries, heads])?;
            let call = move |results: Results<'_>| {
                merge_states(&view(&a), &view(&b), &mut out.view_mut(), &mut lse.view_mut())?;
                tell(results, &[("out", out.view()), ("lse", lse.view())])
            };
            Ok(Box::new(call) as Call)
        })
    }
}

fn view((out, lse): &(Tensor, Tensor)) -> State<'_> {
    State {
        out: out.view(),
        lse: lse.view(),
    }
}
