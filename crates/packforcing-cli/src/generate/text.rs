//! Words on their way into the model, and the prompts that follow the first.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use packforcing_video::{PromptTokenizer, TextEncoder, clean_prompt};

use super::files::Files;
use crate::output::say;

/// Tokens of a prompt, the end mark among them.
pub const MOST_TOKENS: usize = 512;
/// The tensor of an embedding in its file.
pub const EMBEDDING: &str = "embedding";

/// A prompt that takes over in mid video.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    /// From this second on.
    pub seconds: f64,
    pub prompt: String,
}

/// What was said in pairs, in the order of time.
pub fn following(pairs: &[String], length: f64) -> Result<Vec<Next>> {
    let mut all = Vec::new();
    let mut before = 0.0;
    for [when, prompt] in pairs.as_chunks().0 {
        let seconds = when.parse().ok().filter(|at: &f64| *at > before && *at < length);
        let Some(seconds) = seconds else {
            let expected = format!("seconds above {before} and below {length}");
            anyhow::bail!("--then {when} {prompt:?}: {expected} are expected first, one change after the other");
        };
        before = seconds;
        all.push(Next {
            seconds,
            prompt: prompt.clone(),
        });
    }
    Ok(all)
}

/// Embeddings of prompts, each `[tokens, width]`, in f32.
pub fn encode(files: &Files, prompts: &[&str], device: &Device) -> Result<Vec<Tensor>> {
    ensure!(
        !files.text.is_empty(),
        "no text encoder: models_t5_umt5-xxl-enc-bf16.pth or text_encoder/ is wanted in a folder of --model, or by --text"
    );
    let tokenizer = files.tokenizer.as_ref().context(
        "no tokenizer: google/umt5-xxl/tokenizer.json or tokenizer/tokenizer.json is wanted in a folder of --model, or by \
         --tokenizer",
    )?;
    let mut all = Vec::new();
    let tokenizer = PromptTokenizer::open(tokenizer)?;
    for prompt in prompts {
        let clean = clean_prompt(prompt);
        ensure!(!clean.is_empty(), "the prompt is empty");
        let whole = tokenizer.encode(&clean, usize::MAX)?.len();
        let tokens = tokenizer.encode(&clean, MOST_TOKENS)?;
        if whole > tokens.len() {
            eprintln!("warning: the prompt has {whole} tokens, and {MOST_TOKENS} are taken: its end is left out");
        }
        say!("prompt    {} tokens", tokens.len());
        all.push(tokens);
    }
    let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    let encoder = TextEncoder::open(&files.text, dtype, device)?;
    let embeddings = all
        .iter()
        .map(|tokens| Ok(encoder.encode(tokens)?.to_dtype(DType::F32)?));
    embeddings.collect()
}

pub fn read_embedding(file: &PathBuf, device: &Device) -> Result<Tensor> {
    let named = || file.display().to_string();
    let mut tensors = candle_core::safetensors::load(file, device).with_context(named)?;
    let embedding = tensors
        .remove(EMBEDDING)
        .with_context(|| format!("{}: no tensor {EMBEDDING}", named()))?;
    let fits = matches!(embedding.dims(), &[tokens, _] if (1..=MOST_TOKENS).contains(&tokens));
    ensure!(
        fits,
        "{}: {EMBEDDING} is {:?}, and [1 to {MOST_TOKENS}, width] is expected",
        named(),
        embedding.dims()
    );
    Ok(embedding.to_dtype(DType::F32)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_follow_in_order() {
        let said = |words: &[&str]| following(&words.iter().map(ToString::to_string).collect::<Vec<_>>(), 10.0);
        assert_eq!(said(&[]).unwrap(), []);
        let all = said(&["2", "a dog", "7.5", "a cat"]).unwrap();
        let told: Vec<_> = all.iter().map(|next| (next.seconds, &next.prompt[..])).collect();
        assert_eq!(told, [(2.0, "a dog"), (7.5, "a cat")]);
        for wrong in [
            &["0", "a"][..],
            &["10", "a"],
            &["a dog", "2"],
            &["NaN", "a"],
            &["-1", "a"],
            &["5", "a", "5", "b"],
            &["5", "a", "4", "b"],
        ] {
            let error = said(wrong).unwrap_err().to_string();
            assert!(error.contains("one change after the other"), "{error}");
        }
    }
}
