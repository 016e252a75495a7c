//! The memory of a packed cache, and the streams that live in it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::paging::{KvPages, KvPagesMut, PageLists};
use crate::tensor::Tensor;
use crate::units::{Pages, Tokens};

use super::block::{Block, rehearse};
use super::config::{PackConfig, Policy};
use super::timeline::{Freed, Place, Slot, Timeline};
use super::work::Work;

/// Pages for the keys and values of every layer, reserved once. Cheap to clone; clones share the
/// pages.
#[derive(Clone)]
pub struct PagePool(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub device: Device,
    pub config: PackConfig,
    state: Mutex<State>,
}

/// Keys and values of every layer.
pub(crate) struct Store {
    /// [layers, pages, kv_heads, page_tokens, dim]
    k: Tensor,
    v: Tensor,
    /// Log sizes of merged tokens, of every layer or one for all. [1 or layers, pages, kv_heads, page_tokens]
    slot_bias: Option<Tensor>,
}

/// What the streams of a pool share.
pub(crate) struct State {
    pub store: Store,
    /// Sums of a compressed block's keys. f32 [layers, slots, kv_heads, dim]
    pub key_sums: Tensor,
    /// Pages of every compressed block.
    pub slot_pages: PageLists,
    free_pages: Vec<u32>,
    free_rows: Vec<u32>,
    /// Away while a block is under way.
    work: Option<Box<Work>>,
    work_bytes: usize,
}

impl Store {
    /// One layer's pages, for reading.
    pub fn layer(&self, layer: usize) -> Result<KvPages<'_>> {
        Ok(KvPages {
            k: self.k.view().select(0, layer)?,
            v: self.v.view().select(0, layer)?,
            slot_bias: match &self.slot_bias {
                Some(bias) => Some(bias.view().select(0, layer.min(bias.view().shape()[0] - 1))?),
                None => None,
            },
        })
    }

    /// One layer's pages, for writing.
    pub fn layer_mut(&mut self, layer: usize) -> Result<KvPagesMut<'_>> {
        Ok(KvPagesMut {
            k: self.k.view_mut().select(0, layer)?,
            v: self.v.view_mut().select(0, layer)?,
            slot_bias: match &mut self.slot_bias {
                Some(bias) => {
                    let own = layer.min(bias.view().shape()[0] - 1);
                    Some(bias.view_mut().select(0, own)?)
                }
                None => None,
            },
        })
    }
}

impl State {
    pub fn give_back(&mut self, freed: Freed) {
        self.free_pages.extend(freed.pages);
        self.free_rows.extend(freed.rows);
    }
}

/// Pages that the next block writes, taken from the pool.
pub(crate) struct Reserved {
    pub pages: Vec<u32>,
    pub slot: Slot,
}

impl Inner {
    /// The state. A panic elsewhere leaves it usable: every change is made of whole steps.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// An error once the device has reported a fault: what the pages hold is not known any more.
    pub fn alive(&self) -> Result<()> {
        self.device.alive()
    }

    /// Takes the work space and pages for `streams` new blocks; all of it or nothing.
    pub fn reserve(&self, op: &'static str, streams: usize) -> Result<(Box<Work>, Vec<Reserved>)> {
        let config = &self.config;
        let whole = config.block_pages().0;
        let mid = if config.compresses() { config.mid_pages().0 } else { 0 };
        let state = &mut *self.state();
        let Some(work) = state.work.take() else {
            let reason = "a block of this pool is under way; drop or commit it first, or begin both as one batch";
            return Err(Error::Order {
                op,
                reason: reason.into(),
            });
        };
        let needed = streams * (whole + mid);
        if state.free_pages.len() < needed || state.free_rows.len() < streams {
            state.work = Some(work);
            return Err(Error::PoolFull {
                op,
                needed,
                free: state.free_pages.len(),
            });
        }
        let mut take = |n: usize| state.free_pages.split_off(state.free_pages.len() - n);
        let mut reserved = Vec::with_capacity(streams);
        for _ in 0..streams {
            let (pages, pages_of_slot) = (take(whole), take(mid));
            let row = state.free_rows.pop().unwrap_or_default();
            reserved.push(Reserved {
                pages,
                slot: Slot {
                    row,
                    pages: pages_of_slot,
                },
            });
        }
        Ok((work, reserved))
    }

