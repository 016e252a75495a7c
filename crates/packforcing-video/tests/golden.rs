//! The model against independent implementations in float64: diffusers' Wan2.1, and the causal one with its
//! history. Tests with `golden` in their names read the folder that `PACKFORCING_GOLDEN` names.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use packforcing::cache::{Compression, PackConfig, PackedKvCache};
use packforcing::{Blocks, Grid};
use packforcing_video::{
    Clip, Config, Context, Error, FileWeights, FullHistory, Model, Packed, Prediction, SelfAttention, WeightsFault,
};

fn folder() -> PathBuf {
    match std::env::var_os("PACKFORCING_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"),
    }
}

/// Everything of one case but its weights, and the model with them.
struct Case {
    json: serde_json::Value,
    tensors: std::collections::HashMap<String, Tensor>,
    model: Model,
}

impl Case {
    fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{name} is not there"))
    }
}

fn load(config: &Config, file: &str) -> Result<Model, Error> {
    let mut weights = FileWeights::open(&[folder().join(file)], "weights.", DType::F32, &Device::Cpu)?;
    let model = Model::new(config, &mut weights)?;
    weights.finish()?;
    Ok(model)
}

fn case(name: &str, config: &Config) -> Case {
    let text = std::fs::read(folder().join(format!("{name}.json"))).expect("the case's json");
    let file = format!("{name}.safetensors");
    Case {
        json: serde_json::from_slice(&text).expect("json"),
        tensors: candle_core::safetensors::load(folder().join(&file), &Device::Cpu).expect("tensors"),
        model: load(config, &file).expect("weights of this model"),
    }
}

/// The sizes of both golden models.
fn config(context_len: usize) -> Config {
    Config {
        channels: 16,
        patch: [1, 2, 2],
        heads: 2,
        head_dim: 64,
        ffn_dim: 192,
        layers: 2,
        context_dim: 48,
        context_len,
        freq_dim: 64,
        eps: 1e-6,
        rope_theta: 1e4,
        place_waves: 0,
        prediction: Prediction::Velocity,
    }
}

/// L2 of the difference over L2 of the truth, in f64.
fn error(got: &Tensor, truth: &Tensor) -> f64 {
    let wide = |t: &Tensor| t.to_dtype(DType::F64).expect("a cast");
    let norm = |t: &Tensor| {
        let square = t.sqr().and_then(|t| t.sum_all()).and_then(|t| t.to_scalar::<f64>());
        square.expect("a number").sqrt()
    };
    let difference = (wide(got) - wide(truth)).expect("one shape");
    norm(&difference) / norm(&wide(truth))
}

#[test]
fn golden_wan_in_one_clip() {
    let config = config(7);
    let case = case("wan_tiny", &config);
    let json = &case.json["config"];
    assert_eq!(json["num_layers"], config.layers);
    assert_eq!(json["attention_head_dim"], config.head_dim);
    let latent = case.tensor("latent");
    let context = case.model.context(case.tensor("text")).expect("a context");
    let grid = config.tokens([4, 6, 10]).expect("whole patches");
    let mut clip = Clip::new(&config.rope().expect("a theta"), grid, &Device::Cpu).expect("a clip");
    let velocity = |latent: &Tensor, timesteps: &Tensor, clip: &mut Clip| {
        case.model
            .velocity(latent, timesteps, &context, clip)
            .expect("a velocity")
    };
    let timesteps = case.tensor("timestep");
    let got = velocity(latent, timesteps, &mut clip);
    let off = error(&got, case.tensor("velocity"));
    assert!(off < 1e-4, "{off:e}");
    // A time step of each frame says the same, and another time step another velocity.
    let each = timesteps
        .unsqueeze(1)
        .and_then(|t| t.broadcast_as((2, 4)))
        .expect("four frames");
    assert_eq!(error(&velocity(latent, &each, &mut clip), &got), 0.0);
    let other = (timesteps * 0.5).expect("numbers");
    assert!(error(&velocity(latent, &other, &mut clip), &got) > 1e-2);
}

/// Every pass of one block of the case: the worst error of the velocities that `velocity` gives.
fn block(case: &Case, context: &Context, number: usize, mut velocity: impl FnMut(bool, Inputs<'_>) -> Tensor) -> f64 {
    let timesteps: Vec<f32> = serde_json::from_value(case.json["timesteps"].clone()).expect("numbers");
    let last = timesteps.len() - 1;
    let errors = timesteps.into_iter().enumerate().map(|(pass, timestep)| {
        let name = format!("block{number}.pass{pass}");
        let inputs = Inputs {
            latent: case.tensor(&format!("{name}.latent")),
            timestep: Tensor::new(&[timestep], &Device::Cpu).expect("a number"),
            model: &case.model,
            context,
        };
        error(
            &velocity(pass == last, inputs),
            case.tensor(&format!("{name}.velocity")),
        )
    });
    errors.fold(0.0, f64::max)
}

struct Inputs<'a> {
    latent: &'a Tensor,
    timestep: Tensor,
    model: &'a Model,
    context: &'a Context,
}

impl Inputs<'_> {
    fn velocity(&self, attention: &mut impl SelfAttention) -> Tensor {
        let velocity = self
            .model
            .velocity(self.latent, &self.timestep, self.context, attention);
        velocity.expect("a velocity")
    }
}

fn text(case: &Case) -> Context {
    let text = case.tensor("text").unsqueeze(0).expect("a batch of one");
    case.model.context(&text).expect("a context")
}

const BLOCK: Grid = Grid {
    frames: 2,
    rows: 3,
    cols: 5,
};

