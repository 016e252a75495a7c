//! The program `ffmpeg`: every clip that is not read here, and films as mp4.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::MOST_EXTENT;
use super::film::{Frames, Shown, Wish};
use super::png::Image;

/// Names the program, where it is not found by its name.
const VARIABLE: &str = "PACKFORCING_FFMPEG";
/// Lines of its complaints that are kept.
const COMPLAINTS: usize = 8;

/// The program as it is called.
pub fn program() -> OsString {
    std::env::var_os(VARIABLE)
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "ffmpeg".into())
}

/// It does not read the terminal, takes no name for a protocol, and is no part of what Ctrl-C ends: who reads from it ends it.
fn command() -> Command {
    let mut command = Command::new(program());
    command.args(["-nostdin", "-hide_banner", "-loglevel", "error"]);
    command.stdin(Stdio::null());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
}

/// `file:` and the name: none is an option or a protocol then, whatever it begins with.
fn named(path: &Path) -> OsString {
    let mut name = OsString::from("file:");
    name.push(path);
    name
}

/// A clip that ffmpeg reads, frame after frame through a pipe.
pub struct Ffmpeg {
    child: Child,
    frames: BufReader<ChildStdout>,
    complaints: Option<JoinHandle<VecDeque<String>>>,
    /// Read to know the size.
    first: Option<Image>,
    size: (usize, usize),
    fps: usize,
    given: usize,
}

impl Ffmpeg {
    /// `what` tells what the file is, for errors.
    pub fn open(path: &Path, wish: &Wish, what: &'static str) -> Result<Ffmpeg> {
        let mut command = command();
        command.args(["-protocol_whitelist", "file", "-i"]).arg(named(path));
        // The first film in it: no sound, no cover.
        command.args(["-map", "0:V:0", "-vf", &filters(wish)]);
        command.args(["-f", "image2pipe", "-c:v", "ppm", "pipe:1"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| match e.kind() {
            ErrorKind::NotFound => anyhow!(
                "{what}, which is read by the program ffmpeg, and {} is not here: install it ({VARIABLE} names it where it is \
                 not on PATH), or make a y4m file of it elsewhere (ffmpeg -i IN OUT.y4m)",
                program().display()
            ),
            _ => anyhow!("{what}, and {} cannot be run: {e}", program().display()),
        })?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            bail!("ffmpeg's output is not there");
        };
        let complaints = std::thread::spawn(move || {
            let mut last = VecDeque::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                last.push_back(line);
                last.drain(..last.len().saturating_sub(COMPLAINTS));
            }
            last
        });
        let mut film = Ffmpeg {
            child,
            frames: BufReader::new(stdout),
            complaints: Some(complaints),
            first: None,
            size: (0, 0),
            fps: wish.fps,
            given: 0,
        };
        film.first = film
            .read()
            .with_context(|| format!("{what} that ffmpeg does not read"))?;
        let Some(first) = &film.first else {
            bail!("{what}, and ffmpeg finds no film in it");
        };
        film.size = (first.width, first.height);
        Ok(film)
    }

    fn read(&mut self) -> Result<Option<Image>> {
        let Some([width, height]) = self.header()? else {
            self.finish()?;
            return Ok(None);
        };
        ensure!(
            width.max(height) <= MOST_EXTENT,
            "{width} x {height} pixels are too large ({MOST_EXTENT} a side are taken)"
        );
        let mut rgb = vec![0; 3 * width * height];
        self.frames
            .read_exact(&mut rgb)
            .context("ffmpeg broke off in a frame")?;
        Ok(Some(Image { width, height, rgb }))
    }

    /// Width and height from three lines: `P6`, both, `255`.
    fn header(&mut self) -> Result<Option<[usize; 2]>> {
        let mut lines = [const { String::new() }; 3];
        for (i, line) in lines.iter_mut().enumerate() {
            if (&mut self.frames).take(64).read_line(line)? == 0 && i == 0 {
                return Ok(None);
            }
        }
        let extents = lines[1].trim().split_once(' ');
        match extents.and_then(|(w, h)| Some([w.parse().ok()?, h.parse().ok()?])) {
            Some(extents) if lines[0].trim() == "P6" && lines[2].trim() == "255" => Ok(Some(extents)),
            _ => bail!("ffmpeg gave {lines:?} where a frame was expected"),
        }
    }

    /// An error where it ended with one.
    fn finish(&mut self) -> Result<()> {
        let status = self.child.wait()?;
        let complaints = self.complaints.take().and_then(|thread| thread.join().ok());
        if !status.success() {
            let said: Vec<String> = complaints.into_iter().flatten().collect();
            bail!("ffmpeg: {status}: {}", said.join("; "));
        }
        Ok(())
    }
}

impl Frames for Ffmpeg {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn next(&mut self) -> Result<Option<Shown>> {
        let image = match self.first.take() {
            Some(first) => Some(first),
            None if self.complaints.is_none() => None,
            None => self.read()?,
        };
        self.given += 1;
        let until = self.given as f64 / self.fps as f64;
        Ok(image.map(|image| Shown { image, until }))
    }
}

