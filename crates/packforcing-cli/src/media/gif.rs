//! GIF: frames in, whole canvases one at a time; films out, frame by frame.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::path::Path;

use anyhow::{Context, Result};

use super::film::{Frames, Shown};
use super::png::Image;
use super::{MOST_EXTENT, png};

/// Hundredths of a second that a frame stands which says 0 or 1: what browsers and ffmpeg make of it.
const DEFAULT_DELAY: u16 = 10;

/// A gif whose frames are read one by one.
pub struct Gif {
    decoder: gif::Decoder<BufReader<File>>,
    canvas: Image,
    /// What the newest frame leaves behind.
    next: Option<Image>,
    /// Frames a second that are wanted.
    fps: usize,
    /// When the newest frame ends, in seconds, and its number.
    ends: f64,
    number: usize,
}

impl Gif {
    pub fn open(source: BufReader<File>, fps: usize) -> Result<Gif> {
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::Indexed);
        // Of one frame, whose size is its own; nothing is decoded into memory before its turn.
        let most = NonZeroU64::new((MOST_EXTENT * MOST_EXTENT) as u64).map(gif::MemoryLimit::Bytes);
        options.set_memory_limit(most.unwrap_or(gif::MemoryLimit::Unlimited));
        let decoder = options.read_info(source).context("not a gif that can be read")?;
        let (width, height) = (usize::from(decoder.width()), usize::from(decoder.height()));
        let rgb = Vec::new(); // made with the first frame, when its size was found to be wanted
        Ok(Gif {
            decoder,
            canvas: Image { width, height, rgb },
            next: None,
            fps,
            ends: 0.0,
            number: 0,
        })
    }
}

impl Frames for Gif {
    fn size(&self) -> (usize, usize) {
        (self.canvas.width, self.canvas.height)
    }

    fn next(&mut self) -> Result<Option<Shown>> {
        let (width, height) = self.size();
        self.canvas.rgb.resize(3 * width * height, 0);
        if let Some(next) = self.next.take() {
            self.canvas = next;
        }
        let global = self.decoder.global_palette().map(<[u8]>::to_vec);
        let number = self.number;
        let frame = self.decoder.read_next_frame().map_err(|e| match e {
            gif::DecodingError::MemoryLimit => {
                anyhow::anyhow!("frame {number} is larger than {MOST_EXTENT} x {MOST_EXTENT} pixels")
            }
            e => anyhow::Error::new(e).context(format!("frame {number} is broken or cut off")),
        })?;
        let Some(frame) = frame else {
            return Ok(None);
        };
        let palette = frame.palette.as_deref().or(global.as_deref()).unwrap_or_default();
        // An index that the palette has no color for is black.
        let color = |index: u8| {
            palette
                .get(3 * usize::from(index)..)
                .and_then(|c| c.first_chunk::<3>())
                .copied()
        };
        let (left, top) = (usize::from(frame.left), usize::from(frame.top));
        let w = usize::from(frame.width).max(1);
        let before = (frame.dispose == gif::DisposalMethod::Previous).then(|| self.canvas.clone());
        let mut covered = Vec::new();
        for (i, &index) in frame.buffer.iter().enumerate() {
            let (x, y) = (left + i % w, top + i / w);
            // A frame may reach over the canvas.
            if x < width && y < height {
                let at = 3 * (y * width + x);
                if frame.transparent != Some(index) {
                    self.canvas.rgb[at..at + 3].copy_from_slice(&color(index).unwrap_or_default());
                }
                if frame.dispose == gif::DisposalMethod::Background {
                    covered.push(at);
                }
            }
        }
        self.next = before.or_else(|| {
            let mut cleared = (!covered.is_empty()).then(|| self.canvas.clone())?;
            covered.iter().for_each(|&at| cleared.rgb[at..at + 3].fill(0));
            Some(cleared)
        });
        let delay = if frame.delay < 2 { DEFAULT_DELAY } else { frame.delay };
        // Hundredths are coarse: 12 of them are what a gif has for an eighth of a second.
        let (stands, wanted) = (f64::from(delay) / 100.0, 1.0 / self.fps as f64);
        self.ends += if (stands - wanted).abs() < 0.01 { wanted } else { stands };
        self.number += 1;
        Ok(Some(Shown {
            image: self.canvas.clone(),
            until: self.ends,
        }))
    }
}

