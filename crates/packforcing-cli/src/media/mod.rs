//! Video and pictures, in and out.

pub mod clip;
pub mod movie;
#[cfg(feature = "mp4")]
mod mp4;
pub mod png;
pub mod tensor;
pub mod y4m;
