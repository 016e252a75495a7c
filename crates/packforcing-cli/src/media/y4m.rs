//! YUV4MPEG2: a line of text, then frames of raw planes, each behind a line that begins with
//! `FRAME`. Frames are read one at a time and in any order; what is kept in memory is where each
//! one begins.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::MOST_EXTENT;
use super::film::{Frames, Shown};
use super::png::Image;

/// Longest line that is read as a header. ffmpeg writes fewer than 100 bytes.
const MAX_HEADER: u64 = 4096;

/// Where bytes come from: a file, or a clip in memory.
pub trait Source: Read + Seek {}
impl<T: Read + Seek> Source for T {}

/// How the planes of colour lie under the plane of brightness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chroma {
    /// No colour.
    Mono,
    /// Pixels of brightness for one of colour: across, down.
    Planes(usize, usize),
}

/// What the first line says.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    pub width: usize,
    pub height: usize,
    /// Frames a second, as a fraction, where the file says so.
    pub rate: Option<(u32, u32)>,
    /// Width and height of a pixel, where they are not the same.
    pub aspect: Option<(u32, u32)>,
    /// Whether a frame is made of two halves of different times.
    pub interlaced: bool,
    pub chroma: Chroma,
    /// Values reach from 0 to 255; usually brightness is 16 to 235.
    pub full_range: bool,
}

impl Header {
    fn parse(line: &str) -> Result<Header> {
        let mut words = line.split_ascii_whitespace();
        ensure!(
            words.next() == Some("YUV4MPEG2"),
            "not a y4m file: it does not begin with YUV4MPEG2"
        );
        let (mut width, mut height, mut rate) = (None, None, None);
        let (mut aspect, mut interlaced) = (None, false);
        let (mut chroma, mut full_range) = (Chroma::Planes(2, 2), false);
        for word in words {
            let tag = word.chars().next().unwrap_or_default();
            let value = &word[tag.len_utf8()..];
            match tag {
                'W' => width = Some(extent("width", value)?),
                'H' => height = Some(extent("height", value)?),
                'F' => rate = frame_rate(value)?,
                'A' => aspect = fraction(value).filter(|&(w, h)| w > 0 && h > 0 && w != h),
                'I' => interlaced = matches!(value, "t" | "b" | "m"),
                'C' => chroma = colour_space(value)?,
                'X' => full_range |= value == "COLORRANGE=FULL",
                // Whatever may come: no matter here.
                _ => {}
            }
        }
        Ok(Header {
            width: width.context("the header gives no width (W)")?,
            height: height.context("the header gives no height (H)")?,
            rate,
            aspect,
            interlaced,
            chroma,
            full_range,
        })
    }

    /// Width and height of a plane of colour; a pixel at the edge may stand for less than a whole
    /// group.
    pub fn chroma_extents(&self) -> (usize, usize) {
        match self.chroma {
            Chroma::Mono => (0, 0),
            Chroma::Planes(across, down) => (self.width.div_ceil(across), self.height.div_ceil(down)),
        }
    }

    /// Bytes of a frame's planes.
    pub fn frame_bytes(&self) -> usize {
        let (width, height) = self.chroma_extents();
        self.width * self.height + 2 * width * height
    }

    /// Frames a second, where the file says so.
    pub fn frames_per_second(&self) -> Option<f64> {
        self.rate.map(|(n, d)| f64::from(n) / f64::from(d))
    }

    /// What it says of its frames that is not done here.
    pub fn note(&self) -> Option<String> {
        let mut said = Vec::new();
        if self.interlaced {
            said.push("it is interlaced: the halves of a frame are taken as one picture".to_string());
        }
        if let Some((w, h)) = self.aspect {
            said.push(format!("its pixels are {w}:{h}, and are taken as squares"));
        }
        (!said.is_empty()).then(|| said.join("; "))
    }
}

fn extent(name: &str, value: &str) -> Result<usize> {
    match value.parse() {
        Ok(n) if (1..=MOST_EXTENT).contains(&n) => Ok(n),
        _ => bail!("the header gives a {name} of {value:?} (1 to {MOST_EXTENT} are taken)"),
    }
}

fn fraction(value: &str) -> Option<(u32, u32)> {
    let (n, d) = value.split_once(':')?;
    Some((n.parse().ok()?, d.parse().ok()?))
}

