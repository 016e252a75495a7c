//! `inspect`: what was found, what is missing, and what it will take, before anything is loaded.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device};
use clap::Args;
use packforcing_video::picture::Vae;
use packforcing_video::{FileWeights, Lora, TextEncoder};

use super::{Parts, SCALE, Shape};
use crate::output::say;

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    parts: Parts,
    #[command(flatten)]
    shape: Shape,
}

/// The card that a plan is held against.
const CARD_GB: f64 = 24.0;

/// What fetches what is missing.
const BASE: &str = "huggingface-cli download Wan-AI/Wan2.1-T2V-1.3B --local-dir Wan2.1-T2V-1.3B";
const PREVIEW: &str = "curl -LO https://github.com/madebyollin/taehv/raw/main/taew2_1.pth";

/// Runs `inspect`.
pub fn run(options: &Options) -> Result<()> {
    let mut files = options.parts.find()?;
    let (cpu, dtype) = (Device::Cpu, DType::BF16);
    let listed = |what: &str, found: Option<&Path>, fetched: &str| match found {
        Some(path) => say!("{what:<12} {}", path.display()),
        None => say!("{what:<12} missing: {fetched}"),
    };
    let first = |paths: &[std::path::PathBuf]| paths.first().cloned();
    listed("transformer", first(&files.transformer).as_deref(), BASE);
    listed("text encoder", first(&files.text).as_deref(), BASE);
    listed("tokenizer", files.tokenizer.as_deref(), BASE);
    listed("autoencoder", first(&files.vae).as_deref(), BASE);
    listed("preview", files.preview.as_deref(), PREVIEW);

    let gb = |bytes: usize| bytes as f64 / 1e9;
    let mut plan = Vec::new();
    if !files.transformer.is_empty() {
        let recipe = super::recipe(options.shape.recipe, &mut files, options.parts.lora.is_some());
        let weights = FileWeights::open(&files.transformer, "", dtype, &cpu)?;
        let config = weights.config()?;
        say!(
            "sizes        {} layers, {} wide, {:.2} billion numbers",
            config.layers,
            config.width(),
            weights.numbers() as f64 / 1e9
        );
        for other in weights.left_out() {
            say!("besides      {other}");
        }
        if let Some(lora) = &files.lora {
            let lora = Lora::open(lora, None)?;
            say!("adapter      {} layers of rank {}", lora.layers(), lora.rank());
        }
        plan.push(("transformer", weights.numbers() * dtype.size_in_bytes()));
        match recipe {
            Ok(recipe) => {
                let (frames, blocks) = options.shape.frames_and_blocks(recipe);
                say!(
                    "video        {frames} frames, {blocks} blocks of {} frames of latents",
                    recipe.block_frames()
                );
                let history = options.shape.few_step(recipe).cache_bytes(&config, dtype)?;
                plan.push(("history with its archive", history));
            }
            // The rest is still worth knowing.
            Err(unknown) => say!("recipe       {unknown:#}"),
        }
    }
    if !files.text.is_empty() {
        let encoder = TextEncoder::open(&files.text, dtype, &cpu)?;
        say!(
            "text         embeddings of {} numbers; gone before the others come",
            encoder.width()
        );
    }
    if !files.vae.is_empty() {
        let [width, height] = options.shape.size;
        let [weights, kept] = Vae::bytes(&files.vae, [height / SCALE, width / SCALE], dtype)?;
        plan.push(("autoencoder", weights));
        plan.push(("frames that it keeps", kept));
    }
    let [width, height] = options.shape.size;
    say!("\nmemory at {width} x {height}, bf16; what layers work with is not counted");
    for (what, bytes) in &plan {
        say!("  {what:<26} {:8.3} GB", gb(*bytes));
    }
    let all: usize = plan.iter().map(|(_, bytes)| bytes).sum();
    say!("  {:<26} {:8.3} GB of {CARD_GB:.0}", "together", gb(all));
    Ok(())
}
