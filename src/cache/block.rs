//! A block on its way: denoise passes that only read the history, the commit pass that writes what
//! is kept, and the commit itself.

use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::append_kv::{self, AppendKv, Lattice, Norm};
use crate::ops::attention::{self, Attention};
use crate::ops::match_tokens::{self, MatchTokens};
use crate::ops::merge_tokens::{self, MergeTokens};
use crate::ops::select_blocks::{self, BlockShape, Scores, SelectBlocks, SumKeys};
use crate::paging::Context;
use crate::tensor::{Tensor, View, ViewMut};
use crate::units::Tokens;

use super::config::{Compression, PackConfig, Policy, Selection};
use super::pool::{Inner, Reserved, State, Stream};
use super::timeline::Freed;
use super::work::Work;

/// What a layer gives to attend with: normed or not, but never rotated.
#[derive(Debug, Clone)]
pub struct Qkv<'a> {
    /// `[streams, tokens, q_heads, dim]`
    pub q: View<'a>,
    /// `[streams, tokens, kv_heads, dim]`
    pub k: View<'a>,
    /// `[streams, tokens, kv_heads, dim]`
    pub v: View<'a>,
    /// RMSNorm of q and k over all heads of a token; `None` where the model has normed them.
    pub norm: Option<Norm<'a>>,
}

