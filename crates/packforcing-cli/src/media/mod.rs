//! Video and pictures: y4m files in, PNG files out.

pub mod clip;
pub mod png;
pub mod y4m;
