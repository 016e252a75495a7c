//! Short films as RGB frames: y4m, gif and, as a feature, mp4 in; y4m and gif out as they are made.

use std::fs::{self, File};
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::png::Image;
use super::y4m::{Chroma, Header, Y4m};

/// Frames that are read of one file at most: a clip for training has seconds.
const MOST_FRAMES: usize = 4096;
/// Pixels along a side at most.
const MOST_EXTENT: usize = 4096;

/// A clip, whole in memory.
pub struct Movie {
    pub frames: Vec<Image>,
}

impl Movie {
    /// Reads a y4m, gif or (feature `mp4`) mp4 file; its first bytes tell which. Errors name the file.
    pub fn open(path: &Path) -> Result<Movie> {
        let name = path.display().to_string();
        // Asked before it is opened: opening a pipe waits for its writer.
        ensure!(
            fs::metadata(path).with_context(|| name.clone())?.is_file(),
            "{name}: not a file"
        );
        let bytes = fs::read(path).with_context(|| name.clone())?;
        Movie::parse(bytes).context(name)
    }

    /// The same from memory.
    pub fn parse(bytes: Vec<u8>) -> Result<Movie> {
        let frames = match &bytes {
            b if b.starts_with(b"YUV4MPEG2") => y4m_frames(bytes)?,
            b if b.starts_with(b"GIF8") => gif_frames(&bytes)?,
            #[cfg(feature = "mp4")]
            b if b.get(4..8) == Some(b"ftyp") => super::mp4::frames(b, MOST_FRAMES, MOST_EXTENT)?,
            #[cfg(not(feature = "mp4"))]
            b if b.get(4..8) == Some(b"ftyp") => {
                bail!("an mp4 file: build with --features mp4, or make a y4m file of it (ffmpeg -i IN.mp4 OUT.y4m)")
            }
            _ => bail!("neither a y4m nor a gif file"),
        };
        Ok(Movie { frames })
    }

    /// Width and height.
    pub fn size(&self) -> (usize, usize) {
        self.frames.first().map_or((0, 0), |f| (f.width, f.height))
    }
}

fn y4m_frames(bytes: Vec<u8>) -> Result<Vec<Image>> {
    let mut y4m = Y4m::open(Box::new(Cursor::new(bytes)))?;
    let header = y4m.header().clone();
    let mut planes = Vec::new();
    (0..y4m.frames().min(MOST_FRAMES))
        .map(|frame| {
            y4m.read(frame, &mut planes)?;
            Ok(rgb(&header, &planes))
        })
        .collect()
}

/// By BT.601, each pixel with the color of the group that it is in.
fn rgb(header: &Header, planes: &[u8]) -> Image {
    let (width, height) = (header.width, header.height);
    let (y, colors) = planes.split_at(width * height);
    let (u, v) = colors.split_at(colors.len() / 2);
    let (across, _) = header.chroma_extents();
    let mut rgb = Vec::with_capacity(3 * width * height);
    for row in 0..height {
        for col in 0..width {
            let (u, v) = match header.chroma {
                Chroma::Mono => (128, 128),
                Chroma::Planes(a, d) => {
                    let at = row / d * across + col / a;
                    (u[at], v[at])
                }
            };
            rgb.extend(pixel(header.full_range, [y[row * width + col], u, v]));
        }
    }
    Image { width, height, rgb }
}

/// RGB of Y'CbCr, by BT.601.
pub fn pixel(full_range: bool, [y, u, v]: [u8; 3]) -> [u8; 3] {
    let (black, gain, color) = match full_range {
        true => (0.0, 1.0, 1.0),
        false => (16.0, 255.0 / 219.0, 255.0 / 224.0),
    };
    let y = gain * (f32::from(y) - black);
    let (u, v) = (color * (f32::from(u) - 128.0), color * (f32::from(v) - 128.0));
    // `as` stays between 0 and 255.
    [y + 1.402 * v, y - 0.344_136 * u - 0.714_136 * v, y + 1.772 * u].map(|x| x.round() as u8)
}

fn gif_frames(bytes: &[u8]) -> Result<Vec<Image>> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(bytes).context("not a gif that can be read")?;
    let (width, height) = (usize::from(decoder.width()), usize::from(decoder.height()));
    ensure!(
        (1..=MOST_EXTENT).contains(&width) && (1..=MOST_EXTENT).contains(&height),
        "{width} x {height} pixels (1 to {MOST_EXTENT} a side are taken)"
    );
    // Frames may cover a part, and leave what they do not cover.
    let mut canvas = Image {
        width,
        height,
        rgb: vec![0; 3 * width * height],
    };
    let mut frames = Vec::new();
    while let Some(frame) = decoder
        .read_next_frame()
        .with_context(|| format!("frame {} is broken or cut off", frames.len()))?
    {
        let before = (frame.dispose == gif::DisposalMethod::Previous).then(|| canvas.clone());
        let (left, top) = (usize::from(frame.left), usize::from(frame.top));
        let (w, h) = (usize::from(frame.width), usize::from(frame.height));
        let inside = |x: usize, y: usize| (x < width && y < height).then(|| 3 * (y * width + x));
        for (i, rgba) in frame.buffer.chunks_exact(4).enumerate().take(w * h) {
            if let Some(at) = inside(left + i % w, top + i / w).filter(|_| rgba[3] > 0) {
                canvas.rgb[at..at + 3].copy_from_slice(&rgba[..3]);
            }
        }
        ensure!(frames.len() < MOST_FRAMES, "more than {MOST_FRAMES} frames");
        frames.push(canvas.clone());
        if let Some(before) = before {
            canvas = before;
        } else if frame.dispose == gif::DisposalMethod::Background {
            for at in (0..w * h).filter_map(|i| inside(left + i % w, top + i / w)) {
                canvas.rgb[at..at + 3].fill(0);
            }
        }
    }
    ensure!(!frames.is_empty(), "there is no frame in it");
    Ok(frames)
}