/// A gif file that grows by a frame at a time and ends as a gif must after each call.
pub struct GifWriter {
    encoder: gif::Encoder<File>,
    zoom: usize,
    fps: usize,
    written: usize,
}

/// The last byte of a gif.
const TRAILER: [u8; 1] = [0x3B];

impl GifWriter {
    /// Each pixel becomes a square of `zoom`.
    pub fn create(path: &Path, (width, height): (usize, usize), zoom: usize, fps: usize) -> Result<GifWriter> {
        let extent = |n: usize| u16::try_from(n * zoom).context("too large for a gif");
        let mut encoder = gif::Encoder::new(File::create(path)?, extent(width)?, extent(height)?, &[])?;
        encoder.set_repeat(gif::Repeat::Infinite)?;
        Ok(GifWriter {
            encoder,
            zoom,
            fps,
            written: 0,
        })
    }

    pub fn write(&mut self, frames: &[Image]) -> Result<()> {
        for image in frames {
            let extent = |n: usize| u16::try_from(n).context("too large for a gif");
            let small = indexed(image, extent(image.width)?, extent(image.height)?);
            // Enlarged by its colors' numbers: no new colors come in.
            let (zoom, width) = (self.zoom, image.width);
            let mut buffer = Vec::with_capacity(zoom * zoom * small.buffer.len());
            for row in small.buffer.chunks_exact(width) {
                let wide: Vec<u8> = row.iter().flat_map(|&i| std::iter::repeat_n(i, zoom)).collect();
                (0..zoom).for_each(|_| buffer.extend(&wide));
            }
            // In hundredths of a second: what one is too short the next is longer.
            let until = |frame: usize| frame * 100 / self.fps;
            let delay = (until(self.written + 1) - until(self.written)) as u16;
            self.written += 1;
            self.encoder.write_frame(&gif::Frame {
                width: extent(zoom * width)?,
                height: extent(zoom * image.height)?,
                delay,
                buffer: buffer.into(),
                ..small
            })?;
        }
        let file = self.encoder.get_mut();
        file.write_all(&TRAILER)?;
        file.seek(SeekFrom::Current(-1))?;
        Ok(())
    }
}

