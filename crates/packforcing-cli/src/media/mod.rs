//! Video and pictures: y4m files in, PNG files out.

pub mod clip;
pub mod movie;
pub mod png;
pub mod tensor;
pub mod y4m;
