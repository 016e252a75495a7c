//! Pages, page lists and segments: what ops and the cache both speak of.
//!
//! Keys and values live in pages, `[page][kv_head][token][dim]`. What a query attends to is a list
//! of [`Segment`]s: runs of pages, each with one rotation of the query and one bias.

use bytemuck::Zeroable;

use crate::device::{Device, Span};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ffi;
use crate::tensor::{Tensor, View, ViewMut};

/// Keys and values in pages, for reading.
#[derive(Debug, Clone)]
pub struct KvPages<'a> {
    /// Keys, rotated at their place inside their segment. `[pages, kv_heads, page_tokens, dim]`
    pub k: View<'a>,
    /// Values. `[pages, kv_heads, page_tokens, dim]`
    pub v: View<'a>,
    /// Added to the logits of segments that ask for it, natural log, f32.
    /// `[pages, kv_heads, page_tokens]`
    pub slot_bias: Option<View<'a>>,
}

/// Keys and values in pages, for writing. The layout of [`KvPages`].
#[derive(Debug)]
pub struct KvPagesMut<'a> {
    /// Keys. `[pages, kv_heads, page_tokens, dim]`
    pub k: ViewMut<'a>,
    /// Values. `[pages, kv_heads, page_tokens, dim]`
    pub v: ViewMut<'a>,
    /// Log sizes, f32. `[pages, kv_heads, page_tokens]`
    pub slot_bias: Option<ViewMut<'a>>,
}

impl KvPagesMut<'_> {
    /// The same pages, read-only.
    pub fn view(&self) -> KvPages<'_> {
        KvPages {
            k: self.k.view(),
            v: self.v.view(),
            slot_bias: self.slot_bias.as_ref().map(ViewMut::view),
        }
    }

    /// The same pages for a shorter time.
    pub fn reborrow(&mut self) -> KvPagesMut<'_> {
        KvPagesMut {
            k: self.k.reborrow(),
            v: self.v.reborrow(),
            slot_bias: self.slot_bias.as_mut().map(ViewMut::reborrow),
        }
    }
}

/// The extents of paged keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageShape {
    pub pages: usize,
    pub heads: usize,
    pub page_tokens: usize,
    pub dim: usize,
}

impl PageShape {
    /// Reads the extents and checks that keys, values and bias agree.
    pub fn of(op: &'static str, kv: &KvPages<'_>) -> Result<PageShape> {
        let &[pages, heads, page_tokens, dim] = kv.k.shape() else {
            return Err(Error::argument(
                op,
                "kv.k",
                "[pages, kv_heads, page_tokens, dim]",
                format!("{:?}", kv.k.shape()),
            ));
        };
        if kv.v.shape() != kv.k.shape() || kv.v.dtype() != kv.k.dtype() || kv.v.device() != kv.k.device() {
            return Err(Error::argument(
                op,
                "kv.v",
                format!("the same as kv.k: {:?}", kv.k),
                format!("{:?}", kv.v),
            ));
        }
        if heads == 0 || page_tokens == 0 || dim == 0 {
            return Err(Error::argument(
                op,
                "kv.k",
                "extents above 0",
                format!("{:?}", kv.k.shape()),
            ));
        }
        if let Some(bias) = &kv.slot_bias {
            let fits = bias.shape() == [pages, heads, page_tokens] && bias.dtype() == DType::F32;
            if !fits || bias.device() != kv.k.device() {
                return Err(Error::argument(
                    op,
                    "kv.slot_bias",
                    format!("f32 [{pages}, {heads}, {page_tokens}] on {}", kv.k.device()),
                    format!("{bias:?}"),
                ));
            }
        }
        Ok(PageShape {
            pages,
            heads,
            page_tokens,
            dim,
        })
    }
}

/// A list of page numbers for each stream, in device memory, checked against the pool's size.
#[derive(Debug)]
pub struct PageLists {
    entries: Tensor, // i32 [capacity, length]
    /// Lists that were set last; the rest is out of use.
    used: usize,
    pool_pages: usize,
}

impl PageLists {
    /// Room for `streams` lists of `length` pages; all entries are page 0 until [`PageLists::set`].
    ///
    /// # Errors
    ///
    /// Memory that the device does not have.
    pub fn new(device: &Device, pool_pages: usize, streams: usize, length: usize) -> Result<PageLists> {
        let entries = Tensor::zeros(device, DType::I32, &[streams, length])?;
        Ok(PageLists {
            entries,
            used: streams,
            pool_pages,
        })
    }

