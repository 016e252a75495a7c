//! How fast Wan2.1-T2V-1.3B at 832 x 480 makes blocks over the packed history, with random weights and without the
//! decoder: four denoising passes and the commit pass, 30 layers, 16 selected blocks.
//!
//! `cargo run --release -p packforcing-video --features cuda --example wan_block_loop` on a GPU. Without one it runs two
//! layers on a corner of the frame, which shows that it works and nothing more. Arguments: layers, rows and columns
//! of the latent, blocks.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use packforcing_video::sample::{Generator, SampleConfig};
use packforcing_video::train::{Checkpoint, Description, TrainConfig};
use packforcing_video::{CompressorConfig, Config, RandomWeights, Result};

/// Video frames of a block, and how many a second.
const FRAMES: f64 = 16.0;

fn main() -> Result<()> {
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let device = Device::cuda_if_available(0)?;
    let gpu = device.is_cuda();
    let [layers, rows, cols, blocks] = match (arguments.as_slice(), gpu) {
        (&[layers, rows, cols, blocks], _) => [layers, rows, cols, blocks],
        (_, true) => [30, 60, 104, 24],
        (_, false) => [2, 8, 16, 4],
    };
    let dtype = if gpu { DType::BF16 } else { DType::F32 };
    let model = Config {
        layers,
        ..Config::wan2_1_t2v_1_3b()
    };
    let description = Description {
        compressor: CompressorConfig::wan2_1(),
        train: TrainConfig {
            sink: 2,
            selected: 16,
            shift: 5.0,
            ..TrainConfig::default()
        },
        steps: 0,
        size: [rows, cols],
        data: "nothing: random weights".into(),
        model,
    };
    let checkpoint = Checkpoint::from_weights(&description, &mut RandomWeights::new(1, dtype, &device)?)?;
    let config = SampleConfig {
        steps: 4,
        archive: 120,
        ..SampleConfig::of(&description)
    };
    let model = &description.model;
    let context = Tensor::zeros((1, model.context_len, model.context_dim), dtype, &device)?;
    let mut video = Generator::new(&checkpoint, &context, &config)?;
    println!(
        "{:.2} billion numbers, {layers} layers, latent {rows} x {cols}, {dtype:?} on {}; {:.2} GB of cache",
        checkpoint.numbers() as f64 * 1e-9,
        if gpu { "cuda" } else { "cpu" },
        video.cache_bytes() as f64 * 1e-9
    );
    let mut times = Vec::new();
    for block in 0..blocks {
        let begun = Instant::now();
        let made = video.next_block()?;
        // A number on the host: everything before it is done.
        let mean = made.mean_all()?.to_scalar::<f32>()?;
        times.push(begun.elapsed().as_secs_f64());
        println!(
            "block {block:3}  {:6} tokens in sight of the next  {:8.1} ms  {:6.2} frames a second  mean {mean:.3}",
            video.context_tokens(),
            times[block] * 1e3,
            FRAMES / times[block]
        );
    }
    let late = &mut times[blocks / 2..];
    late.sort_by(f64::total_cmp);
    println!(
        "median of the later half: {:.2} frames a second",
        FRAMES / late[late.len() / 2]
    );
    Ok(())
}