/// Nothing where it is not known, which is written as 0:0.
fn frame_rate(value: &str) -> Result<Option<(u32, u32)>> {
    match fraction(value) {
        Some((0, 0)) => Ok(None),
        Some((n, d)) if n > 0 && d > 0 && n / d <= 1000 => Ok(Some((n, d))),
        _ => bail!("the header gives a frame rate of {value:?} (a fraction like 25:1, at most 1000, is taken)"),
    }
}

fn colour_space(value: &str) -> Result<Chroma> {
    match value {
        "420" | "420jpeg" | "420mpeg2" | "420paldv" => Ok(Chroma::Planes(2, 2)),
        "422" => Ok(Chroma::Planes(2, 1)),
        "444" => Ok(Chroma::Planes(1, 1)),
        "mono" => Ok(Chroma::Mono),
        _ => bail!(
            "colour space {value:?} is not taken (420, 422, 444 and mono at 8 bits are: ffmpeg -i IN -pix_fmt yuv420p OUT.y4m)"
        ),
    }
}

/// A y4m stream that frames are read from, in any order.
pub struct Y4m {
    source: BufReader<Box<dyn Source>>,
    header: Header,
    /// Where the planes of each frame begin.
    frames: Vec<u64>,
    /// Why the file ends behind them, where it should not.
    broken: Option<String>,
}

impl Y4m {
    /// Reads the header and walks over all frames. A file that breaks off in one has those before it.
    pub fn open(source: Box<dyn Source>) -> Result<Y4m> {
        let mut source = BufReader::new(source);
        let length = source
            .seek(SeekFrom::End(0))
            .context("it cannot be read back and forth")?;
        source.rewind()?;

        let line = header_line(&mut source)?.context("the file is empty")?;
        let header = Header::parse(&line)?;
        let bytes = header.frame_bytes() as u64;
        let mut frames = Vec::new();
        let broken = loop {
            match next_frame(&mut source, bytes, length).with_context(|| format!("frame {}", frames.len())) {
                Ok(Some(start)) => frames.push(start),
                Ok(None) => break None,
                Err(error) if frames.is_empty() => return Err(error),
                Err(error) => break Some(format!("{error:#}: the {} frames before it are taken", frames.len())),
            }
        };
        ensure!(!frames.is_empty(), "there is no frame in it");
        Ok(Y4m {
            source,
            header,
            frames,
            broken,
        })
    }

    /// What a person should know of it besides.
    pub fn note(&self) -> Option<String> {
        let said: Vec<String> = self.header.note().into_iter().chain(self.broken.clone()).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How many frames there are.
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Reads the planes of a frame, one after the other, into `planes`.
    pub fn read(&mut self, frame: usize, planes: &mut Vec<u8>) -> Result<()> {
        let start = *self
            .frames
            .get(frame)
            .ok_or_else(|| anyhow!("there is no frame {frame}"))?;
        let here = self.source.stream_position()?;
        self.source.seek_relative(start as i64 - here as i64)?;
        planes.resize(self.header.frame_bytes(), 0);
        self.source
            .read_exact(planes)
            .with_context(|| format!("reading frame {frame}"))
    }
}

/// Where the planes of the next frame begin; nothing at the end of the file.
fn next_frame(source: &mut BufReader<Box<dyn Source>>, bytes: u64, length: u64) -> Result<Option<u64>> {
    let Some(line) = header_line(source)? else {
        return Ok(None);
    };
    ensure!(
        line.split_ascii_whitespace().next() == Some("FRAME"),
        "it does not begin with FRAME"
    );
    let start = source.stream_position()?;
    ensure!(
        start + bytes <= length,
        "it is cut off: {} of its {bytes} bytes are there",
        length - start
    );
    source.seek_relative(bytes as i64)?;
    Ok(Some(start))
}

/// A line without its end; nothing at the end of the file.
fn header_line(source: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = Vec::new();
    source.take(MAX_HEADER).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    // What is not y4m is told by how it begins, before its missing line ends are.
    ensure!(
        line.starts_with(b"YUV4MPEG2") || line.starts_with(b"FRAME"),
        "not a y4m file: {} stands where YUV4MPEG2 or FRAME is expected",
        excerpt(&line)
    );
    ensure!(
        line.pop() == Some(b'\n'),
        "a header line is cut off or longer than {MAX_HEADER} bytes"
    );
    let line = String::from_utf8(line).map_err(|_| anyhow!("a header line is not text"))?;
    Ok(Some(line))
}

fn excerpt(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(12)]))
}

