//! The model with random weights: shapes, refusals, gradients, and one forward for all who attend.

use candle_core::{DType, Device, Result, Tensor, Var};
use packforcing::cache::{Compression, PackConfig, PackedKvCache, Policy, Selection};
use packforcing::{Blocks, Grid};
use packforcing_video::{
    Clip, Compressor, CompressorConfig, Config, Context, Error, Layout, Model, Packed, Pooled, RandomWeights, Stage,
    Weights, Window,
};

fn tiny(seed: u64) -> Model {
    let mut weights = RandomWeights::new(seed, DType::F32, &Device::Cpu).expect("the CPU");
    Model::new(&Config::tiny(3), &mut weights).expect("a model")
}

fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let mut random = RandomWeights::new(seed, DType::F32, &Device::Cpu).expect("the CPU");
    random.normal(shape, 1.0).expect("numbers")
}

fn context(model: &Model, batch: usize) -> Context {
    model.context(&normal(9, &[batch, 2, 16])).expect("a context")
}

fn clip(model: &Model, latent: [usize; 3]) -> Clip {
    let grid = model.config().tokens(latent).expect("whole patches");
    Clip::new(&model.config().rope().expect("a theta"), grid, &Device::Cpu).expect("a clip")
}

fn largest(a: &Tensor) -> f32 {
    let largest = a.abs().and_then(|a| a.max_all()).and_then(|a| a.to_scalar());
    largest.expect("a number")
}

/// The first example that the project was asked for.
#[test]
fn a_forward_pass_gives_a_prediction_of_the_latents_shape() {
    let model = tiny(1);
    let latent = normal(2, &[2, 3, 8, 64, 64]);
    let timesteps = Tensor::new(&[500f32, 750.0], &Device::Cpu).expect("two numbers");
    let mut clip = clip(&model, [8, 64, 64]);
    let velocity = |model: &Model, clip: &mut Clip| {
        model
            .velocity(&latent, &timesteps, &context(model, 2), clip)
            .expect("a velocity")
    };
    let got = velocity(&model, &mut clip);
    assert_eq!((got.dims(), got.dtype()), (latent.dims(), DType::F32));
    assert!(largest(&got).is_finite() && largest(&got) > 0.0);
    // A seed is one model, another seed another.
    let same = (velocity(&tiny(1), &mut clip) - &got).expect("one shape");
    let other = (velocity(&tiny(2), &mut clip) - &got).expect("one shape");
    assert!(largest(&same) == 0.0 && largest(&other) > 0.0);
}

#[test]
fn a_clean_prediction_is_the_velocity_that_leads_to_it() {
    let model = tiny(3);
    let latent = normal(4, &[1, 3, 2, 8, 8]);
    let timesteps = Tensor::new(&[[250f32, 1000.0]], &Device::Cpu).expect("two numbers");
    let mut clip = clip(&model, [2, 8, 8]);
    let context = context(&model, 1);
    let clean = model
        .predict(&latent, &timesteps, &context, &mut clip)
        .expect("a prediction");
    let velocity = model
        .velocity(&latent, &timesteps, &context, &mut clip)
        .expect("a velocity");
    for (frame, sigma) in [0.25, 1.0].into_iter().enumerate() {
        let part = |t: &Tensor| t.narrow(2, frame, 1).expect("a frame");
        let moved = (part(&velocity) * sigma).expect("numbers");
        let arrived = (part(&latent) - moved).expect("one shape");
        let off = largest(&(arrived - part(&clean)).expect("one shape"));
        assert!(off < 2e-6, "frame {frame}: {off:e}");
    }
}

/// Weights that candle tracks.
struct Tracked(RandomWeights, Vec<Var>);

impl Weights for Tracked {
    fn get(&mut self, name: &str, shape: &[usize]) -> packforcing_video::Result<Tensor> {
        let var = Var::from_tensor(&self.0.get(name, shape)?)?;
        self.1.push(var.clone());
        Ok(var.into_inner())
    }
}

