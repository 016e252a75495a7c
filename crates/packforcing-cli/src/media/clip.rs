//! A clip as the program sees it: cropped to whole patches, made smaller where it is large, and
//! played back and forth without an end.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tempfile::TempPath;

use super::film::{Film, Wish};
use super::png::Image;
use super::y4m::{Chroma, Source, Y4m, Y4mWriter};

/// Pixels along each side of a patch, which is a token.
pub const PATCH: usize = 8;
/// Patches along rows and columns that one merged token stands for: a clip has at least these.
const MIN_PATCHES: usize = 4;
/// Patches of a frame above which a clip is made smaller: work grows with their square.
const MAX_PATCHES: usize = 400;
/// Frames a second of what does not say, and of what is no y4m file.
const FPS: usize = 25;

/// The clip that stands in for one of the user's. Its rights are told in data/README.md.
static BUNNY: &[u8] = include_bytes!("../../../../data/bunny_160x96_25fps.y4m");
const BUNNY_NAME: &str = "bunny_160x96_25fps.y4m (built in)";

/// A frame: brightness, and colour at half its size, each value as its byte.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Patches.
    pub rows: usize,
    /// Patches.
    pub cols: usize,
    /// `[8 rows, 8 cols]`
    pub y: Vec<f32>,
    /// `[4 rows, 4 cols]`
    pub u: Vec<f32>,
    /// `[4 rows, 4 cols]`
    pub v: Vec<f32>,
    pub full_range: bool,
}

impl Picture {
    /// All values at the middle.
    pub fn grey(rows: usize, cols: usize, full_range: bool) -> Picture {
        let patches = rows * cols;
        Picture {
            rows,
            cols,
            y: vec![128.0; 64 * patches],
            u: vec![128.0; 16 * patches],
            v: vec![128.0; 16 * patches],
            full_range,
        }
    }

    /// In RGB, by BT.601.
    pub fn rgb(&self) -> Image {
        let (width, height) = (PATCH * self.cols, PATCH * self.rows);
        let (black, gain, colour) = match self.full_range {
            true => (0.0, 1.0, 1.0),
            false => (16.0, 255.0 / 219.0, 255.0 / 224.0),
        };
        let mut rgb = Vec::with_capacity(3 * width * height);
        for row in 0..height {
            for col in 0..width {
                let half = row / 2 * (width / 2) + col / 2;
                let y = gain * (self.y[row * width + col] - black);
                let (u, v) = (colour * (self.u[half] - 128.0), colour * (self.v[half] - 128.0));
                let pixel = [y + 1.402 * v, y - 0.344_136 * u - 0.714_136 * v, y + 1.772 * u];
                rgb.extend(pixel.map(|x| x.round() as u8)); // `as` stays between 0 and 255
            }
        }
        Image { width, height, rgb }
    }
}

/// Frames of a y4m stream, ready to be cut into patches.
pub struct Clip {
    y4m: Y4m,
    file: Option<Arc<Place>>,
    name: String,
    fps: f64,
    scale: usize,
    planes: Vec<u8>,
}

/// Where the y4m file of a clip lies.
enum Place {
    Given(PathBuf),
    /// Made of another file, for as long as the clip is there.
    Made(TempPath),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Place::Given(path) => path,
            Place::Made(path) => path,
        }
    }
}

impl Clip {
    /// Opens a file, or the built-in clip. Frames are read back and forth: of what is no y4m file one is made first.
    pub fn open(path: Option<&Path>, unsaid_fps: Option<f64>) -> Result<Clip> {
        let Some(path) = path else {
            return Clip::new(Box::new(Cursor::new(BUNNY)), BUNNY_NAME.into(), None);
        };
        let name = path.display().to_string();
        // Asked before it is opened: opening a pipe waits for its writer.
        let regular = fs::metadata(path).with_context(|| name.clone())?.is_file();
        ensure!(regular, "{name}: not a file that can be read back and forth");
        let mut begin = Vec::new();
        let file = File::open(path).with_context(|| name.clone())?;
        file.take(8).read_to_end(&mut begin).with_context(|| name.clone())?;
        let place = match begin.starts_with(b"YUV4MPEG") {
            true => Place::Given(path.into()),
            false => spool(path, unsaid_fps)?,
        };
        let clip = Clip::of(place.into(), name, unsaid_fps)?;
        if let Some(note) = clip.y4m.note() {
            eprintln!("warning: {}: {note}", clip.name);
        }
        Ok(clip)
    }

    fn of(file: Arc<Place>, name: String, unsaid_fps: Option<f64>) -> Result<Clip> {
        let opened = File::open(file.path()).with_context(|| name.clone())?;
        let clip = Clip::new(Box::new(opened), name.clone(), unsaid_fps).context(name)?;
        Ok(Clip {
            file: Some(file),
            ..clip
        })
    }

    /// The same clip, to be read beside this one.
    pub fn reopen(&self) -> Result<Clip> {
        match &self.file {
            None => Clip::open(None, None),
            Some(file) => Clip::of(file.clone(), self.name.clone(), Some(self.fps)),
        }
    }

