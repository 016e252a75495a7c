//! Training: it learns, it is the same again, it goes on after a kill, and says what it does not take.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use packforcing_video::train::{Checkpoint, Clips, Report, ShortClip, TrainConfig, Trainer};
use packforcing_video::{CompressorConfig, Config, Error, Result, Stage};

/// Eight colours over five blocks of two frames of 8 x 8: the past says it all.
struct Colours;

impl Clips for Colours {
    fn clip(&self, number: u64) -> Result<ShortClip> {
        let level = |channel: u64| if number >> channel & 1 == 1 { 0.8f32 } else { -0.8 };
        let channels: Vec<f32> = (0..3).map(level).collect();
        let colour = Tensor::from_vec(channels, (3, 1, 1, 1), &Device::Cpu)?;
        Ok(ShortClip {
            frames: colour.broadcast_as((3, 10, 8, 8))?.contiguous()?,
            context: Tensor::zeros((1, 8), DType::F32, &Device::Cpu)?,
        })
    }
}

fn model() -> Config {
    Config {
        heads: 2,
        head_dim: 16,
        ffn_dim: 64,
        layers: 2,
        context_dim: 8,
        context_len: 1,
        freq_dim: 16,
        ..Config::tiny(3)
    }
}

fn compressor() -> CompressorConfig {
    CompressorConfig {
        stages: vec![
            Stage {
                stride: [2, 2, 2],
                channels: 16,
            },
            Stage {
                stride: [1, 4, 4],
                channels: 32,
            },
        ],
    }
}

fn config() -> TrainConfig {
    TrainConfig {
        steps: 200,
        batch: 4,
        block_frames: 2,
        selected: 2,
        learning_rate: 3e-3,
        warm_up: 10,
        self_made_after: 4,
        ..TrainConfig::default()
    }
}

fn trainer(config: &TrainConfig) -> Trainer {
    Trainer::new(&model(), &compressor(), config, &Device::Cpu).expect("a trainer")
}

fn steps(trainer: &mut Trainer, count: usize) -> Vec<Report> {
    (0..count).map(|_| trainer.step(&Colours).expect("a step")).collect()
}

/// A folder of one test, gone when it ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("packforcing-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("it is removed");
    }
}

fn resume(file: &PathBuf, config: &TrainConfig) -> Result<Trainer> {
    Trainer::resume(file, &model(), &compressor(), config, &Device::Cpu)
}

#[test]
fn the_loss_falls() {
    let reports = steps(&mut trainer(&config()), 120);
    let mean = |part: &[Report]| part.iter().map(|r| r.loss).sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&reports[..10]), mean(&reports[110..]));
    assert!(last < 0.35 * first, "{first} to {last}");
    assert_eq!(reports[7].step, 7);
}

