//! What a launch is made of, the same for CUDA and SIMT.

use bytemuck::Pod;

use crate::ffi;

/// Memory that a launch may touch.
#[cfg_attr(
    not(feature = "simt"),
    expect(dead_code, reason = "the SIMT device is who looks at it")
)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub address: u64,
    pub bytes: u64,
    pub writable: bool,
}

/// An argument struct of `kernels/params.h`.
pub(crate) trait KernelParams: Pod {}

/// One kernel launch, the same for CUDA and SIMT.
#[cfg_attr(
    not(all(feature = "simt", feature = "cuda")),
    expect(dead_code, reason = "each of the two reads a part of it")
)]
pub(crate) struct Launch<'a, P> {
    /// The kernel file's stem.
    pub module: &'static str,
    /// The entry point.
    pub kernel: &'static str,
    /// Blocks along x, y, z.
    pub grid: [usize; 3],
    /// Threads a block.
    pub threads: usize,
    /// Dynamic shared memory in bytes.
    pub shared: usize,
    /// The argument struct.
    pub params: &'a P,
    /// Every piece of global memory that the kernel may touch.
    pub memory: &'a [Span],
}

macro_rules! kernel_params {
    ($($t:ident),*) => {$( impl KernelParams for ffi::$t {} )*};
}
kernel_params!(
    AttentionParams,
    AttentionSm90Params,
    MergeStatesParams,
    AppendKvParams,
    MergeTokensParams,
    MatchTokensParams,
    UnmergeTokensParams,
    SumTokensParams,
    SumKeysParams,
    ScoreBlocksParams,
    SelectBlocksParams,
    DenoiseStepParams,
    GuidanceParams
);
