//! `inspect`: what was found, what is missing, and what it will take, before anything is loaded.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device};
use clap::Args;
use packforcing_video::{FileWeights, Lora, TextEncoder};

use super::plan::{self, Plan, Weights, gb};
use super::{Parts, Shape};
use crate::output::say;

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    parts: Parts,
    #[command(flatten)]
    shape: Shape,
    /// Memory of the card that the plan is for, in GB
    #[arg(long, value_name = "GB", default_value_t = 24.0, value_parser = card)]
    card: f64,
}

fn card(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|gb: &f64| (1.0..1e6).contains(gb));
    parsed.ok_or_else(|| "gigabytes from 1 are expected, as 24".into())
}

/// What fetches what is missing.
const BASE: &str = "huggingface-cli download Wan-AI/Wan2.1-T2V-1.3B --local-dir Wan2.1-T2V-1.3B";
const RELEASED: &str = "huggingface-cli download gdhe17/Self-Forcing checkpoints/self_forcing_dmd.pt --local-dir .";
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
    listed("transformer", first(&files.transformer).as_deref(), RELEASED);
    listed("text encoder", first(&files.text).as_deref(), BASE);
    listed("tokenizer", files.tokenizer.as_deref(), BASE);
    listed("autoencoder", first(&files.vae).as_deref(), BASE);
    listed("preview", files.preview.as_deref(), PREVIEW);

    let pictures = plan::pictures(&options.shape, &files, dtype)?;
    let [width, height] = options.shape.size;
    let card = (options.card * 1e9) as usize;
    let mut plan = None;
    if !files.transformer.is_empty() {
        let weights = FileWeights::open(&files.transformer, "", dtype, &cpu)?;
        let config = weights.config()?;
        let recipe = super::recipe(options.shape.recipe, &mut files, options.parts.lora.is_some());
        // What has another sampler is opened, and made by others.
        let recipe = recipe.and_then(|recipe| Ok(recipe.schedule(true).map(|_| recipe)?));
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
        match recipe {
            Ok(recipe) => {
                let (frames, blocks) = options.shape.frames_and_blocks(recipe);
                say!(
                    "video        {frames} frames, {blocks} blocks of {} frames of latents",
                    recipe.block_frames()
                );
                let parts = Weights {
                    config: &config,
                    dtype,
                    transformer: weights.numbers() * dtype.size_in_bytes(),
                    pictures,
                    switches: false,
                };
                let made = Plan::new(&options.shape, recipe, options.shape.memory, &parts, card)?;
                for warning in made.warnings(blocks) {
                    say!("warning      {warning}");
                }
                plan = Some(made);
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
    let Some(plan) = plan else {
        return Ok(());
    };
    say!("\nmemory at {width} x {height}, bf16, about");
    plan.tell();
    let (all, card) = (gb(plan.total()), options.card);
    let fits = if all <= card { "" } else { ": it does not fit" };
    say!("  {:<22} {all:8.3} GB of {card:.0}{fits}", "together");
    if let Err(told) = plan.fits((card * 1e9) as usize) {
        say!("{told}");
    }
    Ok(())
}