/// A y4m file that grows by a frame at a time: 4:4:4, full range.
pub struct Y4mWriter(File);

impl Y4mWriter {
    pub fn create(path: &Path, (width, height): (usize, usize), fps: usize) -> Result<Y4mWriter> {
        let mut file = File::create(path)?;
        writeln!(
            file,
            "YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C444 XCOLORRANGE=FULL"
        )?;
        Ok(Y4mWriter(file))
    }

    pub fn write(&mut self, frames: &[Image]) -> Result<()> {
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.extend(b"FRAME\n");
            let pixels: Vec<[f32; 3]> = frame
                .rgb
                .chunks_exact(3)
                .map(|p| {
                    let [r, g, b] = [p[0], p[1], p[2]].map(f32::from);
                    let y = 0.299 * r + 0.587 * g + 0.114 * b;
                    [y, (b - y) / 1.772 + 128.0, (r - y) / 1.402 + 128.0]
                })
                .collect();
            for plane in 0..3 {
                bytes.extend(pixels.iter().map(|p| p[plane].round() as u8));
            }
        }
        // One call: what is cut off is at the end.
        self.0.write_all(&bytes)?;
        Ok(())
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
            let small = gif::Frame::from_rgb_speed(extent(image.width)?, extent(image.height)?, &image.rgb, 10);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(count: usize) -> Vec<Image> {
        let frame = |n: usize| Image {
            width: 6,
            height: 4,
            rgb: (0..24)
                .flat_map(|i| [40 * (i % 6) as u8, 60 * (i / 6) as u8, 20 * n as u8])
                .collect(),
        };
        (0..count).map(frame).collect()
    }

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("packforcing-movie-{}-{name}", std::process::id()))
    }

    /// Largest difference of two films.
    fn apart(a: &[Image], b: &[Image]) -> u8 {
        assert_eq!(a.len(), b.len());
        let pairs = a.iter().zip(b).flat_map(|(a, b)| a.rgb.iter().zip(&b.rgb));
        pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
    }

    #[test]
    fn a_y4m_file_comes_back() {
        let (path, frames) = (path("a.y4m"), frames(5));
        let mut writer = Y4mWriter::create(&path, (6, 4), 8).unwrap();
        writer.write(&frames[..2]).unwrap();
        assert_eq!(
            Movie::open(&path).unwrap().frames.len(),
            2,
            "it can be read while it grows"
        );
        writer.write(&frames[2..]).unwrap();
        let movie = Movie::open(&path).unwrap();
        assert_eq!(movie.size(), (6, 4));
        assert!(apart(&movie.frames, &frames) <= 2, "{}", apart(&movie.frames, &frames));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_gif_file_comes_back_larger_and_is_whole_at_any_time() {
        let (path, frames) = (path("a.gif"), frames(9));
        let mut writer = GifWriter::create(&path, (6, 4), 3, 8).unwrap();
        for part in frames.chunks(4) {
            writer.write(part).unwrap();
            assert_eq!(fs::read(&path).unwrap().last(), Some(&0x3B));
        }
        let movie = Movie::open(&path).unwrap();
        assert_eq!((movie.frames.len(), movie.size()), (9, (18, 12)));
        for (large, small) in movie.frames.iter().zip(&frames) {
            let mut zoomed = Image::white(18, 12);
            zoomed.paste(small, 0, 0, 3);
            assert!(apart(std::slice::from_ref(large), &[zoomed]) <= 8);
        }
        // 8 frames take a second.
        drop(writer);
        let mut decoder = gif::DecodeOptions::new().read_info(File::open(&path).unwrap()).unwrap();
        let mut delays = Vec::new();
        while let Some(frame) = decoder.read_next_frame().unwrap() {
            delays.push(frame.delay);
        }
        assert_eq!(delays[..8].iter().sum::<u16>(), 100);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_film_is_refused() {
        let refused = |bytes: &[u8], told: &str| {
            let error = Movie::parse(bytes.to_vec())
                .err()
                .map(|e| format!("{e:#}"))
                .unwrap_or_default();
            assert!(error.contains(told), "{told}: {error}");
        };
        refused(b"", "neither a y4m nor a gif file");
        refused(b"RIFF", "neither a y4m nor a gif file");
        refused(b"YUV4MPEG2 W6 H4 F8:1\nFRAME\nabc", "frame 0 is cut off");
        refused(b"GIF89a", "not a gif that can be read");
        let path = path("b.gif");
        GifWriter::create(&path, (6, 4), 1, 8)
            .unwrap()
            .write(&frames(3))
            .unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        refused(&bytes[..bytes.len() - 40], "frame");
        assert!(
            Movie::open(&path)
                .err()
                .is_some_and(|e| format!("{e:#}").contains("b.gif"))
        );
    }
}
