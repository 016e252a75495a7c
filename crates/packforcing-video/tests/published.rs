//! Weights, adapters and recipes as they are published, against vectors of independent code in float64. Tests with `golden` in
//! their names read the folder that `PACKFORCING_GOLDEN` names.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use packforcing::schedule::Schedule;
use packforcing::{Grid, Rope3d};
use packforcing_video::few_step::{FewStep, FewStepConfig, GivenNoise, Memory};
use packforcing_video::picture::{Taehv, Tiles, Vae};
use packforcing_video::{
    Config, Context, Error, FileWeights, FullHistory, Lora, Model, Prediction, PromptTokenizer, RandomWeights, Recipe,
    Result, SelfAttention, TextEncoder, Weights, WeightsFault, clean_prompt,
};

fn folder() -> PathBuf {
    match std::env::var_os("PACKFORCING_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"),
    }
}

fn tensors(file: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder().join(file), &Device::Cpu).expect(file)
}

fn described() -> serde_json::Value {
    let text = std::fs::read(folder().join("golden_video.json")).expect("a description");
    serde_json::from_slice(&text).expect("JSON")
}

fn open(file: &str) -> Result<FileWeights> {
    FileWeights::open(&[folder().join(file)], "", DType::F32, &Device::Cpu)
}

/// What is wrong with a file that is refused.
fn refused<T>(opened: Result<T>) -> String {
    match opened {
        Err(Error::Weights { fault, .. }) => fault.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it is taken"),
    }
}

fn config() -> Config {
    Config {
        channels: 16,
        patch: [1, 2, 2],
        heads: 1,
        head_dim: 64,
        ffn_dim: 80,
        layers: 2,
        context_dim: 24,
        context_len: 6,
        freq_dim: 32,
        eps: 1e-6,
        rope_theta: 1e4,
        place_waves: 0,
        prediction: Prediction::Velocity,
    }
}

fn model(mut weights: FileWeights) -> Model {
    let model = Model::new(&config(), &mut weights).expect("a model");
    weights.finish().expect("all of it");
    model
}

fn context(model: &Model, text: &Tensor) -> Context {
    model.context(&text.unsqueeze(0).expect("a batch")).expect("a context")
}

fn largest(x: &Tensor) -> f32 {
    let most = x.abs().and_then(|x| x.flatten_all()?.max(0)?.to_scalar());
    most.expect("f32")
}

fn apart(a: &Tensor, b: &Tensor) -> f32 {
    largest(&(a - b).expect("one shape"))
}

/// Where the prompt changes in mid video.
struct Switch<'a> {
    frame: usize,
    context: &'a Context,
    /// Whether the newest frames go through once more.
    rewrites: bool,
}

/// Blocks one after the other, all noise given.
fn rollout(
    model: &Model,
    context: &Context,
    history: &mut FullHistory,
    schedule: &Schedule,
    (noise, fresh): (&Tensor, &Tensor),
    switch: Option<Switch>,
) -> candle_core::Result<Tensor> {
    let frames = history.grid().frames;
    let now = Tensor::new(&[0f32], &Device::Cpu)?;
    let mut made: Vec<Tensor> = Vec::new();
    for block in 0..noise.dim(1)? / frames {
        let switched = switch.as_ref().filter(|switch| block * frames >= switch.frame);
        let context = switched.map_or(context, |switch| switch.context);
        if switched.is_some_and(|switch| switch.rewrites && (block - 1) * frames < switch.frame) {
            let past = Tensor::cat(&made, 1)?.unsqueeze(0)?;
            let count = history.rewritten();
            let newest = past.narrow(2, block * frames - count, count)?;
            let pass = model.velocity(&newest, &now, context, history.rewrite_pass());
            pass.expect("a velocity");
            history.commit()?;
        }
        let mut x = noise.narrow(1, block * frames, frames)?.unsqueeze(0)?;
        for (i, step) in schedule.steps().iter().enumerate() {
            let timestep = Tensor::new(&[step.timestep as f32], &Device::Cpu)?;
            let velocity = model.velocity(&x, &timestep, context, history.denoise_pass());
            let clean = (&x - (velocity.expect("a velocity") * step.sigma)?)?;
            x = match i + 1 < schedule.steps().len() {
                true => {
                    let noise = fresh.get(block)?.get(i)?.unsqueeze(0)?;
                    ((clean * (1.0 - step.sigma_next))? + (noise * step.sigma_next)?)?
                }
                false => clean,
            };
        }
        let kept = model.velocity(&x, &now, context, history.commit_pass());
        kept.expect("a velocity");
        history.commit()?;
        made.push(x.squeeze(0)?);
    }
    Tensor::cat(&made, 1)
}

fn grid(frames: usize) -> Grid {
    Grid {
        frames,
        rows: 2,
        cols: 3,
    }
}