fn cache(config: &Config, sink: usize) -> PackedKvCache {
    let config = PackConfig::builder()
        .layers(config.layers)
        .heads(config.cache_heads())
        .dtype(packforcing::DType::F32)
        .block(BLOCK)
        .compression(Compression::mean_pool([2, 3, 5]))
        .sink(Blocks(sink))
        .selected(Blocks(1))
        .recent(Blocks(0))
        .archive(Blocks(4))
        .rope(config.rope().expect("a theta"))
        .build()
        .expect("it fits");
    PackedKvCache::new(&packforcing::Device::cpu(), &config).expect("a cache")
}

#[test]
fn golden_causal_wan_over_its_whole_history() {
    let config = config(9);
    let case = case("wan_causal_tiny", &config);
    let mut history = FullHistory::new(&config.rope().expect("a theta"), BLOCK);
    let context = text(&case);
    for number in 0..3 {
        let worst = block(&case, &context, number, |commits, inputs| match commits {
            true => inputs.velocity(history.commit_pass()),
            false => inputs.velocity(history.denoise_pass()),
        });
        history.commit().expect("it is kept");
        assert!(worst < 1e-4, "block {number}: {worst:e}");
    }
    // What is kept of layer 0 is what the other implementation keeps.
    let (k, v) = history.layer(0).expect("it attended");
    assert_eq!(history.bytes(), 2 * 2 * 3 * 30 * 128 * 4);
    for block in 0..3 {
        for (kept, name) in [(k, "k"), (v, "v")] {
            let kept = kept.narrow(1, 30 * block, 30).expect("a block");
            let off = error(&kept, case.tensor(&format!("block{block}.{name}")));
            assert!(off < 1e-4, "block {block}, {name}: {off:e}");
        }
    }
}

#[test]
fn golden_causal_wan_over_a_packed_history() {
    let config = config(9);
    let case = case("wan_causal_tiny", &config);
    let context = text(&case);
    let packed = |sink| {
        let mut cache = cache(&config, sink);
        let blocks = (0..3).map(|number| {
            let mut under_way = cache.begin().expect("a block");
            let worst = block(&case, &context, number, |commits, inputs| {
                let pass = match commits {
                    true => under_way.commit_pass(),
                    false => under_way.denoise_pass(),
                };
                inputs.velocity(&mut Packed(&mut pass.expect("a pass")))
            });
            under_way.commit().expect("every layer attended");
            worst
        });
        blocks.fold(0.0, f64::max)
    };
    let whole = packed(3);
    assert!(whole < 1e-4, "{whole:e}");
    // One token stands for each block of 30: the test sees a history that is not whole.
    let compressed = packed(0);
    assert!(compressed > 1e-3, "{compressed:e}");
}

#[test]
fn golden_files_of_another_model_are_refused_with_a_list() {
    fn fault(config: &Config, file: &str) -> (std::path::PathBuf, WeightsFault) {
        match load(config, file) {
            Err(Error::Weights { file, fault }) => (file, fault),
            other => panic!("{:?}", other.map(|_| ())),
        }
    }
    let more = Config {
        layers: 3,
        ffn_dim: 256,
        ..config(9)
    };
    for (file, name) in [
        ("wan_tiny.safetensors", "weights.blocks.2.attn1.to_q.weight"),
        ("wan_causal_tiny.safetensors", "weights.blocks.2.self_attn.q.weight"),
    ] {
        let (path, all) = fault(&more, file);
        assert!(path.ends_with(file));
        let WeightsFault::Incomplete { missing, wrong, .. } = &all else {
            panic!("{all}")
        };
        assert!(missing.iter().any(|m| m == name), "{missing:?}");
        // All of the third layer; up (weight and bias) and down (weight) of the other two.
        assert_eq!((missing.len(), wrong.len()), (27, 6), "{all}");
        assert!(
            wrong
                .iter()
                .any(|(_, expected, got)| (&expected[..], &got[..]) == (&[256, 128], &[192, 128]))
        );
        assert!(all.to_string().contains("and 27 more"), "{all}");
        // What a model does not have is not left out in silence.
        let fewer = Config { layers: 1, ..config(9) };
        let (_, fault) = fault(&fewer, file);
        let WeightsFault::Incomplete {
            missing,
            wrong,
            surplus,
        } = &fault
        else {
            panic!("{fault}")
        };
        assert!(missing.is_empty() && wrong.is_empty(), "{fault}");
        assert!(
            surplus.len() == 27 && surplus.iter().all(|name| name.starts_with("weights.blocks.1.")),
            "{fault}"
        );
    }

    let folder = std::env::temp_dir().join(format!("packforcing-weights-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let whole = std::fs::read(self::folder().join("wan_tiny.safetensors")).expect("a file");
    let at = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    };
    let short = at("short.safetensors", &whole[..whole.len() - 4]);
    let text = at(
        "text.safetensors",
        b"this is not a file of tensors, whatever its name says",
    );
    for path in [short, text, folder.join("nowhere.safetensors")] {
        let opened = FileWeights::open(&[&path], "", DType::F32, &Device::Cpu).map(|_| ());
        let said = opened.expect_err("it is refused").to_string();
        assert!(said.contains(&*path.to_string_lossy()), "{said}");
    }
    // One number of the last tensor in the file becomes NaN.
    let mut broken = whole.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let broken = at("nan.safetensors", &broken);
    let mut weights = FileWeights::open(&[&broken], "weights.", DType::F32, &Device::Cpu).expect("safetensors");
    let said = Model::new(&config(7), &mut weights)
        .map(|_| ())
        .expect_err("it is refused")
        .to_string();
    assert!(
        said.contains("not finite") && said.contains("nan.safetensors"),
        "{said}"
    );
    std::fs::remove_dir_all(&folder).expect("it is removed");
}
