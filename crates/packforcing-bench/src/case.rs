//! An op at one shape on one device, ready to be called again and again.

use packforcing::device::Graph;
use packforcing::{DType, Device, DeviceKind, Result, View};

/// What one call has to do, whatever the way: only useful work is counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Floating point operations that bound it; 0 where memory alone does.
    pub flops: f64,
    /// Bytes that must be read and written; 0 where they are beside the point.
    pub bytes: usize,
}

impl Work {
    /// Work that memory bounds.
    pub const fn bytes(bytes: usize) -> Work {
        Work { flops: 0.0, bytes }
    }

    /// Work that arithmetic bounds.
    pub const fn flops(flops: f64) -> Work {
        Work { flops, bytes: 0 }
    }
}

/// One call of the op on one copy of its inputs and outputs; who asks is told the outputs.
pub(crate) type Call = Box<dyn FnMut(Results<'_>) -> Result<()>>;

/// Where a call puts its outputs; `None` where only time counts.
pub(crate) type Results<'a> = Option<&'a mut Vec<Output>>;

/// What an op wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The argument's name.
    pub name: &'static str,
    /// Its type; `values` holds all of its numbers.
    pub dtype: DType,
    /// In memory order.
    pub values: Vec<f64>,
}

/// Reads these tensors where somebody asks; waits for the device.
pub(crate) fn tell(results: Results<'_>, written: &[(&'static str, View<'_>)]) -> Result<()> {
    let Some(results) = results else {
        return Ok(());
    };
    for (name, view) in written {
        let dtype = view.dtype();
        let values = match dtype {
            DType::I32 => view.to_vec::<i32>()?.into_iter().map(f64::from).collect(),
            _ => view.to_f32_vec()?.into_iter().map(f64::from).collect(),
        };
        results.push(Output { name, dtype, values });
    }
    Ok(())
}

/// An op at one shape on one device, with copies of its inputs and outputs.
pub struct Case {
    /// All of `calls` as one launch. Before them: it names their memory.
    graph: Option<Graph>,
    op: &'static str,
    device: Device,
    work: Work,
    calls: Vec<Call>,
    next: usize,
}

/// More copies than this only cost time to make.
const MOST_COPIES: usize = 256;

impl Case {
    /// `bytes` is what one copy holds; `make` makes one.
    pub(crate) fn new<E>(
        op: &'static str,
        device: &Device,
        work: Work,
        bytes: usize,
        mut make: impl FnMut() -> Result<Call, E>,
    ) -> Result<Case, E> {
        let copies = rotated_bytes(device).div_ceil(bytes.max(1)).clamp(1, MOST_COPIES);
        Ok(Case {
            graph: None,
            op,
            device: device.clone(),
            work,
            calls: (0..copies).map(|_| make()).collect::<Result<_, E>>()?,
            next: 0,
        })
    }

    /// The op's name.
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What one call has to do.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Copies of its inputs and outputs that calls go through in turn.
    pub fn copies(&self) -> usize {
        self.calls.len()
    }

    /// From now on all copies' calls are launched as one graph, as a captured block is: what the host
    /// does for each of them no longer counts.
    ///
    /// # Errors
    ///
    /// What the op returns, or [`Device::capture`]: the CPU has no launches.
    ///
    /// # Safety
    ///
    /// No other thread uses the device until this returns: what it copies would become a part of the
    /// graph.
    pub unsafe fn capture(&mut self) -> Result<()> {
        // Kernels are loaded by now.
        self.calls.iter_mut().try_for_each(|call| call(None))?;
        let calls = &mut self.calls;
        self.graph = Some(
            self.device
                .capture(|| calls.iter_mut().try_for_each(|call| call(None)))?,
        );
        Ok(())
    }

    /// Whether all copies' calls are one launch.
    pub fn is_graph(&self) -> bool {
        self.graph.is_some()
    }

    /// How many calls of the op one [`Case::call`] is: as many as there are copies once they are one
    /// graph, else 1.
    pub fn at_once(&self) -> u64 {
        self.graph.as_ref().map_or(1, |_| self.calls.len() as u64)
    }

    /// The next call; on a GPU it is launched, not awaited.
    ///
    /// # Errors
    ///
    /// What the op returns.
    pub fn call(&mut self) -> Result<()> {
        if let Some(graph) = &self.graph {
            // SAFETY: `calls` owns all memory that was captured and keeps it in place; nobody else can
            // reach it, what it holds is what the ops accepted when they were captured, and whoever
            // captured promised to be alone.
            return unsafe { graph.launch() };
        }
        let i = self.next;
        self.next = (i + 1) % self.calls.len();
        self.calls[i](None)
    }

    /// A call of the first copy, and what it wrote. Two devices make the same case of the same shape: what they are given
    /// is the same, as far as the dtype goes.
    ///
    /// # Errors
    ///
    /// What the op returns.
    pub fn outputs(&mut self) -> Result<Vec<Output>> {
        let mut outputs = Vec::new();
        self.calls[0](Some(&mut outputs))?;
        Ok(outputs)
    }
}

/// Four times a cache of this size is what copies come to together on a GPU that says less.
const L2: usize = 60 << 20;
/// The same where the system does not tell.
const LAST_LEVEL: usize = 32 << 20;
/// Of host memory no more than this is taken, however large the caches are.
const MOST_HOST_BYTES: usize = 256 << 20;

/// What the copies of a case hold together, at least: four times the cache nearest to memory. The
/// SIMT device is no place to measure, and one copy is enough.
pub(crate) fn rotated_bytes(device: &Device) -> usize {
    match device.kind() {
        DeviceKind::Cuda => 4 * l2_bytes(device).max(L2),
        DeviceKind::Cpu => (4 * last_level_bytes().unwrap_or(LAST_LEVEL)).min(MOST_HOST_BYTES),
        DeviceKind::Simt | DeviceKind::CudaDouble => 0,
    }
}

fn l2_bytes(device: &Device) -> usize {
    use packforcing::cudarc::driver::sys::CUdevice_attribute as Attribute;
    let asked = device
        .as_cuda()
        .map(|cuda| cuda.context().attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE));
    asked.and_then(Result::ok).map_or(0, |n| n.max(0) as usize)
}

/// The largest cache that Linux knows of.
fn last_level_bytes() -> Option<usize> {
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    caches
        .filter_map(|cache| {
            let size = std::fs::read_to_string(cache.ok()?.path().join("size")).ok()?;
            let kilobytes: usize = size.trim().strip_suffix('K')?.parse().ok()?;
            kilobytes.checked_mul(1024)
        })
        .max()
}
