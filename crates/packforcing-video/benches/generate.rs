//! A block by published few-step weights, for every memory, and its pictures: on the tiny, random model of the example.

#[path = "../examples/tiny_model.rs"]
#[expect(dead_code, reason = "an example has a main function")]
mod tiny_model;

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing_video::few_step::{FewStep, FewStepConfig, Memory};
use packforcing_video::picture::{Taehv, Vae};
use packforcing_video::{FileWeights, Model, Recipe};

/// Rows and columns of the latent.
const SIZE: [usize; 2] = [12, 16];

fn generate(c: &mut Criterion) {
    let folder = std::env::temp_dir().join("packforcing-bench-generate");
    tiny_model::write(&folder).expect("a model");
    let (cpu, dtype) = (Device::Cpu, DType::F32);
    let wan = |name: &str| [folder.join("Wan2.1-T2V-1.3B").join(name)];
    let checkpoint = [folder.join("checkpoints/self_forcing_dmd.pt")];
    let mut weights = FileWeights::open(&checkpoint, "", dtype, &cpu).expect("weights");
    let config = weights.config().expect("sizes");
    let model = Model::new(&config, &mut weights).expect("a model");
    let context = Tensor::zeros((1, 1, config.context_dim), dtype, &cpu).expect("a prompt");

    let mut group = c.benchmark_group("generate");
    group.sample_size(10);
    for (name, memory) in [
        ("whole", Memory::Whole),
        ("mean", Memory::Mean),
        ("window", Memory::Window),
    ] {
        let config = FewStepConfig {
            recipe: Recipe::SelfForcing,
            memory,
            size: SIZE,
            archive: 16,
            seed: 0,
        };
        let mut video = FewStep::new(&model, &context, &config).expect("a video");
        // Until everything that a block attends to is there.
        for _ in 0..8 {
            video.next_block().expect("a block");
        }
        group.bench_function(name, |b| b.iter(|| video.next_block().expect("a block")));
    }
    let latents = Tensor::zeros((3, 16, SIZE[0], SIZE[1]), dtype, &cpu).expect("latents");
    let vae = Vae::open(&wan("Wan2.1_VAE.pth"), dtype, &cpu).expect("an autoencoder");
    let mut decoder = vae.decoder();
    group.bench_function("vae", |b| b.iter(|| decoder.decode(&latents).expect("frames")));
    let preview = Taehv::open(&wan("taew2_1.pth"), dtype, &cpu).expect("a decoder");
    let mut decoder = preview.decoder();
    group.bench_function("preview", |b| b.iter(|| decoder.decode(&latents).expect("frames")));
    group.finish();
    let _ = std::fs::remove_dir_all(&folder);
}

criterion_group!(benches, generate);
criterion_main!(benches);
