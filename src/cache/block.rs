//! A block on its way: its tables, what it has chosen, and the commit.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::paging::Context;
use crate::units::Tokens;

use super::config::{Compression, Policy, Selection};
use super::pool::{Inner, PagePool, Reserved, Stream};
use super::timeline::Freed;
use super::work::Work;

/// The next block of a batch of streams. Dropped uncommitted, it leaves no trace.
#[must_use = "a block that is dropped uncommitted leaves no trace"]
pub struct Block<'a> {
    pub(super) pool: Arc<Inner>,
    pub(super) streams: Vec<&'a mut Stream>,
    reserved: Vec<Reserved>,
    /// Always there; taken only when the block drops.
    pub(super) work: Option<Box<Work>>,
    pub(super) policy: Policy,
    /// Whether a pass has begun.
    pub(super) passed: bool,
    /// For each choice, whether it was made.
    pub(super) chosen: Vec<bool>,
    /// For each layer, whether the commit pass attended.
    pub(super) committed: Vec<bool>,
    /// For each layer, whether its compressed tokens were handed in.
    pub(super) handed_in: Vec<bool>,
}

impl<'a> Block<'a> {
    fn begin(pool: &Arc<Inner>, streams: Vec<&'a mut Stream>, policy: Policy) -> Result<Block<'a>> {
        const OP: &str = "begin";
        pool.alive()?;
        let config = &pool.config;
        if streams.is_empty() || streams.len() > config.streams {
            let expected = format!("1 to {} streams", config.streams);
            return Err(Error::argument(OP, "streams", expected, streams.len().to_string()));
        }
        if !streams.iter().all(|s| Arc::ptr_eq(&s.pool, pool)) {
            return Err(Error::argument(
                OP,
                "streams",
                "streams of this pool",
                "one of another pool",
            ));
        }
        let (work, reserved) = pool.reserve(OP, streams.len())?;
        let mut block = Block {
            pool: pool.clone(),
            streams,
            reserved,
            chosen: vec![false; work.contexts.len()],
            work: Some(work),
            policy,
            passed: false,
            committed: vec![false; config.layers],
            handed_in: vec![false; config.layers],
        };
        block.upload()?;
        Ok(block)
    }

    /// The tables of this block, from the host to the device.
    fn upload(&mut self) -> Result<()> {
        let config = &self.pool.config;
        let archive = config.archive.0;
        let mut drafts = Vec::with_capacity(self.streams.len());
        let (mut prefix, mut counts, mut rows, mut origins) = (vec![], vec![], vec![], vec![]);
        let mut candidates = vec![0i32; self.streams.len() * archive];
        for (i, (stream, reserved)) in self.streams.iter().zip(&self.reserved).enumerate() {
            let timeline = &stream.timeline;
            let (draft, before) = timeline.draft(&reserved.pages, config);
            drafts.push(draft);
            prefix.push(before as i32);
            counts.push(timeline.mid.len() as i32);
            rows.push(reserved.slot.row as i32);
            origins.push(timeline.origin(config) as f32);
            let candidates = &mut candidates[i * archive..][..archive];
            for (candidate, mid) in candidates.iter_mut().zip(&timeline.mid) {
                *candidate = mid.slot.row as i32;
            }
        }
        let scores = self.given_scores();
        let lists =
            |of: fn(&Reserved) -> &Vec<u32>| -> Vec<Vec<u32>> { self.reserved.iter().map(|r| of(r).clone()).collect() };
        let (current, mid) = (lists(|r| &r.pages), lists(|r| &r.slot.pages));
        let streams = self.streams.len();
        let Some(work) = self.work.as_deref_mut() else {
            return Ok(());
        };
        work.draft.set(&drafts)?;
        work.current.set(&current)?;
        work.mid.set(&mid)?;
        work.rows.view_mut().narrow(0, 0, streams)?.copy_from_slice(&rows)?;
        work.origins
            .view_mut()
            .narrow(0, 0, streams)?
            .copy_from_slice(&origins)?;
        work.prefix.view_mut().narrow(0, 0, streams)?.copy_from_slice(&prefix)?;
        work.counts.view_mut().narrow(0, 0, streams)?.copy_from_slice(&counts)?;
        work.candidates
            .view_mut()
            .narrow(0, 0, streams)?
            .copy_from_slice(&candidates)?;
        if let Some(scores) = scores {
            work.scores.view_mut().copy_from_slice(&scores)?;
        }
        Ok(())
    }

    /// Scores that make the selection choose by another policy than the best match.
    fn given_scores(&self) -> Option<Vec<f32>> {
        let (config, archive) = (&self.pool.config, self.pool.config.archive.0);
        let score: Box<dyn Fn(usize, usize, usize) -> f32> = match self.policy {
            Policy::Top => return None,
            Policy::Newest => Box::new(|_, _, m| m as f32),
            Policy::Random { seed } => Box::new(move |choice, block, m| {
                let words = [choice, block, m].iter().fold(seed, |state, &x| mix(state ^ x as u64));
                (words >> 40) as f32
            }),
        };
        let mut scores = vec![0.0; self.chosen.len() * config.streams * archive];
        for (choice, scores) in scores.chunks_mut((config.streams * archive).max(1)).enumerate() {
            for (stream, scores) in self.streams.iter().zip(scores.chunks_mut(archive.max(1))) {
                for (m, s) in scores.iter_mut().enumerate() {
                    *s = score(choice, stream.blocks(), m);
                }
            }
        }
        Some(scores)
    }

    /// Makes the block part of the history. The commit pass must have attended in every layer, and
    /// handed in every layer's compressed tokens where the model makes them.
    ///
    /// # Errors
    ///
    /// [`Error::Order`] where a layer is missing, [`Error::DeviceLost`]. The streams are then as
    /// before the block.
    pub fn commit(mut self) -> Result<()> {
        const OP: &str = "commit";
        let config = &self.pool.config;
        let missing = |done: &[bool]| done.iter().position(|d| !d);
        if let Some(layer) = missing(&self.committed) {
            let reason = format!("the commit pass has not attended in layer {layer}");
            return Err(Error::Order { op: OP, reason });
        }
        let external = matches!(config.compression, Compression::External(_));
        let keeps_mid = self.streams.iter().any(|s| !s.timeline.filling_sink(config));
        if let Some(layer) = missing(&self.handed_in).filter(|_| external && keeps_mid) {
            let reason = format!("the commit pass has not handed in the compressed tokens of layer {layer}");
            return Err(Error::Order { op: OP, reason });
        }
        self.pool.alive()?;
        let pool = self.pool.clone();
        let mut state = pool.state();
        for reserved in &self.reserved {
            let pages = if config.compresses() {
                &reserved.slot.pages
            } else {
                &reserved.pages
            };
            state.store.slot_pages.set_row(reserved.slot.row as usize, pages)?;
        }
        for (stream, Reserved { pages, slot }) in self.streams.iter_mut().zip(self.reserved.drain(..)) {
            let freed = stream.timeline.commit(pages, slot, &pool.config);
            state.give_back(freed);
        }
        drop(state);
        Ok(())
    }

    /// Its number in the video, from 0: that of the first stream of the batch.
    pub fn number(&self) -> usize {
        self.streams.first().map_or(0, |s| s.blocks())
    }

    /// Tokens that one stream of the batch attends to in this block, itself included.
    pub fn context_tokens(&self, stream: usize) -> Option<Tokens> {
        self.streams.get(stream).map(|s| s.context_tokens())
    }

    /// What one layer attends to, on the device. Known once the layer has attended in this block;
    /// streams of the batch in their order.
    pub fn context(&self, layer: usize) -> Option<&Context> {
        let choice = self.choice(layer);
        let work = self.work.as_deref()?;
        let made = layer < self.pool.config.layers && self.chosen[choice];
        made.then(|| {
            if self.pool.config.selected.0 == 0 {
                &work.draft
            } else {
                &work.contexts[choice]
            }
        })
    }

    /// The numbers of the compressed blocks that each stream attends to in one layer, in time
    /// order; waits for the device.
    ///
    /// # Errors
    ///
    /// [`Error::Order`] before the layer has attended, or whatever the device reports.
    pub fn chosen(&self, layer: usize) -> Result<Vec<Vec<usize>>> {
        let choice = self.choice(layer);
        let selected = self.pool.config.selected.0;
        let (Some(_), Some(work)) = (self.context(layer), self.work.as_deref()) else {
            let reason = format!("layer {layer} has not attended in this block");
            return Err(Error::Order { op: "chosen", reason });
        };
        if selected == 0 {
            return Ok(vec![Vec::new(); self.streams.len()]);
        }
        let chosen = work.chosen.view().select(0, choice)?.to_vec::<i32>()?;
        let of_stream = |(stream, row): (&&mut Stream, &[i32])| {
            let mid = &stream.timeline.mid;
            row.iter()
                .filter_map(|&m| usize::try_from(m).ok().and_then(|m| Some(mid.get(m)?.index)))
                .collect()
        };
        Ok(self
            .streams
            .iter()
            .zip(chosen.chunks(selected))
            .map(of_stream)
            .collect())
    }

    pub(super) fn choice(&self, layer: usize) -> usize {
        match self.pool.config.selection {
            Selection::PerLayer => layer,
            Selection::Shared => 0,
        }
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        let mut freed = Freed::default();
        for Reserved { pages, slot } in self.reserved.drain(..) {
            freed.pages.extend(pages);
            freed.slot(slot);
        }
        self.pool.state().give_back(freed);
        if let Some(work) = self.work.take() {
            self.pool.return_work(work);
        }
    }
}

impl std::fmt::Debug for Block<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({:?})", self.streams)
    }
}

/// SplitMix64's finaliser.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl PagePool {
    /// Begins the next block of one or several streams, which are then one batch: takes the pages
    /// that the block and its commit need, and uploads the tables.
    ///
    /// # Errors
    ///
    /// [`Error::PoolFull`], streams of another pool, more streams than the pool was made for, a
    /// block of this pool that is still under way, [`Error::DeviceLost`]. Nothing has changed then.
    pub fn begin<'a>(&self, streams: impl IntoIterator<Item = &'a mut Stream>) -> Result<Block<'a>> {
        self.begin_with(streams, self.0.config.policy)
    }

    /// As [`PagePool::begin`], with another policy for this block.
    ///
    /// # Errors
    ///
    /// As [`PagePool::begin`].
    pub fn begin_with<'a>(
        &self,
        streams: impl IntoIterator<Item = &'a mut Stream>,
        policy: Policy,
    ) -> Result<Block<'a>> {
        Block::begin(&self.0, streams.into_iter().collect(), policy)
    }
}
