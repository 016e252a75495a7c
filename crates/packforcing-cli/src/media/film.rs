//! The door for clips: whatever the file is, its frames come upright, in RGB, at the rate that is asked for, one after the other.
//!
//! Y4M and GIF are read here; everything else is given to the program `ffmpeg`.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::ffmpeg::Ffmpeg;
use super::gif::Gif;
use super::png::Image;
use super::y4m::Y4mFrames;
use super::{MOST_EXTENT, MOST_FRAMES};

/// What is asked of a clip.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// Frames a second.
    pub fps: usize,
    /// Width and height; those of the file otherwise. What is read here must have it, ffmpeg makes it so.
    pub size: Option<(usize, usize)>,
    /// Pixels of a frame, at most: ffmpeg makes larger ones smaller.
    pub pixels: Option<usize>,
    /// Frames a second of a clip that does not say.
    pub unsaid_fps: Option<f64>,
}

/// A frame, and until when it is shown, in seconds from the clip's beginning.
pub struct Shown {
    pub image: Image,
    pub until: f64,
}

/// A reader of one kind of file. An error ends the clip; the frames before it are whole.
pub trait Frames {
    /// Width and height, from the header.
    fn size(&self) -> (usize, usize);
    fn next(&mut self) -> Result<Option<Shown>>;
    /// What a person should know of the file besides, once.
    fn note(&self) -> Option<String> {
        None
    }
}

/// A clip whose frames are taken one by one.
pub struct Film {
    name: String,
    frames: Box<dyn Frames>,
    fps: usize,
    /// What is on the screen.
    shown: Option<Shown>,
    /// Frames of the file that were read, and that were given.
    read: usize,
    given: usize,
    /// Frames that are given at most.
    most: usize,
    notes: Vec<String>,
}

impl Film {
    /// Opens a file; its first bytes tell what it is. Errors name it.
    pub fn open(path: &Path, wish: &Wish) -> Result<Film> {
        let name = path.display().to_string();
        // Asked before it is opened: opening a pipe waits for its writer.
        let regular = fs::metadata(path).with_context(|| name.clone())?.is_file();
        ensure!(regular, "{name}: not a file");
        Film::of(path, wish).context(name)
    }

    fn of(path: &Path, wish: &Wish) -> Result<Film> {
        let mut file = File::open(path)?;
        let mut begin = Vec::new();
        (&mut file).take(512).read_to_end(&mut begin)?;
        let frames: Box<dyn Frames> = match kind(&begin)? {
            Kind::Y4m => Box::new(Y4mFrames::open(File::open(path)?, wish.unsaid_fps, wish.fps)?),
            Kind::Gif => Box::new(Gif::open(BufReader::new(File::open(path)?), wish.fps)?),
            Kind::Other(what) => Box::new(Ffmpeg::open(path, wish, what)?),
        };
        let (width, height) = frames.size();
        ensure!(
            (1..=MOST_EXTENT).contains(&width) && (1..=MOST_EXTENT).contains(&height),
            "{width} x {height} pixels are not taken (1 to {MOST_EXTENT} a side are)"
        );
        if let Some((w, h)) = wish.size {
            ensure!(
                (width, height) == (w, h),
                "{width} x {height} pixels, and {w} x {h} are wanted (ffmpeg -i IN -vf scale={w}:{h} OUT.y4m makes it so)"
            );
        }
        Ok(Film {
            name: path.display().to_string(),
            notes: frames.note().into_iter().collect(),
            frames,
            fps: wish.fps,
            shown: None,
            read: 0,
            given: 0,
            most: MOST_FRAMES,
        })
    }

    /// Width and height of every frame.
    pub fn size(&self) -> (usize, usize) {
        self.frames.size()
    }

