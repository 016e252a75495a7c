//! Which devices there are, and how the SIMT device can be set.

/// Which kind a [`Device`](super::Device) is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// Threads and vector instructions of this machine.
    Cpu,
    /// The CUDA kernels' source, compiled for the CPU: a test device, slow and strict.
    Simt,
    /// An NVIDIA GPU.
    Cuda,
    /// The path to an NVIDIA GPU with a double of the driver at its end, which runs the kernels on the CPU: for tests. It
    /// gives no times that mean something.
    CudaDouble,
}

impl DeviceKind {
    /// The name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Simt => "simt",
            DeviceKind::Cuda => "cuda",
            DeviceKind::CudaDouble => "cuda (double)",
        }
    }

    /// Whether work goes to a CUDA driver, or to its double.
    pub const fn is_cuda(self) -> bool {
        matches!(self, DeviceKind::Cuda | DeviceKind::CudaDouble)
    }
}

/// Which cards the SIMT device stands for: it decides which kernels are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SimtCard {
    /// Compute capability 8.0 (A100): kernels that every card takes.
    #[default]
    Sm80,
    /// Compute capability 9.0 (H100, H200): its own kernels where there are some.
    Sm90,
}

/// How the SIMT device schedules. The defaults shuffle everything by seed 0.
#[derive(Debug, Clone, Default)]
pub struct SimtOptions {
    /// The card that it stands for.
    pub card: SimtCard,
    /// Decides the order of threads and blocks and when asynchronous copies land.
    pub seed: u64,
    /// When asynchronous copies land.
    pub copies: AsyncCopies,
    /// Threads and blocks in their order, for stepping through a kernel.
    pub in_order: bool,
    /// Threads of the operating system that blocks are spread over; 0: one a core.
    pub threads: usize,
    /// Faults are reported by the next call that waits instead of the launch, as a card does.
    pub deferred_faults: bool,
    /// The launch of this number (from 0) fails, to test what stands on the device.
    pub fail_launch: Option<u64>,
}

/// When the SIMT device lets an asynchronous copy land. Until then its destination is NaN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AsyncCopies {
    /// As late as the waits allow: a wait too few shows.
    #[default]
    Late,
    /// At once.
    Early,
    /// In between, by seed.
    Random,
}