    /// Lists made at once; all of one length.
    ///
    /// # Errors
    ///
    /// As [`PageLists::new`] and [`PageLists::set`].
    pub fn from_host(device: &Device, pool_pages: usize, lists: &[Vec<u32>]) -> Result<PageLists> {
        let length = lists.first().map_or(0, Vec::len);
        let mut pages = PageLists::new(device, pool_pages, lists.len(), length)?;
        pages.set(lists)?;
        Ok(pages)
    }

    /// Replaces the lists; where there are fewer than there is room for, only these are in use.
    /// What a shorter list leaves over becomes page 0, which ops do not reach.
    ///
    /// # Errors
    ///
    /// Too many lists, a list that is too long, a page outside the pool.
    pub fn set(&mut self, lists: &[Vec<u32>]) -> Result<()> {
        const OP: &str = "PageLists::set";
        let (streams, length) = (self.entries.shape()[0], self.length());
        if lists.len() > streams {
            return Err(Error::argument(
                OP,
                "lists",
                format!("at most {streams} lists"),
                lists.len().to_string(),
            ));
        }
        let mut entries = vec![0i32; streams * length];
        for (list, row) in lists.iter().zip(entries.chunks_mut(length.max(1))) {
            if list.len() > length {
                return Err(Error::argument(
                    OP,
                    "lists",
                    format!("at most {length} pages"),
                    list.len().to_string(),
                ));
            }
            for (entry, &page) in row.iter_mut().zip(list) {
                *entry = checked_page(OP, page, self.pool_pages)?;
            }
        }
        self.entries.view_mut().copy_from_slice(&entries)?;
        self.used = lists.len();
        Ok(())
    }

    /// Replaces one list.
    ///
    /// # Errors
    ///
    /// A list that is not there or too long, a page outside the pool.
    pub fn set_row(&mut self, row: usize, list: &[u32]) -> Result<()> {
        const OP: &str = "PageLists::set_row";
        let (streams, length) = (self.streams(), self.length());
        if row >= streams || list.len() > length {
            let expected = format!("one of {streams} lists of at most {length} pages");
            return Err(Error::argument(
                OP,
                "list",
                expected,
                format!("list {row} of {} pages", list.len()),
            ));
        }
        let mut entries = vec![0i32; length];
        for (entry, &page) in entries.iter_mut().zip(list) {
            *entry = checked_page(OP, page, self.pool_pages)?;
        }
        self.entries.view_mut().select(0, row)?.copy_from_slice(&entries)
    }

    /// How many lists are in use.
    pub fn streams(&self) -> usize {
        self.used
    }

    /// Entries of each list.
    pub fn length(&self) -> usize {
        self.entries.shape()[1]
    }

    /// The number of pages that entries are below.
    pub fn pool_pages(&self) -> usize {
        self.pool_pages
    }

    /// Bytes of device memory that they take up.
    pub fn bytes(&self) -> usize {
        self.entries.bytes()
    }

    /// The entries of the lists in use, i32 `[streams, length]`.
    pub fn view(&self) -> View<'_> {
        let lists = self.entries.view();
        lists.narrow(0, 0, self.used).unwrap_or(lists)
    }

    /// For ops that write page numbers on the device: they must stay below `pool_pages`.
    pub(crate) fn view_mut(&mut self) -> ViewMut<'_> {
        self.entries.view_mut()
    }
}

fn checked_page(op: &'static str, page: u32, pool_pages: usize) -> Result<i32> {
    // Kernels count pages in 31 bits.
    if (page as usize) < pool_pages && page <= i32::MAX as u32 {
        Ok(page as i32)
    } else {
        Err(Error::argument(
            op,
            "pages",
            format!("pages below {pool_pages}, the pool's size"),
            page.to_string(),
        ))
    }
}

/// A run of pages that one rotation of the query serves, as the host describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Its pages, in order; the last may be partly filled.
    pub pages: Vec<u32>,
    /// Keys in it.
    pub tokens: usize,
    /// Frames that the query block's time origin stands after the segment's: the temporal pairs of
    /// the query are turned ahead by this.
    pub rotation: f32,
    /// Added to every logit, natural log. `ln n` for keys that stand for n tokens each.
    pub key_bias: f32,
    /// Whether the bias of each key's slot is added too.
    pub slot_bias: bool,
}