    fn new(source: Box<dyn Source>, name: String, unsaid_fps: Option<f64>) -> Result<Clip> {
        let y4m = Y4m::open(source)?;
        let (width, height) = (y4m.header().width, y4m.header().height);
        let least = MIN_PATCHES * PATCH;
        ensure!(
            width >= least && height >= least,
            "{width} x {height} pixels are too few: a merged token stands for {MIN_PATCHES} x {MIN_PATCHES} patches \
             of {PATCH} x {PATCH}, so {least} x {least} are needed"
        );
        let most = width.min(height) / least;
        let patches = |scale: usize| (width / scale / PATCH) * (height / scale / PATCH);
        let scale = (1..most).find(|&scale| patches(scale) <= MAX_PATCHES).unwrap_or(most);
        let fps = y4m.header().frames_per_second().or(unsaid_fps);
        Ok(Clip {
            y4m,
            file: None,
            name,
            fps: fps.unwrap_or(FPS as f64),
            scale,
            planes: Vec::new(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Pixels of the file that one pixel of a [`Picture`] is the mean of, across and down.
    pub fn scale(&self) -> usize {
        self.scale
    }

    /// Rows of patches.
    pub fn rows(&self) -> usize {
        self.y4m.header().height / self.scale / PATCH
    }

    /// Columns of patches.
    pub fn cols(&self) -> usize {
        self.y4m.header().width / self.scale / PATCH
    }

    /// Whether values reach from 0 to 255.
    pub fn full_range(&self) -> bool {
        self.y4m.header().full_range
    }

    pub fn frames_per_second(&self) -> f64 {
        self.fps
    }

    /// Frames after which playing back and forth begins again: 0, 1, .. n - 1, n - 1, .. 1, 0.
    pub fn period(&self) -> usize {
        2 * self.y4m.frames()
    }

    /// Frame `time` of the endless video.
    pub fn play(&mut self, time: usize) -> Result<Picture> {
        let (at, last) = (time % self.period(), self.period() - 1);
        self.frame(at.min(last - at))
    }

    fn frame(&mut self, index: usize) -> Result<Picture> {
        let (rows, cols) = (self.rows(), self.cols());
        self.y4m
            .read(index, &mut self.planes)
            .with_context(|| self.name.clone())?;
        let header = self.y4m.header();
        let mut picture = Picture::grey(rows, cols, header.full_range);
        let (y, colour) = self.planes.split_at(header.width * header.height);
        let size = (PATCH * cols, PATCH * rows);
        picture.y = shrink(y, header.width, (self.scale, self.scale), size);
        if let Chroma::Planes(across, down) = header.chroma {
            let (u, v) = colour.split_at(colour.len() / 2);
            let (width, _) = header.chroma_extents();
            let cell = (2 * self.scale / across, 2 * self.scale / down);
            let size = (size.0 / 2, size.1 / 2);
            picture.u = shrink(u, width, cell, size);
            picture.v = shrink(v, width, cell, size);
        }
        Ok(picture)
    }
}

/// A y4m file of another one, in the system's folder for such files.
fn spool(path: &Path, unsaid_fps: Option<f64>) -> Result<Place> {
    let wish = Wish {
        fps: FPS,
        size: None,
        pixels: Some(MAX_PATCHES * PATCH * PATCH),
        unsaid_fps,
    };
    let mut film = Film::open(path, &wish)?;
    let making = || {
        format!(
            "{}: making a y4m file of it in {}",
            path.display(),
            std::env::temp_dir().display()
        )
    };
    let file = tempfile::Builder::new()
        .prefix("packforcing-")
        .suffix(".y4m")
        .tempfile();
    let place = file.with_context(making)?.into_temp_path();
    let mut writer = Y4mWriter::create(&place, film.size(), FPS).with_context(making)?;
    while let Some(frame) = film.next()? {
        writer.write(&[frame])?;
    }
    film.warn();
    Ok(Place::Made(place))
}

/// Means over cells of `cell` pixels (across, down), as many as `size` says, from the upper left
/// corner of a plane.
fn shrink(plane: &[u8], width: usize, cell: (usize, usize), size: (usize, usize)) -> Vec<f32> {
    let count = (cell.0 * cell.1) as f32;
    let mean = |row: usize, col: usize| {
        let rows = (row * cell.1..(row + 1) * cell.1).map(|r| &plane[r * width + col * cell.0..][..cell.0]);
        rows.flatten().map(|&byte| u32::from(byte)).sum::<u32>() as f32 / count
    };
    (0..size.1)
        .flat_map(|row| (0..size.0).map(move |col| (row, col)))
        .map(|(row, col)| mean(row, col))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clip whose brightness tells frame and place, and whose colour tells the plane.
    fn clip(width: usize, height: usize, frames: usize, space: &str, chroma: (usize, usize)) -> Result<Clip> {
        let mut file = format!("YUV4MPEG2 W{width} H{height} F25:1 C{space}\n").into_bytes();
        for frame in 0..frames {
            file.extend(b"FRAME\n");
            file.extend((0..width * height).map(|i| (frame * 50 + (i % width) % 2) as u8));
            file.extend(vec![100; chroma.0 * chroma.1]);
            file.extend(vec![200; chroma.0 * chroma.1]);
        }
        Clip::new(Box::new(Cursor::new(file)), "test".into(), None)
    }

    #[test]
    fn back_and_forth() {
        let mut clip = clip(32, 32, 3, "420", (16, 16)).unwrap();
        let played: Vec<_> = (0..8).map(|t| clip.play(t).unwrap().y[0] / 50.0).collect();
        assert_eq!(played, [0.0, 1.0, 2.0, 2.0, 1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn every_colour_space_becomes_half_planes() {
        for (space, chroma) in [("420", (23, 18)), ("422", (23, 35)), ("444", (45, 35))] {
            let picture = clip(45, 35, 1, space, chroma).unwrap().play(0).unwrap();
            assert_eq!((picture.rows, picture.cols), (4, 5));
            assert_eq!(picture.y[..4], [0.0, 1.0, 0.0, 1.0]);
            assert_eq!((picture.u, picture.v), (vec![100.0; 320], vec![200.0; 320]), "{space}");
        }
        let picture = clip(45, 35, 1, "mono", (0, 0)).unwrap().play(0).unwrap();
        assert_eq!((picture.u, picture.v), (vec![128.0; 320], vec![128.0; 320]));
    }

    #[test]
    fn large_ones_are_made_smaller_and_small_ones_refused() {
        let mut large = clip(640, 360, 1, "420", (320, 180)).unwrap();
        assert_eq!((large.scale(), large.rows(), large.cols()), (3, 15, 26));
        let picture = large.play(0).unwrap();
        assert!((picture.y[0] - 1.0 / 3.0).abs() < 1e-6 && picture.u[0] == 100.0);
        assert_eq!(clip(2000, 40, 1, "mono", (0, 0)).unwrap().scale(), 1);
        let error = clip(40, 31, 1, "mono", (0, 0)).err().unwrap().to_string();
        assert!(
            error.contains("40 x 31 pixels are too few") && error.contains("32 x 32"),
            "{error}"
        );
    }

    #[test]
    fn the_built_in_clip_is_there() {
        let clip = Clip::open(None, None).unwrap();
        assert_eq!(
            (clip.rows(), clip.cols(), clip.scale(), clip.period()),
            (12, 20, 1, 256)
        );
    }

    #[test]
    fn grey_is_grey() {
        let image = Picture::grey(1, 1, true).rgb();
        assert!(image.rgb.iter().all(|&x| x == 128));
        let mut white = Picture::grey(1, 1, false);
        white.y.fill(235.0);
        assert!(white.rgb().rgb.iter().all(|&x| x == 255));
    }

    /// Clips of any size and colour, each plane of one value: means of it are that value.
    #[test]
    fn flat_clips_stay_flat() {
        use proptest::prelude::*;
        use proptest::test_runner::{Config, TestRunner};

        let asked = std::env::var("PACKFORCING_FUZZ").ok();
        let cases = asked.map_or(300, |n| n.parse().expect("PACKFORCING_FUZZ is a number"));
        let config = Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        };
        let space = prop::sample::select(vec![("mono", 0, 0), ("420", 2, 2), ("422", 2, 1), ("444", 1, 1)]);
        let extent = || prop_oneof![20usize..80, 1usize..400];
        let inputs = (extent(), extent(), space, any::<[u8; 3]>(), 1usize..3, any::<usize>());
        let result = TestRunner::new(config).run(
            &inputs,
            |(width, height, (name, across, down), planes, frames, time)| {
                let colour = if across == 0 {
                    0
                } else {
                    width.div_ceil(across) * height.div_ceil(down)
                };
                let mut file = format!("YUV4MPEG2 W{width} H{height} F25:1 C{name}\n").into_bytes();
                for _ in 0..frames {
                    file.extend(b"FRAME\n");
                    for (plane, size) in planes.into_iter().zip([width * height, colour, colour]) {
                        file.resize(file.len() + size, plane);
                    }
                }
                match Clip::new(Box::new(Cursor::new(file)), "test".into(), None) {
                    Ok(mut clip) => {
                        let (rows, cols) = (clip.rows(), clip.cols());
                        prop_assert!(rows >= MIN_PATCHES && cols >= MIN_PATCHES);
                        prop_assert!(PATCH * clip.scale() * rows <= height && PATCH * clip.scale() * cols <= width);
                        let picture = clip.play(time).expect("every frame is there");
                        let flat = |plane: &[f32], n: usize, value: u8| {
                            plane.len() == n && plane.iter().all(|&x| x == f32::from(value))
                        };
                        let [y, u, v] = if across == 0 { [planes[0], 128, 128] } else { planes };
                        prop_assert!(flat(&picture.y, 64 * rows * cols, y));
                        prop_assert!(flat(&picture.u, 16 * rows * cols, u) && flat(&picture.v, 16 * rows * cols, v));
                    }
                    Err(e) => {
                        prop_assert!(width < 32 || height < 32, "{width} x {height}: {e:#}");
                        prop_assert!(e.to_string().contains("too few"));
                    }
                }
                Ok(())
            },
        );
        result.unwrap_or_else(|e| panic!("{e}"));
    }
}