/// Four steps, or two, a checkpoint and two more: one run to the bit, losses, weights and averages. So is the
/// same run again; another seed is another.
#[test]
fn a_run_goes_on_to_the_bit() {
    let folder = Folder::new("resume");
    let mut whole = trainer(&config());
    let reports = steps(&mut whole, 8);
    assert_eq!(steps(&mut trainer(&config()), 2), reports[..2]);
    let other = TrainConfig { seed: 2, ..config() };
    assert_ne!(steps(&mut trainer(&other), 1)[0].loss, reports[0].loss);

    let file = folder.at("half.safetensors");
    let mut half = trainer(&config());
    steps(&mut half, 5);
    half.save(&file, [8, 8], "colours", true).expect("it is written");
    // What a kill leaves behind while the next one is written is not looked at.
    std::fs::write(folder.at("half.safetensors.part"), b"half of a").expect("a file");
    drop(half);
    let mut resumed = resume(&file, &config()).expect("it goes on");
    assert_eq!(resumed.done(), 5);
    assert_eq!(steps(&mut resumed, 3), reports[5..]);
    let [a, b] = [(&whole, "a"), (&resumed, "b")].map(|(trainer, name)| {
        let file = folder.at(name);
        trainer.save(&file, [8, 8], "colours", true).expect("it is written");
        let tensors = candle_core::safetensors::load(&file, &Device::Cpu).expect("tensors");
        let mut all: Vec<(String, Vec<f32>)> = tensors
            .into_iter()
            .map(|(name, t)| (name, t.flatten_all().and_then(|t| t.to_vec1()).expect("numbers")))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    });
    assert!(a == b, "weights differ");
    assert!(a.iter().any(|(name, _)| name == "train.square.compressor.out.weight"));

    // What samples is the averaged model, in a file a quarter as large.
    let small = folder.at("small.safetensors");
    whole.save(&small, [8, 8], "colours", false).expect("it is written");
    let size = |path: &PathBuf| std::fs::metadata(path).expect("a file").len();
    assert!(3 * size(&small) < size(&file), "{} and {}", size(&small), size(&file));
    let checkpoint = Checkpoint::open(&small, DType::F32, &Device::Cpu).expect("a checkpoint");
    assert_eq!(checkpoint.description.model, model());
    assert_eq!((checkpoint.description.steps, checkpoint.description.size), (8, [8, 8]));
    assert_eq!(checkpoint.description.data, "colours");
    let said = resume(&small, &config())
        .map(|_| ())
        .expect_err("it is refused")
        .to_string();
    assert!(said.contains("small.safetensors: it has no moments"), "{said}");
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let folder = Folder::new("refused");
    let file = folder.at("run.safetensors");
    trainer(&config())
        .save(&file, [8, 8], "colours", true)
        .expect("it is written");
    let says = |result: Result<Trainer>, parts: &[&str]| {
        let said = result.map(|_| ()).expect_err("it is refused").to_string();
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    };
    let other = TrainConfig { shift: 4.0, ..config() };
    says(
        resume(&file, &other),
        &["run.safetensors", "trained another way", "shift 3.0 and not 4.0"],
    );
    let wider = Config { ffn_dim: 96, ..model() };
    let resumed = Trainer::resume(&file, &wider, &compressor(), &config(), &Device::Cpu);
    says(resumed, &["run.safetensors", "another model", "ffn_dim"]);
    let bytes = std::fs::read(&file).expect("a file");
    let broken = [
        (&bytes[..bytes.len() - 1], "can be read: "),
        (&bytes[..60], "not a checkpoint"),
        (&b"GIF89a"[..], "not a checkpoint"),
        (&[][..], "not a checkpoint"),
    ];
    for (bytes, says_so) in broken {
        let file = folder.at("broken.safetensors");
        std::fs::write(&file, bytes).expect("a file");
        says(resume(&file, &config()), &["broken.safetensors", says_so]);
    }
    says(resume(&folder.at("nowhere"), &config()), &["nowhere"]);
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/attention.safetensors");
    says(
        resume(&golden, &config()),
        &["attention.safetensors", "not a checkpoint of this project"],
    );
    let nowhere = folder.at("no/such/folder/run.safetensors");
    let said = trainer(&config()).save(&nowhere, [8, 8], "colours", true);
    let said = said.expect_err("it is refused").to_string();
    assert!(said.contains("run.safetensors: not written"), "{said}");

    for (wrong, part) in [
        (TrainConfig { batch: 0, ..config() }, "a batch"),
        (TrainConfig { shift: 0.0, ..config() }, "a shift"),
        (
            TrainConfig {
                learning_rate: f64::NAN,
                ..config()
            },
            "finite numbers",
        ),
        (TrainConfig { ema: 1.0, ..config() }, "ema"),
    ] {
        says(Trainer::new(&model(), &compressor(), &wrong, &Device::Cpu), &[part]);
    }
    // A clip too short, clips of two sizes, numbers that run away.
    struct Sizes(fn(u64) -> (usize, f32));
    impl Clips for Sizes {
        fn clip(&self, number: u64) -> Result<ShortClip> {
            let (frames, level) = (self.0)(number);
            Ok(ShortClip {
                frames: Tensor::full(level, (3, frames, 8, 8), &Device::Cpu)?,
                context: Tensor::zeros((1, 8), DType::F32, &Device::Cpu)?,
            })
        }
    }
    let cases: [(Sizes, &str); 3] = [
        (Sizes(|_| (5, 0.0)), "6 frames or more"),
        (Sizes(|n| (8 + 2 * (n % 7) as usize, 0.0)), "as the others"),
        (Sizes(|_| (10, f32::INFINITY)), "loss: expected a finite number"),
    ];
    for (clips, part) in cases {
        let mut trainer = trainer(&config());
        let said = trainer.step(&clips).expect_err("it is refused");
        assert!(
            matches!(said, Error::Argument { .. }) && said.to_string().contains(part),
            "{said}"
        );
        assert_eq!(trainer.done(), 0);
        // Nothing has changed.
        assert_eq!(steps(&mut trainer, 1), steps(&mut self::trainer(&config()), 1));
    }
}
