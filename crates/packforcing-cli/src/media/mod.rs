//! Video and pictures, in and out.

pub mod clip;
pub mod ffmpeg;
pub mod film;
pub mod gif;
pub mod png;
pub mod tensor;
pub mod y4m;

/// Frames that are taken of one clip at most, whatever it is: eight minutes at 8 a second.
pub const MOST_FRAMES: usize = 4096;
/// Pixels along a side at most.
pub const MOST_EXTENT: usize = 4096;

/// Frames a second, as a user gives them.
pub fn fps(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(fps) if fps > 0.0 && fps <= 1000.0 => Ok(fps),
        _ => Err("a number above 0, at most 1000, is expected".into()),
    }
}
