//! Frames as a model takes and gives them: f32 numbers from -1 to 1, `[3, frames, rows, columns]`.

use std::fmt;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};

use super::png::Image;

/// Frames of one size.
pub fn of_frames(frames: &[Image]) -> Result<Tensor> {
    let (width, height) = frames.first().map_or((0, 0), |f| (f.width, f.height));
    let mut numbers = Vec::with_capacity(3 * frames.len() * width * height);
    for channel in 0..3 {
        for frame in frames {
            let bytes = frame.rgb.iter().skip(channel).step_by(3);
            numbers.extend(bytes.map(|&byte| f32::from(byte) / 127.5 - 1.0));
        }
    }
    Ok(Tensor::from_vec(
        numbers,
        (3, frames.len(), height, width),
        &Device::Cpu,
    )?)
}

/// By which numbers are known again: FNV-1a of their bits.
#[derive(Debug, Clone, Copy)]
pub struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Fingerprint {
        Fingerprint(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    pub fn add(&mut self, tensor: &Tensor) -> Result<()> {
        for number in tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()? {
            self.0 = (self.0 ^ u64::from(number.to_bits())).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What lies outside is cut.
pub fn to_frames(tensor: &Tensor) -> Result<Vec<Image>> {
    let (_, frames, height, width) = tensor.dims4()?;
    let numbers = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let pixels = height * width;
    let byte = |channel: usize, i: usize| (127.5 * (numbers[channel * frames * pixels + i] + 1.0)).round() as u8;
    let frame = |n: usize| Image {
        width,
        height,
        rgb: (n * pixels..(n + 1) * pixels)
            .flat_map(|i| [0, 1, 2].map(|c| byte(c, i)))
            .collect(),
    };
    Ok((0..frames).map(frame).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        let image = |seed: usize| Image {
            width: 5,
            height: 3,
            rgb: (0..45).map(|i| ((i * 37 + seed * 11) % 256) as u8).collect(),
        };
        let frames = [image(0), image(1)];
        let tensor = of_frames(&frames).unwrap();
        assert_eq!(tensor.dims(), [3, 2, 3, 5]);
        let back = to_frames(&tensor).unwrap();
        assert!(back.iter().zip(&frames).all(|(a, b)| a.rgb == b.rgb));
        let wild =
            to_frames(&Tensor::new(&[[[[-9f32, 9.0, f32::NAN]]], [[[0.0; 3]]], [[[0.0; 3]]]], &Device::Cpu).unwrap());
        let red: Vec<u8> = wild.unwrap()[0].rgb.iter().step_by(3).copied().collect();
        assert_eq!(red, [0, 255, 0], "cut at black and white");
    }
}