/// The frames of a file in RGB, as long as each is shown.
pub struct Y4mFrames {
    y4m: Y4m,
    next: usize,
    fps: f64,
    note: Option<String>,
    planes: Vec<u8>,
}

impl Y4mFrames {
    /// `unsaid` is the rate of a file that does not say, `wanted` is taken where that is not known either.
    pub fn open(file: File, unsaid: Option<f64>, wanted: usize) -> Result<Y4mFrames> {
        let y4m = Y4m::open(Box::new(file))?;
        let mut note = y4m.note();
        let fps = y4m.header().frames_per_second().or(unsaid).unwrap_or_else(|| {
            let unknown = format!(
                "it does not say how many frames a second it has: {wanted} are taken (--clip-fps says otherwise)"
            );
            note = Some(note.take().into_iter().chain([unknown]).collect::<Vec<_>>().join("; "));
            wanted as f64
        });
        Ok(Y4mFrames {
            y4m,
            next: 0,
            fps,
            note,
            planes: Vec::new(),
        })
    }
}

impl Frames for Y4mFrames {
    fn size(&self) -> (usize, usize) {
        (self.y4m.header().width, self.y4m.header().height)
    }

    fn next(&mut self) -> Result<Option<Shown>> {
        if self.next == self.y4m.frames() {
            return Ok(None);
        }
        self.y4m.read(self.next, &mut self.planes)?;
        self.next += 1;
        Ok(Some(Shown {
            image: rgb(self.y4m.header(), &self.planes),
            until: self.next as f64 / self.fps,
        }))
    }

    fn note(&self) -> Option<String> {
        self.note.clone()
    }
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

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn open(bytes: impl Into<Vec<u8>>) -> Result<Y4m> {
        Y4m::open(Box::new(Cursor::new(bytes.into())))
    }

    /// The message with everything that caused it.
    fn message(bytes: impl Into<Vec<u8>>) -> String {
        format!("{:#}", open(bytes).err().expect("an error"))
    }

    #[test]
    fn frames_in_any_order() {
        let mut bytes = b"YUV4MPEG2 W3 H2 F30000:1001 Ip A1:1 C420jpeg XCOLORRANGE=FULL\n".to_vec();
        for frame in 0..5u8 {
            // Frame parameters make headers of different lengths.
            bytes.extend(b"FRAME");
            bytes.extend(" Ixyz".repeat(frame.into()).bytes());
            bytes.push(b'\n');
            bytes.extend((0..10).map(|i| 10 * frame + i)); // 3 x 2, then two of 2 x 1
        }
        let mut clip = open(bytes).unwrap();
        assert_eq!(clip.frames(), 5);
        assert_eq!(clip.header().frame_bytes(), 10);
        assert_eq!(clip.header().chroma_extents(), (2, 1));
        assert!(clip.header().full_range);
        assert!((clip.header().frames_per_second().unwrap() - 29.97).abs() < 1e-3);
        let mut planes = Vec::new();
        for frame in [4, 0, 0, 3, 1, 2] {
            clip.read(frame, &mut planes).unwrap();
            assert_eq!(planes, (0..10).map(|i| 10 * frame as u8 + i).collect::<Vec<_>>());
        }
        assert!(clip.read(5, &mut planes).is_err());
    }

