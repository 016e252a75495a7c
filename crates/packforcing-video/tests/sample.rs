//! Sampling with random weights: what is kept, what is forgotten, what goes on.

use candle_core::{DType, Device, Tensor};
use packforcing_video::sample::{Generator, History, Packing, SampleConfig};
use packforcing_video::train::{Checkpoint, TrainConfig, Trainer};
use packforcing_video::{CompressorConfig, Config, Error, Result};

const SIZE: [usize; 2] = [16, 24];

/// A model that nobody trained, through a file and from memory.
fn checkpoint(name: &str) -> Checkpoint {
    let file = std::env::temp_dir().join(format!("packforcing-sample-{}-{name}", std::process::id()));
    let config = TrainConfig {
        selected: 2,
        ..TrainConfig::default()
    };
    let model = Config {
        layers: 2,
        ..Config::tiny(3)
    };
    let trainer = Trainer::new(&model, &CompressorConfig::tiny(), &config, &Device::Cpu).expect("a model");
    trainer.save(&file, SIZE, "nothing", false).expect("a checkpoint");
    let bytes = std::fs::read(&file).expect("the file");
    let opened = Checkpoint::open(&file, DType::F32, &Device::Cpu).expect("it was written");
    std::fs::remove_file(&file).expect("it is there");
    let read = Checkpoint::from_bytes("memory", &bytes, DType::F32, &Device::Cpu).expect("the same bytes");
    assert_eq!(read.description, opened.description);
    assert_eq!([read.numbers(), opened.numbers()], [trainer.numbers(); 2]);
    let cut = Checkpoint::from_bytes("memory", &bytes[..bytes.len() - 1], DType::F32, &Device::Cpu);
    assert!(matches!(cut, Err(Error::Weights { file, .. }) if file.to_str() == Some("memory")));
    read
}

fn generator<'m>(checkpoint: &'m Checkpoint, config: &SampleConfig) -> Result<Generator<'m>> {
    Generator::new(
        checkpoint,
        &Tensor::zeros((1, 1, 16), DType::F32, &Device::Cpu)?,
        config,
    )
}