#[test]
fn golden_rollouts_of_published_weights() {
    let golden = tensors("rollout_tiny.safetensors");
    let of = |name: &str| &golden[name];
    let rope = config().rope().expect("a rope");
    let plain = model(open("self_forcing_tiny.pt").expect("weights"));

    // Self-Forcing: all history.
    let words = context(&plain, of("text0"));
    let schedule = Recipe::SelfForcing.schedule(true).expect("steps");
    let mut history = FullHistory::new(&rope, grid(3));
    let start = of("full.noise")
        .narrow(1, 0, 3)
        .and_then(|x| x.unsqueeze(0))
        .expect("a block");
    let timestep = Tensor::new(&[1000f32], &Device::Cpu).expect("a number");
    let first = plain
        .velocity(&start, &timestep, &words, history.denoise_pass())
        .expect("a velocity");
    let off = apart(&first.squeeze(0).expect("one"), of("full.first_velocity"));
    assert!(off < 1e-4, "{off:e}");
    let noise = (of("full.noise"), of("full.eps"));
    let made = rollout(&plain, &words, &mut history, &schedule, noise, None).expect("a video");
    let off = apart(&made, of("full.out"));
    assert!(off < 1e-4, "{off:e}");

    // LongLive: a window of 8 frames with a sink of 2, with and without the adapter.
    let schedule = Schedule::few_step(&[1000.0, 500.0], 5.0).expect("steps");
    let noise = (of("window.noise"), of("window.eps"));
    let lora = Lora::open(folder().join("lora_tiny.pt"), Some(8.0)).expect("an adapter");
    assert_eq!((lora.rank(), lora.scale(), lora.layers()), (4, 2.0, 20));
    let adapted = model(open("self_forcing_tiny.pt").expect("weights").with_lora(lora));
    for (model, name) in [(&plain, "window.out"), (&adapted, "window_lora.out")] {
        let words = context(model, of("text0"));
        let mut history = FullHistory::window(&rope, grid(2), 2, 8);
        let made = rollout(model, &words, &mut history, &schedule, noise, None).expect("a video");
        let off = apart(&made, of(name));
        assert!(off < 1e-4, "{name}: {off:e}");
    }

    // The prompt changes in mid video; of those frames alone the vectors tell.
    for (name, frame, text, rewrites) in [
        ("switch_late", 10, "text1", true),
        ("switch_early", 6, "text1", true),
        ("switch_same", 10, "text0", true),
        ("switch_keep", 10, "text1", false),
    ] {
        let switch = Switch {
            frame,
            context: &context(&adapted, of(text)),
            rewrites,
        };
        let words = context(&adapted, of("text0"));
        let mut history = FullHistory::window(&rope, grid(2), 2, 8);
        let made = rollout(&adapted, &words, &mut history, &schedule, noise, Some(switch)).expect("a video");
        let right = of(&format!("{name}.out"));
        let count = right.dim(1).expect("frames");
        let made = made
            .narrow(1, made.dim(1).expect("frames") - count, count)
            .expect("the last");
        let off = apart(&made, right);
        assert!(off < 1e-4, "{name}: {off:e}");
    }
}

#[test]
fn golden_adapters_are_merged_in_f32() {
    let golden = tensors("rollout_tiny.safetensors");
    let lora = Lora::open(folder().join("lora_tiny.pt"), Some(8.0)).expect("an adapter");
    let mut weights = open("self_forcing_tiny.pt").expect("weights").with_lora(lora);
    for (ours, theirs, shape) in [
        (
            "blocks.0.attn1.to_q.weight",
            "merged.blocks.0.self_attn.q.weight",
            [64, 64],
        ),
        ("blocks.1.ffn.net.2.weight", "merged.blocks.1.ffn.2.weight", [64, 80]),
    ] {
        let merged = weights.get(ours, &shape).expect(ours);
        let off = apart(&merged, &golden[theirs]);
        assert!(off < 1e-6, "{ours}: {off:e}");
    }
    let said = refused(weights.finish());
    assert!(said.contains("has no place"), "{said}");
    // An adapter of another base is told by its layers.
    let wrong = Config { layers: 1, ..config() };
    let lora = Lora::open(folder().join("lora_tiny.pt"), None).expect("an adapter");
    assert_eq!(lora.scale(), 1.0);
    let mut weights = open("self_forcing_tiny.pt").expect("weights").with_lora(lora);
    Model::new(&wrong, &mut weights).expect("a model");
    assert!(weights.finish().is_err());
    let lora = Lora::open(folder().join("lora_tiny.pt"), None).expect("an adapter");
    let mut other = FileWeights::open(
        &[folder().join("wan_causal_tiny.safetensors")],
        "weights.",
        DType::F32,
        &Device::Cpu,
    )
    .expect("weights")
    .with_lora(lora);
    let said = refused(other.get("blocks.0.attn1.to_q.weight", &[128, 128]));
    assert!(
        said.contains("[128, 128] in the base and [64, 64] in the adapter"),
        "{said}"
    );
    // A file without adapters is none.
    let said = refused(Lora::open(folder().join("self_forcing_tiny.pt"), None));
    assert!(said.contains("no adapters in it"), "{said}");
}