/// The gradient of every weight points uphill: a step against it lowers the loss as much as it says. And
/// blocks of a causal clip are what the packed cache gives block by block, while its sink holds them all.
#[test]
fn what_is_trained_is_what_samples() {
    let random = RandomWeights::new(5, DType::F32, &Device::Cpu).expect("the CPU");
    let mut weights = Tracked(random, Vec::new());
    let model = Model::new(&Config::tiny(3), &mut weights).expect("a model");
    let vars = weights.1;
    let (frames, blocks) = (2, 3);
    let latent = normal(6, &[1, 3, frames * blocks, 8, 8]);
    let timesteps = Tensor::new(&[600f32], &Device::Cpu).expect("a number");
    let grid = model.config().tokens([frames * blocks, 8, 8]).expect("whole patches");
    let mut causal =
        Clip::causal(&model.config().rope().expect("a theta"), grid, frames, &Device::Cpu).expect("a clip");
    let tokens = normal(7, &[1, 2, 16]);

    let mut predict = || {
        let context = model.context(&tokens)?;
        model.predict(&latent, &timesteps, &context, &mut causal)
    };
    let trained = predict().expect("a prediction");
    let mut loss = || predict().and_then(|p| Ok(p.sqr()?.mean_all()?)).expect("a loss");
    let before = loss();
    let gradients = before.backward().expect("a backward pass");
    let mut square = 0.0;
    for var in &vars {
        let gradient = gradients.get(var).expect("every weight takes part");
        square += f64::from(
            gradient
                .sqr()
                .and_then(|g| g.sum_all()?.to_scalar::<f32>())
                .expect("a number"),
        );
    }
    let step = 1e-3 / square.sqrt();
    for var in &vars {
        let gradient = gradients.get(var).expect("every weight takes part");
        var.set(&(var.as_tensor() - (gradient * step).expect("numbers")).expect("numbers"))
            .expect("a step");
    }
    let number = |loss: Tensor| f64::from(loss.to_scalar::<f32>().expect("a number"));
    let (before, after) = (number(before), number(loss()));
    let ratio = (before - after) / (step * square);
    assert!(
        (ratio - 1.0).abs() < 0.05,
        "{before} to {after}: {ratio} of what the gradient says"
    );

    // The weights as they were, and now untracked.
    let mut plain = RandomWeights::new(5, DType::F32, &Device::Cpu).expect("the CPU");
    let model = Model::new(&Config::tiny(3), &mut plain).expect("a model");
    let context = model.context(&tokens).expect("a context");
    let config = PackConfig::builder()
        .layers(model.config().layers)
        .heads(model.config().cache_heads())
        .dtype(packforcing::DType::F32)
        .block(Grid { frames, ..grid })
        .sink(Blocks(blocks))
        .compression(Compression::None)
        .selected(Blocks(0))
        .archive(Blocks(0))
        .rope(model.config().rope().expect("a theta"))
        .build()
        .expect("it fits");
    let mut cache = PackedKvCache::new(&packforcing::Device::cpu(), &config).expect("a cache");
    for number in 0..blocks {
        let part = |t: &Tensor| t.narrow(2, number * frames, frames).expect("a block");
        let mut block = cache.begin().expect("a block");
        let mut pass = block.commit_pass().expect("a pass");
        let sampled = model
            .predict(&part(&latent), &timesteps, &context, &mut Packed(&mut pass))
            .expect("a block");
        block.commit().expect("every layer attended");
        let off = largest(&(sampled - part(&trained)).expect("one shape")) / largest(&trained);
        assert!(off < 1e-5, "block {number}: {off:e}");
    }
}

