//! `packforcing pack`, run as a user runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A folder of this test's own, with a small clip in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("clip.y4m"), clip(48, 40, 30)).unwrap();
        Folder(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packforcing"));
        command
            .current_dir(&self.0)
            .arg("pack")
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Runs the clip with these options into a folder of this name; returns the report.
    fn report(&self, out: &str, arguments: &[&str]) -> Value {
        let mut all = vec!["clip.y4m", "--out", out];
        if !arguments.contains(&"--device") {
            all.extend(["--device", "cpu"]);
        }
        all.extend(arguments);
        let output = self.run(&all);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{all:?}: {stderr}");
        serde_json::from_slice(&fs::read(self.path(out).join("report.json")).unwrap()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A bright square that wanders over a slope which changes its colour.
fn clip(width: usize, height: usize, frames: usize) -> Vec<u8> {
    let mut file = format!("YUV4MPEG2 W{width} H{height} F25:1 C420\n").into_bytes();
    for t in 0..frames {
        file.extend(b"FRAME\n");
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let inside = (t..t + 12).contains(&x) && (10..22).contains(&y);
            file.push(if inside { 220 } else { (40 + 2 * x + y) as u8 });
        }
        let quarter = (width / 2) * (height / 2);
        file.extend((0..quarter).map(|i| (100 + 2 * t + i % 16) as u8));
        file.extend((0..quarter).map(|i| (160 - t + i % 5) as u8));
    }
    file
}

fn number(report: &Value, field: &str) -> f64 {
    report[field].as_f64().unwrap_or_else(|| panic!("{field} in {report}"))
}

/// (error, attention kept) of a variant, in a report or one of its samples.
fn variant(report: &Value, compression: &str, policy: &str) -> (f64, f64) {
    let is_it = |v: &&Value| v["compression"] == compression && v["policy"] == policy;
    let v = report["variants"].as_array().unwrap().iter().find(is_it).unwrap();
    (number(v, "rel_l2_vs_full"), number(v, "attention_mass_kept"))
}

const VARIANTS: [(&str, &str); 9] = [
    ("mean", "top"),
    ("mean", "newest"),
    ("mean", "random"),
    ("match", "top"),
    ("match", "newest"),
    ("match", "random"),
    ("none", "top"),
    ("none", "newest"),
    ("none", "random"),
];

#[test]
fn nothing_is_lost_where_everything_fits() {
    let folder = Folder::new("fits");
    // 18 blocks: 2 in the sink, at most 14 old ones of 16 that may be chosen.
    for compression in ["mean", "match", "none"] {
        let report = folder.report("out", &["--seconds", "3", "--compression", compression]);
        assert_eq!(report["blocks"], 18);
        assert_eq!(report["frames"], 75);
        assert_eq!(report["tokens_per_block"], 120);
        assert_eq!(report["samples"].as_array().unwrap().len(), 12);
        // The context was never full.
        assert_eq!(report["ms_per_block_early"], Value::Null);
        for (compression, policy) in VARIANTS {
            let (error, kept) = variant(&report, compression, policy);
            assert!((kept - 1.0).abs() < 1e-4, "{compression} {policy}: {kept}");
            if compression == "none" {
                assert!(error < 1e-5, "{compression} {policy}: {error}");
            } else {
                assert!(error > 1e-3, "merging loses something: {error}");
            }
        }
        // 16 of 18 blocks are the sink, old ones or recent, and the current one.
        // Of 4 x 5 x 6 tokens: cells of 2 x 4 x 4, those at the edges smaller, or one token of each whole one.
        let old = match compression {
            "mean" => 2 * 2 * 2,
            "match" => 2,
            _ => 120,
        };
        assert_eq!(report["tokens_per_old_block"], old);
        assert_eq!(number(&report, "context_tokens_max"), (4 * 120 + 14 * old) as f64);
        assert_eq!(number(&report, "full_cache_bytes"), (18 * 120 * 2 * 2 * 64 * 4) as f64);
    }
}

#[test]
fn the_cache_agrees_with_the_same_context_put_together_from_ops() {
    let folder = Folder::new("agrees");
    let mut contexts = Vec::new();
    for (compression, policy) in [
        ("mean", "top"),
        ("mean", "newest"),
        ("match", "top"),
        ("match", "newest"),
        ("none", "top"),
        ("none", "newest"),
    ] {
        let arguments = [
            "--compression",
            compression,
            "--policy",
            policy,
            "--seconds",
            "8",
            "--selected",
            "5",
        ];
        let report = folder.report("out", &arguments);
        for sample in report["samples"].as_array().unwrap() {
            let (error, _) = variant(sample, compression, policy);
            let run = number(sample, "run_rel_l2_vs_full");
            assert!((run - error).abs() < 1e-5, "{compression} {policy}: {run} {error}");
        }
        let (error, kept) = variant(&report, compression, policy);
        assert!(
            error > 1e-4 && error < 1.0 && kept > 0.01 && kept < 0.999,
            "{error} {kept}"
        );
        assert!(number(&report, "ms_per_block_early") > 0.0 && number(&report, "ms_per_block_late") > 0.0);
        assert!(number(&report, "cache_bytes") > 0.0);
        contexts.push(number(&report, "context_tokens_max"));
    }
    // Of 120 tokens old blocks have 8, 2 or all.
    assert_eq!(contexts, [520.0, 520.0, 490.0, 490.0, 1080.0, 1080.0]);
}

#[test]
fn a_seed_makes_the_same_report_and_whole_files() {
    let folder = Folder::new("seed");
    let arguments = [
        "--seconds",
        "5",
        "--selected",
        "4",
        "--policy",
        "random",
        "--samples",
        "3",
    ];
    let seeded = |out, seed| {
        let mut report = folder.report(out, &[&arguments[..], &["--seed", seed]].concat());
        for field in [
            "ms_per_block_early",
            "ms_per_block_late",
            "elapsed_seconds",
            "peak_rss_bytes",
        ] {
            report[field] = Value::Null;
        }
        report
    };
    assert_eq!(seeded("a", "1"), seeded("b", "1"));
    assert_ne!(seeded("a", "1")["samples"], seeded("c", "2")["samples"]);

    let mut names: Vec<_> = fs::read_dir(folder.path("a"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["cache.png", "chart.png", "memory.png", "report.json"]);
    for name in ["cache.png", "chart.png", "memory.png"] {
        let bytes = fs::read(folder.path("a").join(name)).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut rgb).unwrap();
        assert!(rgb.contains(&255) && rgb.iter().any(|&x| x < 60), "{name}");
    }
}

#[test]
fn without_samples_or_a_folder_nothing_is_compared_or_written() {
    let folder = Folder::new("bare");
    let output = folder.run(&["clip.y4m", "--seconds", "2", "--samples", "0", "--device", "cpu"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(
        stdout.contains("runs on   cpu") && !stdout.contains("full history"),
        "{stdout}"
    );
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);

    let report = folder.report("out", &["--samples", "0", "--seconds", "2"]);
    assert_eq!(report["variants"].as_array().unwrap().len(), 0);
    assert!(folder.path("out/memory.png").exists());
}

#[test]
fn the_kernels_give_what_the_cpu_gives() {
    let folder = Folder::new("simt");
    fs::write(folder.path("clip.y4m"), clip(32, 32, 9)).unwrap();
    let arguments = ["--seconds", "1", "--samples", "2", "--selected", "2"];
    let probe = folder.run(&["clip.y4m", "--seconds", "0.2", "--samples", "0", "--device", "simt"]);
    let stderr = String::from_utf8_lossy(&probe.stderr);
    if stderr.contains("not in this build") {
        return eprintln!("skipped: {stderr}");
    }
    let cpu = folder.report("cpu", &arguments);
    let simt = folder.report("simt", &[&arguments[..], &["--device", "simt"]].concat());
    assert_eq!(simt["variants"], cpu["variants"]);
    // bf16 rounds at 2^-9; the error against the full history may grow by about that.
    let more = number(&simt, "run_rel_l2_vs_full") - number(&cpu, "run_rel_l2_vs_full");
    assert!(more.abs() < 0.02, "{more}");
}

/// The exit code and the message of a run that must fail, which leaves nothing behind.
fn refused(folder: &Folder, arguments: &[&str]) -> (i32, String) {
    let before = fs::read_dir(&folder.0).unwrap().count();
    let output = folder.run(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!message.contains("panicked"), "{message}");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), before, "{arguments:?}");
    (output.status.code().unwrap(), message)
}

#[test]
fn files_that_are_no_clips() {
    let folder = Folder::new("files");
    let whole = clip(48, 40, 3);
    let head = whole.split(|&byte| byte == b'\n').next().unwrap().to_vec();
    let with_head = |head: &str| {
        [
            head.as_bytes(),
            &whole[whole.iter().position(|&b| b == b'\n').unwrap()..],
        ]
        .concat()
    };
    for (name, bytes, expected) in [
        ("empty", Vec::new(), "the file is empty"),
        ("text", b"once upon a time\n".to_vec(), "neither a y4m nor a gif file"),
        ("frameless", [&head[..], b"\n"].concat(), "there is no frame in it"),
        (
            "deep",
            with_head("YUV4MPEG2 W48 H40 F25:1 C420p10"),
            "colour space \"420p10\" is not taken",
        ),
        ("odd", with_head("YUV4MPEG2 W48 Hx F25:1"), "height of \"x\""),
        ("stills", with_head("YUV4MPEG2 W48 H40 F0:1"), "frame rate of \"0:1\""),
        ("small", clip(48, 24, 2), "48 x 24 pixels are too few"),
    ] {
        let file = format!("{name}.y4m");
        fs::write(folder.path(&file), bytes).unwrap();
        let (code, message) = refused(&folder, &[&file, "--out", "out"]);
        assert!(
            code == 1 && message.contains(&file) && message.contains(expected),
            "{name}: {message}"
        );
    }
    // What breaks off has the frames before, and what does not say how fast it is can be told.
    fs::write(folder.path("cut.y4m"), &whole[..whole.len() - 100]).unwrap();
    let output = folder.run(&["cut.y4m", "--seconds", "1", "--samples", "0", "--device", "cpu"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let told = "cut.y4m: frame 2: it is cut off: 2780 of its 2880 bytes are there: the 2 frames before it are taken";
    assert!(stderr.contains(told), "{stderr}");
    fs::write(folder.path("unsaid.y4m"), with_head("YUV4MPEG2 W48 H40 F0:0 C444")).unwrap();
    let slow = [
        "unsaid.y4m",
        "--clip-fps",
        "5",
        "--seconds",
        "4",
        "--samples",
        "0",
        "--device",
        "cpu",
    ];
    let output = folder.run(&slow);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        stdout.contains("5 frames a second") && stdout.contains("20 frames"),
        "{stdout}"
    );
    // A gif is made into a y4m file first, of 25 frames a second, which is gone afterwards.
    let mut gif = gif::Encoder::new(fs::File::create(folder.path("a.gif")).unwrap(), 40, 32, &[]).unwrap();
    for grey in [50, 100, 150] {
        let frame = gif::Frame::from_rgb(40, 32, &[grey; 3 * 40 * 32]);
        gif.write_frame(&gif::Frame { delay: 20, ..frame }).unwrap();
    }
    drop(gif);
    let output = folder.run(&["a.gif", "--seconds", "1", "--samples", "0", "--device", "cpu"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("5 x 4 patches"), "{stdout}");
    assert!(stdout.contains("25 frames a second"), "{stdout}");

    let (code, message) = refused(&folder, &["nowhere.y4m"]);
    assert!(code == 1 && message.contains("nowhere.y4m"), "{message}");
    let (code, message) = refused(&folder, &["."]);
    assert!(code == 1 && message.contains("not a file"), "{message}");
}

#[test]
fn options_that_do_not_fit() {
    let folder = Folder::new("options");
    for (arguments, code, expected) in [
        (&["--seconds", "0"][..], 2, "--seconds"),
        (&["--seconds", "NaN"], 2, "--seconds"),
        (&["--seconds=-3"], 2, "--seconds"),
        (&["--selected=-1"], 2, "selected"),
        (&["--policy", "best"], 2, "newest"),
        (&["--device", "tpu"], 2, "simt"),
        (&["--seconds", "0.1"], 1, "a block is 4 frames"),
        (&["--selected", "2000000"], 1, "archive"),
        (&["--out", "clip.y4m/out"], 1, "clip.y4m/out"),
        (&["--out", "clip.y4m"], 1, "cannot write into clip.y4m"),
    ] {
        let mut all = vec!["clip.y4m"];
        all.extend(arguments);
        let (got, message) = refused(&folder, &all);
        assert!(
            got == code && message.contains(expected),
            "{arguments:?}: {got}: {message}"
        );
    }
}

#[test]
fn no_old_block_may_be_chosen_at_all() {
    let folder = Folder::new("none");
    let report = folder.report("out", &["--seconds", "3", "--selected", "0", "--samples", "2"]);
    assert_eq!(number(&report, "context_tokens_max"), 480.0);
    assert_eq!(variant(&report, "mean", "top"), variant(&report, "none", "random"));
}

#[test]
fn the_built_in_clip_plays_from_any_folder() {
    let folder = Folder::new("built-in");
    let output = folder.run(&["--seconds", "0.2", "--samples", "0", "--device", "cpu"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("bunny"), "{stdout}");
    assert!(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../data/README.md")
            .exists()
    );
}