#[test]
fn golden_pickles_of_every_layout() {
    let golden = tensors("pickle_tiny.safetensors");
    let mut weights = open("pickle_tiny.pt").expect("weights");
    let mut taken = 0;
    for (name, expected) in &golden {
        let Some(plain) = name.strip_prefix("generator_ema.") else {
            continue;
        };
        if plain == "long" {
            let said = refused(weights.get(plain, expected.dims()));
            assert!(said.contains("long has numbers of I64"), "{said}");
            continue;
        }
        let got = weights
            .get(plain, expected.dims())
            .unwrap_or_else(|e| panic!("{plain}: {e}"));
        let expected = expected.to_dtype(DType::F32).expect("numbers");
        let bits = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32");
        assert_eq!(bits(&got), bits(&expected), "{plain}");
        taken += 1;
    }
    assert_eq!(taken, 14);
    let besides = [
        "generator (1 tensors)",
        "config (a dictionary without tensors)",
        "critic (a dictionary without tensors)",
        "step (600)",
    ];
    assert_eq!(weights.left_out(), besides);
    assert!(weights.finish().is_ok());
}

#[test]
fn golden_pickles_that_are_refused() {
    for (file, told) in [
        ("pickle_call.pt", "posix.getcwd, which is not carried out"),
        ("pickle_legacy.pth", "before 1.6"),
    ] {
        let said = refused(open(file));
        assert!(said.contains(told), "{file}: {said}");
    }
    let mut weights = open("pickle_other_types.pt").expect("a file");
    for (name, shape, dtype) in [("int", 2, "I32"), ("bool", 2, "BOOL"), ("short", 1, "I16")] {
        let said = refused(weights.get(name, &[shape]));
        assert!(said.contains(&format!("{name} has numbers of {dtype}")), "{said}");
    }
    // Cut anywhere it is no panic, and told.
    let whole = std::fs::read(folder().join("self_forcing_tiny.pt")).expect("a file");
    let path = std::env::temp_dir().join(format!("packforcing-published-{}", std::process::id()));
    for part in 1..8 {
        std::fs::write(&path, &whole[..whole.len() * part / 8]).expect("a file");
        let said = refused(FileWeights::open(&[&path], "", DType::F32, &Device::Cpu));
        assert!(said.contains("cut short"), "{said}");
    }
    std::fs::write(&path, &whole).expect("a file");
    let two = [path.clone(), folder().join("wan_tiny.safetensors")];
    let both = FileWeights::open(&two, "", DType::F32, &Device::Cpu);
    assert!(matches!(both, Err(Error::Argument { argument: "files", .. })));
    std::fs::remove_file(&path).expect("it is there");
}

#[test]
fn golden_sizes_are_read_from_shapes() {
    let read = open("self_forcing_tiny.pt")
        .and_then(|weights| weights.config())
        .expect("sizes");
    let told = Config {
        context_len: 512,
        ..config()
    };
    assert_eq!(read, told);
    let said = refused(open("pickle_tiny.pt").and_then(|weights| weights.config()));
    assert!(said.contains("no weights of a Wan transformer"), "{said}");
}

/// By the names and shapes of the published files alone.
#[test]
fn published_sizes() {
    let zeros = |shape: &[usize]| {
        Tensor::zeros(1, DType::BF16, &Device::Cpu)
            .and_then(|x| x.broadcast_as(shape))
            .expect("a view")
    };
    let file = |width: usize, channels: usize, more: Option<&str>| {
        let mut tensors = vec![
            ("patch_embedding.weight", zeros(&[width, channels, 1, 2, 2])),
            ("time_embedding.0.weight", zeros(&[width, 256])),
            ("text_embedding.0.weight", zeros(&[width, 4096])),
            ("blocks.0.self_attn.q.weight", zeros(&[width, width])),
            ("blocks.0.ffn.0.weight", zeros(&[24, width])),
        ];
        tensors.extend(more.map(|name| (name, zeros(&[8, 8]))));
        let whole = tensors
            .into_iter()
            .map(|(name, x)| (name, x.contiguous().expect("zeros")));
        let bytes = safetensors::serialize(whole, None).expect("a file");
        FileWeights::from_bytes("a file", &bytes, DType::F32, &Device::Cpu).and_then(|weights| weights.config())
    };
    assert_eq!(file(8, 16, None).map(|c| (c.layers, c.ffn_dim)).ok(), Some((1, 24)));
    // Of a model that lacks a tensor no smaller one is made.
    let layers = file(8, 16, Some("blocks.3.norm3.weight")).map(|c| c.layers);
    assert_eq!(layers.ok(), Some(4));
    // Wan2.1's 14B is 5120 wide.
    assert_eq!(
        file(5120, 16, None).map(|c| (c.heads, c.head_dim)).ok(),
        Some((40, 128))
    );
    for (channels, more, told) in [
        (36, None, "image-to-video (36 channels go in)"),
        (16, Some("img_emb.proj.1.weight"), "image-to-video"),
        (16, Some("far_patch_embedding.weight"), "AnyFlow-FAR"),
        (48, None, "Wan2.2's 5B and LongLive 2.0"),
    ] {
        let said = refused(file(8, channels, more));
        assert!(said.contains(told), "{said}");
    }
}

