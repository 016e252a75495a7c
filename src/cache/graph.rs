//! The passes of a block, recorded once and made again for every block that follows.

use std::fmt;
use std::sync::Arc;

use crate::device::Graph;
use crate::error::{Error, Result};

use super::block::Block;
use super::config::Policy;
use super::pool::Inner;

/// Passes of a block with all that was launched between them, made by [`Block::capture`].
///
/// It fits every block of its pool that has as many streams and a policy of the same kind: what
/// changes from block to block (pages, counts, positions, candidates, given scores) lies in tables at
/// fixed addresses, which [`PagePool::begin`](super::PagePool::begin) fills.
pub struct BlockGraph {
    pool: Arc<Inner>,
    graph: Graph,
    streams: usize,
    /// Whether the scores are made on the device; else they are given.
    scores: bool,
    /// For each choice, whether it was made before the capture.
    given: Vec<bool>,
    /// For each choice, whether it is made after it.
    chosen: Vec<bool>,
    /// Whether it makes a pass at all.
    passes: bool,
    /// For each layer, whether the commit pass attended.
    committed: Vec<bool>,
    /// For each layer, whether its compressed tokens were handed in.
    handed_in: Vec<bool>,
}

impl Block<'_> {
    /// Records the passes that `work` makes, and everything else that it launches on the pool's
    /// device, such as the model and [`denoise_step`](crate::ops::denoise_step::denoise_step). Nothing
    /// runs: [`Block::replay`] does it, for this block and later ones.
    ///
    /// Run the same work once before, in an earlier block or in one that is dropped: see
    /// [`Device::capture`](crate::Device::capture).
    ///
    /// # Errors
    ///
    /// As [`Device::capture`](crate::Device::capture); the CPU has nothing to record. The block is as
    /// it was in any case.
    pub fn capture<E: From<Error>>(&mut self, work: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<BlockGraph, E> {
        let device = self.pool.device.clone();
        let before = [&self.chosen, &self.committed, &self.handed_in].map(Vec::clone);
        let passed = std::mem::replace(&mut self.passed, false);
        let graph = device.capture(|| work(self));
        let passes = std::mem::replace(&mut self.passed, passed);
        let [given, committed, handed_in] = before;
        let recorded = (
            std::mem::replace(&mut self.chosen, given.clone()),
            std::mem::replace(&mut self.committed, committed),
            std::mem::replace(&mut self.handed_in, handed_in),
        );
        let (chosen, committed, handed_in) = recorded;
        Ok(BlockGraph {
            pool: self.pool.clone(),
            graph: graph?,
            streams: self.streams.len(),
            scores: scores(self.policy),
            given,
            chosen,
            passes,
            committed,
            handed_in,
        })
    }

    /// Makes the recorded passes again, on this block. It then stands as after the passes themselves:
    /// a commit pass among them can be committed.
    ///
    /// # Errors
    ///
    /// A graph of another pool, another number of streams or another kind of policy; one that chooses
    /// blocks which this block has chosen, or counts on a choice that it has not made; what
    /// [`Graph::launch`] reports.
    ///
    /// # Safety
    ///
    /// As [`Graph::launch`]: the tensors that the recorded work read and wrote besides the pool's own
    /// are still there, borrowed by nobody, and hold what this block is to be made of (its noise, its
    /// coefficients): [`PagePool::begin`](super::PagePool::begin) fills the pool's own tables alone.
    pub unsafe fn replay(&mut self, graph: &BlockGraph) -> Result<()> {
        const OP: &str = "Block::replay";
        self.pool.alive()?;
        let refuse = |expected: String, got: &str| Err(Error::argument(OP, "graph", expected, got));
        if !Arc::ptr_eq(&self.pool, &graph.pool) {
            return refuse("a graph of this pool".into(), "one of another pool");
        }
        if graph.streams != self.streams.len() || graph.scores != scores(self.policy) {
            let expected = format!("a graph of {} streams, {:?}", self.streams.len(), self.policy);
            return refuse(expected, &format!("{graph:?}"));
        }
        for (choice, (&given, &chosen)) in graph.given.iter().zip(&graph.chosen).enumerate() {
            if graph.passes && chosen && given != self.chosen[choice] {
                let reason = format!(
                    "choice {choice} was {} when the graph was captured, and in this block it is {}",
                    made(given),
                    made(!given)
                );
                return Err(Error::Order { op: OP, reason });
            }
        }
        if graph.passes {
            // An error on the way leaves passes half made.
            self.committed.fill(false);
            self.handed_in.fill(false);
        }
        // SAFETY: the caller answers for the memory that is not the pool's; the pool's lives as long as
        // the graph holds it, and only blocks that are under way touch it, of which this is the one.
        unsafe { graph.graph.launch()? };
        if graph.passes {
            for (chosen, made) in self.chosen.iter_mut().zip(&graph.chosen) {
                *chosen |= made;
            }
            self.committed.clone_from(&graph.committed);
            self.handed_in.clone_from(&graph.handed_in);
        }
        Ok(())
    }
}

fn made(choice: bool) -> &'static str {
    if choice { "made already" } else { "still to make" }
}

fn scores(policy: Policy) -> bool {
    policy == Policy::Top
}

impl fmt::Debug for BlockGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scores = if self.scores { "made" } else { "given" };
        write!(
            f,
            "BlockGraph({} streams, scores {scores}, {:?})",
            self.streams, self.graph
        )
    }
}
