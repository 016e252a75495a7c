//! The passes of a block: denoise passes that only read the history, and the commit pass that writes what is kept.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::append_kv::{self, AppendKv, Lattice};
use crate::ops::attention;
use crate::paging::Context;
use crate::tensor::{View, ViewMut};

use super::block::Block;
use super::config::{Compression, PackConfig};
use super::layer::{Qkv, append, attention_of, choose, compress, sum_mid};
use super::pool::Inner;

impl<'a> Block<'a> {
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
        let mut state = pool.state();
        let store = &mut state.store;
        let Some(work) = block.work.as_deref_mut() else {
            return Ok(());
        };

        // From here on the pages change: an error leaves the layer to be attended again.
        block.committed[layer] = false;
        append(config, work, store, layer, qkv)?;
        if !block.chosen[choice] && config.selected.0 > 0 {
            choose(config, work, store, (layer, choice), streams, block.policy)?;
        }
        let arguments = attention_of(config, work, store, (layer, choice), streams)?;
        attention::run(&arguments, out, lse)?;
        drop(arguments);
        block.chosen[choice] = true;
        if commits {
            compress(config, work, store, layer, streams)?;
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
        let mut state = pool.state();
        let store = &mut state.store;
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
        append_kv::run(&append, None, &mut store.kv.layer_mut(layer)?)?;
        sum_mid(config, work, store, layer, streams)?;
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
        attention::check(
            &attention_of(config, work, &pool.state().store, place, streams)?,
            out,
            lse,
        )
        .map(drop)
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
