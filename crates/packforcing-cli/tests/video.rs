//! `packforcing train`, `sample` and `evaluate`, run as a user runs them.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A folder of this test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packforcing"));
        command.current_dir(&self.0).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it printed.
    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// It says all of this in one error, and leaves the folder as it was.
    fn refuses(&self, arguments: &[&str], told: &[&str]) {
        let before = self.listing();
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
        assert!(told.iter().all(|t| stderr.contains(t)), "{arguments:?}: {stderr}");
        assert_eq!(self.listing(), before, "{arguments:?}");
    }

    /// Files of the folder and one below, with what is in them.
    fn listing(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut folders = vec![self.0.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.is_file() {
                    found.push((path.clone(), fs::read(path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    fn report(&self, out: &str) -> Value {
        serde_json::from_slice(&self.read(&format!("{out}/report.json"))).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Frames of one color each.
fn clip(width: usize, height: usize, frames: usize) -> Vec<u8> {
    let mut file = format!("YUV4MPEG2 W{width} H{height} F8:1 C444 XCOLORRANGE=FULL\n").into_bytes();
    for frame in 0..frames {
        file.extend(b"FRAME\n");
        for plane in [60 + frame % 100, 128, 140] {
            file.extend(vec![plane as u8; width * height]);
        }
    }
    file
}

const TRAIN: [&str; 8] = [
    "train",
    "--synthetic",
    "--steps",
    "6",
    "--batch",
    "1",
    "--save-every",
    "2",
];

fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    TRAIN.iter().copied().chain(more.iter().copied()).collect()
}

/// A run that is killed goes on from its last checkpoint, and ends as one that was not: model and losses.
#[test]
fn training_recovers_from_a_kill() {
    let folder = Folder::new("train-kill");
    let told = folder.succeeds(&train(&["--out", "whole"]));
    assert!(
        told.contains("2.4 million numbers") && told.contains("step 6: loss"),
        "{told}"
    );
    for name in ["model.safetensors", "run.safetensors", "losses.csv", "loss.png"] {
        assert!(!folder.read(&format!("whole/{name}")).is_empty());
    }
    assert_eq!(
        folder.read("whole/losses.csv").iter().filter(|&&b| b == b'\n').count(),
        7
    );

    let mut child = folder
        .command(&train(&["--out", "killed"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !folder.at("killed/model.safetensors").exists() && begun.elapsed() < Duration::from_secs(300) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(folder.at("killed/run.safetensors").exists());
    // A second run does not write over the first.
    folder.refuses(&train(&["--out", "killed"]), &["run.safetensors", "--resume"]);
    folder.refuses(
        &train(&["--out", "killed", "--resume", "--seed", "2"]),
        &["run.safetensors", "trained another way: seed 1 and not 2"],
    );
    folder.succeeds(&train(&["--out", "killed", "--resume"]));
    assert!(folder.read("killed/model.safetensors") == folder.read("whole/model.safetensors"));
    assert_eq!(folder.read("killed/losses.csv"), folder.read("whole/losses.csv"));
}

#[test]
fn training_reads_a_folder_of_clips() {
    let folder = Folder::new("train-folder");
    fs::create_dir(folder.at("clips")).unwrap();
    let options = [
        "train", "clips", "--steps", "2", "--batch", "1", "--frames", "12", "--out", "out",
    ];
    folder.refuses(&options, &["clips", "no clips"]);
    folder.refuses(&["train", "nowhere", "--out", "out"], &["nowhere"]);
    fs::write(folder.at("clips/a.y4m"), clip(16, 8, 20)).unwrap();
    fs::write(folder.at("clips/notes.txt"), "not a clip").unwrap();

    fs::write(folder.at("clips/b.y4m"), clip(16, 16, 20)).unwrap();
    folder.refuses(&options, &["b.y4m", "16 x 16 pixels, and 16 x 8 are wanted"]);
    fs::write(folder.at("clips/b.y4m"), clip(16, 8, 11)).unwrap();
    folder.refuses(&options, &["b.y4m", "11 frames at 8 a second are too few"]);
    fs::write(folder.at("clips/b.y4m"), &clip(16, 8, 20)[..3000]).unwrap();
    folder.refuses(&options, &["b.y4m", "cut off", "7 frames at 8 a second are too few"]);
    fs::write(folder.at("clips/b.y4m"), "hello").unwrap();
    folder.refuses(&options, &["b.y4m", "neither a y4m nor a gif"]);
    fs::remove_file(folder.at("clips/b.y4m")).unwrap();
    // What macOS leaves beside every file is no clip.
    fs::write(folder.at("clips/._a.y4m"), "hello").unwrap();

    let told = folder.succeeds(&options);
    assert!(
        told.contains("1 clips of clips") && told.contains("16 x 8 pixels"),
        "{told}"
    );
    // What it learned samples, from noise and from a clip of that size.
    let sample = [
        "sample",
        "--checkpoint",
        "out/model.safetensors",
        "--seconds",
        "3",
        "--steps",
        "1",
        "--out",
        "video",
    ];
    let told = folder.succeeds(&sample);
    assert!(told.contains("from noise"), "{told}");
    let mut start = sample.to_vec();
    start.extend(["--start", "clips/a.y4m"]);
    assert!(folder.succeeds(&start).contains("from clips/a.y4m"));
    // All whole blocks of the clip come first, here all 20 frames; colors were RGB on the way.
    let frames = |file: &[u8]| {
        let first = file.windows(6).position(|w| w == b"FRAME\n").unwrap();
        let frames = file[first..].chunks_exact(6 + 3 * 16 * 8);
        frames.map(|frame| frame[6..].to_vec()).collect::<Vec<_>>()
    };
    let (made, given) = (
        frames(&folder.read("video/video.y4m")),
        frames(&folder.read("clips/a.y4m")),
    );
    let off = |i: usize| {
        made[i]
            .iter()
            .zip(&given[i])
            .map(|(a, b)| a.abs_diff(*b))
            .max()
            .unwrap()
    };
    assert_eq!(made.len(), 24);
    assert!(
        (0..20).all(|i| off(i) <= 2),
        "{:?}",
        (0..20).map(off).collect::<Vec<_>>()
    );
    assert!(made[20] != made[19], "then the model goes on");
    folder.refuses(
        &["evaluate", "--checkpoint", "out/model.safetensors"],
        &["16 x 8 pixels", "32 x 24"],
    );
    // Clips that no model of this kind takes.
    fs::write(folder.at("clips/a.y4m"), clip(18, 8, 20)).unwrap();
    folder.refuses(
        &["train", "clips", "--frames", "12", "--out", "other"],
        &["whole patches"],
    );
}

#[test]
fn a_video_says_what_it_is() {
    let folder = Folder::new("sample");
    let told = folder.succeeds(&[
        "sample",
        "--seconds",
        "8",
        "--steps",
        "2",
        "--out",
        "a",
        "--compare",
        "--png",
    ]);
    assert!(told.contains("64 frames") && told.contains("identity"), "{told}");
    let report = folder.report("a");
    assert_eq!(
        (report["frames"].as_u64(), report["seconds"].as_f64()),
        (Some(64), Some(8.0))
    );
    assert!(report["fps"].as_f64().unwrap() > 0.0);
    for of_blocks in ["cache_bytes", "context_tokens", "ms_per_block", "resident_bytes"] {
        assert_eq!(report[of_blocks].as_array().map(Vec::len), Some(16), "{of_blocks}");
    }
    let bytes = report["cache_bytes"].as_array().unwrap();
    assert!(bytes.iter().all(|b| *b == bytes[0]) && bytes[0].as_u64() > Some(0));
    let tokens: Vec<u64> = report["context_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_u64)
        .collect();
    assert!(tokens.windows(2).all(|t| t[0] <= t[1]) && tokens[14] == tokens[15]);
    let shares = report["time_shares"].as_object().unwrap();
    let sum: f64 = shares.values().filter_map(Value::as_f64).sum();
    assert!((sum - 1.0).abs() < 1e-9 && shares.len() == 5, "{shares:?}");
    assert_eq!(report["identity"]["look_by_second"].as_array().map(Vec::len), Some(8));
    // Four layers of keys and values, each of 16 blocks of 192 tokens of 192 numbers of 4 bytes.
    assert_eq!(report["full_history"]["cache_bytes"], 4 * 2 * 16 * 192 * 192 * 4);

    let y4m = folder.read("a/video.y4m");
    let header = y4m.iter().position(|&b| b == b'\n').unwrap() + 1;
    assert_eq!(y4m.len() - header, 64 * (6 + 3 * 24 * 32));
    let gif = folder.read("a/video.gif");
    assert!(gif.starts_with(b"GIF89a") && gif.ends_with(&[0x3B]));
    for name in ["chart.png", "frames.png", "frame-000000.png", "frame-000063.png"] {
        assert!(folder.read(&format!("a/{name}")).starts_with(b"\x89PNG"));
    }

    // One seed is one video, another seed another; so are policies and compressions.
    let video = |out: &str, more: &[&str]| {
        let mut all = vec!["sample", "--seconds", "5", "--steps", "2", "--out", out];
        all.extend(more);
        folder.succeeds(&all);
        folder.read(&format!("{out}/video.y4m"))
    };
    let first = video("b", &[]);
    assert!(
        y4m.starts_with(&first),
        "a shorter video is the beginning of a longer one"
    );
    let ways: [&[&str]; 7] = [
        &["--seed", "2"],
        &["--noise"],
        &["--policy", "window"],
        &["--policy", "sink-window"],
        &["--policy", "full"],
        &["--compression", "mean"],
        &["--compression", "match"],
    ];
    let mut seen = vec![first];
    for way in ways {
        let video = video("c", way);
        assert!(!seen.contains(&video), "{way:?}");
        seen.push(video);
    }
    assert_eq!(video("c", &["--selected", "0"]).len(), seen[0].len());
}

/// Interrupted at any byte, a video can be played as far as it got, and goes on as if nothing had happened.
#[test]
fn a_video_goes_on_where_it_was_cut() {
    let folder = Folder::new("resume");
    let sample = |out: &'static str, more: &[&'static str]| {
        let mut all = vec!["sample", "--seconds", "6", "--steps", "2", "--out", out];
        all.extend(more);
        all
    };
    folder.succeeds(&sample("whole", &[]));
    let mut child = folder
        .command(&["sample", "--seconds", "600", "--steps", "2", "--out", "cut"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (frame, begun) = (6 + 3 * 24 * 32, Instant::now());
    let written = || fs::metadata(folder.at("cut/video.y4m")).map_or(0, |m| m.len() as usize);
    while written() < 12 * frame && begun.elapsed() < Duration::from_secs(300) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(folder.read("cut/video.gif").starts_with(b"GIF89a"));
    // What was killed may have half a block; here it has for certain.
    let blocks = folder.read("cut/blocks.f32");
    let block = 4 * 4 * 3 * 24 * 32;
    assert!(blocks.len() >= 3 * block, "{}", blocks.len());
    fs::write(folder.at("cut/blocks.f32"), &blocks[..2 * block + 100]).unwrap();

    folder.refuses(
        &sample("cut", &["--resume", "--seed", "3"]),
        &["state.json", "seed 1 and not 3"],
    );
    folder.refuses(
        &sample("cut", &["--resume", "--policy", "window"]),
        &["state.json", "history"],
    );
    folder.refuses(&sample("nothing", &["--resume"]), &["nothing/state.json"]);
    folder.succeeds(&sample("cut", &["--resume"]));
    for name in ["video.y4m", "video.gif", "blocks.f32", "frames.png"] {
        assert!(
            folder.read(&format!("cut/{name}")) == folder.read(&format!("whole/{name}")),
            "{name}"
        );
    }
    // A finished one goes on too.
    let mut longer = sample("cut", &["--resume"]);
    longer[2] = "7";
    folder.succeeds(&longer);
    assert_eq!(folder.report("cut")["frames"], 56);
}

#[test]
fn bad_input_is_named() {
    let folder = Folder::new("bad");
    let start = |name: &'static str| ["sample", "--seconds", "2", "--out", "out", "--start", name];
    folder.refuses(&start("none.y4m"), &["none.y4m"]);
    for (name, bytes, told) in [
        ("short.y4m", clip(32, 24, 3), "3 frames at 8 a second are too few"),
        ("size.y4m", clip(16, 24, 8), "16 x 24 pixels, and 32 x 24 are wanted"),
        ("cut.y4m", clip(32, 24, 8)[..9000].to_vec(), "cut off"),
        ("text.gif", b"hello".to_vec(), "neither a y4m nor a gif"),
    ] {
        fs::write(folder.at(name), bytes).unwrap();
        folder.refuses(&start(name), &[name, told]);
    }
    fs::write(folder.at("good.y4m"), clip(32, 24, 8)).unwrap();
    folder.succeeds(&start("good.y4m"));
    folder.refuses(
        &["sample", "--seconds", "1", "--out", "out", "--start", "good.y4m"],
        &["--seconds 1", "good.y4m has 1 s already"],
    );
    // The clip that a video began with is known by its numbers, not by its name.
    let on = [
        "sample",
        "--seconds",
        "2",
        "--out",
        "out",
        "--start",
        "good.y4m",
        "--resume",
    ];
    folder.succeeds(&on);
    let other: Vec<u8> = clip(32, 24, 9)[..].to_vec();
    fs::write(folder.at("good.y4m"), other).unwrap();
    folder.refuses(&on, &["out/state.json", "start_clip"]);

    let shipped = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/gallery.safetensors")).unwrap();
    let checkpoint = |name: &'static str| ["sample", "--seconds", "2", "--out", "new", "--checkpoint", name];
    let header = 8 + u64::from_le_bytes(shipped[..8].try_into().unwrap()) as usize;
    let mut nan = shipped.clone();
    nan[header + 1000..header + 1002].copy_from_slice(&[0x00, 0x7E]); // of f16
    let text = String::from_utf8(shipped[8..header].to_vec()).unwrap();
    let wider = text.replacen("\\\"heads\\\":3", "\\\"heads\\\":4", 1);
    assert_ne!(wider, text);
    let wider = [&shipped[..8], wider.as_bytes(), &shipped[header..]].concat();
    for (name, bytes, told) in [
        ("cut.safetensors", shipped[..shipped.len() / 2].to_vec(), "safetensors"),
        ("empty.safetensors", Vec::new(), "not a checkpoint"),
        ("nan.safetensors", nan, "not finite"),
        ("shape.safetensors", wider, "of another shape"),
        ("pickle.pt", b"PK\x03\x04 and so on".to_vec(), "a file of PyTorch's"),
        (
            "text.safetensors",
            b"hello, this is not a checkpoint".to_vec(),
            "not a checkpoint",
        ),
    ] {
        fs::write(folder.at(name), bytes).unwrap();
        folder.refuses(&checkpoint(name), &[name, told]);
    }
    folder.refuses(&checkpoint("none.safetensors"), &["none.safetensors"]);
    // Of one tensor the type, and of one the name: headers keep their length.
    let retyped = |from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert_eq!(changed.len(), text.len());
        assert_ne!(changed, text);
        [&shipped[..8], changed.as_bytes(), &shipped[header..]].concat()
    };
    fs::write(folder.at("whole.safetensors"), retyped("\"F16\"", "\"I16\"")).unwrap();
    folder.refuses(
        &checkpoint("whole.safetensors"),
        &["whole.safetensors", "has numbers of I16"],
    );
    fs::write(
        folder.at("scaled.safetensors"),
        retyped(".attn1.norm_k.weight\"", ".attn1k.scale_weight\""),
    )
    .unwrap();
    folder.refuses(
        &checkpoint("scaled.safetensors"),
        &["scaled.safetensors", ".scale_weight", "not taken"],
    );
    folder.refuses(
        &["sample", "--seconds", "0.2", "--out", "new"],
        &["--seconds 0.2", "has 0.5 s already", "1 is the next block"],
    );
    folder.refuses(&["sample", "--seconds", "no"], &["--seconds"]);
    folder.refuses(&["sample", "--steps", "0"], &["--steps"]);
    folder.refuses(&["evaluate", "--scenes", "0"], &["--scenes"]);
    folder.refuses(&["sample", "--device", "cuda", "--out", "new"], &["--device cuda"]);
    folder.refuses(&["sample", "--selected", "99", "--out", "new"], &["archive"]);
    folder.refuses(&["train", "--out", "new"], &["--synthetic"]);
    folder.refuses(&["train", "--synthetic", "--batch", "0", "--out", "new2"], &["batch"]);
}

/// Whoever reads what is printed may leave at any time.
/// The built-in model with weights of the head that no f32 takes.
fn model_of_nan() -> Vec<u8> {
    use safetensors::{Dtype, SafeTensors, tensor::TensorView};
    let gallery = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/gallery.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&gallery).unwrap();
    let tensors = SafeTensors::deserialize(&gallery).unwrap();
    let numbers = tensors.tensor("proj_out.weight").unwrap().shape().iter().product();
    let large = vec![3e38f32.to_le_bytes(); numbers].concat();
    let tensors = tensors.tensors().into_iter().map(|(name, tensor)| match name.as_str() {
        "proj_out.weight" => (
            name,
            TensorView::new(Dtype::F32, tensor.shape().to_vec(), &large).unwrap(),
        ),
        _ => (name, tensor),
    });
    safetensors::serialize(tensors, header.metadata().clone()).unwrap()
}

#[test]
fn numbers_that_are_none_are_told_at_their_block() {
    let folder = Folder::new("nan");
    fs::write(folder.at("nan.safetensors"), model_of_nan()).unwrap();
    let output = folder.run(&[
        "sample",
        "--checkpoint",
        "nan.safetensors",
        "--seconds",
        "2",
        "--out",
        "made",
    ]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains("block 1: the model gave numbers that are not finite"),
        "{stderr}"
    );
    // What was given is there, and nothing black behind it.
    let film = folder.read("made/video.y4m");
    assert_eq!(film.windows(6).filter(|w| w == b"FRAME\n").count(), 4);
}

#[test]
fn a_closed_pipe_ends_nothing() {
    let folder = Folder::new("pipe");
    for command in [
        &["sample", "--seconds", "2", "--steps", "1", "--out", "out"][..],
        &[
            "evaluate",
            "--scenes",
            "1",
            "--seconds",
            "1",
            "--steps",
            "1",
            "--out",
            "out",
        ],
        &train(&["--out", "out"]),
    ] {
        let mut child = folder
            .command(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && !stderr.contains("panicked"),
            "{command:?}: {stderr}"
        );
    }
    for made in ["report.json", "evaluation.json", "model.safetensors"] {
        assert!(folder.at("out").join(made).is_file(), "{made}");
    }
}

/// Two runs into one folder would mix their blocks.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_has_one_run_at_a_time() {
    let folder = Folder::new("lock");
    let mut child = folder
        .command(&["sample", "--seconds", "600", "--steps", "2", "--out", "out"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !folder.at("out/video.y4m").exists() && begun.elapsed() < Duration::from_secs(300) {
        std::thread::sleep(Duration::from_millis(2));
    }
    for command in [&["sample", "--out", "out"][..], &train(&["--out", "out"])] {
        let output = folder.run(command);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{command:?}");
        assert!(stderr.contains("out: another run writes into this folder"), "{stderr}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // A run that was killed holds nothing.
    folder.succeeds(&["sample", "--seconds", "1", "--steps", "1", "--out", "out"]);
}

/// A device that has no room stands in for a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() {
    let folder = Folder::new("full");
    for name in ["video.y4m", "video.gif", "blocks.f32"] {
        let out = folder.at("out");
        fs::create_dir(&out).unwrap();
        std::os::unix::fs::symlink("/dev/full", out.join(name)).unwrap();
        let output = folder.run(&["sample", "--seconds", "2", "--steps", "1", "--out", "out"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !stderr.contains("panicked"), "{stderr}");
        assert!(
            stderr.contains(name) && stderr.contains("No space left"),
            "{name}: {stderr}"
        );
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn scenes_are_measured() {
    let folder = Folder::new("evaluate");
    let told = folder.succeeds(&[
        "evaluate",
        "--scenes",
        "2",
        "--seconds",
        "2",
        "--steps",
        "2",
        "--out",
        "out",
    ]);
    assert!(told.contains("sink-window"), "{told}");
    let rows: Value = serde_json::from_slice(&folder.read("out/evaluation.json")).unwrap();
    let rows = rows.as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|r| r["history"].as_str().unwrap()).collect();
    assert_eq!(names, ["packed", "window", "sink-window"]);
    for row in rows {
        let share = |name: &str| row[name].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&share("motion")) && (0.0..=1.0).contains(&share("look")));
    }
}