#[test]
fn golden_names_that_are_nearly_right_are_named() {
    let wrong = Config { layers: 3, ..config() };
    let mut weights = open("self_forcing_tiny.pt").expect("weights");
    Model::new(&wrong, &mut weights).expect("something in place of what is missing");
    let Err(Error::Weights {
        fault: WeightsFault::Incomplete { missing, surplus, .. },
        ..
    }) = weights.finish()
    else {
        panic!("it is taken")
    };
    assert_eq!((missing.len(), surplus.len()), (27, 0));
    assert!(missing.iter().all(|name| name.starts_with("blocks.2.")), "{missing:?}");
    let fault = WeightsFault::Incomplete {
        missing: vec!["blocks.0.self_attn.q.weight".into()],
        wrong: Vec::new(),
        surplus: vec!["blocks.0.self_attn.qq.weight".into(), "something.else".into()],
    };
    let said = fault.to_string();
    assert!(
        said.contains("blocks.0.self_attn.q.weight is missing (there is blocks.0.self_attn.qq.weight)"),
        "{said}"
    );
}

/// The families' steps, and what re-noising makes of a velocity that is known: all in f64.
#[test]
fn golden_recipes() {
    let (golden, described) = (tensors("few_step.safetensors"), described());
    let recipes = &described["files"]["few_step.safetensors"]["recipes"];
    let numbers = |x: &Tensor| x.flatten_all().and_then(|x| x.to_vec1::<f64>()).expect("f64");
    let (noise, w) = (numbers(&golden["noise"]), numbers(&golden["w"]));
    for (name, recipe, first) in [
        ("self_forcing", Recipe::SelfForcing, true),
        ("self_forcing", Recipe::CausalForcing, false),
        ("self_forcing", Recipe::CausalForcingFramewise, false),
        ("self_forcing", Recipe::LongLive, false),
        ("causvid", Recipe::CausVid, true),
        ("causvid_warp", Recipe::CausVidFourStep, true),
        ("causal_forcing_2step", Recipe::CausalForcingTwoStep, false),
        ("self_forcing", Recipe::CausalForcingTwoStep, true),
        ("causal_forcing_1step", Recipe::CausalForcingOneStep, false),
        ("self_forcing", Recipe::CausalForcingOneStep, true),
    ] {
        let schedule = recipe.schedule(first).expect("steps");
        let told = |what: &str| -> Vec<f64> { serde_json::from_value(recipes[name][what].clone()).expect(what) };
        let steps = schedule.steps();
        let near = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
        let timesteps: Vec<f64> = steps.iter().map(|s| s.timestep).collect();
        let sigmas: Vec<f64> = steps.iter().map(|s| s.sigma).collect();
        assert!(near(&timesteps, &told("timesteps")), "{recipe}: {timesteps:?}");
        assert!(near(&sigmas, &told("sigmas")), "{recipe}: {sigmas:?}");

        let of = |what: &str, step: usize| numbers(&golden[&format!("{name}.{what}")].get(step).expect("a step"));
        let mut x = noise.clone();
        for (i, step) in steps.iter().enumerate() {
            assert!(near(&x, &of("x", i)), "{recipe}, step {i}");
            let velocity: Vec<f64> = x
                .iter()
                .zip(&w)
                .map(|(x, w)| 0.7 * x.tanh() - 0.3 * x + step.sigma * w)
                .collect();
            let rows = |rows: Vec<Vec<f64>>, terms: [&[f64]; 2]| -> Vec<f64> {
                (0..x.len())
                    .map(|j| rows.iter().zip(terms).map(|(row, term)| row[0] * term[j]).sum())
                    .collect()
            };
            let clean = rows(step.x0(1), [&x, &velocity]);
            assert!(near(&clean, &of("x0", i)), "{recipe}, step {i}");
            if i + 1 < steps.len() {
                let fresh = numbers(&golden["eps"].get(i).expect("noise"));
                x = clean
                    .iter()
                    .zip(&fresh)
                    .map(|(x, n)| (1.0 - step.sigma_next) * x + step.sigma_next * n)
                    .collect();
            }
        }
    }
    let refused = Recipe::RollingForcing
        .schedule(true)
        .map(|_| ())
        .err()
        .map(|e| e.to_string());
    assert!(refused.is_some_and(|said| said.contains("five blocks together")));
}

