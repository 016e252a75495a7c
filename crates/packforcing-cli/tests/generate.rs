//! A prompt becomes a film: the whole way, with a model that is tiny and random and lies as people have theirs.

#[path = "../../packforcing-video/examples/tiny_model.rs"]
#[expect(dead_code, reason = "an example has a main function")]
mod tiny_model;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};

/// A folder with a model in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("generate-{name}-{}", std::process::id()));
        tiny_model::write(&path).unwrap();
        Folder(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packforcing"));
        command.current_dir(&self.0).args(arguments).output().unwrap()
    }

    /// `generate` with this folder's model.
    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packforcing"));
        command.current_dir(&self.0).args(["generate", "--device", "cpu"]);
        command.args(["--model", "checkpoints", "--model", "Wan2.1-T2V-1.3B"]);
        if !more.contains(&"--size") {
            command.args(["--size", "64x48"]);
        }
        command.args(more);
        command
    }

    fn generate(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    fn makes(&self, more: &[&str]) -> String {
        let output = self.generate(more);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{more:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refuses(&self, more: &[&str], told: &str) {
        let output = self.generate(more);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && !stderr.contains("panicked"),
            "{more:?}: {stderr}"
        );
        assert!(stderr.contains(told), "{more:?}: {stderr}");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Films want the program ffmpeg; where it is missing and nobody said that it must be there, the tests say so.
fn ffmpeg_is_here() -> bool {
    let here = Command::new("ffmpeg").arg("-version").output().is_ok();
    let required = std::env::var("PACKFORCING_REQUIRE").is_ok_and(|all| all.split(',').any(|one| one == "ffmpeg"));
    assert!(here || !required, "ffmpeg is required, and not here");
    if !here {
        eprintln!("no ffmpeg: films are not tested");
    }
    here
}

/// Frames of a film, each as its bytes.
fn frames(film: &Path) -> Vec<Vec<u8>> {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-loglevel", "error", "-i"]).arg(film);
    let output = command
        .args(["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout.chunks(3 * 64 * 48).map(<[u8]>::to_vec).collect()
}

#[test]
fn a_prompt_becomes_a_film() {
    if !ffmpeg_is_here() {
        return;
    }
    let folder = Folder::new("film");
    let said = folder.makes(&["--prompt", "a cat in the rain", "--seconds", "1", "--out", "a.mp4"]);
    for told in [
        "recipe    self-forcing, a guess by the name self_forcing_dmd.pt",
        "16 frames of 64 x 48 at 16 a second: 2 blocks of 3 frames of latents",
        "first     frames after",
        "made      16 frames",
    ] {
        assert!(said.contains(told), "{told}: {said}");
    }
    let a = frames(&folder.at("a.mp4"));
    assert_eq!(a.len(), 16);
    assert!(a.windows(2).any(|pair| pair[0] != pair[1]), "it moves");
    // A seed is a video; another seed, another prompt or another memory is another.
    folder.makes(&["--prompt", "a cat in the rain", "--seconds", "1", "--out", "b.mp4"]);
    assert!(a == frames(&folder.at("b.mp4")));
    let others: [&[&str]; 2] = [
        &["--prompt", "a cat in the rain", "--seed", "1"],
        &["--prompt", "a dog on the moon"],
    ];
    for other in others {
        folder.makes(&[other, &["--seconds", "1", "--out", "c.mp4"]].concat());
        assert!(a != frames(&folder.at("c.mp4")), "{other:?}");
    }
    // With a prompt that was encoded before it is the same.
    let encoded = [
        "encode-prompt",
        "--model",
        "Wan2.1-T2V-1.3B",
        "--prompt",
        "a cat in  the rain ",
        "--device",
        "cpu",
    ];
    assert!(folder.run(&encoded).status.success());
    folder.makes(&["--embedding", "prompt.safetensors", "--seconds", "1", "--out", "d.mp4"]);
    assert!(a == frames(&folder.at("d.mp4")));
    // The same numbers in diffusers' layout, by its names and in shards, are the same film.
    tiny_model::write_diffusers(&folder.at("diffusers")).unwrap();
    let model = [
        "generate",
        "--model",
        "diffusers",
        "--recipe",
        "self-forcing",
        "--device",
        "cpu",
    ];
    let rest = [
        "--size",
        "64x48",
        "--prompt",
        "a cat in the rain",
        "--seconds",
        "1",
        "--out",
        "h.mp4",
    ];
    let output = folder.run(&[&model[..], &rest].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(a == frames(&folder.at("h.mp4")));
    // Another prompt in mid video: the block before it is the same.
    let then = [
        "--prompt",
        "a cat in the rain",
        "--then",
        "0.5",
        "a dog",
        "--seconds",
        "1",
        "--out",
        "i.mp4",
    ];
    folder.makes(&then);
    let i = frames(&folder.at("i.mp4"));
    assert!(a[..7] == i[..7] && a[12..] != i[12..]);
    // What can be told of any film, and of two.
    let judged = folder.run(&["evaluate", "--film", "a.mp4", "--out", "judged"]);
    let said = String::from_utf8_lossy(&judged.stdout).into_owned();
    assert!(
        judged.status.success() && said.contains("16 frames") && said.contains("borders "),
        "{said}"
    );
    assert!(folder.at("judged/evaluation.json").is_file());
    let both = folder.makes(&[
        "--prompt",
        "a cat",
        "--seconds",
        "1",
        "--compare",
        "window",
        "--out",
        "g.mp4",
    ]);
    assert!(
        both.matches("flicker ").count() == 2 && both.contains("g.window.mp4: 16 frames"),
        "{both}"
    );
    // Every memory, and the small decoder.
    for memory in ["mean", "window", "sink-window"] {
        folder.makes(&[
            "--prompt",
            "a cat",
            "--memory",
            memory,
            "--seconds",
            "1.4",
            "--out",
            "e.mp4",
        ]);
        assert_eq!(frames(&folder.at("e.mp4")).len(), 22, "{memory}");
    }
    folder.makes(&[
        "--prompt",
        "a cat",
        "--decoder",
        "preview",
        "--seconds",
        "0.1",
        "--out",
        "f.mp4",
    ]);
    assert_eq!(frames(&folder.at("f.mp4")).len(), 2);
}

/// Ctrl-C is for the program; the encoder comes to the end of what it was given.
#[cfg(unix)]
#[test]
fn a_film_that_is_broken_off_can_be_played() {
    if !ffmpeg_is_here() {
        return;
    }
    let folder = Folder::new("broken");
    let mut command = folder.command(&["--prompt", "a cat", "--seconds", "600", "--out", "film.mp4"]);
    command.stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Until the first frames are made.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().starts_with("first ")));
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(signalled.unwrap().success());
    assert!(!child.wait().unwrap().success());
    // The encoder has its own time.
    let playable = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let mut command = Command::new("ffmpeg");
        command
            .args(["-nostdin", "-loglevel", "error", "-i"])
            .arg(folder.at("film.mp4"));
        let played = command.args(["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]).output();
        played.unwrap().stdout.len() >= 9 * 3 * 64 * 48
    });
    assert!(playable, "the first block's frames are in the film");
}

#[test]
fn what_is_missing_or_wrong_is_told() {
    let folder = Folder::new("wrong");
    let prompt = &["--prompt", "a cat"];
    let with = |more: &[&'static str]| [&prompt[..], more].concat();
    folder.refuses(&["--prompt", " \t "], "the prompt is empty");
    folder.refuses(&with(&["--size", "65x48"]), "each a multiple of 16");
    folder.refuses(&with(&["--recipe", "any"]), "one of self-forcing, causvid");
    folder.refuses(
        &with(&["--recipe", "rolling-forcing"]),
        "which denoises five blocks together",
    );
    folder.refuses(&with(&["--lora", "nowhere.pt"]), "nowhere.pt");
    folder.refuses(&with(&["--out", "nowhere/film.mp4"]), "nowhere/film.mp4");
    folder.refuses(&with(&["--embedding", "x"]), "cannot be used with");
    folder.refuses(&with(&["--then", "9", "a dog"]), "below 5");
    folder.refuses(&with(&["--then", "4.9", "a dog"]), "no block of the video begins");
    folder.refuses(&with(&["--then", "2", " "]), "the prompt is empty");
    folder.refuses(&with(&["--archive", "99000", "--size", "8192x8192"]), "GB are free");
    if cfg!(target_os = "linux") && ffmpeg_is_here() {
        folder.refuses(&with(&["--out", "/dev/full"]), "No space left");
    }
    folder.refuses(
        &with(&["--noise", "checkpoints/self_forcing_dmd.pt"]),
        "self_forcing_dmd.pt",
    );

    let checkpoint = folder.at("checkpoints/self_forcing_dmd.pt");
    let whole = fs::read(&checkpoint).unwrap();
    fs::write(&checkpoint, &whole[..whole.len() / 2]).unwrap();
    folder.refuses(prompt, "cut short");
    fs::write(&checkpoint, b"version https://git-lfs.github.com/spec/v1\n").unwrap();
    folder.refuses(prompt, "git lfs pull");
    fs::write(&checkpoint, b"GGUF\x03\0\0\0").unwrap();
    folder.refuses(prompt, "GGUF");
    fs::write(&checkpoint, &whole).unwrap();

    // What is wrong with a file is told before whose it might be, and before the prompt is encoded.
    let nameless = folder.at("checkpoints/model.pt");
    fs::rename(&checkpoint, &nameless).unwrap();
    fs::write(&nameless, b"GGUF\x03\0\0\0").unwrap();
    folder.refuses(prompt, "GGUF");
    fs::remove_file(&nameless).unwrap();
    fs::write(&checkpoint, &whole).unwrap();
    folder.refuses(&with(&["--vae", "nowhere.pth"]), "No such file");
    folder.refuses(&with(&["--vae", "checkpoints/self_forcing_dmd.pt"]), "is missing");
    fs::write(folder.at("pointer"), b"version https://git-lfs.github.com/spec/v1\n").unwrap();
    for option in ["--lora", "--tokenizer", "--text", "--vae"] {
        folder.refuses(&with(&[option, "pointer"]), "git lfs pull");
    }
    fs::write(folder.at("empty"), b"").unwrap();
    folder.refuses(&with(&["--text", "empty"]), "it is empty");
    let noise = |start: &[usize], fresh: &[usize]| {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let tensors = HashMap::from([("start", zeros(start)), ("fresh", zeros(fresh))]);
        candle_core::safetensors::save(&tensors, folder.at("noise.safetensors")).unwrap();
    };
    let noisy = with(&["--noise", "noise.safetensors", "--seconds", "0.5"]);
    noise(&[16, 3, 8, 6], &[1, 3, 16, 3, 6, 8]);
    folder.refuses(&noisy, "start: expected [16, 3 or more, 6, 8]");
    noise(&[16, 3, 6, 8], &[1, 2, 16, 3, 6, 8]);
    folder.refuses(&noisy, "fresh: expected [1 or more, 3 or more, 16, 3, 6, 8]");

    // Names that tell nothing, and two of them.
    let plain = folder.at("checkpoints/model.pt");
    fs::rename(&checkpoint, &plain).unwrap();
    folder.refuses(prompt, "--recipe says it");
    fs::write(folder.at("checkpoints/second.pt"), &whole).unwrap();
    folder.refuses(prompt, "more than one transformer");
    fs::remove_file(folder.at("checkpoints/second.pt")).unwrap();
    fs::rename(&plain, folder.at("checkpoints/longlive_base.pt")).unwrap();
    folder.refuses(prompt, "LongLive's base without its adapter");
    fs::rename(folder.at("checkpoints/longlive_base.pt"), &checkpoint).unwrap();

    let wan = |name: &str| folder.at("Wan2.1-T2V-1.3B").join(name);
    for (name, more, told) in [
        ("Wan2.1_VAE.pth", &[][..], "no autoencoder"),
        ("taew2_1.pth", &["--decoder", "preview"], "no taew2_1"),
        ("models_t5_umt5-xxl-enc-bf16.pth", &[], "no text encoder"),
        ("google/umt5-xxl/tokenizer.json", &[], "no tokenizer"),
    ] {
        fs::rename(wan(name), folder.at("away")).unwrap();
        folder.refuses(&with(more), told);
        fs::rename(folder.at("away"), wan(name)).unwrap();
    }
}

#[test]
fn a_plan_is_told_before_anything_is_loaded() {
    let folder = Folder::new("plan");
    let inspect = |more: &[&str]| {
        let model = [
            "inspect",
            "--model",
            "checkpoints",
            "--model",
            "Wan2.1-T2V-1.3B",
            "--size",
            "64x48",
        ];
        let output = folder.run(&[&model, more].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = inspect(&["--seconds", "1"]);
    for told in [
        "text encoder Wan2.1-T2V-1.3B/models_t5_umt5-xxl-enc-bf16.pth",
        "recipe    self-forcing, a guess by the name self_forcing_dmd.pt",
        "2 layers, 64 wide",
        "16 frames, 2 blocks of 3 frames of latents",
        "archive ",
        "frames that it keeps",
        "work ",
        "GB of 24",
    ] {
        assert!(said.contains(told), "{told}: {said}");
    }
    // Outside of what the weights know, and of a card.
    let said = inspect(&["--seconds", "30", "--memory", "window"]);
    assert!(said.contains("--memory whole never leaves them"), "{said}");
    let said = inspect(&["--recipe", "longlive"]);
    assert!(said.contains("--memory sink-window is its own"), "{said}");
    let said = inspect(&["--memory", "mean"]);
    assert!(said.contains("nobody has tried these weights on averages"), "{said}");
    let said = inspect(&["--card", "1", "--archive", "99000"]);
    assert!(
        said.contains("it does not fit") && said.contains("fewer blocks in the --archive"),
        "{said}"
    );
    fs::remove_file(folder.at("Wan2.1-T2V-1.3B/Wan2.1_VAE.pth")).unwrap();
    fs::rename(
        folder.at("checkpoints/self_forcing_dmd.pt"),
        folder.at("checkpoints/x.pt"),
    )
    .unwrap();
    let said = inspect(&[]);
    assert!(
        said.contains("autoencoder  missing: huggingface-cli download") && said.contains("--recipe says it"),
        "{said}"
    );
}