impl Segment {
    /// Keys of `tokens` tokens in these pages, neither turned nor biased.
    pub fn new(pages: Vec<u32>, tokens: usize) -> Segment {
        Segment {
            pages,
            tokens,
            rotation: 0.0,
            key_bias: 0.0,
            slot_bias: false,
        }
    }
}

/// What the queries of each stream attend to: page lists and segments in device memory, of a fixed
/// capacity, checked against the pool when they are set.
#[derive(Debug)]
pub struct Context {
    pub(crate) pages: PageLists,
    pub(crate) segments: Tensor, // u8 [streams, max_segments, sizeof(Segment)]
    pub(crate) counts: Tensor,   // i32 [streams]
    page_tokens: usize,
}

/// What [`Context::set`] writes, in host memory.
#[derive(Debug, Default)]
struct Packed {
    lists: Vec<Vec<u32>>,
    segments: Vec<ffi::Segment>,
    counts: Vec<i32>,
}

impl Context {
    /// Room for `streams` contexts of at most `max_pages` pages in `max_segments` segments, over a
    /// pool of `pool_pages` pages of `page_tokens` tokens. Empty until [`Context::set`].
    ///
    /// # Errors
    ///
    /// Memory that the device does not have, a page of no tokens.
    pub fn new(
        device: &Device,
        (pool_pages, page_tokens): (usize, usize),
        streams: usize,
        max_pages: usize,
        max_segments: usize,
    ) -> Result<Context> {
        if page_tokens == 0 {
            return Err(Error::argument("Context::new", "page_tokens", "at least 1", "0"));
        }
        Ok(Context {
            pages: PageLists::new(device, pool_pages, streams, max_pages)?,
            segments: Tensor::zeros(device, DType::U8, &[streams, max_segments, size_of::<ffi::Segment>()])?,
            counts: Tensor::zeros(device, DType::I32, &[streams])?,
            page_tokens,
        })
    }

    /// A context just large enough for these segments.
    ///
    /// ```
    /// use packforcing::Device;
    /// use packforcing::paging::{Context, Segment};
    /// # fn main() -> packforcing::Result<()> {
    /// // One stream: 40 keys in pages 3 and 1 of a pool of 8 pages of 32 tokens.
    /// let context = Context::from_host(&Device::cpu(), (8, 32), &[vec![Segment::new(vec![3, 1], 40)]])?;
    /// assert_eq!(context.streams(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Context::new`] and [`Context::set`].
    pub fn from_host(device: &Device, pool: (usize, usize), streams: &[Vec<Segment>]) -> Result<Context> {
        let max_pages = streams
            .iter()
            .map(|s| s.iter().map(|s| s.pages.len()).sum())
            .max()
            .unwrap_or(0);
        let max_segments = streams.iter().map(Vec::len).max().unwrap_or(0);
        let mut context = Context::new(device, pool, streams.len(), max_pages, max_segments)?;
        context.set(streams)?;
        Ok(context)
    }

    /// Replaces what every stream attends to. A stream without segments attends to nothing: its
    /// output is 0 and its LSE -inf. So do the streams that are left over where there are fewer.
    ///
    /// # Errors
    ///
    /// Too many streams, more segments or pages than there is room for, a page outside the
    /// pool, more tokens than a segment's pages hold, a rotation or bias that is not a number. The
    /// context is then as before.
    pub fn set(&mut self, streams: &[Vec<Segment>]) -> Result<()> {
        let packed = self.pack(streams)?;
        self.pages.set(&packed.lists)?;
        self.segments
            .view_mut()
            .copy_from_slice::<u8>(bytemuck::cast_slice(&packed.segments))?;
        self.counts.view_mut().copy_from_slice(&packed.counts)
    }