#[test]
fn golden_text_encoder() {
    let golden = tensors("umt5_tiny_expected.safetensors");
    let ids = |name: &str, row: usize, count: usize| -> Vec<u32> {
        let row = golden[name]
            .get(row)
            .and_then(|row| row.to_dtype(DType::U32)?.narrow(0, 0, count)?.to_vec1());
        row.expect("tokens")
    };
    for file in ["umt5_tiny.safetensors", "umt5_tiny.pth"] {
        // Embeddings reach 3.9; in bf16 0.05 was measured.
        for (dtype, bound) in [(DType::F32, 1e-4), (DType::BF16, 0.1)] {
            let encoder = TextEncoder::open(&[folder().join(file)], dtype, &Device::Cpu).expect(file);
            assert_eq!(encoder.width(), 32);
            for (name, of, row, count) in [
                ("ids", "embeddings", 0, 23),
                ("ids", "embeddings", 1, 40),
                ("far_ids", "far_embeddings", 0, 150),
            ] {
                let got = encoder.encode(&ids(name, row, count)).expect("embeddings");
                assert_eq!(got.dtype(), dtype);
                let got = got.to_dtype(DType::F32).expect("f32");
                let right = golden[of].get(row).and_then(|x| x.narrow(0, 0, count)).expect("rows");
                let off = apart(&got, &right);
                println!(
                    "{file}, {dtype:?}, {of} {row}: off by {off:.1e} of {:.1}",
                    largest(&right)
                );
                assert!(off < bound, "{file}, {dtype:?}, {of} {row}: {off:e}");
            }
        }
    }
    // Without one of its tensors it is no smaller encoder; the table may be there by the name that it is tied to.
    let path = std::env::temp_dir().join(format!("packforcing-umt5-{}", std::process::id()));
    let mut tensors = tensors("umt5_tiny.safetensors");
    let table = tensors.remove("shared.weight").expect("a table");
    tensors.insert("encoder.embed_tokens.weight".into(), table);
    candle_core::safetensors::save(&tensors, &path).expect("a file");
    assert!(TextEncoder::open(&[&path], DType::F32, &Device::Cpu).is_ok());
    let lost = "encoder.block.1.layer.0.SelfAttention.q.weight";
    tensors.remove(lost).expect("a tensor");
    candle_core::safetensors::save(&tensors, &path).expect("a file");
    let said = refused(TextEncoder::open(&[&path], DType::F32, &Device::Cpu));
    assert!(said.contains(lost), "{said}");
    let whole = std::fs::read(&path).expect("a file");
    for part in [4, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..part]).expect("a file");
        assert!(TextEncoder::open(&[&path], DType::F32, &Device::Cpu).is_err(), "{part}");
    }
    std::fs::remove_file(&path).expect("it is there");
    let encoder = TextEncoder::open(&[folder().join("umt5_tiny.pth")], DType::F32, &Device::Cpu).expect("an encoder");
    assert!(encoder.encode(&[]).is_err() && encoder.encode(&[96]).is_err());
    let said = refused(TextEncoder::open(
        &[folder().join("self_forcing_tiny.pt")],
        DType::F32,
        &Device::Cpu,
    ));
    assert!(said.contains("no UMT5 encoder"), "{said}");
}

#[test]
fn golden_prompts() {
    let described = described();
    for case in described["files"]["cleaning"]["cases"].as_array().expect("cases") {
        let text = |name: &str| case[name].as_str().expect(name);
        assert_eq!(clean_prompt(text("text")), text("without_ftfy"));
    }
    let tokenizer = PromptTokenizer::open(folder().join("tokenizer_tiny.json")).expect("a tokenizer");
    let cases = &described["files"]["tokenizer_tiny.json"]["cases"];
    let mut seen = 0;
    for case in cases.as_array().expect("cases") {
        let list = |name: &str| -> Vec<u32> { serde_json::from_value(case[name].clone()).expect(name) };
        let clean = case["clean"].as_str().expect("a text");
        assert_eq!(tokenizer.encode(clean, 512).expect("tokens"), list("ids"), "{clean:?}");
        let valid = case["valid_24"].as_u64().expect("a number") as usize;
        assert_eq!(
            tokenizer.encode(clean, 24).expect("tokens"),
            list("ids_24")[..valid],
            "{clean:?}"
        );
        seen += 1;
    }
    assert!(seen >= 14, "{seen}");
    let said = PromptTokenizer::open("spiece.model")
        .err()
        .map(|e| e.to_string())
        .unwrap_or_default();
    assert!(said.contains("tokenizer.json beside it"), "{said}");
    let said = PromptTokenizer::open(folder().join("golden_video.json"))
        .err()
        .map(|e| e.to_string());
    assert!(said.is_some_and(|said| said.contains("not a tokenizer.json")));
}

/// Every fifth row and column.
fn fifth(x: &Tensor) -> Tensor {
    let every = |n: usize| {
        Tensor::from_vec(
            (0..n as u32).step_by(5).collect::<Vec<_>>(),
            n.div_ceil(5),
            &Device::Cpu,
        )
    };
    let (rows, cols) = (x.dim(2).expect("rows"), x.dim(3).expect("columns"));
    let picked = every(rows).and_then(|rows| x.contiguous()?.index_select(&rows, 2)?.index_select(&every(cols)?, 3));
    picked.expect("a part")
}

/// The frames of the golden video, `[13, 3, 48, 80]`.
fn video() -> Tensor {
    let at = |t: usize, c: usize, y: usize, x: usize| {
        let (t, c, y, x) = (t as f64, c as f64, y as f64, x as f64);
        ((0.5 + c + 0.37 * t + 0.19 * y + 0.13 * x).sin() * (0.7 * c + 0.11 * t - 0.05 * y + 0.23 * x).cos()) as f32
    };
    let numbers = (0..13 * 3 * 48 * 80).map(|i| at(i / (3 * 48 * 80), i / (48 * 80) % 3, i / 80 % 48, i % 80));
    Tensor::from_vec(numbers.collect::<Vec<f32>>(), (13, 3, 48, 80), &Device::Cpu).expect("frames")
}

