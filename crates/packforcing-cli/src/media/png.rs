//! Pictures in RGB, drawn by hand or by a chart, and their PNG files.

use anyhow::Result;

/// 8 bits a channel, row by row.
#[derive(Debug, Clone)]
pub struct Image {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

impl Image {
    /// All white.
    pub fn white(width: usize, height: usize) -> Image {
        Image {
            width,
            height,
            rgb: vec![255; 3 * width * height],
        }
    }

    /// Copies `other` in, each pixel as a square of `zoom`, its corner at (x, y). What does not fit
    /// is left out.
    pub fn paste(&mut self, other: &Image, x: usize, y: usize, zoom: usize) {
        for row in y..(y + zoom * other.height).min(self.height) {
            for column in x..(x + zoom * other.width).min(self.width) {
                let from = 3 * ((row - y) / zoom * other.width + (column - x) / zoom);
                let to = 3 * (row * self.width + column);
                self.rgb[to..to + 3].copy_from_slice(&other.rgb[from..from + 3]);
            }
        }
    }

    /// The bytes of a PNG file.
    pub fn png(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.rgb)?;
        writer.finish()?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pasted_pixels_come_back_out_of_the_file() {
        let two = Image {
            width: 2,
            height: 1,
            rgb: vec![1, 2, 3, 4, 5, 6],
        };
        let mut image = Image::white(5, 3);
        image.paste(&two, 1, 1, 2);
        let bytes = image.png().unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut rgb).unwrap();
        assert_eq!(rgb[..15], [255; 15]);
        let row = [255, 255, 255, 1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6];
        assert_eq!(rgb[15..30], row);
        assert_eq!(rgb[30..45], row);
    }
}