    /// The frame that is on the screen when the next one is due. A clip that breaks off gives the frames before, and a note.
    pub fn next(&mut self) -> Result<Option<Image>> {
        let due = self.given as f64 / self.fps as f64;
        // Sums of hundredths and of fractions of seconds are a little off.
        while self.shown.as_ref().is_none_or(|shown| shown.until <= due + 1e-6) {
            match self.frames.next() {
                Ok(Some(shown)) => {
                    let (got, size) = ((shown.image.width, shown.image.height), self.size());
                    ensure!(
                        got == size,
                        "{}: frame {} has {} x {} pixels, and those before have {} x {}",
                        self.name,
                        self.read,
                        got.0,
                        got.1,
                        size.0,
                        size.1
                    );
                    self.shown = Some(shown);
                    self.read += 1;
                }
                Ok(None) if self.read == 0 => bail!("{}: there is no frame in it", self.name),
                Ok(None) => return Ok(None),
                Err(error) if self.read == 0 => return Err(error.context(self.name.clone())),
                Err(error) => {
                    let whole = self.read;
                    self.notes
                        .push(format!("{error:#}: the {whole} frames before it are taken"));
                    self.frames = Box::new(Ended(self.size()));
                }
            }
        }
        ensure!(
            self.given < self.most,
            "{}: more than {} frames at {} a second; cut it (ffmpeg -i IN -t {} OUT.y4m)",
            self.name,
            self.most,
            self.fps,
            self.most / self.fps
        );
        self.given += 1;
        Ok(self.shown.as_ref().map(|shown| shown.image.clone()))
    }

    /// The same clip however long it is, for who keeps no frames.
    pub fn endless(mut self) -> Film {
        self.most = usize::MAX;
        self
    }

    /// All frames that are left, if their numbers as a model takes them fit into `bytes`.
    pub fn rest(&mut self, bytes: usize) -> Result<Vec<Image>> {
        let (width, height) = self.size();
        let one = 12 * width * height;
        let mut frames = Vec::new();
        while let Some(frame) = self.next()? {
            ensure!(
                (frames.len() + 1) * one <= bytes,
                "{}: its {width} x {height} pixels take more than the {} MB that there are for clips from frame {} on",
                self.name,
                bytes >> 20,
                frames.len()
            );
            frames.push(frame);
        }
        Ok(frames)
    }

    /// What a person should know of what was read so far; each is told once.
    pub fn warn(&mut self) {
        for note in self.notes.drain(..) {
            eprintln!("warning: {}: {note}", self.name);
        }
    }
}

/// Where a clip broke off.
struct Ended((usize, usize));

impl Frames for Ended {
    fn size(&self) -> (usize, usize) {
        self.0
    }
    fn next(&mut self) -> Result<Option<Shown>> {
        Ok(None)
    }
}

enum Kind {
    Y4m,
    Gif,
    /// For ffmpeg, in words.
    Other(&'static str),
}

fn kind(begin: &[u8]) -> Result<Kind> {
    let at = |offset: usize, bytes: &[u8]| begin.get(offset..).is_some_and(|rest| rest.starts_with(bytes));
    Ok(match () {
        () if begin.is_empty() => bail!("the file is empty"),
        () if at(0, b"YUV4MPEG") => Kind::Y4m,
        () if at(0, b"GIF8") => Kind::Gif,
        () if at(0, b"version https://git-lfs") => {
            bail!("a pointer of git-lfs and not the file itself: git lfs pull fetches it")
        }
        () if at(0, b"<!DOCTYPE") || at(0, b"<!doctype") || at(0, b"<html") => {
            bail!("a page of HTML and not a clip: what was downloaded is the page about it")
        }
        () if at(4, b"ftypqt") => Kind::Other("a QuickTime file"),
        () if at(4, b"ftyp") => Kind::Other("an mp4 file"),
        () if at(4, b"moov") || at(4, b"mdat") || at(4, b"wide") || at(4, b"free") => Kind::Other("a QuickTime file"),
        () if at(0, b"\x1a\x45\xdf\xa3") => Kind::Other("a Matroska or WebM file"),
        () if at(0, b"RIFF") && at(8, b"AVI ") => Kind::Other("an AVI file"),
        () if at(0, b"RIFF") && at(8, b"WEBP") => Kind::Other("a WebP picture"),
        () if at(0, b"FLV") => Kind::Other("an FLV file"),
        () if at(0, b"OggS") => Kind::Other("an Ogg file"),
        () if at(0, b"\x00\x00\x01\xba") || at(0, b"\x00\x00\x01\xb3") => Kind::Other("an MPEG file"),
        () if at(0, b"G") && at(188, b"G") => Kind::Other("an MPEG transport stream"),
        () if at(0, b"\x30\x26\xb2\x75") => Kind::Other("a WMV file"),
        () if at(0, b"\x89PNG") || at(0, b"\xff\xd8\xff") => Kind::Other("a picture"),
        () => Kind::Other("neither a y4m nor a gif file"),
    })
}
