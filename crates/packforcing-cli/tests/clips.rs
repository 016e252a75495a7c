//! Clips as people have them: what `--start` makes of each. ffmpeg writes most of them; `PACKFORCING_REQUIRE=ffmpeg` makes its
//! absence a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The size of the built-in model's frames, and their rate.
const SIZE: (usize, usize) = (32, 24);
const FPS: f64 = 8.0;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("clips-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> &Folder {
        fs::write(self.0.join(name), bytes).unwrap();
        self
    }

    /// Runs ffmpeg in the folder.
    fn ffmpeg(&self, arguments: &str, to: &str) -> bool {
        let mut command = Command::new("ffmpeg");
        command
            .args(["-nostdin", "-y", "-loglevel", "error"])
            .args(words(arguments));
        let made = command.arg(format!("file:{to}")).current_dir(&self.0).output().unwrap();
        if !made.status.success() {
            println!("{to}: {}", String::from_utf8_lossy(&made.stderr));
        }
        made.status.success()
    }

    fn sample(&self, start: &str, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packforcing"));
        command
            .current_dir(&self.0)
            .args(["sample", "--steps", "1", "--out", "out"]);
        command.arg(format!("--start={start}")).args(more);
        command.output().unwrap()
    }

    /// The frames that the film begins with, in RGB, and what was said on stderr.
    fn starts(&self, start: &str, frames: usize, more: &[&str]) -> (Vec<Frame>, String) {
        let seconds = format!("{}", (frames as f64 / FPS).ceil() + 1.0);
        let output = self.sample(start, &[&["--seconds", &seconds], more].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{start}: {stderr}");
        let film = fs::read(self.0.join("out/video.y4m")).unwrap();
        (Frame::all(&film, SIZE).into_iter().take(frames).collect(), stderr)
    }

    fn refuses(&self, start: &str, told: &[&str]) {
        let output = self.sample(start, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{start} was taken");
        assert!(!stderr.contains("panicked"), "{start}: {stderr}");
        assert!(told.iter().all(|t| stderr.contains(t)), "{start}: {stderr}");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Words between blanks; those between single quotes are one.
fn words(text: &str) -> Vec<String> {
    let parts = text.split('\'').enumerate();
    parts
        .flat_map(|(i, part)| match i % 2 {
            0 => part.split_whitespace().map(str::to_string).collect::<Vec<_>>(),
            _ => vec![part.to_string()],
        })
        .collect()
}

/// A frame as 4:4:4 planes of full range.
#[derive(Clone, PartialEq)]
struct Frame {
    size: (usize, usize),
    planes: Vec<u8>,
}

impl Frame {
    fn all(y4m: &[u8], size: (usize, usize)) -> Vec<Frame> {
        let header = y4m.iter().position(|&b| b == b'\n').unwrap() + 1;
        let bytes = 3 * size.0 * size.1;
        let frames = y4m[header..].chunks_exact(6 + bytes);
        frames
            .map(|f| Frame {
                size,
                planes: f[6..].to_vec(),
            })
            .collect()
    }

    fn rgb(&self, x: usize, y: usize) -> [i32; 3] {
        let plane = |n: usize| f64::from(self.planes[(n * self.size.1 + y) * self.size.0 + x]);
        let (l, u, v) = (plane(0), plane(1) - 128.0, plane(2) - 128.0);
        [l + 1.402 * v, l - 0.344 * u - 0.714 * v, l + 1.772 * u].map(|c| c.round() as i32)
    }

    /// Of the middle.
    fn grey(&self) -> i32 {
        self.rgb(self.size.0 / 2, self.size.1 / 2)[1]
    }
}

fn near(got: [i32; 3], expected: [i32; 3], within: i32) -> bool {
    got.iter().zip(expected).all(|(a, b)| (a - b).abs() <= within)
}

/// Frame n has 20 + 5 n in its middle, red stands in the upper left corner, green in the upper right, blue in the lower left.
fn source((width, height): (usize, usize), frames: usize, tags: &str) -> Vec<u8> {
    let mut film = format!("YUV4MPEG2 W{width} H{height} {tags} C444 XCOLORRANGE=FULL\n").into_bytes();
    for n in 0..frames {
        film.extend(b"FRAME\n");
        let color = |x: usize, y: usize| -> [f64; 3] {
            match (3 * x / width, 3 * y / height) {
                (0, 0) => [254.0, 0.0, 0.0],
                (2, 0) => [0.0, 254.0, 0.0],
                (0, 2) => [0.0, 0.0, 254.0],
                _ => [20.0 + 5.0 * n as f64; 3],
            }
        };
        let mut planes = [vec![], vec![], vec![]];
        for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
            let [r, g, b] = color(x, y);
            let l = 0.299 * r + 0.587 * g + 0.114 * b;
            for (plane, value) in planes
                .iter_mut()
                .zip([l, (b - l) / 1.772 + 128.0, (r - l) / 1.402 + 128.0])
            {
                plane.push(value.round().clamp(0.0, 255.0) as u8);
            }
        }
        film.extend(planes.concat());
    }
    film
}

/// Whether ffmpeg is here.
fn ffmpeg() -> bool {
    let here = Command::new("ffmpeg").arg("-version").output().is_ok();
    let required = std::env::var("PACKFORCING_REQUIRE").is_ok_and(|r| r.split(',').any(|r| r == "ffmpeg"));
    assert!(here || !required, "ffmpeg is not here");
    if !here {
        println!("ffmpeg is not here: nothing was tested");
    }
    here
}

/// The film holds these frames of the source, upright and in its colors.
fn assert_shows(name: &str, film: &[Frame], expected: &[usize], within: i32) {
    assert_eq!(film.len(), expected.len(), "{name}");
    let (w, h) = SIZE;
    for (i, (frame, &n)) in film.iter().zip(expected).enumerate() {
        let (grey, right) = (frame.grey(), 20 + 5 * n as i32);
        assert!(
            (grey - right).abs() <= within.min(4),
            "{name}: frame {i} has {grey}, and {right} is right"
        );
        for (at, color) in [
            ((3, 3), [254, 0, 0]),
            ((w - 4, 3), [0, 254, 0]),
            ((3, h - 4), [0, 0, 254]),
        ] {
            let got = frame.rgb(at.0, at.1);
            assert!(
                near(got, color, within),
                "{name}: frame {i} has {got:?} at {at:?}, and {color:?} is right"
            );
        }
    }
}

/// A folder with films to make others of.
fn sources(name: &str) -> Folder {
    let folder = Folder::new(name);
    folder.write("s.y4m", &source(SIZE, 24, "F8:1"));
    folder.write("large.y4m", &source((320, 240), 24, "F8:1"));
    folder.write("fast.y4m", &source(SIZE, 40, "F25:1"));
    assert!(folder.ffmpeg("-f lavfi -i color=red:s=64x64 -frames:v 1", "red.png"));
    folder
}

#[test]
fn whatever_ffmpeg_reads() {
    if !ffmpeg() {
        return;
    }
    let x264 = "-c:v libx264 -crf 4 -pix_fmt yuv420p";
    let tagged = |matrix: &str, range: &str| {
        format!("-vf scale=out_color_matrix={matrix}:out_range={range} -colorspace {matrix} -color_range {range}")
    };
    let all: Vec<usize> = (0..24).collect();
    let each = |every: f64, of: usize| -> Vec<usize> {
        (0..)
            .map(|j| (j as f64 * every) as usize)
            .take_while(|&n| n < of)
            .collect()
    };
    let cases: Vec<(&str, String, Vec<usize>)> = vec![
        ("plain.mp4", format!("-i s.y4m {x264}"), all.clone()),
        (
            "faststart.mp4",
            format!("-i s.y4m {x264} -movflags +faststart"),
            all.clone(),
        ),
        (
            "fragmented.mp4",
            format!("-i s.y4m {x264} -movflags frag_keyframe+empty_moov"),
            all.clone(),
        ),
        (
            "bt709.mp4",
            format!("-i s.y4m {} {x264}", tagged("bt709", "tv")),
            all.clone(),
        ),
        (
            "full.mp4",
            format!("-i s.y4m {} {x264}", tagged("bt709", "pc")),
            all.clone(),
        ),
        ("rgb.mp4", "-i s.y4m -c:v libx264rgb -crf 0".into(), all.clone()),
        (
            "444.mp4",
            "-i s.y4m -c:v libx264 -crf 4 -pix_fmt yuv444p".into(),
            all.clone(),
        ),
        (
            "10bit.mp4",
            "-i s.y4m -c:v libx264 -crf 4 -pix_fmt yuv420p10".into(),
            all.clone(),
        ),
        (
            "b_frames.mp4",
            format!("-i s.y4m {x264} -bf 16 -refs 16 -g 40"),
            all.clone(),
        ),
        ("intra.mov", format!("-i s.y4m {x264} -g 1 -slices 3"), all.clone()),
        ("one_i.mkv", format!("-i s.y4m {x264} -g 999"), all.clone()),
        (
            "h265.mp4",
            "-i s.y4m -c:v libx265 -x265-params log-level=none -crf 4 -pix_fmt yuv420p".into(),
            all.clone(),
        ),
        (
            "vp9.webm",
            "-i s.y4m -c:v libvpx-vp9 -crf 4 -b:v 0 -pix_fmt yuv420p".into(),
            all.clone(),
        ),
        (
            "vp8.webm",
            "-i s.y4m -vf scale=out_range=tv -c:v libvpx -crf 4 -b:v 4M -pix_fmt yuv420p".into(),
            all.clone(),
        ),
        ("mpeg4.avi", "-i s.y4m -vf scale=out_range=tv -c:v mpeg4 -q:v 1".into(), all.clone()),
        (
            "mjpeg.avi",
            "-i s.y4m -c:v mjpeg -q:v 1 -pix_fmt yuvj444p".into(),
            all.clone(),
        ),
        ("prores.mov", "-i s.y4m -vf scale=out_range=tv -c:v prores_ks -profile:v 4".into(), all.clone()),
        ("ffv1.mkv", "-i s.y4m -c:v ffv1".into(), all.clone()),
        ("flv.flv", "-i s.y4m -vf scale=out_range=tv -c:v flv -q:v 1".into(), all.clone()),
        ("stream.ts", format!("-i s.y4m {x264}"), all.clone()),
        (
            "theora.ogv",
            "-i s.y4m -vf scale=out_range=tv -c:v libtheora -q:v 10 -pix_fmt yuv444p".into(),
            all.clone(),
        ),
        (
            "sound_first.mp4",
            format!("-f lavfi -i sine=duration=5 -i s.y4m -map 0:a -map 1:v {x264}"),
            all.clone(),
        ),
        (
            "cover.mp4",
            "-i s.y4m -i red.png -map 0 -map 1 -c:v:0 libx264 -crf:v:0 4 -pix_fmt:v:0 yuv420p -c:v:1 copy -disposition:v:1 attached_pic".into(),
            all.clone(),
        ),
        ("large.mp4", format!("-i large.y4m {x264}"), (0..24).collect()),
        (
            "wide_pixels.mp4",
            "-i s.y4m -vf scale=16:24:flags=neighbor,setsar=2 -c:v libx264 -crf 4 -pix_fmt yuv444p".into(),
            all.clone(),
        ),
        ("25fps.mp4", format!("-i fast.y4m {x264}"), each(3.125, 40)),
        (
            "24fps.webm",
            "-r 24 -i s.y4m -c:v libvpx-vp9 -crf 4 -b:v 0 -pix_fmt yuv420p".into(),
            each(3.0, 24),
        ),
        ("slow.mp4", format!("-r 4 -i s.y4m -frames:v 16 {x264}"), each(0.5, 16)),
        ("-dash.mp4", format!("-i s.y4m {x264}"), all.clone()),
        ("http:x y%03d'.mp4", format!("-i s.y4m {x264}"), all.clone()),
    ];
    // Side by side: each is a program of one thread.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (cases, next, made) = (&cases, &next, &made);
            scope.spawn(move || {
                let folder = sources(&format!("ffmpeg-{thread}"));
                while let Some((name, arguments, expected)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // An ffmpeg need not have every encoder.
                    if !folder.ffmpeg(arguments, name) {
                        continue;
                    }
                    made.fetch_add(1, Ordering::Relaxed);
                    let whole = &expected[expected.len() % 4..];
                    let (film, _) = folder.starts(name, whole.len(), &[]);
                    // Lossy codecs and halved colors: a tenth of the levels at an edge, a few elsewhere.
                    assert_shows(name, &film, whole, 24);
                }
            });
        }
    });
    let made = made.into_inner();
    assert!(made >= 20, "{made} of {} were made", cases.len());

    let folder = sources("ffmpeg");
    // A film that stands on its side, and one that is played from its seventeenth frame on.
    assert!(folder.ffmpeg(&format!("-i s.y4m -vf transpose=cclock {x264}"), "lying.mp4"));
    // Versions before 6 knew the second way alone, those from 6 on know the first.
    assert!(
        folder.ffmpeg("-display_rotation:v:0 90 -i lying.mp4 -c copy", "phone.mp4")
            || folder.ffmpeg("-i lying.mp4 -c copy -metadata:s:v rotate=270", "phone.mp4")
    );
    let (film, _) = folder.starts("phone.mp4", 24, &[]);
    assert_shows("phone.mp4", &film, &all, 24);
    assert!(folder.ffmpeg(&format!("-i s.y4m {x264} -g 999"), "one_i.mp4"));
    assert!(folder.ffmpeg("-ss 2 -i one_i.mp4 -c copy", "edited.mp4"));
    let (film, _) = folder.starts("edited.mp4", 8, &[]);
    assert_shows("edited.mp4", &film, &all[16..], 24);

    let film = folder.0.join("out/film.mp4");
    assert!(film.is_file(), "a film was written through ffmpeg");
    assert!(folder.ffmpeg(&format!("-i s.y4m {x264}"), "plain.mp4"));
    let half = fs::read(folder.0.join("plain.mp4")).unwrap();
    folder.write("half.mp4", &half[..half.len() / 2]);
    folder.refuses("half.mp4", &["half.mp4", "an mp4 file that ffmpeg does not read"]);
    folder.write("noise.mp4", &half[100..]);
    folder.refuses("noise.mp4", &["noise.mp4"]);
    assert!(folder.ffmpeg("-f lavfi -i sine=duration=1", "sound.m4a"));
    folder.refuses("sound.m4a", &["sound.m4a", "ffmpeg"]);
}

