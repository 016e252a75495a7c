//! What one layer of a block does with the cache: it writes, chooses, attends and compresses.

use crate::device::Device;
use crate::error::Result;
use crate::ops::append_kv::{self, AppendKv, Lattice, Norm};
use crate::ops::attention::{self, Attention};
use crate::ops::match_tokens::{self, MatchTokens};
use crate::ops::merge_tokens::{self, MergeTokens};
use crate::ops::select_blocks::{self, BlockShape, Scores, SelectBlocks, SumKeys};
use crate::tensor::{Tensor, View};

use super::config::{Compression, PackConfig, Policy};
use super::store::Store;
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

/// Rotates the queries into the work space, and writes keys and values into the current pages.
pub(super) fn append(
    config: &PackConfig,
    work: &mut Work,
    store: &mut Store,
    layer: usize,
    qkv: &Qkv<'_>,
) -> Result<()> {
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
    append_kv::run(&append, Some(&mut queries), &mut store.kv.layer_mut(layer)?)
}

/// Attention of the rotated queries over the chosen context.
pub(super) fn attention_of<'a>(
    config: &'a PackConfig,
    work: &'a Work,
    store: &'a Store,
    (layer, choice): (usize, usize),
    streams: usize,
) -> Result<Attention<'a>> {
    Ok(Attention {
        q: work.queries.view().narrow(0, 0, streams)?,
        kv: store.kv.layer(layer)?,
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
pub(super) fn rehearse(device: &Device, config: &PackConfig, work: &mut Work, store: &mut Store) -> Result<()> {
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
    append(config, work, store, 0, &qkv)?;
    drop(qkv);
    if config.selected.0 > 0 {
        choose(config, work, store, (0, 0), 0, Policy::Top)?;
    }
    attention::run(
        &attention_of(config, work, store, (0, 0), 0)?,
        &mut out.view_mut(),
        None,
    )?;
    compress(config, work, store, 0, 0)
}

/// Chooses compressed blocks and writes the context of one choice.
pub(super) fn choose(
    config: &PackConfig,
    work: &mut Work,
    store: &mut Store,
    (layer, choice): (usize, usize),
    streams: usize,
    policy: Policy,
) -> Result<()> {
    let scores = match policy {
        Policy::Top => Scores::Dot {
            q: work.queries.view().narrow(0, 0, streams)?,
            key_sums: store.key_sums.view().select(0, layer)?,
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
        slot_pages: &store.slot_pages,
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
pub(super) fn compress(
    config: &PackConfig,
    work: &mut Work,
    store: &mut Store,
    layer: usize,
    streams: usize,
) -> Result<()> {
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
            merge_tokens::run(&merge, &mut store.kv.layer_mut(layer)?)?;
        }
        Compression::Match { .. } => {
            let merge = MatchTokens {
                source: &work.current,
                dest: &work.mid,
                merges: config.merges(),
                weighted: false,
            };
            if let Some(matching) = &mut work.matching {
                match_tokens::run(&merge, matching, &mut store.kv.layer_mut(layer)?)?;
            }
        }
    }
    sum_mid(config, work, store, layer, streams)
}

/// Sums the keys of the blocks' compressed forms, for their scores. Tokens that were merged by likeness stand
/// for very different numbers of tokens; of these blocks the whole form is summed, which still is there.
pub(super) fn sum_mid(config: &PackConfig, work: &Work, store: &mut Store, layer: usize, streams: usize) -> Result<()> {
    let sum = SumKeys {
        kv: store.kv.layer(layer)?,
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
    select_blocks::run_sum_keys(&sum, &mut store.key_sums.view_mut().select(0, layer)?)
}