    fn pack(&self, streams: &[Vec<Segment>]) -> Result<Packed> {
        const OP: &str = "Context::set";
        let refuse = |argument, expected: String, got: String| Err(Error::argument(OP, argument, expected, got));
        if streams.len() > self.streams() {
            return refuse(
                "streams",
                format!("at most {}", self.streams()),
                streams.len().to_string(),
            );
        }
        let mut packed = Packed::default();
        for segments in streams {
            if segments.len() > self.max_segments() {
                return refuse(
                    "segments",
                    format!("at most {}", self.max_segments()),
                    segments.len().to_string(),
                );
            }
            let mut list = Vec::new();
            for s in segments {
                let room = s.pages.len().saturating_mul(self.page_tokens);
                if s.tokens > room || s.tokens > i32::MAX as usize {
                    return refuse(
                        "tokens",
                        format!("at most {room}, what the pages hold"),
                        s.tokens.to_string(),
                    );
                }
                if !s.rotation.is_finite() || s.key_bias.is_nan() || s.key_bias == f32::INFINITY {
                    return refuse(
                        "rotation, key_bias",
                        "a finite rotation, a bias below infinity".into(),
                        format!("{}, {}", s.rotation, s.key_bias),
                    );
                }
                for &page in &s.pages {
                    checked_page(OP, page, self.pages.pool_pages)?;
                }
                packed.segments.push(ffi::Segment {
                    first_page: list.len() as i32,
                    tokens: s.tokens as i32,
                    rotation: s.rotation,
                    key_bias: s.key_bias,
                    slot_bias: s.slot_bias.into(),
                    reserved: 0,
                });
                list.extend_from_slice(&s.pages);
            }
            if list.len() > self.pages.length() {
                return refuse(
                    "pages",
                    format!("at most {}", self.pages.length()),
                    list.len().to_string(),
                );
            }
            packed.lists.push(list);
            packed.counts.push(segments.len() as i32);
            packed
                .segments
                .resize(packed.lists.len() * self.max_segments(), ffi::Segment::zeroed());
        }
        packed
            .segments
            .resize(self.streams() * self.max_segments(), ffi::Segment::zeroed());
        packed.counts.resize(self.streams(), 0);
        Ok(packed)
    }

    /// Reads it back, for tests and inspection; waits for the device.
    ///
    /// # Errors
    ///
    /// Whatever the device reports.
    pub fn to_host(&self) -> Result<Vec<Vec<Segment>>> {
        let (pages, counts) = (self.pages.entries.to_vec::<i32>()?, self.counts.to_vec::<i32>()?);
        let bytes = self.segments.to_vec::<u8>()?;
        let segments: Vec<ffi::Segment> = bytemuck::allocation::pod_collect_to_vec(&bytes);
        let streams = (0..self.streams()).map(|stream| {
            let count = counts[stream] as usize;
            let first = stream * self.max_segments();
            let list = &pages[stream * self.pages.length()..][..self.pages.length()];
            let read = |s: &ffi::Segment| Segment {
                pages: list[s.first_page as usize..][..(s.tokens as usize).div_ceil(self.page_tokens)]
                    .iter()
                    .map(|&p| p as u32)
                    .collect(),
                tokens: s.tokens as usize,
                rotation: s.rotation,
                key_bias: s.key_bias,
                slot_bias: s.slot_bias != 0,
            };
            segments[first..first + count].iter().map(read).collect()
        });
        Ok(streams.collect())
    }

    /// How many streams it has room for.
    pub fn streams(&self) -> usize {
        self.counts.shape()[0]
    }

    /// Segments that each stream has room for.
    pub fn max_segments(&self) -> usize {
        self.segments.shape()[1]
    }

    /// Pages that each stream has room for.
    pub fn max_pages(&self) -> usize {
        self.pages.length()
    }

    /// Tokens of a page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// The number of pages that entries are below.
    pub fn pool_pages(&self) -> usize {
        self.pages.pool_pages
    }

    /// Bytes of device memory that it owns.
    pub fn bytes(&self) -> usize {
        self.pages.bytes() + self.segments.bytes() + self.counts.bytes()
    }

    pub(crate) fn device(&self) -> &Device {
        self.counts.device()
    }

    /// What a kernel reads of it.
    pub(crate) fn spans(&self) -> [Span; 3] {
        [
            self.pages.view().span(),
            self.segments.view().span(),
            self.counts.view().span(),
        ]
    }

    /// One stream of it, for a host device: its page list and its segments.
    pub(crate) fn host_stream(&self, stream: usize) -> (&[i32], &[ffi::Segment]) {
        let count = self.counts.view().host::<i32>()[stream] as usize;
        if count == 0 {
            return (&[], &[]); // there may be no memory at all, and that is not aligned
        }
        let pages = self.pages.entries.view().host::<i32>();
        let segments: &[ffi::Segment] = bytemuck::cast_slice(self.segments.view().host::<u8>());
        let first = stream * self.max_segments();
        (
            &pages[stream * self.max_pages()..][..self.max_pages()],
            &segments[first..first + count],
        )
    }
}