/// With a palette of the picture's own colors where there are at most 256, of the nearest otherwise.
fn indexed(image: &png::Image, width: u16, height: u16) -> gif::Frame<'static> {
    let mut numbers = HashMap::new();
    let mut palette = Vec::new();
    let mut pixels = Vec::with_capacity(image.rgb.len() / 3);
    for color in image.rgb.chunks_exact(3) {
        let next = numbers.len();
        let number = *numbers.entry(color).or_insert(next);
        let Ok(number) = u8::try_from(number) else {
            // From all pixels of a small picture, from every tenth of a large one.
            let speed = (image.width * image.height / 4096).clamp(1, 10) as i32;
            return gif::Frame::from_rgb_speed(width, height, &image.rgb, speed);
        };
        if usize::from(number) == next {
            palette.extend(color);
        }
        pixels.push(number);
    }
    gif::Frame::from_palette_pixels(width, height, pixels, palette, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("packforcing-gif-{}-{name}", std::process::id()))
    }

    /// Frame n has its own grey, and every frame all of its colors, of which there are at most 256.
    fn frames(count: usize) -> Vec<Image> {
        let frame = |n: usize| Image {
            width: 16,
            height: 15,
            rgb: (0..240).flat_map(|i| [i as u8, (7 * i) as u8, 20 * n as u8]).collect(),
        };
        (0..count).map(frame).collect()
    }

    fn all(path: &Path) -> (Vec<Shown>, Result<()>) {
        let mut gif = Gif::open(BufReader::new(File::open(path).unwrap()), 8).unwrap();
        let mut shown = Vec::new();
        loop {
            match gif.next() {
                Ok(Some(frame)) => shown.push(frame),
                Ok(None) => return (shown, Ok(())),
                Err(error) => return (shown, Err(error)),
            }
        }
    }

    #[test]
    fn a_film_comes_back_to_the_bit_and_is_whole_at_any_time() {
        let (path, frames) = (path("a.gif"), frames(9));
        let mut writer = GifWriter::create(&path, (16, 15), 3, 8).unwrap();
        for part in frames.chunks(4) {
            writer.write(part).unwrap();
            assert_eq!(std::fs::read(&path).unwrap().last(), Some(&0x3B));
        }
        drop(writer);
        let (film, ended) = all(&path);
        ended.unwrap();
        assert_eq!(film.len(), 9);
        for (large, small) in film.iter().zip(&frames) {
            let mut zoomed = Image::white(48, 45);
            zoomed.paste(small, 0, 0, 3);
            assert_eq!(large.image.rgb, zoomed.rgb);
        }
        // 8 frames take a second.
        assert_eq!(film[7].until, 1.0);
        let hundredths = |delay: u16| {
            let of = |delay: u16| gif::Frame {
                delay,
                ..gif::Frame::from_rgb(1, 1, &[0; 3])
            };
            let mut encoder = gif::Encoder::new(File::create(&path).unwrap(), 1, 1, &[]).unwrap();
            encoder.write_frame(&of(delay)).unwrap();
            drop(encoder);
            all(&path).0[0].until
        };
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!([2, 11, 12, 13, 14].map(hundredths), [0.02, 0.11, 0.125, 0.125, 0.14]);

        // The last byte, and garbage behind it, are no frames; a cut in a frame loses that one.
        let count = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let (film, ended) = all(&path);
            (film.len(), ended.err().map(|e| format!("{e:#}")))
        };
        assert_eq!(count(&[&bytes, &b"garbage"[..]].concat()), (9, None));
        assert_eq!(count(&bytes[..bytes.len() - 1]).0, 9);
        let (whole, error) = count(&bytes[..bytes.len() - 40]);
        assert_eq!(whole, 8);
        assert!(error.unwrap().contains("frame 8 is broken or cut off"));
        std::fs::remove_file(&path).unwrap();
    }

    /// Frames by hand: parts of the canvas, what they leave, and colors that are not there.
    #[test]
    fn parts_of_a_canvas() {
        let path = path("parts.gif");
        let palette = [0, 0, 0, 255, 0, 0, 0, 255, 0];
        let mut encoder = gif::Encoder::new(File::create(&path).unwrap(), 4, 1, &palette).unwrap();
        let mut frame = |left: u16, indices: &[u8], dispose: gif::DisposalMethod, delay: u16| {
            let frame = gif::Frame {
                left,
                width: indices.len() as u16,
                height: 1,
                delay,
                dispose,
                transparent: Some(0),
                buffer: indices.to_vec().into(),
                ..gif::Frame::default()
            };
            encoder.write_frame(&frame).unwrap();
        };
        frame(0, &[1, 1, 1, 1], gif::DisposalMethod::Keep, 20);
        frame(1, &[2, 0], gif::DisposalMethod::Previous, 0);
        frame(2, &[2], gif::DisposalMethod::Background, 1);
        frame(3, &[2, 2, 2], gif::DisposalMethod::Keep, 5);
        frame(0, &[3], gif::DisposalMethod::Keep, 5);
        drop(encoder);
        let (film, ended) = all(&path);
        ended.unwrap();
        let letters = |shown: &Shown| -> String {
            let pixels = shown.image.rgb.chunks_exact(3);
            pixels
                .map(|p| {
                    if p[0] > 0 {
                        'r'
                    } else if p[1] > 0 {
                        'g'
                    } else {
                        '.'
                    }
                })
                .collect()
        };
        let until = |shown: &Shown| (shown.until * 1e6).round() / 1e6;
        let shown: Vec<(String, f64)> = film.iter().map(|shown| (letters(shown), until(shown))).collect();
        let expected = [
            ("rrrr", 0.2),
            ("rgrr", 0.3),
            ("rrgr", 0.4),
            ("rr.g", 0.45),
            (".r.g", 0.5),
        ];
        assert_eq!(shown, expected.map(|(letters, until)| (letters.to_string(), until)));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn more_colors_than_a_palette_has() {
        let path = path("many.gif");
        let image = Image {
            width: 32,
            height: 32,
            rgb: (0..1024)
                .flat_map(|i| [(i % 32 * 8) as u8, (i / 32 * 8) as u8, 128])
                .collect(),
        };
        GifWriter::create(&path, (32, 32), 1, 8)
            .unwrap()
            .write(std::slice::from_ref(&image))
            .unwrap();
        let (film, _) = all(&path);
        let apart = film[0]
            .image
            .rgb
            .iter()
            .zip(&image.rgb)
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert!(apart <= Some(32), "{apart:?}");
        std::fs::remove_file(&path).unwrap();
    }
}