/// The next block of a batch of streams. Dropped uncommitted, it leaves no trace.
#[must_use = "a block that is dropped uncommitted leaves no trace"]
pub struct Block<'a> {
    pub(super) pool: Arc<Inner>,
    pub(super) streams: Vec<&'a mut Stream>,
    reserved: Vec<Reserved>,
    /// Always there; taken only when the block drops.
    work: Option<Box<Work>>,
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
    pub(super) fn begin(pool: &Arc<Inner>, streams: Vec<&'a mut Stream>, policy: Policy) -> Result<Block<'a>> {
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

    /// A pass of the model that reads the history and leaves nothing behind. After a commit pass
    /// it undoes that one: the block wants another.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLost`].
    pub fn denoise_pass(&mut self) -> Result<Pass<'_, 'a>> {
        self.pass(false)
    }

    /// The pass on the clean block whose keys and values stay.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLost`].
    pub fn commit_pass(&mut self) -> Result<Pass<'_, 'a>> {
        self.pass(true)
    }

    fn pass(&mut self, commits: bool) -> Result<Pass<'_, 'a>> {
        self.pool.alive()?;
        // Every pass writes the block's pages, so what an earlier commit pass wrote is gone.
        self.passed = true;
        self.committed.fill(false);
        self.handed_in.fill(false);
        Ok(Pass { block: self, commits })
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
            state.slot_pages.set_row(reserved.slot.row as usize, pages)?;
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

    fn choice(&self, layer: usize) -> usize {
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

/// One forward pass of the model over the current block.
#[derive(Debug)]
pub struct Pass<'b, 'a> {
    block: &'b mut Block<'a>,
    commits: bool,
}

impl Pass<'_, '_> {
    /// Attention of one layer over the packed history and the block itself. Queries and keys come
    /// normed, not rotated: `[streams, tokens, heads, dim]`, as `out`. The first call of a layer in
    /// a block chooses the compressed blocks it attends to; later calls attend to the same.
    ///
    /// On the CPU the ops run on rayon's threads while the pool is locked: call it from outside of
    /// rayon jobs.
    ///
    /// # Errors
    ///
    /// A layer that is not there, views of another shape, dtype or device: nothing has changed.
    /// [`Error::DeviceLost`] and other errors of the device.
    pub fn attend(&mut self, layer: usize, q: View<'_>, k: View<'_>, v: View<'_>, out: &mut ViewMut<'_>) -> Result<()> {
        self.attend_with(layer, &Qkv { q, k, v, norm: None }, out, None)
    }

    /// As [`Pass::attend`], with the norm of queries and keys fused in, and the natural-log LSE,
    /// f32 `[streams, tokens, q_heads]`.
    ///
    /// # Errors
    ///
    /// As [`Pass::attend`].
    pub fn attend_with(
        &mut self,
        layer: usize,
        qkv: &Qkv<'_>,
        out: &mut ViewMut<'_>,
        lse: Option<&mut ViewMut<'_>>,
    ) -> Result<()> {
        self.check(layer, qkv, out, lse.as_deref())?;
        let commits = self.commits;
        let block = &mut *self.block;
        let choice = block.choice(layer);
        let pool = block.pool.clone();
        let config = &pool.config;
        let streams = block.streams.len();
        let state = &mut *pool.state();
        let Some(work) = block.work.as_deref_mut() else {
            return Ok(());
        };

        // From here on the pages change: an error leaves the layer to be attended again.
        block.committed[layer] = false;
        append(config, work, state, layer, qkv)?;
        if !block.chosen[choice] && config.selected.0 > 0 {
            choose(config, work, state, (layer, choice), streams, block.policy)?;
        }
        let arguments = attention_of(config, work, state, (layer, choice), streams)?;
        attention::run(&arguments, out, lse)?;
        drop(arguments);
        block.chosen[choice] = true;
        if commits {
            compress(config, work, state, layer, streams)?;
            block.committed[layer] = true;
        }
        Ok(())
    }

    /// Where the pages are, and what is attended with has to be.
    pub fn device(&self) -> &Device {
        &self.block.pool.device
    }

    /// What one layer attends to, as [`Block::context`].
    pub fn context(&self, layer: usize) -> Option<&Context> {
        self.block.context(layer)
    }

    /// Hands in one layer's compressed tokens, where the model makes them
    /// ([`Compression::External`]): keys normed, not rotated, `[streams, mid_tokens, kv_heads, dim]`.
    /// They are rotated at the centroids of their cells.
    ///
    /// # Errors
    ///
    /// [`Error::Order`] outside a commit pass or with another compression; views that do not fit.
    pub fn hand_in(&mut self, layer: usize, k: View<'_>, v: View<'_>) -> Result<()> {
        const OP: &str = "hand_in";
        let block = &mut *self.block;
        let pool = block.pool.clone();
        let config = &pool.config;
        let Compression::External(grid) = config.compression else {
            let reason = format!("the cache makes compressed tokens itself: {:?}", config.compression);
            return Err(Error::Order { op: OP, reason });
        };
        if !self.commits {
            return Err(Error::Order {
                op: OP,
                reason: "compressed tokens are handed in during the commit pass".into(),
            });
        }
        let streams = block.streams.len();
        let shape = [streams, grid.tokens().0, config.heads.kv, config.heads.dim];
        layer_exists(OP, config, layer)?;
        expect(OP, "k", &k, config, &pool, &shape)?;
        expect(OP, "v", &v, config, &pool, &shape)?;
        let Some(work) = block.work.as_deref_mut() else {
            return Ok(());
        };
        let state = &mut *pool.state();
        let step = std::array::from_fn(|a| config.block.extents()[a] as f64 / grid.extents()[a] as f64);
        let lattice = Lattice {
            grid,
            start: step.map(|s| 0.5 * (s - 1.0)),
            step,
        };
        let append = AppendKv {
            q: None,
            k,
            v,
            norm: None,
            rope: &config.rope,
            lattice,
            origins: None,
            pages: &work.mid,
        };
        append_kv::run(&append, None, &mut state.store.layer_mut(layer)?)?;
        sum_mid(config, work, state, layer, streams)?;
        block.handed_in[layer] = true;
        Ok(())
    }

    /// Everything that could be refused later is refused before the first write.
    fn check(&self, layer: usize, qkv: &Qkv<'_>, out: &ViewMut<'_>, lse: Option<&ViewMut<'_>>) -> Result<()> {
        const OP: &str = "attend";
        let pool = &self.block.pool;
        let config = &pool.config;
        let streams = self.block.streams.len();
        let shape = |heads| [streams, config.block_tokens().0, heads, config.heads.dim];
        pool.alive()?;
        layer_exists(OP, config, layer)?;
        expect(OP, "q", &qkv.q, config, pool, &shape(config.heads.query))?;
        expect(OP, "k", &qkv.k, config, pool, &shape(config.heads.kv))?;
        expect(OP, "v", &qkv.v, config, pool, &shape(config.heads.kv))?;
        expect(OP, "out", &out.view(), config, pool, &shape(config.heads.query))?;
        let Some(work) = self.block.work.as_deref() else {
            return Ok(());
        };
        let place = (layer, self.block.choice(layer));
        attention::check(&attention_of(config, work, &pool.state(), place, streams)?, out, lse).map(drop)
    }
}

fn layer_exists(op: &'static str, config: &PackConfig, layer: usize) -> Result<()> {
    if layer < config.layers {
        return Ok(());
    }
    Err(Error::argument(
        op,
        "layer",
        format!("a layer below {}", config.layers),
        layer.to_string(),
    ))
}

fn expect(
    op: &'static str,
    argument: &'static str,
    view: &View<'_>,
    config: &PackConfig,
    pool: &Inner,
    shape: &[usize],
) -> Result<()> {
    if view.shape() == shape && view.dtype() == config.dtype && view.device() == &pool.device {
        return Ok(());
    }
    let expected = format!("{} {shape:?} on {}", config.dtype, pool.device);
    Err(Error::argument(op, argument, expected, format!("{view:?}")))
}

/// Rotates the queries into the work space, and writes keys and values into the current pages.
fn append(config: &PackConfig, work: &mut Work, state: &mut State, layer: usize, qkv: &Qkv<'_>) -> Result<()> {
    let streams = qkv.q.shape()[0];
    let append = AppendKv {
        q: Some(qkv.q.clone()),
        k: qkv.k.clone(),
        v: qkv.v.clone(),
        norm: qkv.norm.clone(),
        rope: &config.rope,
        lattice: Lattice::whole(config.block),
        origins: Some(work.origins.view().narrow(0, 0, streams)?),
        pages: &work.current,
    };
    let mut queries = work.queries.view_mut().narrow(0, 0, streams)?;
    append_kv::run(&append, Some(&mut queries), &mut state.store.layer_mut(layer)?)
}

/// Attention of the rotated queries over the chosen context.
fn attention_of<'a>(
    config: &'a PackConfig,
    work: &'a Work,
    state: &'a State,
    (layer, choice): (usize, usize),
    streams: usize,
) -> Result<Attention<'a>> {
    Ok(Attention {
        q: work.queries.view().narrow(0, 0, streams)?,
        kv: state.store.layer(layer)?,
        context: if config.selected.0 == 0 {
            &work.draft
        } else {
            &work.contexts[choice]
        },
        rope: &config.rope,
        scale: (config.heads.dim as f32).sqrt().recip(),
    })
}

/// Goes through every call of a block with no stream at all: nothing runs, and what the device does
/// not take of this configuration is refused.
pub(super) fn rehearse(device: &Device, config: &PackConfig, work: &mut Work, state: &mut State) -> Result<()> {
    let heads = config.heads;
    let none = |n| Tensor::zeros(device, config.dtype, &[0, config.block_tokens().0, n, heads.dim]);
    let (mut out, kv) = (none(heads.query)?, none(heads.kv)?);
    work.current.set(&[])?;
    work.mid.set(&[])?;
    let qkv = Qkv {
        q: out.view(),
        k: kv.view(),
        v: kv.view(),
        norm: None,
    };
    append(config, work, state, 0, &qkv)?;
    drop(qkv);
    if config.selected.0 > 0 {
        choose(config, work, state, (0, 0), 0, Policy::Top)?;
    }
    attention::run(
        &attention_of(config, work, state, (0, 0), 0)?,
        &mut out.view_mut(),
        None,
    )?;
    compress(config, work, state, 0, 0)
}

/// Chooses compressed blocks and writes the context of one choice.
fn choose(
    config: &PackConfig,
    work: &mut Work,
    state: &mut State,
    (layer, choice): (usize, usize),
    streams: usize,
    policy: Policy,
) -> Result<()> {
    let scores = match policy {
        Policy::Top => Scores::Dot {
            q: work.queries.view().narrow(0, 0, streams)?,
            key_sums: state.key_sums.view().select(0, layer)?,
            query_sums: work.query_sums.view_mut().narrow(0, 0, streams)?,
            scores: work.scores.view_mut().select(0, choice)?.narrow(0, 0, streams)?,
        },
        Policy::Newest | Policy::Random { .. } => {
            Scores::Given(work.scores.view().select(0, choice)?.narrow(0, 0, streams)?)
        }
    };
    let mut arguments = SelectBlocks {
        scores,
        candidates: work.candidates.view().narrow(0, 0, streams)?,
        counts: work.counts.view().narrow(0, 0, streams)?,
        slot_pages: &state.slot_pages,
        shape: BlockShape {
            tokens: config.mid_tokens().0,
            frames: config.mid_frames.0 as f32,
            key_bias: config.key_bias,
            slot_bias: config.slot_bias(),
        },
        selected: config.selected.0,
        draft: &work.draft,
        draft_prefix: work.prefix.view().narrow(0, 0, streams)?,
    };
    let mut chosen = work.chosen.view_mut().select(0, choice)?.narrow(0, 0, streams)?;
    select_blocks::run_select_blocks(&mut arguments, &mut chosen, &mut work.contexts[choice])
}

/// Makes the compressed form of the blocks that were just written. Blocks of the sink need none;
/// making theirs too keeps a batch of streams of different lengths one launch.
fn compress(config: &PackConfig, work: &mut Work, state: &mut State, layer: usize, streams: usize) -> Result<()> {
    match config.compression {
        Compression::External(_) => return Ok(()),
        Compression::None => {}
        Compression::Mean(pool) => {
            let merge = MergeTokens {
                source: &work.current,
                dest: &work.mid,
                grid: config.block,
                pool,
                rope: &config.rope,
            };
            merge_tokens::run(&merge, &mut state.store.layer_mut(layer)?)?;
        }
        Compression::Match { .. } => {
            let merge = MatchTokens {
                source: &work.current,
                dest: &work.mid,
                merges: config.merges(),
                weighted: false,
            };
            if let Some(matching) = &mut work.matching {
                match_tokens::run(&merge, matching, &mut state.store.layer_mut(layer)?)?;
            }
        }
    }
    sum_mid(config, work, state, layer, streams)
}

/// Sums the keys of the blocks' compressed forms, for their scores. Tokens that were merged by likeness stand
/// for very different numbers of tokens; of these blocks the whole form is summed, which still is there.
fn sum_mid(config: &PackConfig, work: &Work, state: &mut State, layer: usize, streams: usize) -> Result<()> {
    let sum = SumKeys {
        kv: state.store.layer(layer)?,
        pages: match config.compression {
            Compression::None | Compression::Match { .. } => &work.current,
            Compression::Mean(_) | Compression::External(_) => &work.mid,
        },
        rows: work.rows.view().narrow(0, 0, streams)?,
        tokens: match config.compression {
            Compression::Match { .. } => config.block_tokens().0,
            _ => config.mid_tokens().0,
        },
    };
    select_blocks::run_sum_keys(&sum, &mut state.key_sums.view_mut().select(0, layer)?)
}