/// The last block of a video over the packed cache with the learned compressor, and again over a window: one sink
/// block, two compressed ones chosen among more, and `recent` whole ones.
fn a_window_is_the_packed_history(layers: usize, recent: usize) {
    let cpu = &Device::Cpu;
    let mut weights = RandomWeights::new(8, DType::F32, cpu).expect("the CPU");
    let config = Config {
        layers,
        ..Config::tiny(3)
    };
    let model = Model::new(&config, &mut weights).expect("a model");
    let compressor = Compressor::new(&CompressorConfig::tiny(), &config, &mut weights).expect("a compressor");
    let (size, before) = ([4, 16, 24], 5 + recent);
    let grid = config.tokens(size).expect("whole patches");
    let mid = compressor.config().grid(&config, size).expect("cells");
    assert_eq!(mid.extents(), [1, 2, 3]);
    let packed = PackConfig::builder()
        .layers(config.layers)
        .heads(config.cache_heads())
        .dtype(packforcing::DType::F32)
        .block(grid)
        .sink(Blocks(1))
        .recent(Blocks(recent))
        .selected(Blocks(2))
        .archive(Blocks(4))
        .compression(Compression::External(mid))
        .selection(Selection::Shared)
        .policy(Policy::Random { seed: 2 })
        .rope(config.rope().expect("a theta"))
        .build()
        .expect("it fits");
    let mut cache = PackedKvCache::new(&packforcing::Device::cpu(), &packed).expect("a cache");
    let history: Vec<Tensor> = (0..before).map(|i| normal(20 + i as u64, &[1, 3, 4, 16, 24])).collect();
    let mids = |block: usize| {
        compressor
            .keys_and_values(&model, &history[block], &Pooled)
            .expect("compressed tokens")
    };
    let context = context(&model, 1);
    let clean = Tensor::new(&[0f32], cpu).expect("a number");
    for (number, latent) in history.iter().enumerate() {
        let mut block = cache.begin().expect("a block");
        let mut pass = block.commit_pass().expect("a pass");
        model
            .velocity(latent, &clean, &context, &mut Packed(&mut pass))
            .expect("a pass");
        for (layer, (k, v)) in mids(number).iter().enumerate() {
            packforcing_candle::hand_in(&mut pass, layer, k, v).expect("compressed tokens");
        }
        block.commit().expect("a whole block");
    }
    let last = normal(19, &[1, 3, 4, 16, 24]);
    let noisy = Tensor::new(&[700f32], cpu).expect("a number");
    let mut block = cache.begin().expect("a block");
    let mut pass = block.denoise_pass().expect("a pass");
    let sampled = model
        .predict(&last, &noisy, &context, &mut Packed(&mut pass))
        .expect("a prediction");
    let chosen = block.chosen(0).expect("it chose").swap_remove(0);
    assert_eq!(chosen.len(), 2);

    let window = |chosen: &[usize]| {
        let each: Vec<_> = chosen.iter().map(|&i| mids(i)).collect();
        let part = |layer: usize, of: fn(&(Tensor, Tensor)) -> &Tensor| {
            let parts: Vec<&Tensor> = each.iter().map(|block| of(&block[layer])).collect();
            Tensor::cat(&parts, 1).expect("tokens")
        };
        let layers: Vec<_> = (0..layers)
            .map(|l| (part(l, |kv| &kv.0), part(l, |kv| &kv.1)))
            .collect();
        let layout = Layout {
            sink: 1,
            mid: 2,
            recent,
            versions: 1,
        };
        let mut window =
            Window::new(&config.rope().expect("a theta"), grid, mid, layout, &layers, cpu).expect("a window");
        let whole = history.iter().take(1).chain(&history[before - recent..]).chain([&last]);
        let whole: Vec<&Tensor> = whole.collect();
        let frames = 4 * (whole.len() - 1);
        let steps = [vec![0f32; frames], vec![700.0; 4]].concat();
        let steps = Tensor::from_vec(steps, (1, frames + 4), cpu).expect("time steps");
        let stream = Tensor::cat(&whole, 2).expect("frames");
        let all = model
            .predict(&stream, &steps, &context, &mut window)
            .expect("a prediction");
        all.narrow(2, frames, 4).expect("the last block")
    };
    let apart = |other: &Tensor| largest(&(other - &sampled).expect("one shape")) / largest(&sampled);
    let off = apart(&window(&chosen));
    assert!(off < 1e-5, "{layers} layers, {recent} recent: {off:e}");
    // Others of the compressed blocks would have been seen.
    let others: Vec<usize> = (1..5).filter(|i| !chosen.contains(i)).collect();
    let other = apart(&window(&others));
    assert!(other > 100.0 * off.max(1e-6), "{other:e} beside {off:e}");
}

#[test]
fn a_window_is_what_sampling_sees() {
    a_window_is_the_packed_history(4, 0);
    // Keys and values of a recent block depend on the history that it saw itself when it was made, of which a
    // window has a later state; those of the first layer do not.
    a_window_is_the_packed_history(1, 1);
}