#[test]
fn golden_autoencoder() {
    let golden = tensors("vae_tiny_expected.safetensors");
    let turned = |x: &Tensor| x.transpose(0, 1).and_then(|x| x.contiguous()).expect("frames first");
    let vae = Vae::open(&[folder().join("vae_tiny.pth")], DType::F32, &Device::Cpu).expect("an autoencoder");
    let latents = turned(&golden["latent"]);
    let right = turned(&golden["video_sample"]);
    // However a video is cut into pieces.
    let mut whole = None;
    for pieces in [&[4][..], &[1, 1, 1, 1], &[1, 3], &[3, 1], &[2, 2]] {
        let mut decoder = vae.decoder();
        let (mut made, mut from) = (Vec::new(), 0);
        for count in pieces {
            let frames = decoder
                .decode(&latents.narrow(0, from, *count).expect("a piece"))
                .expect("frames");
            assert_eq!(frames.dims(), [4 * count - if from == 0 { 3 } else { 0 }, 3, 48, 80]);
            made.push(frames);
            from += count;
        }
        let made = Tensor::cat(&made, 0).expect("a video");
        let off = apart(&fifth(&made), &right);
        assert!(off < 5e-5, "{pieces:?}: {off:e}");
        let whole = whole.get_or_insert_with(|| made.clone());
        assert!(apart(whole, &made) < 1e-5, "{pieces:?}");
        let plan = Vae::bytes(&[folder().join("vae_tiny.pth")], [6, 10], DType::F32).expect("a plan");
        assert_eq!(decoder.bytes(), plan.kept);
    }
    // In tiles: the first and the last frame, every fifth row and column.
    let tiled = vae
        .decode_tiled(&latents, Tiles { size: 32, step: 24 })
        .expect("frames");
    assert_eq!(tiled.dims(), [13, 3, 48, 80]);
    let ends = Tensor::cat(
        &[
            &tiled.narrow(0, 0, 1).expect("one"),
            &tiled.narrow(0, 12, 1).expect("one"),
        ],
        0,
    );
    let off = apart(&fifth(&ends.expect("two frames")), &turned(&golden["tiled_sample"]));
    assert!(off < 5e-5, "{off:e}");
    let whole = whole.expect("a video");
    let one = vae.decode_tiled(&latents, Tiles::default()).expect("frames");
    assert_eq!(apart(&one, &whole), 0.0, "one tile is the whole");
    for (size, step) in [(32, 40), (30, 24), (32, 0), (0, 0)] {
        assert!(
            vae.decode_tiled(&latents, Tiles { size, step }).is_err(),
            "{size}, {step}"
        );
    }
    let right = turned(&golden["encoded"]);
    let video = video();
    for pieces in [&[13][..], &[1, 4, 4, 4], &[5, 8]] {
        let mut encoder = vae.encoder();
        let (mut made, mut from) = (Vec::new(), 0);
        for count in pieces {
            made.push(
                encoder
                    .encode(&video.narrow(0, from, *count).expect("a piece"))
                    .expect("latents"),
            );
            from += count;
        }
        let off = apart(&Tensor::cat(&made, 0).expect("latents"), &right);
        assert!(off < 5e-5, "{pieces:?}: {off:e}");
    }
    assert!(vae.encoder().encode(&video.narrow(0, 0, 3).expect("a piece")).is_err());
    assert!(vae.decoder().decode(&video).is_err());
    let said = refused(Vae::open(
        &[folder().join("self_forcing_tiny.pt")],
        DType::F32,
        &Device::Cpu,
    ));
    assert!(said.contains("is missing"), "{said}");
}

#[test]
fn golden_preview() {
    let golden = tensors("taehv_tiny_expected.safetensors");
    let model = Taehv::open(&[folder().join("taehv_tiny.safetensors")], DType::F32, &Device::Cpu).expect("a decoder");
    let latents = &golden["latent"];
    for pieces in [&[4][..], &[1, 1, 1, 1], &[1, 3]] {
        let mut decoder = model.decoder();
        let (mut made, mut from) = (Vec::new(), 0);
        for count in pieces {
            made.push(
                decoder
                    .decode(&latents.narrow(0, from, *count).expect("a piece"))
                    .expect("frames"),
            );
            from += count;
        }
        let made = Tensor::cat(&made, 0).expect("a video");
        assert_eq!(made.dims(), [13, 3, 48, 80]);
        let from_zero = ((made + 1.0).expect("numbers") / 2.0).expect("numbers");
        let off = apart(&fifth(&from_zero), &golden["video_sample"]);
        assert!(off < 5e-5, "{pieces:?}: {off:e}");
        let plan = Taehv::bytes(&[folder().join("taehv_tiny.safetensors")], [6, 10], DType::F32).expect("a plan");
        assert_eq!(decoder.bytes(), plan.kept);
    }
    let encoded = model.encode(&video()).expect("latents");
    let off = apart(&encoded, &golden["encoded"]);
    assert!(off < 5e-5, "{off:e}");
    assert!(model.encode(&video().narrow(2, 0, 20).expect("a part")).is_err());
}