#[test]
fn without_ffmpeg_the_ways_out_are_told() {
    let folder = Folder::new("without");
    folder
        .write("a.mp4", b"\0\0\0\x20ftypisom and so on")
        .write("b.mov", b"\0\0\0\x14ftypqt  and so on");
    for (name, what) in [("a.mp4", "an mp4 file"), ("b.mov", "a QuickTime file")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packforcing"));
        command
            .current_dir(&folder.0)
            .args(["sample", "--start", name, "--out", "out"]);
        let output = command.env("PACKFORCING_FFMPEG", "no-such-ffmpeg").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let told = [
            name,
            what,
            "no-such-ffmpeg is not here",
            "PACKFORCING_FFMPEG",
            "OUT.y4m",
        ];
        assert!(told.iter().all(|t| stderr.contains(t)), "{stderr}");
    }
    assert!(!Path::new(&folder.0).join("out").exists(), "nothing was begun");
}

#[test]
fn y4m_files() {
    let folder = Folder::new("y4m");
    let all: Vec<usize> = (0..40).collect();
    let said = |tags: &str, more: &[&str], expected: &[usize], told: &str| {
        folder.write("s.y4m", &source(SIZE, 40, tags));
        let (film, stderr) = folder.starts("s.y4m", expected.len(), more);
        assert_shows(tags, &film, expected, 3);
        assert!(stderr.contains(told), "{tags}: {stderr}");
        assert_eq!(stderr.is_empty(), told.is_empty(), "{tags}: {stderr}");
    };
    said("F8:1", &[], &all, "");
    said("F8:1 Ip A1:1", &[], &all, "");
    said("F8:1 It", &[], &all, "s.y4m: it is interlaced");
    said("F8:1 A2:1", &[], &all, "its pixels are 2:1");
    said(
        "F0:0",
        &[],
        &all,
        "it does not say how many frames a second it has: 8 are taken",
    );
    said("", &[], &all, "it does not say how many frames a second");
    said(
        "F16:1",
        &[],
        &[
            0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38,
        ],
        "",
    );
    said(
        "F0:0",
        &["--clip-fps", "16"],
        &[
            0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38,
        ],
        "",
    );
    // 13 frames: the oldest does not fill a block.
    let every: Vec<usize> = (1..13).map(|j| (3.125 * f64::from(j)) as usize).collect();
    said(
        "F25:1",
        &[],
        &every,
        "the first 1 of its 13 frames do not fill a block of 4",
    );

    let whole = source(SIZE, 40, "F8:1");
    folder.write("cut.y4m", &whole[..whole.len() - 1]);
    let (film, stderr) = folder.starts("cut.y4m", 36, &[]);
    assert_shows("cut.y4m", &film, &all[3..39], 3);
    assert!(
        stderr.contains("frame 39: it is cut off") && stderr.contains("the 39 frames before it are taken"),
        "{stderr}"
    );
    // Lines that end as in Windows: the header's, and that of each frame.
    let mut lines = Vec::new();
    for (i, frame) in whole.split_inclusive(|&b| b == b'\n').enumerate() {
        match frame.strip_suffix(b"\n") {
            Some(line) if i == 0 || line.ends_with(b"FRAME") => lines.extend([line, b"\r\n"].concat()),
            _ => lines.extend(frame),
        }
    }
    folder.write("lines.y4m", &lines);
    let (film, stderr) = folder.starts("lines.y4m", 40, &[]);
    assert_shows("lines.y4m", &film, &all, 3);
    assert!(stderr.is_empty(), "{stderr}");

    folder.write("large.y4m", &source((64, 48), 40, "F8:1"));
    folder.refuses("large.y4m", &["large.y4m: 64 x 48 pixels, and 32 x 24 are wanted"]);
    folder.write("long.y4m", &source(SIZE, 4097, "F8:1"));
    folder.refuses("long.y4m", &["long.y4m: more than 4096 frames at 8 a second"]);
    folder.write("deep.y4m", b"YUV4MPEG2 W32 H24 F8:1 C420p10\nFRAME\n");
    folder.refuses("deep.y4m", &["deep.y4m", "\"420p10\" is not taken", "-pix_fmt yuv420p"]);
    folder
        .write("empty.mp4", b"")
        .refuses("empty.mp4", &["empty.mp4: the file is empty"]);
    folder
        .write("page.mp4", b"<!DOCTYPE html>\n")
        .refuses("page.mp4", &["page.mp4", "HTML"]);
    folder
        .write("lfs.gif", b"version https://git-lfs.github.com/spec/v1\n")
        .refuses("lfs.gif", &["git lfs pull"]);
}