fn config(checkpoint: &Checkpoint) -> SampleConfig {
    SampleConfig {
        steps: 2,
        archive: 5,
        ..SampleConfig::of(&checkpoint.description)
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32")
}

/// Blocks of a video from a grey start.
fn video(checkpoint: &Checkpoint, config: &SampleConfig, blocks: usize) -> Vec<Vec<f32>> {
    let mut generator = generator(checkpoint, config).expect("a video");
    let grey = Tensor::zeros((3, 4, SIZE[0], SIZE[1]), DType::F32, &Device::Cpu).expect("a block");
    generator.append(&grey).expect("a block");
    let made = (1..blocks).map(|_| numbers(&generator.next_block().expect("a block")));
    made.collect()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_sink_that_holds_everything_is_the_whole_history() {
    let checkpoint = checkpoint("whole");
    let all = SampleConfig {
        sink: 5,
        ..config(&checkpoint)
    };
    let full = SampleConfig {
        history: History::Full,
        ..all.clone()
    };
    let (packed, full) = (video(&checkpoint, &all, 6), video(&checkpoint, &full, 6));
    for (block, (a, b)) in packed.iter().zip(&full).enumerate() {
        assert!(apart(a, b) < 1e-4, "block {block}: {}", apart(a, b));
    }
    // The histories differ as soon as they have something to differ in.
    let ways = [
        (History::Packed, Packing::Learned),
        (History::Packed, Packing::Mean),
        (History::Packed, Packing::Match),
        (History::Window, Packing::Learned),
        (History::SinkWindow, Packing::Learned),
    ];
    let mut seen: Vec<Vec<f32>> = vec![full[4].clone()];
    for (history, packing) in ways {
        let config = SampleConfig {
            history,
            packing,
            ..config(&checkpoint)
        };
        let blocks = video(&checkpoint, &config, 6);
        assert!(
            apart(&blocks[0], &full[0]) < 1e-4,
            "{history:?}: one block is whole for all"
        );
        let last = &blocks[4];
        assert!(last.iter().all(|n| n.is_finite()));
        let nearest = seen
            .iter()
            .map(|other| apart(last, other))
            .fold(f32::INFINITY, f32::min);
        assert!(nearest > 1e-4, "{history:?} {packing:?}: {nearest}");
        seen.push(last.clone());
    }
}

#[test]
fn memory_and_context_are_bounded() {
    let checkpoint = checkpoint("bounded");
    let mut generator = generator(&checkpoint, &config(&checkpoint)).expect("a video");
    let bytes = generator.cache_bytes();
    let mut tokens = Vec::new();
    for _ in 0..10 {
        generator.next_block().expect("a block");
        tokens.push(generator.context_tokens());
    }
    assert_eq!(generator.cache_bytes(), bytes);
    assert_eq!(generator.blocks(), 10);
    // Sink, recent and current have 96 tokens each, a compressed block 6.
    assert_eq!(tokens[..4], [2 * 96, 3 * 96, 3 * 96 + 6, 3 * 96 + 12]);
    assert!(tokens[4..].iter().all(|&t| t == 3 * 96 + 12), "{tokens:?}");
    let times = generator.times();
    assert!(times.model > 0.0 && times.attention > 0.0 && times.merging > 0.0 && times.steps > 0.0);
}

#[test]
fn a_replayed_video_goes_on_to_the_bit() {
    let checkpoint = checkpoint("replayed");
    for (history, packing) in [
        (History::Packed, Packing::Learned),
        (History::Packed, Packing::Match),
        (History::Full, Packing::Learned),
    ] {
        let config = SampleConfig {
            history,
            packing,
            ..config(&checkpoint)
        };
        let mut whole = generator(&checkpoint, &config).expect("a video");
        let blocks: Vec<Tensor> = (0..9).map(|_| whole.next_block().expect("a block")).collect();
        let mut resumed = generator(&checkpoint, &config).expect("a video");
        for block in &blocks[..6] {
            resumed.replay(block).expect("a block of this video");
        }
        for (number, block) in blocks.iter().enumerate().skip(6) {
            let next = resumed.next_block().expect("a block");
            assert_eq!(
                numbers(&next),
                numbers(block),
                "{history:?} {packing:?}: block {number}"
            );
        }
        // Another seed is another video.
        let other = SampleConfig { seed: 2, ..config };
        let mut other = generator(&checkpoint, &other).expect("a video");
        assert!(apart(&numbers(&other.next_block().expect("a block")), &numbers(&blocks[0])) > 1e-3);
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let checkpoint = checkpoint("refused");
    let good = config(&checkpoint);
    let refused = |config: SampleConfig, told: &str| match generator(&checkpoint, &config) {
        Ok(_) => panic!("{told} was not refused"),
        Err(error) => assert!(error.to_string().contains(told), "{error}"),
    };
    refused(
        SampleConfig {
            size: [18, 24],
            ..good.clone()
        },
        "latent",
    );
    refused(
        SampleConfig {
            size: [4, 24],
            ..good.clone()
        },
        "latent",
    );
    refused(
        SampleConfig {
            steps: 0,
            ..good.clone()
        },
        "steps",
    );
    refused(
        SampleConfig {
            selected: 9,
            ..good.clone()
        },
        "archive",
    );
    let mut generator = generator(&checkpoint, &good).expect("a video");
    let short = Tensor::zeros((3, 3, SIZE[0], SIZE[1]), DType::F32, &Device::Cpu).expect("a block");
    let error = generator.append(&short).expect_err("three frames");
    assert_eq!(error.to_string(), "block: expected [3, 4, 16, 24], got [3, 3, 16, 24]");
    assert_eq!(generator.blocks(), 0);
    assert!(generator.next_block().is_ok(), "as if nothing had happened");
}

/// Files say what they like; memory is not taken for it.
#[test]
fn a_description_that_nobody_could_have_is_refused() {
    let trainer = Trainer::new(
        &Config::tiny(3),
        &CompressorConfig::tiny(),
        &TrainConfig::default(),
        &Device::Cpu,
    )
    .expect("a model");
    let file = std::env::temp_dir().join(format!("packforcing-described-{}", std::process::id()));
    trainer.save(&file, SIZE, "nothing", false).expect("a checkpoint");
    let bytes = std::fs::read(&file).expect("the file");
    std::fs::remove_file(&file).expect("it is there");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let text = &header.metadata().as_ref().expect("a description")["packforcing"];
    let described: serde_json::Value = serde_json::from_str(text).expect("JSON");
    for (at, value, told) in [
        ("/model/layers", 1_000_000_000_000u64, "at most 1024 layers"),
        ("/model/layers", u64::MAX, "at most 1024 layers"),
        ("/model/heads", u64::MAX, "at most 1024 heads"),
        ("/model/head_dim", 1 << 62, "at most 1024 numbers a head"),
        ("/model/channels", u64::MAX, "channels"),
        ("/model/patch/1", u64::MAX, "rows of a patch"),
        ("/model/ffn_dim", 1 << 40, "ffn_dim"),
        // What is not beyond belief takes no memory for being wrong either.
        ("/model/ffn_dim", 1 << 20, "is [512, 192] and not [1048576, 192]"),
        ("/model/layers", 1000, "blocks.4."),
        ("/compressor/stages/0/channels", u64::MAX, "channels up to"),
        ("/compressor/stages/1/stride/0", u64::MAX, "strides up to"),
        ("/size/0", u64::MAX, "rows and columns"),
        ("/train/block_frames", u64::MAX, "frames"),
    ] {
        let mut description = described.clone();
        *description.pointer_mut(at).expect(at) = value.into();
        let header = std::collections::HashMap::from([("packforcing".to_string(), description.to_string())]);
        let file = safetensors::serialize(tensors.tensors(), Some(header)).expect("a file");
        let error = Checkpoint::from_bytes("a file", &file, DType::F32, &Device::Cpu).err();
        let said = error.map(|e| e.to_string()).unwrap_or_default();
        assert!(said.contains(told), "{at} {value}: {said}");
    }
}