    pub fn return_work(&self, work: Box<Work>) {
        self.state().work = Some(work);
    }
}

impl PagePool {
    /// Reserves everything that [`PackConfig::bytes`] counts.
    ///
    /// # Errors
    ///
    /// What the device does not take of the configuration (a dtype, a head dim, the number of
    /// blocks), named by the op that refuses it; [`Error::OutOfMemory`], or another error of the
    /// device.
    pub fn new(device: &Device, config: &PackConfig) -> Result<PagePool> {
        let pages = config.pool_pages().0;
        let heads = config.heads;
        let slots = config.slots_per_stream() * config.streams;
        let kv = [config.layers, pages, heads.kv, config.page_tokens, heads.dim];
        let slot_bias = config
            .slot_bias()
            .then(|| Tensor::zeros(device, DType::F32, &[config.bias_layers(), kv[1], kv[2], kv[3]]))
            .transpose()?;
        let mut work = Box::new(Work::new(device, config)?);
        let mut state = State {
            store: Store {
                k: Tensor::zeros(device, config.dtype, &kv)?,
                v: Tensor::zeros(device, config.dtype, &kv)?,
                slot_bias,
            },
            key_sums: Tensor::zeros(device, DType::F32, &[config.layers, slots, heads.kv, heads.dim])?,
            slot_pages: PageLists::new(device, pages, slots, config.mid_pages().0)?,
            free_pages: (0..pages as u32).rev().collect(),
            free_rows: (0..slots as u32).rev().collect(),
            work_bytes: work.bytes(),
            work: None,
        };
        rehearse(device, config, &mut work, &mut state)?;
        state.work = Some(work);
        Ok(PagePool(Arc::new(Inner {
            device: device.clone(),
            config: config.clone(),
            state: Mutex::new(state),
        })))
    }

    /// An empty video. It takes pages as it grows.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLost`].
    pub fn stream(&self) -> Result<Stream> {
        self.0.alive()?;
        Ok(Stream {
            pool: self.0.clone(),
            timeline: Timeline::default(),
        })
    }

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

    /// What it was made of.
    pub fn config(&self) -> &PackConfig {
        &self.0.config
    }

    /// Where its pages are.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Bytes of device memory that it has reserved: what [`PackConfig::bytes`] told.
    pub fn bytes(&self) -> usize {
        let state = self.0.state();
        let store = &state.store;
        let tensors = [
            Some(&store.k),
            Some(&store.v),
            store.slot_bias.as_ref(),
            Some(&state.key_sums),
        ];
        let tables = state.slot_pages.bytes() + state.work_bytes;
        tensors.into_iter().flatten().map(Tensor::bytes).sum::<usize>() + tables
    }

    /// Pages that no stream holds.
    pub fn free_pages(&self) -> Pages {
        Pages(self.0.state().free_pages.len())
    }
}

impl fmt::Debug for PagePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PagePool({}, {} of {} free)",
            self.0.device,
            self.free_pages(),
            self.0.config.pool_pages()
        )
    }
}

/// One video: which of its blocks are in the pool, and where. Its pages go back when it drops.
pub struct Stream {
    pub(crate) pool: Arc<Inner>,
    pub(crate) timeline: Timeline,
}

impl Stream {
    /// Blocks committed so far.
    pub fn blocks(&self) -> usize {
        self.timeline.committed
    }

    /// Every block of the past that is still in the pool, in time order: its number in the video,
    /// and where it stands.
    pub fn timeline(&self) -> Vec<(usize, Place)> {
        self.timeline.places()
    }

    /// Tokens that the next block attends to, itself included.
    pub fn context_tokens(&self) -> Tokens {
        Tokens(self.timeline.context_tokens(&self.pool.config))
    }

    /// Forgets the video; the next block is block 0.
    pub fn reset(&mut self) {
        let freed = self.timeline.clear();
        self.pool.state().give_back(freed);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reset();
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({} blocks, {:?})", self.blocks(), self.timeline())
    }
}