    #[test]
    fn planes_of_each_colour_space() {
        for (space, bytes) in [("", 24), ("C422", 32), ("C444", 48), ("Cmono", 16), ("C420paldv", 24)] {
            let mut file = format!("YUV4MPEG2 W4 H4 F25:1 {space}\nFRAME\n").into_bytes();
            file.extend(vec![7; bytes]);
            assert_eq!(open(file).unwrap().frames(), 1, "{space}");
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        let head = "YUV4MPEG2 W4 H4 F25:1\n";
        for (file, expected) in [
            ("", "the file is empty"),
            ("RIFF and so on\n", "not a y4m file"),
            ("YUV4MPEG2", "cut off"),
            ("YUV4MPEG3 W4 H4 F25:1\n", "not a y4m file"),
            ("YUV4MPEG2 H4 F25:1\n", "no width"),
            ("YUV4MPEG2 W4 F25:1\n", "no height"),
            ("YUV4MPEG2 W4 H4\n", "no frame"),
            ("YUV4MPEG2 W0 H4 F25:1\n", "width of \"0\""),
            ("YUV4MPEG2 W4 H-4 F25:1\n", "height of \"-4\""),
            ("YUV4MPEG2 W99999999999999999999 H4 F25:1\n", "width of"),
            ("YUV4MPEG2 W4 H4 F25\n", "frame rate of \"25\""),
            ("YUV4MPEG2 W4 H4 F0:1\n", "frame rate of \"0:1\""),
            ("YUV4MPEG2 W4 H4 F25:1 C420p10\n", "\"420p10\" is not taken"),
            ("YUV4MPEG2 W4 H4 F25:1 C411\n", "\"411\" is not taken"),
            ("YUV4MPEG2 W4 H4 F25:1 Cmono12\n", "\"mono12\" is not taken"),
            (head, "no frame"),
            (
                &format!("{head}FRAME\nabc"),
                "frame 0: it is cut off: 3 of its 24 bytes",
            ),
            (
                &format!("{head}FRAMES\n{}", "a".repeat(24)),
                "does not begin with FRAME",
            ),
        ] {
            let got = message(file);
            assert!(got.contains(expected), "{file:?}: {got}");
        }
        assert!(message(format!("YUV4MPEG2 {}\n", "x".repeat(1 << 20))).contains("longer than 4096"));
        assert!(message(b"YUV4MPEG2 W4\xff H4\n".to_vec()).contains("not text"));
    }

    #[test]
    fn what_breaks_off_has_the_frames_before() {
        let frame = format!("FRAME\n{}", "a".repeat(24));
        for (end, told) in [
            (
                "FRAME\n",
                "frame 1: it is cut off: 0 of its 24 bytes are there: the 1 frames before it are taken",
            ),
            ("FRAME\nabc", "frame 1: it is cut off: 3 of its 24"),
            ("FRA", "frame 1: not a y4m file: \"FRA\""),
            ("oops", "frame 1: not a y4m file: \"oops\""),
        ] {
            let clip = open(format!("YUV4MPEG2 W4 H4 F25:1\n{frame}{end}")).unwrap();
            assert_eq!(clip.frames(), 1, "{end}");
            assert!(clip.note().unwrap().contains(told), "{end}: {:?}", clip.note());
        }
        let clip = open(format!("YUV4MPEG2 W4 H4 F25:1\r\n{frame}")).unwrap();
        assert_eq!((clip.frames(), clip.note()), (1, None), "lines may end as in Windows");
    }

    #[test]
    fn what_a_header_says_besides() {
        let header = |tags: &str| Header::parse(&format!("YUV4MPEG2 W4 H4 {tags}")).unwrap();
        assert_eq!(header("").frames_per_second(), None);
        assert_eq!(header("F0:0").frames_per_second(), None);
        assert_eq!(header("F25:1 Ip A1:1").note(), None);
        assert_eq!(header("A0:0").note(), None, "not known");
        assert!(header("It").note().unwrap().contains("interlaced"));
        assert!(header("Ib A2:1").note().unwrap().contains("2:1"));
    }

    #[test]
    fn a_film_comes_back() {
        let path = std::env::temp_dir().join(format!("packforcing-y4m-{}", std::process::id()));
        let image = |n: usize| Image {
            width: 6,
            height: 4,
            rgb: (0..24)
                .flat_map(|i| [40 * (i % 6) as u8, 60 * (i / 6) as u8, 20 * n as u8])
                .collect(),
        };
        let frames: Vec<Image> = (0..5).map(image).collect();
        let read = || {
            let mut film = Y4mFrames::open(File::open(&path).unwrap(), None, 8).unwrap();
            assert_eq!((film.size(), film.note()), ((6, 4), None));
            let mut shown = Vec::new();
            while let Some(frame) = film.next().unwrap() {
                shown.push(frame);
            }
            shown
        };
        let mut writer = Y4mWriter::create(&path, (6, 4), 8).unwrap();
        writer.write(&frames[..2]).unwrap();
        assert_eq!(read().len(), 2, "it can be read while it grows");
        writer.write(&frames[2..]).unwrap();
        let back = read();
        assert_eq!(back.last().map(|shown| shown.until), Some(5.0 / 8.0));
        for (a, b) in back.iter().zip(&frames) {
            let apart = a.image.rgb.iter().zip(&b.rgb).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(apart <= Some(2), "{apart:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }

    mod fuzz {
        use std::cell::Cell;
        use std::rc::Rc;

        use proptest::collection::vec;
        use proptest::prelude::*;
        use proptest::test_runner::{Config, TestRunner};

        use super::*;

        /// Checks that `holds` does for 2000 inputs, or as many as PACKFORCING_FUZZ says.
        fn fuzz<S: Strategy>(inputs: S, holds: impl Fn(S::Value))
        where
            S::Value: std::fmt::Debug,
        {
            let asked = std::env::var("PACKFORCING_FUZZ").ok();
            let cases = asked.map_or(2000, |n| n.parse().expect("PACKFORCING_FUZZ is a number"));
            let config = Config {
                cases,
                failure_persistence: None,
                ..Config::default()
            };
            let result = TestRunner::new(config).run(&inputs, |input| {
                holds(input);
                Ok(())
            });
            result.unwrap_or_else(|e| panic!("{e}"));
        }

        /// A clip that makes sense, and its frames.
        fn clip() -> impl Strategy<Value = (Header, Vec<(String, Vec<u8>)>)> {
            let chroma = prop::sample::select(vec![
                Chroma::Mono,
                Chroma::Planes(2, 2),
                Chroma::Planes(2, 1),
                Chroma::Planes(1, 1),
            ]);
            let rate = (1u32..1000, 1u32..1002);
            (1usize..9, 1usize..9, rate, chroma, any::<bool>()).prop_flat_map(
                |(width, height, rate, chroma, full_range)| {
                    let header = Header {
                        width,
                        height,
                        rate: Some(rate),
                        aspect: None,
                        interlaced: false,
                        chroma,
                        full_range,
                    };
                    let frame = ("( I[a-z]{3})?", vec(any::<u8>(), header.frame_bytes()));
                    (Just(header), vec(frame, 1..5))
                },
            )
        }

        fn written(header: &Header, frames: &[(String, Vec<u8>)]) -> Vec<u8> {
            let space = match header.chroma {
                Chroma::Mono => "mono",
                Chroma::Planes(2, 2) => "420jpeg",
                Chroma::Planes(2, _) => "422",
                Chroma::Planes(..) => "444",
            };
            let range = if header.full_range { " XCOLORRANGE=FULL" } else { "" };
            let (n, d) = header.rate.unwrap_or((0, 0));
            let line = format!(
                "YUV4MPEG2 W{} H{} F{n}:{d} Ip C{space}{range}\n",
                header.width, header.height
            );
            let mut file = line.into_bytes();
            for (parameters, planes) in frames {
                file.extend(format!("FRAME{parameters}\n").bytes());
                file.extend(planes);
            }
            file
        }

        /// What was accepted must be readable, within its bounds; what was refused must be told.
        fn holds_together(file: Vec<u8>) {
            let length = file.len();
            match open(file) {
                Ok(mut clip) => {
                    let header = clip.header().clone();
                    assert!((1..=MOST_EXTENT).contains(&header.width) && (1..=MOST_EXTENT).contains(&header.height));
                    assert!(header.rate.is_none_or(|(n, d)| n > 0 && d > 0));
                    assert!(header.frames_per_second().is_none_or(|fps| fps < 1001.0));
                    assert!(clip.frames() > 0 && clip.frames() * header.frame_bytes() < length);
                    let mut planes = Vec::new();
                    for frame in (0..clip.frames()).rev() {
                        clip.read(frame, &mut planes).expect("open has seen all frames");
                        assert_eq!(planes.len(), header.frame_bytes());
                    }
                    assert!(clip.read(clip.frames(), &mut planes).is_err());
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }

        #[test]
        fn clips_come_back_as_they_were() {
            fuzz(clip(), |(header, frames)| {
                let mut clip = open(written(&header, &frames)).expect("it makes sense");
                assert_eq!((clip.header(), clip.frames()), (&header, frames.len()));
                let mut planes = Vec::new();
                for (i, (_, expected)) in frames.iter().enumerate().rev() {
                    clip.read(i, &mut planes).expect("it is there");
                    assert_eq!(&planes, expected);
                }
            });
        }

        #[test]
        fn damaged_clips_are_refused_or_hold_together() {
            let byte = prop_oneof![any::<u8>(), prop::sample::select(b" \n0123456789:WHFCFRAME".to_vec())];
            let damage = vec((0..4u8, any::<usize>(), byte, 1usize..40), 1..4);
            fuzz((clip(), damage), |((header, frames), damage)| {
                let mut file = written(&header, &frames);
                for (kind, at, byte, n) in damage {
                    // Headers are what breaks: half of the damage falls there.
                    let at = at % file.len().clamp(1, if n % 2 == 0 { 50 } else { usize::MAX });
                    let end = (at + n).min(file.len());
                    match kind {
                        0 => drop(file.splice(at..end.min(at + 1), [byte])),
                        1 => file.truncate(at),
                        2 => file.insert(at.min(file.len()), byte),
                        _ => drop(file.drain(at.min(end)..end)),
                    }
                }
                holds_together(file);
            });
        }

        #[test]
        fn headers_of_any_words_are_refused_or_hold_together() {
            let number = prop_oneof![
                (0u32..40).prop_map(|n| n.to_string()),
                any::<i128>().prop_map(|n| n.to_string()),
                "[0-9:.+-]{0,30}",
                ".{0,4}"
            ];
            let word = prop_oneof![
                (prop::sample::select(b"WHFCAIX".to_vec()), number).prop_map(|(tag, n)| format!("{}{n}", tag as char)),
                Just("F25:1".to_string()),
                Just("Cmono".to_string()),
                ".{0,12}",
            ];
            fuzz((vec(word, 0..8), vec(any::<u8>(), 0..64)), |(words, rest)| {
                let head = format!("YUV4MPEG2 W4 H4 F25:1 {}\nFRAME\n", words.join(" "));
                holds_together([head.as_bytes(), &rest].concat());
            });
        }

        /// Zeros behind a header, as many as it likes, and how far they were read.
        struct Endless {
            head: Vec<u8>,
            length: u64,
            at: u64,
            read: Rc<Cell<u64>>,
        }

        impl Read for Endless {
            fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
                let left = self.length.saturating_sub(self.at);
                let n = to.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                for (i, byte) in to[..n].iter_mut().enumerate() {
                    let at = usize::try_from(self.at).unwrap_or(usize::MAX).saturating_add(i);
                    *byte = self.head.get(at).copied().unwrap_or(0);
                }
                self.at += n as u64;
                self.read.set(self.read.get() + n as u64);
                Ok(n)
            }
        }

        impl Seek for Endless {
            fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
                let to = match to {
                    SeekFrom::Start(at) => Some(at),
                    SeekFrom::End(by) => self.length.checked_add_signed(by),
                    SeekFrom::Current(by) => self.at.checked_add_signed(by),
                };
                self.at = to.ok_or(std::io::ErrorKind::InvalidInput)?;
                Ok(self.at)
            }
        }

        #[test]
        fn files_of_any_length_are_not_taken_into_memory() {
            let extent = || prop_oneof![1..=MOST_EXTENT, Just(MOST_EXTENT)];
            let length = prop_oneof![0..1u64 << 40, any::<u64>()];
            fuzz((extent(), extent(), length), |(width, height, length)| {
                let head = format!("YUV4MPEG2 W{width} H{height} F25:1\nFRAME\n").into_bytes();
                let read = Rc::new(Cell::new(0));
                let source = Endless {
                    head,
                    length,
                    at: 0,
                    read: read.clone(),
                };
                // One frame at most, then zeros stand where FRAME is expected.
                let message = format!(
                    "{:#}",
                    Y4m::open(Box::new(source)).err().unwrap_or_else(|| anyhow!("a frame"))
                );
                assert!(
                    ["not a y4m", "cut off", "empty", "a frame"]
                        .iter()
                        .any(|m| message.contains(m)),
                    "{message}"
                );
                assert!(read.get() < 1 << 16, "{} bytes were read", read.get());
            });
        }
    }
}
