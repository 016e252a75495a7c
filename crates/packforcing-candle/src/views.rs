//! Candle tensors as packforcing's views, in place.

use std::cell::Cell;

#[cfg(feature = "cuda")]
use candle_core::cuda::CudaStorageSlice;
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Storage, StorageRef, Tensor};
use packforcing::{Device, View, ViewMut};

use crate::convert::dtype;
use crate::error::{Error, Result, refused};

/// A tensor and what errors call it.
pub type Named<'a> = (&'static str, &'a Tensor);

/// Opens candle tensors as views, in place, for as long as `f` runs: the door to every op of
/// packforcing. Nothing is copied. `op` and the names are what errors speak of.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use packforcing::paging::{KvPagesMut, PageLists};
/// use packforcing::ops::merge_tokens::{MeanPool, MergeTokens, Remainder, merge_tokens};
/// use packforcing::{Grid, Rope3d};
/// use packforcing_candle::{device, with_views};
///
/// # fn main() -> packforcing_candle::Result<()> {
/// // A cache of one's own: two pages of two tokens, one head of 8. Page 0 is merged into page 1.
/// let k = Tensor::zeros((2, 1, 2, 8), DType::F32, &Device::Cpu)?;
/// let v = Tensor::ones((2, 1, 2, 8), DType::F32, &Device::Cpu)?;
/// let device = device(v.device())?;
/// let merge = MergeTokens {
///     source: &PageLists::from_host(&device, 2, &[vec![0]])?,
///     dest: &PageLists::from_host(&device, 2, &[vec![1]])?,
///     grid: Grid { frames: 2, rows: 1, cols: 1 },
///     pool: MeanPool { cell: [2, 1, 1], remainder: Remainder::Drop },
///     rope: &Rope3d::wan(8),
/// };
/// with_views(&device, "merge_tokens", [], [("k", &k), ("v", &v)], |[], [k, v]| {
///     merge_tokens(&merge, &mut KvPagesMut { k, v, slot_bias: None })
/// })?;
/// assert_eq!(v.sum_all()?.to_scalar::<f32>()?, 24.0); // page 1 is one token of 1, one of 0
/// # Ok(())
/// # }
/// ```
///
/// # What is taken
///
/// f32, f16, bf16, i32 and u8 tensors of at least one dimension on `device`: on the CPU for the CPU
/// and the SIMT device, on CUDA for a device on their stream (see [`device`](crate::device())). The
/// elements of the last dimension have to lie one after the other; all other dimensions may be
/// narrowed, transposed, and, in tensors that are read, broadcast. Whatever would need a copy is
/// refused, and `Tensor::contiguous` is where to make one. Ops may ask for more (kernels for rows on
/// 16-byte boundaries), and say so themselves.
///
/// There is no backward pass. A tensor that candle tracks for gradients is refused rather than its
/// gradient lost: `Tensor::detach` says that none is wanted, and copies nothing.
///
/// # Writing
///
/// A candle tensor is a shared value that looks immutable: its clones, and what was narrowed,
/// reshaped or transposed from it, are the same memory. What `write` names is changed for all of
/// them, as by candle's `inplace_op`, which this goes through. That is what one wants of
///
/// - **an output that was just made** and that nobody else has yet (every function of this crate
///   that returns a tensor does that), and
/// - **state that is meant to change**: a page pool, a latent that is stepped.
///
/// Anything else is made a tensor of its own first (`Tensor::copy`). It is sound in each case: candle's
/// write lock is held while `f` runs, so no thread sees a half-written tensor in host memory, and on a
/// GPU the work is in the order of the stream, as all of candle's. A lock is one for a whole storage: two
/// tensors of which one is written must not share one, even where they do not overlap, and are
/// refused. While `f` runs it must not touch the tensors that are written, and no two threads may at once
/// write what the other reads: they would wait for ever, as with candle's own ops in place.
///
/// # Errors
///
/// A tensor that is not taken (above), by name, and what `f` returns. `f` has not run then, or its
/// own error is the one returned.
pub fn with_views<T, const R: usize, const W: usize>(
    device: &Device,
    op: &'static str,
    read: [Named<'_>; R],
    write: [Named<'_>; W],
    f: impl FnOnce([View<'_>; R], [ViewMut<'_>; W]) -> packforcing::Result<T>,
) -> Result<T> {
    with_lists(device, op, &read, &write, |read, write| {
        match (<[View<'_>; R]>::try_from(read), <[ViewMut<'_>; W]>::try_from(write)) {
            (Ok(read), Ok(write)) => f(read, write),
            // Each tensor became one view.
            _ => Err(refused(op, "read, write", "a view of each tensor", "another number")),
        }
    })
}

/// [`with_views`] of any number of tensors.
pub(crate) fn with_lists<T>(
    device: &Device,
    op: &'static str,
    read: &[Named<'_>],
    write: &[Named<'_>],
    f: impl FnOnce(Vec<View<'_>>, Vec<ViewMut<'_>>) -> packforcing::Result<T>,
) -> Result<T> {
    let door = Door { device, op };
    read.iter().try_for_each(|&(name, tensor)| door.check(name, tensor))?;
    write.iter().try_for_each(|&(name, tensor)| {
        door.check(name, tensor)?;
        door.check_apart(name, tensor.layout())
    })?;

    // Each lock once, and all keys before any lock: where another thread waits to write, a thread
    // that wants a lock which it has already waits for ever.
    let keys = |named: &[Named<'_>]| named.iter().map(|(_, t)| storage_key(t)).collect::<Vec<usize>>();
    let (read_keys, write_keys) = (keys(read), keys(write));
    for (i, (&(name, _), key)) in write.iter().zip(&write_keys).enumerate() {
        let mut others = (read.iter().zip(&read_keys)).chain(write[..i].iter().zip(&write_keys));
        if let Some(((other, _), _)) = others.find(|(_, other)| *other == key) {
            let expected = "memory of its own, for writing (`copy` makes some)";
            return door.refuse(name, expected, format!("memory that {other} has too"));
        }
    }
    let mut storages: Vec<(usize, StorageRef<'_>)> = Vec::with_capacity(read.len());
    let mut places = Vec::with_capacity(read.len());
    for (&key, (_, tensor)) in read_keys.iter().zip(read) {
        let place = storages.iter().position(|(k, _)| *k == key);
        places.push(place.unwrap_or(storages.len()));
        if place.is_none() {
            storages.push((key, tensor.storage_and_layout().0));
        }
    }
    let views = places.iter().zip(read);
    let views = views.map(|(&place, &(name, tensor))| door.view(name, &storages[place].1, tensor.layout()));
    let views: Vec<View<'_>> = views.collect::<Result<_>>()?;

    let mut work = Some((f, views));
    let mut done = None;
    door.open(write, Vec::with_capacity(write.len()), &mut |targets| {
        if let Some((f, views)) = work.take() {
            done = Some(f(views, targets)?);
        }
        Ok(())
    })?;
    // Candle runs what it is given, or says why not.
    done.ok_or_else(|| refused(op, "write", "tensors that candle writes in place", "others").into())
}

/// What tensors are opened for.
#[derive(Clone, Copy)]
struct Door<'a> {
    device: &'a Device,
    op: &'static str,
}

impl<'a> Door<'a> {
    fn refuse<T>(&self, name: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Result<T> {
        Err(refused(self.op, name, expected, got).into())
    }

    /// All that can be told without looking at the storage.
    fn check(&self, name: &'static str, tensor: &Tensor) -> Result<()> {
        let theirs = tensor.device();
        let ours = if self.device.is_host() {
            theirs.is_cpu()
        } else {
            theirs.is_cuda()
        };
        if !ours {
            let got = format!("one on {:?}", theirs.location());
            return self.refuse(name, format!("a tensor on {}", self.device), got);
        }
        if dtype(tensor.dtype()).is_none() {
            return self.refuse(name, "f32, f16, bf16, i32 or u8", tensor.dtype().as_str());
        }
        if tensor.track_op() {
            let expected = "a tensor without gradient (`detach` it: there is no backward pass)";
            return self.refuse(name, expected, "one that candle tracks");
        }
        let layout = tensor.layout();
        let inner = layout.dims().last().zip(layout.stride().last());
        match inner {
            None => self.refuse(name, "at least one dimension", "a scalar"),
            Some((0 | 1, _) | (_, 1)) => Ok(()),
            Some(_) => {
                let got = format!("{:?}, strides {:?}", layout.dims(), layout.stride());
                let expected = "elements of the last dimension one after the other (`contiguous` makes a copy)";
                self.refuse(name, expected, got)
            }
        }
    }

    /// What candle does not let an op write in place.
    fn check_apart(&self, name: &'static str, layout: &Layout) -> Result<()> {
        let got = format!("{:?}, strides {:?}", layout.dims(), layout.stride());
        if layout.shape().elem_count() == 0 {
            return self.refuse(name, "at least one element, for writing", got);
        }
        if !layout.has_internal_overlap() {
            return Ok(());
        }
        self.refuse(name, "elements that lie apart, for writing", got)
    }

    /// Packforcing's refusal in the words of this call.
    fn named<T>(&self, name: &'static str, result: packforcing::Result<T>) -> Result<T> {
        result.map_err(|e| match e {
            packforcing::Error::Argument { expected, got, .. } => refused(self.op, name, expected, got).into(),
            other => other.into(),
        })
    }

    fn view<'s>(&self, name: &'static str, storage: &'s Storage, layout: &Layout) -> Result<View<'s>>
    where
        'a: 's,
    {
        let device = self.device;
        macro_rules! dense {
            ($data:expr, $from:ident) => {
                View::$from(device, $data, &[$data.len()])
            };
        }
        let dense = match storage {
            Storage::Cpu(CpuStorage::F32(x)) => dense!(x, from_slice),
            Storage::Cpu(CpuStorage::F16(x)) => dense!(x, from_slice),
            Storage::Cpu(CpuStorage::BF16(x)) => dense!(x, from_slice),
            Storage::Cpu(CpuStorage::I32(x)) => dense!(x, from_slice),
            Storage::Cpu(CpuStorage::U8(x)) => dense!(x, from_slice),
            #[cfg(feature = "cuda")]
            Storage::Cuda(storage) => match &storage.slice {
                CudaStorageSlice::F32(x) => dense!(x, from_cuda_slice),
                CudaStorageSlice::F16(x) => dense!(x, from_cuda_slice),
                CudaStorageSlice::BF16(x) => dense!(x, from_cuda_slice),
                CudaStorageSlice::I32(x) => dense!(x, from_cuda_slice),
                CudaStorageSlice::U8(x) => dense!(x, from_cuda_slice),
                _ => return self.unknown(name),
            },
            _ => return self.unknown(name),
        };
        let strided = dense.and_then(|d| d.strided(layout.start_offset(), layout.dims(), layout.stride()));
        self.named(name, strided)
    }

    fn view_mut<'s>(&self, name: &'static str, storage: Target<'s>, layout: &Layout) -> Result<ViewMut<'s>>
    where
        'a: 's,
    {
        let device = self.device;
        macro_rules! dense {
            ($data:expr, $from:ident) => {{
                let shape = [$data.len()];
                ViewMut::$from(device, $data, &shape)
            }};
        }
        let dense = match storage {
            Target::Cpu(CpuStorage::F32(x)) => dense!(x, from_slice),
            Target::Cpu(CpuStorage::F16(x)) => dense!(x, from_slice),
            Target::Cpu(CpuStorage::BF16(x)) => dense!(x, from_slice),
            Target::Cpu(CpuStorage::I32(x)) => dense!(x, from_slice),
            Target::Cpu(CpuStorage::U8(x)) => dense!(x, from_slice),
            #[cfg(feature = "cuda")]
            Target::Cuda(storage) => match &mut storage.slice {
                CudaStorageSlice::F32(x) => dense!(x, from_cuda_slice),
                CudaStorageSlice::F16(x) => dense!(x, from_cuda_slice),
                CudaStorageSlice::BF16(x) => dense!(x, from_cuda_slice),
                CudaStorageSlice::I32(x) => dense!(x, from_cuda_slice),
                CudaStorageSlice::U8(x) => dense!(x, from_cuda_slice),
                _ => return self.unknown(name),
            },
            _ => return self.unknown(name),
        };
        let strided = dense.and_then(|d| d.strided(layout.start_offset(), layout.dims(), layout.stride()));
        self.named(name, strided)
    }

    /// A storage that the checks before let nobody bring.
    fn unknown<T>(&self, name: &'static str) -> Result<T> {
        self.refuse(name, format!("memory of {}", self.device), "another storage")
    }

    /// Opens one tensor after the other for writing, each within the one before it.
    fn open(&self, write: &[Named<'_>], views: Vec<ViewMut<'_>>, f: Body<'_>) -> Result<()> {
        let Some((&(name, tensor), rest)) = write.split_first() else {
            return f(views).map_err(Error::from);
        };
        let opened = Opened {
            door: *self,
            name,
            body: Cell::new(Some(|view: ViewMut<'_>| {
                let mut views: Vec<ViewMut<'_>> = views;
                views.push(view);
                self.open(rest, views, f)
            })),
            outcome: Cell::new(Ok(())),
        };
        tensor.inplace_op1(&opened)?;
        opened.outcome.into_inner()
    }
}

/// What runs when every tensor is open.
type Body<'a> = &'a mut dyn FnMut(Vec<ViewMut<'_>>) -> packforcing::Result<()>;

/// Storage that candle gives to an op in place.
enum Target<'a> {
    Cpu(&'a mut CpuStorage),
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "candle's own is a dummy then"))]
    Cuda(&'a mut CudaStorage),
}

/// The op that candle runs in place: it makes the view and goes on.
struct Opened<'a, F> {
    door: Door<'a>,
    name: &'static str,
    body: Cell<Option<F>>,
    /// What came of it; candle's error would forget the type.
    outcome: Cell<Result<()>>,
}

impl<F: FnOnce(ViewMut<'_>) -> Result<()>> Opened<'_, F> {
    fn run(&self, storage: Target<'_>, layout: &Layout) {
        if let Some(body) = self.body.take() {
            self.outcome
                .set(self.door.view_mut(self.name, storage, layout).and_then(body));
        }
    }
}

impl<F: FnOnce(ViewMut<'_>) -> Result<()>> InplaceOp1 for Opened<'_, F> {
    fn name(&self) -> &'static str {
        self.door.op
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        self.run(Target::Cpu(storage), layout);
        Ok(())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        self.run(Target::Cuda(storage), layout);
        Ok(())
    }
}

/// Tells tensors of one storage: its address behind the lock, which clones and parts share.
fn storage_key(tensor: &Tensor) -> usize {
    std::ptr::from_ref::<Storage>(&tensor.storage_and_layout().0).addr()
}