impl Drop for Ffmpeg {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Frames from the first on, whole ones, each for as long as it stands, with square pixels, as large as they are wanted.
fn filters(wish: &Wish) -> String {
    let time = format!("setpts=PTS-STARTPTS,yadif=deint=interlaced,fps={}:round=up", wish.fps);
    let square = "scale=w='max(1,round(iw*sar))':h=ih,setsar=1";
    let size = match (wish.size, wish.pixels) {
        // As much of the picture as the shape has room for.
        (Some((w, h)), _) => format!(",scale={w}:{h}:force_original_aspect_ratio=increase,crop={w}:{h}"),
        (None, Some(most)) => {
            let less = format!("min(1,sqrt({most}/(iw*ih)))");
            format!(",scale=w='max(1,trunc(iw*{less}))':h='max(1,trunc(ih*{less}))'")
        }
        (None, None) => String::new(),
    };
    format!("{time},{square}{size},format=rgb24")
}

/// Encoders of H.264 that an ffmpeg may have, the best first.
const ENCODERS: [&str; 4] = ["libx264", "h264_videotoolbox", "libopenh264", "h264_mf"];

/// The best of them that is here.
fn encoder() -> Result<Option<&'static str>> {
    let listed = match Command::new(program())
        .args(["-hide_banner", "-encoders"])
        .stdin(Stdio::null())
        .output()
    {
        Ok(listed) => String::from_utf8_lossy(&listed.stdout).into_owned(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("running {}", program().display())),
    };
    let has = |encoder: &&str| listed.split_whitespace().any(|word| word == *encoder);
    Ok(ENCODERS.into_iter().find(has))
}

/// What is said of the colors of every film.
fn tags(command: &mut Command) {
    for tag in ["-colorspace", "-color_primaries", "-color_trc"] {
        command.args([tag, "bt709"]);
    }
    command.args(["-color_range", "tv"]);
}

/// A film that is encoded while it is made. What was written can be played whenever it breaks off.
pub struct Mp4Writer {
    child: Child,
    frames: Option<std::process::ChildStdin>,
    size: (usize, usize),
}

impl Mp4Writer {
    /// The encoder that a film will be written with.
    pub fn encoder(to: &Path) -> Result<&'static str> {
        encoder()?.with_context(|| {
            format!(
                "{}: films are written by the program ffmpeg with an encoder of H.264, and {} is not here or has none: install \
                 it ({VARIABLE} names it where it is not on PATH)",
                to.display(),
                program().display()
            )
        })
    }

    /// Frames of this size, even along both sides, at so many a second.
    pub fn create(to: &Path, (width, height): (usize, usize), fps: usize) -> Result<Mp4Writer> {
        let encoder = Mp4Writer::encoder(to)?;
        let mut command = command();
        command.args(["-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]);
        command.args([
            "-s",
            &format!("{width}x{height}"),
            "-r",
            &fps.to_string(),
            "-i",
            "pipe:0",
        ]);
        command.args([
            "-vf",
            "scale=out_color_matrix=bt709:out_range=limited,format=yuv420p",
            "-c:v",
            encoder,
        ]);
        tags(&mut command);
        // A second and its index, one after the other.
        command.args([
            "-g",
            &fps.to_string(),
            "-movflags",
            "+frag_keyframe+empty_moov+default_base_moof",
            "-f",
            "mp4",
        ]);
        command
            .arg(named(to))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // Ctrl-C is for this program alone: ffmpeg then comes to the end of what it is given, and ends the film.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command
            .spawn()
            .with_context(|| format!("running {}", program().display()))?;
        Ok(Mp4Writer {
            frames: child.stdin.take(),
            child,
            size: (width, height),
        })
    }

    pub fn write(&mut self, frame: &Image) -> Result<()> {
        ensure!((frame.width, frame.height) == self.size, "a frame of another size");
        let written = match &mut self.frames {
            Some(frames) => frames.write_all(&frame.rgb),
            None => Ok(()),
        };
        match written {
            Ok(()) => Ok(()),
            // Why is what it says itself.
            Err(e) => self
                .ended()
                .and_then(|()| Err(e).context("ffmpeg takes no more frames")),
        }
    }

    /// Waits for the last frames.
    pub fn finish(mut self) -> Result<()> {
        self.ended()
    }

    fn ended(&mut self) -> Result<()> {
        drop(self.frames.take());
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "ffmpeg: {status}: {}", said.trim());
        Ok(())
    }
}

impl Drop for Mp4Writer {
    fn drop(&mut self) {
        // Finished frames are kept, whatever went wrong.
        let _ = self.ended();
    }
}

/// Makes an mp4 of a film, each pixel a square of `zoom`: H.264, yuv420p, with its colors said. False where there is no ffmpeg,
/// or none with an encoder for it.
pub fn mp4(y4m: &Path, to: &Path, zoom: usize) -> Result<bool> {
    let Some(encoder) = encoder()? else {
        return Ok(false);
    };
    // H.264 halves the planes of color: an odd extent is made even.
    let filters = format!(
        "scale=w=iw*{zoom}:h=ih*{zoom}:flags=neighbor:in_color_matrix=bt601:in_range=full,\
         pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709:out_range=limited,format=yuv420p"
    );
    let mut command = command();
    command
        .args(["-y", "-protocol_whitelist", "file", "-i"])
        .arg(named(y4m));
    command.args(["-vf", &filters, "-c:v", encoder]);
    tags(&mut command);
    command.args(["-movflags", "+faststart", "-f", "mp4"]);
    let partial = to.with_extension("mp4.partial");
    let made = command.arg(named(&partial)).output()?;
    if !made.status.success() {
        let _ = std::fs::remove_file(&partial);
        bail!("ffmpeg: {}", String::from_utf8_lossy(&made.stderr).trim());
    }
    std::fs::rename(&partial, to).with_context(|| to.display().to_string())?;
    Ok(true)
}