/// What a block of the packed memories sees, in plain steps: keys and values of every block as the model gave them, turned anew
/// for every pass to the places that they have among those in sight.
struct Plain<'r> {
    rope: &'r Rope3d,
    memory: Memory,
    /// Old blocks that are kept, all of which are selected.
    archive: usize,
    /// By layer and block: keys and values, `[tokens, heads, dim]`.
    past: Vec<Vec<(Tensor, Tensor)>>,
    now: Vec<(Tensor, Tensor)>,
}

impl Plain<'_> {
    /// Turned to the places of a block's tokens, or of what it became, from a frame on.
    fn turned(&self, k: &Tensor, first: f64, mean: bool) -> candle_core::Result<Tensor> {
        let (tokens, heads, dim) = k.dims3()?;
        let numbers = k.flatten_all()?.to_vec1::<f32>()?;
        let turned = numbers.chunks(dim).enumerate().flat_map(|(i, head)| {
            let token = i / heads;
            let place = match mean {
                // The middle of a block of 3 x 2 x 3.
                true => [first + 1.0, 0.5, 1.0],
                false => [first + (token / 6) as f64, (token / 3 % 2) as f64, (token % 3) as f64],
            };
            (0..dim).map(move |n| {
                let pair = n / 2;
                let angle = place[self.rope.axis(pair)] * self.rope.frequency(pair);
                let (a, b) = (f64::from(head[2 * pair]), f64::from(head[2 * pair + 1]));
                let turned = match n % 2 {
                    0 => a * angle.cos() - b * angle.sin(),
                    _ => a * angle.sin() + b * angle.cos(),
                };
                turned as f32
            })
        });
        Tensor::from_iter(turned, &Device::Cpu)?.reshape((tokens, heads, dim))
    }
}

impl SelfAttention for Plain<'_> {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> candle_core::Result<Tensor> {
        let [q, k, v] = [q.squeeze(0)?, k.squeeze(0)?, v.squeeze(0)?];
        let (sink, recent) = (3, 1);
        let past = self.past.get(layer).map_or(&[][..], |past| &past[..]);
        let newest = past.len().saturating_sub(recent).max(sink.min(past.len()));
        let old = newest.saturating_sub(self.archive).max(sink.min(past.len()));
        let seen = (0..sink.min(past.len())).chain(old..newest).chain(newest..past.len());
        let (mut keys, mut values, mut biases, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
        for number in seen {
            let (k, v) = &past[number];
            let tokens = k.dim(0)?;
            if self.memory == Memory::Mean && (old..newest).contains(&number) {
                keys.push(self.turned(&k.mean_keepdim(0)?, first, true)?);
                values.push(v.mean_keepdim(0)?);
                biases.push((tokens as f32).ln());
                first += 1.0;
            } else {
                keys.push(self.turned(k, first, false)?);
                values.push(v.clone());
                biases.extend(vec![0.0; tokens]);
                first += 3.0;
            }
        }
        keys.push(self.turned(&k, first, false)?);
        values.push(v.clone());
        biases.extend(vec![0.0; k.dim(0)?]);
        let q = self.turned(&q, first, false)?.transpose(0, 1)?.contiguous()?;
        let (keys, values) = (Tensor::cat(&keys, 0)?, Tensor::cat(&values, 0)?);
        let scale = (q.dim(2)? as f64).sqrt().recip();
        let logits = (q.matmul(&keys.permute((1, 2, 0))?.contiguous()?)? * scale)?;
        let logits = logits.broadcast_add(&Tensor::new(biases, &Device::Cpu)?)?;
        let most = logits.max_keepdim(2)?;
        let shares = logits.broadcast_sub(&most)?.exp()?;
        let shares = shares.broadcast_div(&shares.sum_keepdim(2)?)?;
        self.now.push((k, v));
        shares
            .matmul(&values.transpose(0, 1)?.contiguous()?)?
            .transpose(0, 1)?
            .unsqueeze(0)
    }
}

