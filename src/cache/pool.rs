//! The memory of a packed cache, and the streams that live in it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::units::{Pages, Tokens};

use super::config::PackConfig;
use super::layer::rehearse;
use super::store::Store;
use super::timeline::{Freed, Place, Slot, Timeline};
use super::work::Work;

/// Pages for the keys and values of every layer, reserved once. Cheap to clone; clones share the
/// pages.
///
/// There are pages for [`PackConfig::streams`] full videos: up to that many [`Stream`]s, forked or
/// not, never see [`Error::PoolFull`]. More may exist, since short ones and forks
/// ([`Stream::fork`]) take fewer; [`PagePool::begin`] refuses the block that finds no room, and
/// dropping or resetting a stream makes some. A batch is [`PackConfig::streams`] at most.
#[derive(Clone)]
pub struct PagePool(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub device: Device,
    pub config: PackConfig,
    state: Mutex<State>,
}

/// What the streams of a pool share: the memory, and who holds which of it.
pub(crate) struct State {
    pub store: Store,
    pages: Counted,
    rows: Counted,
    /// Away while a block is under way.
    work: Option<Box<Work>>,
    work_bytes: usize,
}

/// Pages, or slot rows: who is free, and how many owners the others have.
struct Counted {
    free: Vec<u32>,
    owners: Vec<u32>,
}

impl Counted {
    fn new(n: usize) -> Counted {
        Counted {
            free: (0..n as u32).rev().collect(),
            owners: vec![0; n],
        }
    }

    /// `n` of them for one owner. The caller has seen that there are as many.
    fn take(&mut self, n: usize) -> Vec<u32> {
        let taken = self.free.split_off(self.free.len() - n);
        taken.iter().for_each(|&i| self.owners[i as usize] = 1);
        taken
    }

    fn share(&mut self, held: &[u32]) {
        held.iter().for_each(|&i| self.owners[i as usize] += 1);
    }

    fn give_back(&mut self, held: &[u32]) {
        for &i in held {
            let owners = &mut self.owners[i as usize];
            *owners -= 1;
            if *owners == 0 {
                self.free.push(i);
            }
        }
    }
}

// Why a fork may share, and a page be reused at once.
//
// What is committed is never written again. A block writes through `Work::current`, `Work::mid` and
// `Work::rows` only: keys, values and log sizes by `append_kv` and `merge_tokens` to its own pages,
// sums to its own rows of `key_sums`, and `commit` the same rows of `slot_pages`. All of these are
// `Reserved`: they came off the free list, so no timeline named them, and each block has whole pages
// of its own, so that a page which a block fills in part is not filled up by the next. When a block
// moves from the recent ones to the compressed ones only the host's lists change. Two forks thus
// read the same bytes for as long as one of them names the page.
//
// Freeing is a matter of the host alone and does not wait. What was launched may still read a freed
// page; whoever writes it next is a later launch or upload on the same stream of the device, which
// runs after it: every tensor of the pool and every view that a pass takes is on `Inner::device`,
// whose equality is that of streams. The same holds for the tables in `Work`, which the next block
// uploads while launches of the last one may be waiting. `Work` is with one block at a time, so the
// uploads and launches of two blocks never mix, from whatever threads they come. A stream that
// drops on another thread changes the free list only, under the lock. The memory itself is freed in
// the order of the stream, by the last of pool, streams and block to go.

impl State {
    /// One owner less for each.
    pub fn give_back(&mut self, freed: Freed) {
        self.pages.give_back(&freed.pages);
        self.rows.give_back(&freed.rows);
    }

    /// One owner more for each.
    fn share(&mut self, held: &Freed) {
        self.pages.share(&held.pages);
        self.rows.share(&held.rows);
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
        let full = [
            ("pages", streams * (whole + mid), state.pages.free.len()),
            ("compressed blocks", streams, state.rows.free.len()),
        ];
        if let Some((of, needed, free)) = full.into_iter().find(|(_, needed, free)| needed > free) {
            state.work = Some(work);
            return Err(Error::PoolFull { op, of, needed, free });
        }
        let mut reserved = Vec::with_capacity(streams);
        for row in state.rows.take(streams) {
            let pages = state.pages.take(whole);
            let slot = Slot {
                row,
                pages: state.pages.take(mid),
            };
            reserved.push(Reserved { pages, slot });
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
        let mut work = Box::new(Work::new(device, config)?);
        let mut store = Store::new(device, config)?;
        rehearse(device, config, &mut work, &mut store)?;
        let state = State {
            store,
            pages: Counted::new(config.pool_pages().0),
            rows: Counted::new(config.slots_per_stream() * config.streams),
            work_bytes: work.bytes(),
            work: Some(work),
        };
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
        state.store.bytes() + state.work_bytes
    }

    /// Pages that no stream holds.
    pub fn free_pages(&self) -> Pages {
        Pages(self.0.state().pages.free.len())
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

/// One video: which of its blocks are in the pool, and where. Its pages go back when it drops,
/// those that it shares with forks when the last of them lets go.
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

    /// Another video with the same past: both go on independently, also in one batch. Nothing is
    /// copied, since committed pages never change; what both still hold of the past is held once.
    ///
    /// A fork takes no pages. Its own blocks do, and what one of the two has dropped of the past
    /// stays in the pool while the other holds it: [`PagePool`] tells how many streams fit.
    ///
    /// While a block of this stream is under way it is borrowed, and cannot be forked:
    ///
    /// ```compile_fail,E0502
    /// # use packforcing::cache::{PagePool, Stream};
    /// # fn main() -> packforcing::Result<()> { Ok(()) }
    /// fn fork_of_half_a_block(pool: &PagePool, video: &mut Stream) -> packforcing::Result<()> {
    ///     let block = pool.begin([&mut *video])?;
    ///     let fork = video.fork()?;
    ///     block.commit()
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLost`]; nothing has changed then.
    pub fn fork(&self) -> Result<Stream> {
        self.pool.alive()?;
        let timeline = self.timeline.clone();
        self.pool.state().share(&timeline.held());
        Ok(Stream {
            pool: self.pool.clone(),
            timeline,
        })
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
