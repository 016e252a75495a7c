//! Everything that can go wrong, each named.

use crate::dtype::DType;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Every variant that an argument can cause names the operation, the argument,
/// what was expected and what came; after such an error nothing has changed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument that the operation does not take.
    #[error("{op}: {argument}: expected {expected}, got {got}")]
    Argument {
        /// The operation, as its function is called.
        op: &'static str,
        /// The argument, as its field or parameter is called.
        argument: &'static str,
        /// What the operation takes.
        expected: String,
        /// What came.
        got: String,
    },

    /// A dtype that the operation does not take on this device.
    #[error("{op}: {argument}: {got} is not taken on the {device} device (it takes {expected})")]
    UnsupportedDType {
        /// The operation, as its function is called.
        op: &'static str,
        /// The argument, as its field or parameter is called.
        argument: &'static str,
        /// The dtype that came.
        got: DType,
        /// The device's name.
        device: &'static str,
        /// What it takes.
        expected: &'static str,
    },

    /// The CUDA driver's library is not on this machine, or did not start.
    #[error("no CUDA driver: {reason}")]
    NoDriver {
        /// What the loader or the driver said.
        reason: String,
    },

    /// The driver is there, but it shows no GPU.
    #[error("the CUDA driver shows no GPU")]
    NoGpu,

    /// There are fewer GPUs than the ordinal asks for.
    #[error("no CUDA device {ordinal}: this machine has {count}")]
    NoSuchDevice {
        /// The ordinal asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },

    /// The GPU is older than what the kernels are written for.
    #[error("{name} has compute capability {}.{}: the kernels need {}.{}", capability.0, capability.1, needed.0, needed.1)]
    UnsupportedGpu {
        /// What the driver calls the GPU.
        name: String,
        /// Its compute capability, major and minor.
        capability: (i32, i32),
        /// The least that is needed, major and minor.
        needed: (i32, i32),
    },

    /// The CUDA driver cannot compile the kernels' PTX for its GPU.
    #[error(
        "the CUDA driver is older than the nvcc that compiled the kernels (CUDA error {code}, {name}): update it, or \
         build with PACKFORCING_CUDA_ARCHS naming the GPU's own architecture"
    )]
    OldDriver {
        /// The driver's number of the error.
        code: u32,
        /// The driver's name of the error.
        name: String,
    },

    /// The device's memory does not hold what was asked for.
    #[error("out of memory on the {device} device: {bytes} bytes were asked for")]
    OutOfMemory {
        /// The device's name.
        device: &'static str,
        /// What was asked for, in bytes.
        bytes: usize,
    },

    /// This build lacks kernels because it found no compiler for them, or the compiler failed.
    #[error("{kernel} is not in this build: {reason}; build packforcing again where that is mended")]
    KernelsNotBuilt {
        /// The kernel that was asked for.
        kernel: String,
        /// Why it is not there.
        reason: String,
    },

    /// The build leaves this device out.
    #[error("the {device} device is not in this build: switch on the feature `{feature}` of packforcing")]
    FeatureDisabled {
        /// The device's name.
        device: &'static str,
        /// The cargo feature that brings it.
        feature: &'static str,
    },

    /// The SIMT device found a fault in a kernel.
    #[error("simt: {kernel}: {report}")]
    Simt {
        /// The kernel that ran.
        kernel: String,
        /// What was found, where, under which seed.
        report: String,
    },

    /// The CUDA driver refused a call.
    #[error("{call}: CUDA error {code} ({name}){advice}")]
    Cuda {
        /// The call, as this crate speaks of it.
        call: &'static str,
        /// The driver's number of the error.
        code: u32,
        /// The driver's name of the error.
        name: String,
        /// What to do about it.
        advice: Advice,
    },

    /// An earlier call failed where nobody could be told, such as the drop of a tensor or of an event. It is told to the
    /// next call, which did not begin and may be made again.
    #[error(
        "an earlier call failed where nobody could be told: CUDA error {code} ({name}){advice}; this one did not begin"
    )]
    Earlier {
        /// The driver's number of the error.
        code: u32,
        /// The driver's name of the error.
        name: String,
        /// What to do about it.
        advice: Advice,
    },

    /// Something that belongs to one thread was used on another: a per-thread stream, a capture.
    #[error("{what} belongs to thread {owner}, and this is thread {here}")]
    WrongThread {
        /// What belongs to a thread.
        what: &'static str,
        /// Whose it is.
        owner: String,
        /// Who used it.
        here: String,
    },

    /// A fault that the device reported after the call that caused it. What the device's memory
    /// holds is not known. On the SIMT device a new device begins again; a CUDA fault stays with the
    /// process, which has to be started again.
    #[error("the {device} device is lost: {reason}")]
    DeviceLost {
        /// The device's name.
        device: &'static str,
        /// What it reported.
        reason: String,
    },

    /// The page pool has no room for what was asked; nothing has changed.
    #[error("{op}: the page pool is full: {needed} {of} are needed, {free} are free")]
    PoolFull {
        /// The operation, as its function is called.
        op: &'static str,
        /// What there is too little of: pages, or places for compressed blocks.
        of: &'static str,
        /// How many were asked for.
        needed: usize,
        /// How many are free.
        free: usize,
    },

    /// A call of the cache out of its order.
    #[error("{op}: {reason}")]
    Order {
        /// The operation, as its function is called.
        op: &'static str,
        /// What has to come first, or came already.
        reason: String,
    },
}

/// A sentence on what to do about an error; empty where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Advice(pub(crate) Option<&'static str>);

impl Advice {
    /// The sentence.
    pub fn text(&self) -> Option<&'static str> {
        self.0
    }
}

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |text| write!(f, ": {text}"))
    }
}

impl Error {
    /// That a kernel is captured which was never launched: the driver may have to load it first.
    #[cfg_attr(
        not(any(feature = "cuda", feature = "simt")),
        expect(dead_code, reason = "only devices with launches capture")
    )]
    pub(crate) fn not_launched_before(kernel: &str) -> Error {
        Error::Order {
            op: "Device::capture",
            reason: format!(
                "{kernel} was not launched before, and a capture loads nothing: run the work once, then capture it"
            ),
        }
    }

    pub(crate) fn argument(
        op: &'static str,
        argument: &'static str,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Error {
        Error::Argument {
            op,
            argument,
            expected: expected.into(),
            got: got.into(),
        }
    }
}