/// Twelve blocks, of which some have left: what is seen stands one behind the other, at places that the weights know.
#[test]
fn packed_memories_are_attention_at_packed_places() {
    let golden = tensors("rollout_tiny.safetensors");
    let model = model(open("self_forcing_tiny.pt").expect("weights"));
    let words = golden["text0"].unsqueeze(0).expect("a batch");
    let rope = config().rope().expect("a rope");
    let blocks = 12;
    let noise = |shape: &[usize], seed: u64| {
        let mut random = RandomWeights::new(seed, DType::F32, &Device::Cpu).expect("noise");
        random.normal(shape, 1.0).expect("noise")
    };
    let (start, fresh) = (noise(&[16, 3 * blocks, 4, 6], 1), noise(&[blocks, 3, 16, 3, 4, 6], 2));
    // What is kept is what is selected: there is nothing to choose.
    for (memory, archive) in [(Memory::Whole, 2), (Memory::Mean, 6)] {
        let mut plain = Plain {
            rope: &rope,
            memory,
            archive,
            past: vec![Vec::new(); 2],
            now: Vec::new(),
        };
        let told = FewStepConfig {
            recipe: Recipe::SelfForcing,
            memory,
            size: [4, 6],
            archive,
            seed: 1,
        };
        let given = GivenNoise {
            start: start.clone(),
            fresh: fresh.clone(),
        };
        let mut video = FewStep::new(&model, &words, &told).expect("a video").with_noise(given);
        let words = model.context(&words).expect("a context");
        let schedule = Recipe::SelfForcing.schedule(true).expect("steps");
        for block in 0..blocks {
            let mut pass = |x: &Tensor, timestep: f64| {
                plain.now.clear();
                let timestep = Tensor::new(&[timestep as f32], &Device::Cpu).expect("a number");
                model.velocity(x, &timestep, &words, &mut plain).expect("a velocity")
            };
            let mut x = start
                .narrow(1, 3 * block, 3)
                .and_then(|x| x.unsqueeze(0))
                .expect("noise");
            for (i, step) in schedule.steps().iter().enumerate() {
                let v = pass(&x, step.timestep);
                let clean = (&x - (v * step.sigma).expect("a step")).expect("a step");
                x = match i + 1 < schedule.steps().len() {
                    true => {
                        let noise = fresh.get(block).and_then(|x| x.get(i)?.unsqueeze(0)).expect("noise");
                        let both = (clean * (1.0 - step.sigma_next)).and_then(|x| x + (noise * step.sigma_next)?);
                        both.expect("a step")
                    }
                    false => clean,
                };
            }
            pass(&x, 0.0);
            for (layer, kept) in plain.now.drain(..).enumerate() {
                plain.past[layer].push(kept);
            }
            let off = apart(&video.next_block().expect("a block"), &x.squeeze(0).expect("one"));
            // 2e-6 was measured, of latents up to 7.
            assert!(off < 2e-5, "{memory:?}, block {block}: {off:e}");
        }
    }
}

/// While nothing has left, every kind of memory is all history, wherever positions are counted from.
#[test]
fn golden_videos_of_every_memory() {
    let golden = tensors("rollout_tiny.safetensors");
    let model = model(open("self_forcing_tiny.pt").expect("weights"));
    let words = golden["text0"].unsqueeze(0).expect("a batch");
    for memory in [Memory::Whole, Memory::Mean, Memory::Window, Memory::SinkWindow] {
        let config = FewStepConfig {
            recipe: Recipe::SelfForcing,
            memory,
            size: [4, 6],
            archive: 8,
            seed: 1,
        };
        let given = GivenNoise {
            start: golden["full.noise"].clone(),
            fresh: golden["full.eps"].clone(),
        };
        let mut video = FewStep::new(&model, &words, &config)
            .expect("a video")
            .with_noise(given);
        let made: Vec<Tensor> = (0..3).map(|_| video.next_block().expect("a block")).collect();
        let off = apart(&Tensor::cat(&made, 1).expect("a video"), &golden["full.out"]);
        assert!(off < 1e-4, "{memory:?}: {off:e}");
        let said = video.next_block().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.contains("noise for block 3"), "{said}");

        // With noise of its own: the same for a seed, another for another, and bounded.
        let video = |seed: u64| {
            let config = FewStepConfig { seed, ..config.clone() };
            let mut video = FewStep::new(&model, &words, &config).expect("a video");
            let made: Vec<Tensor> = (0..14).map(|_| video.next_block().expect("a block")).collect();
            (Tensor::cat(&made, 1).expect("a video"), video.cache_bytes())
        };
        let ((a, bytes), (b, _), (c, _)) = (video(1), video(1), video(2));
        assert!(
            apart(&a, &b) == 0.0 && apart(&a, &c) > 0.1 && largest(&a).is_finite(),
            "{memory:?}"
        );
        assert!(bytes > 0, "{memory:?}");

        // Another prompt from the third block on; the same one changes nothing where nothing goes through once more.
        let switched = |text: &str| {
            let other = golden[text].unsqueeze(0).expect("a batch");
            let mut video = FewStep::new(&model, &words, &config).expect("a video");
            let made: Vec<Tensor> = (0..4)
                .map(|block| {
                    if block == 2 {
                        video.switch_prompt(&other).expect("a prompt");
                    }
                    video.next_block().expect("a block")
                })
                .collect();
            Tensor::cat(&made, 1).expect("a video")
        };
        let (same, other) = (switched("text0"), switched("text1"));
        let part = |x: &Tensor, first: usize| x.narrow(1, first, 6).expect("two blocks");
        assert_eq!(apart(&part(&other, 0), &part(&a, 0)), 0.0, "{memory:?}");
        assert!(apart(&part(&other, 6), &part(&a, 6)) > 1e-3, "{memory:?}");
        let packed = matches!(memory, Memory::Whole | Memory::Mean);
        assert_eq!(
            apart(&same, &a.narrow(1, 0, 12).expect("four")) == 0.0,
            packed,
            "{memory:?}"
        );
    }
    let rolling = FewStepConfig {
        recipe: Recipe::RollingForcing,
        memory: Memory::Whole,
        size: [4, 6],
        archive: 8,
        seed: 1,
    };
    assert!(FewStep::new(&model, &words, &rolling).is_err());
}