#[test]
fn what_does_not_fit_is_refused_by_name() -> Result<()> {
    let model = tiny(1);
    let cpu = &Device::Cpu;
    let latent = normal(2, &[1, 3, 2, 8, 8]);
    let one = Tensor::new(&[500f32], cpu)?;
    let refused = |latent: &Tensor, timesteps: &Tensor, context: &Context, says: &[&str]| {
        let mut clip = clip(&model, [2, 8, 8]);
        match model.velocity(latent, timesteps, context, &mut clip) {
            Err(error @ Error::Argument { .. }) => {
                let said = error.to_string();
                assert!(says.iter().all(|part| said.contains(part)), "{said}");
            }
            other => panic!("{other:?}"),
        }
    };
    let fits = context(&model, 1);
    refused(
        &latent.narrow(1, 0, 2)?,
        &one,
        &fits,
        &["latent", "3 channels", "got 2"],
    );
    refused(
        &latent.narrow(3, 0, 7)?,
        &one,
        &fits,
        &["latent", "[1, 4, 4]", "[2, 7, 8]"],
    );
    refused(
        &latent.squeeze(0)?,
        &one,
        &fits,
        &["latent", "[batch, channels, frames, rows, columns]"],
    );
    refused(
        &latent,
        &Tensor::new(&[1f32, 2.0], cpu)?,
        &fits,
        &["timesteps", "[1, 2]", "[2]"],
    );
    refused(&latent, &one, &context(&model, 2), &["context", "batch 1"]);
    for shape in [&[1, 5, 16][..], &[1, 2, 17], &[2, 16]] {
        let said = model
            .context(&normal(1, shape))
            .map(|_| ())
            .expect_err("it is refused")
            .to_string();
        assert!(said.contains("context: expected [batch, at most 4, 16]"), "{said}");
    }
    let stages = |strides: &[[usize; 3]]| CompressorConfig {
        stages: strides.iter().map(|&stride| Stage { stride, channels: 8 }).collect(),
    };
    for (wrong, size, says) in [
        (
            stages(&[[2, 2, 2]]),
            [4, 8, 8],
            "strides in whole patches of [1, 4, 4], got [2, 2, 2]",
        ),
        (stages(&[[0, 4, 4]]), [4, 8, 8], "above 0"),
        (
            CompressorConfig::tiny(),
            [4, 4, 8],
            "latent: expected at least [4, 8, 8]",
        ),
    ] {
        let said = wrong
            .grid(&Config::tiny(3), size)
            .expect_err("it is refused")
            .to_string();
        assert!(said.contains(says), "{said}");
    }
    for (wrong, says) in [
        (
            Config {
                head_dim: 7,
                ..Config::tiny(3)
            },
            "an even head_dim",
        ),
        (
            Config {
                freq_dim: 5,
                ..Config::tiny(3)
            },
            "an even freq_dim",
        ),
        (
            Config {
                patch: [2, 4, 4],
                ..Config::tiny(3)
            },
            "patches of one frame",
        ),
        (Config::tiny(0), "sizes above 0"),
    ] {
        let mut weights = RandomWeights::new(1, DType::F32, cpu).expect("the CPU");
        let said = Model::new(&wrong, &mut weights)
            .map(|_| ())
            .expect_err("it is refused")
            .to_string();
        assert!(said.contains(says), "{said}");
    }
    Ok(())
}

#[test]
fn half_precision_is_near() {
    let model = |dtype| {
        let mut weights = RandomWeights::new(1, dtype, &Device::Cpu).expect("the CPU");
        Model::new(&Config::tiny(3), &mut weights).expect("a model")
    };
    let latent = normal(2, &[2, 3, 4, 16, 16]);
    let timesteps = Tensor::new(&[500f32, 750.0], &Device::Cpu).expect("two numbers");
    let velocity = |dtype| {
        let model = model(dtype);
        assert_eq!(model.dtype(), dtype);
        let velocity = model.velocity(&latent, &timesteps, &context(&model, 2), &mut clip(&model, [4, 16, 16]));
        velocity.expect("a velocity")
    };
    let (wide, narrow) = (velocity(DType::F32), velocity(DType::BF16));
    assert_eq!(narrow.dtype(), DType::F32, "as the latent");
    let off = largest(&(&wide - &narrow).expect("one shape")) / largest(&wide);
    assert!(off > 0.0 && off < 0.03, "{off}");
}
