//! Hand-written CUDA kernels and a packed KV cache for long video generation.

pub mod cache;
pub mod device;
pub mod dtype;
pub mod error;
#[allow(
    missing_docs,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    clippy::unnecessary_operation,
    clippy::identity_op,
    clippy::undocumented_unsafe_blocks
)]
mod ffi;
pub mod ops;
pub mod paging;
pub mod rope;
pub mod tensor;
pub mod units;

pub use device::{Device, DeviceKind, SimtOptions};
pub use dtype::DType;
pub use error::{Error, Result};
pub use rope::Rope3d;
pub use tensor::{Tensor, View, ViewMut};
pub use units::{Blocks, Frames, Grid, Pages, Tokens};

#[cfg(feature = "cuda")]
pub use cudarc;
