//! The transformer: Wan2.1 text-to-video (arXiv 2503.20314), causal over blocks by whoever attends.

use candle_core::{D, DType, Device, Tensor};

use crate::attention::SelfAttention;
use crate::config::{Config, Prediction};
use crate::error::{Error, Result};
use crate::fused::{add_rows, add_scaled, gelu, layer_norm, linear, mul_rows, rms_norm, softmax_attention};
use crate::weights::Weights;

/// Numbers of the modulation of a layer: shift, scale and gate of self-attention and of the
/// feed-forward network.
const MODULATION: usize = 6;

/// A transformer with its weights. Cheap to clone: tensors are shared.
///
/// A block of frames goes in noisy, each frame at a time step of its own, and out comes the
/// velocity; how its tokens see those of other blocks is the business of the
/// [`SelfAttention`] that is passed along.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use packforcing_video::{Clip, Config, Model, RandomWeights};
///
/// # fn main() -> packforcing_video::Result<()> {
/// let config = Config::tiny(3);
/// let model = Model::new(&config, &mut RandomWeights::new(1, DType::F32, &Device::Cpu)?)?;
/// let context = model.context(&Tensor::zeros((1, 4, 16), DType::F32, &Device::Cpu)?)?;
/// let latent = Tensor::zeros((1, 3, 4, 16, 16), DType::F32, &Device::Cpu)?;
/// let timesteps = Tensor::new(&[500f32], &Device::Cpu)?;
/// let mut clip = Clip::new(&config.rope()?, config.tokens([4, 16, 16])?, &Device::Cpu)?;
/// let velocity = model.velocity(&latent, &timesteps, &context, &mut clip)?;
/// assert_eq!(velocity.dims(), latent.dims());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Model {
    config: Config,
    patch: Linear,
    /// Of cosines over the frame, `[width, 2 place_waves]`.
    place: Option<Tensor>,
    time: [Linear; 2],
    time_proj: Linear,
    text: [Linear; 2],
    layers: Vec<Layer>,
    table: Tensor, // [1, 2, width]
    head: Linear,
}

/// Keys and values of the context in every layer, computed once for a video.
#[derive(Debug, Clone)]
pub struct Context {
    layers: Vec<(Tensor, Tensor)>, // [batch, context_len, heads, dim]
}

impl Model {
    /// A model of these sizes with weights by diffusers' names.
    ///
    /// # Errors
    ///
    /// Sizes that no model has, and what `weights` reports.
    pub fn new(config: &Config, weights: &mut impl Weights) -> Result<Model> {
        config.check()?;
        let (width, freq) = (config.width(), config.freq_dim);
        let [_, ph, pw] = config.patch;
        let mut linear = |name: &str, from, to| Linear::new(weights, name, from, to);
        let time = [
            linear("condition_embedder.time_embedder.linear_1", freq, width)?,
            linear("condition_embedder.time_embedder.linear_2", width, width)?,
        ];
        let time_proj = linear("condition_embedder.time_proj", width, MODULATION * width)?;
        let text = [
            linear("condition_embedder.text_embedder.linear_1", config.context_dim, width)?,
            linear("condition_embedder.text_embedder.linear_2", width, width)?,
        ];
        let head = linear("proj_out", width, config.patch_numbers())?;
        let patch = weights.get("patch_embedding.weight", &[width, config.channels, 1, ph, pw])?;
        let patch = Linear {
            weight: patch.reshape((width, config.patch_numbers()))?,
            bias: weights.get("patch_embedding.bias", &[width])?,
        };
        let layers = (0..config.layers).map(|i| Layer::new(config, weights, &format!("blocks.{i}")));
        let layers = layers.collect::<Result<_>>()?;
        let waves = 2 * config.place_waves;
        let place = match waves {
            0 => None,
            _ => Some(weights.get("place_embedding.weight", &[width, waves])?),
        };
        Ok(Model {
            patch,
            place,
            time,
            time_proj,
            text,
            layers,
            table: weights.get("scale_shift_table", &[1, 2, width])?,
            head,
            config: config.clone(),
        })
    }

    /// The sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.patch.weight.dtype()
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        self.patch.weight.device()
    }

    /// Embeds a context (text embeddings), `[batch, tokens, context_dim]`, and computes its keys and values.
    ///
    /// # Errors
    ///
    /// Another shape, or more tokens than the model takes.
    pub fn context(&self, tokens: &Tensor) -> Result<Context> {
        let (config, dims) = (&self.config, tokens.dims());
        let fits = matches!(dims, &[_, n, dim] if n <= config.context_len && dim == config.context_dim);
        if !fits {
            let expected = format!("[batch, at most {}, {}]", config.context_len, config.context_dim);
            return Err(Error::argument("context", expected, format!("{dims:?}")));
        }
        let tokens = tokens.to_dtype(self.dtype())?;
        let tokens = tokens.pad_with_zeros(1, 0, config.context_len - dims[1])?;
        let x = self.text[1].forward(&gelu(&self.text[0].forward(&tokens)?)?)?;
        let layers = self.layers.iter().map(|layer| layer.cross.keys_and_values(&x, config));
        Ok(Context {
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// The velocity of a noisy latent, noise less clean latent.
    ///
    /// `latent` is `[batch, channels, frames, rows, columns]`; `timesteps`, f32 from 0 (clean) to 1000
    /// (noise), are `[batch]` or `[batch, frames]`. The velocity has the shape and dtype of the latent.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit the model or one another, and what `attention` reports.
    pub fn velocity(
        &self,
        latent: &Tensor,
        timesteps: &Tensor,
        context: &Context,
        attention: &mut impl SelfAttention,
    ) -> Result<Tensor> {
        let predicted = self.predict(latent, timesteps, context, attention)?;
        match self.config.prediction {
            Prediction::Velocity => Ok(predicted),
            Prediction::Clean => {
                let sigmas = per_frame(timesteps, latent)?.affine(1e-3, 0.0)?.maximum(LEAST_SIGMA)?;
                let (batch, frames) = sigmas.dims2()?;
                let sigmas = sigmas.reshape((batch, 1, frames, 1, 1))?;
                let velocity = (latent - predicted)?.to_dtype(DType::F32)?.broadcast_div(&sigmas)?;
                Ok(velocity.to_dtype(latent.dtype())?)
            }
        }
    }

    /// Tokens of a latent as they enter the first layer, `[batch, tokens, width]`: a convolution whose kernel is its
    /// stride.
    pub(crate) fn embed(&self, latent: &Tensor) -> Result<Tensor> {
        let (batch, channels, frames, rows, cols) = latent.dims5()?;
        let grid = self.config.tokens([frames, rows, cols])?;
        let [_, ph, pw] = self.config.patch;
        let patches = latent.to_dtype(self.dtype())?;
        let patches = patches.reshape(&[batch, channels, frames, grid.rows, ph, grid.cols, pw][..])?;
        let patches = patches.permute(vec![0, 2, 3, 5, 1, 4, 6])?;
        let x = self
            .patch
            .forward(&patches.reshape((batch, grid.tokens().0, self.config.patch_numbers()))?)?;
        let Some(place) = &self.place else {
            return Ok(x);
        };
        // The same for every frame.
        let waves = place_waves(grid.rows, grid.cols, self.config.place_waves, x.device())?;
        let added = waves.to_dtype(self.dtype())?.matmul(&place.t()?)?.flatten_all()?;
        let frames = x.reshape((batch * grid.frames, added.elem_count()))?;
        Ok(add_rows(&frames, &added)?.reshape(x.shape())?)
    }

    /// Keys, normed and not rotated, and values of tokens that come from elsewhere, by each layer's own projections.
    pub(crate) fn keys_and_values(&self, tokens: &Tensor) -> Result<Vec<(Tensor, Tensor)>> {
        let layers = self
            .layers
            .iter()
            .map(|layer| layer.own.keys_and_values(tokens, &self.config));
        layers.collect()
    }

    /// What the network itself gives, by [`Config::prediction`]: a velocity or a clean latent, of the shape
    /// and dtype of the latent. Arguments as of [`Model::velocity`].
    ///
    /// # Errors
    ///
    /// As [`Model::velocity`].
    pub fn predict(
        &self,
        latent: &Tensor,
        timesteps: &Tensor,
        context: &Context,
        attention: &mut impl SelfAttention,
    ) -> Result<Tensor> {
        let config = &self.config;
        let &[batch, channels, frames, rows, cols] = latent.dims() else {
            let expected = "[batch, channels, frames, rows, columns]";
            return Err(Error::argument("latent", expected, format!("{:?}", latent.dims())));
        };
        if channels != config.channels {
            return Err(Error::argument(
                "latent",
                format!("{} channels", config.channels),
                channels.to_string(),
            ));
        }
        let grid = config.tokens([frames, rows, cols])?;
        let [_, ph, pw] = config.patch;
        let per_frame = per_frame(timesteps, latent)?;
        let fits =
            context.layers.len() == self.layers.len() && context.layers.iter().all(|(k, _)| k.dims()[0] == batch);
        if !fits {
            return Err(Error::argument(
                "context",
                format!("one of this model, batch {batch}"),
                "another",
            ));
        }

        let mut x = self.embed(latent)?;
        let waves = sinusoids(&per_frame, config.freq_dim)?.to_dtype(self.time[0].weight.dtype())?;
        let time = self.time[0].forward(&waves)?;
        let time = self.time[1].forward(&time.silu()?)?; // [batch, frames, width]
        let modulation = self.time_proj.forward(&time.silu()?)?;
        let modulation = modulation
            .reshape((batch, frames, MODULATION, config.width()))?
            .to_dtype(DType::F32)?;
        for (number, layer) in self.layers.iter().enumerate() {
            x = layer.forward(number, &x, &modulation, &context.layers[number], config, attention)?;
        }
        let last = time.unsqueeze(2)?.to_dtype(DType::F32)?;
        let last = last.broadcast_add(&self.table.to_dtype(DType::F32)?.unsqueeze(0)?)?;
        let x = self
            .head
            .forward(&modulate(&layer_norm(&x, config.eps)?, &last, 0, self.dtype())?)?;

        let x = x.reshape(&[batch, frames, grid.rows, grid.cols, ph, pw, channels][..])?;
        let x = x.permute(vec![0, 6, 1, 2, 4, 3, 5])?.reshape(latent.shape())?;
        Ok(x.to_dtype(latent.dtype())?)
    }
}

/// `[rows columns, 2 waves]`: of each token the cosines of 1, 2, .. half turns from the frame's upper edge to its
/// lower, then from its left edge to its right.
fn place_waves(rows: usize, cols: usize, waves: usize, device: &Device) -> Result<Tensor> {
    let wave = |i: usize, n: usize, number: usize| {
        let part = (i as f64 + 0.5) / n as f64;
        (std::f64::consts::PI * (number + 1) as f64 * part).cos() as f32
    };
    let numbers: Vec<f32> = (0..rows * cols)
        .flat_map(|i| {
            let down = (0..waves).map(move |number| wave(i / cols, rows, number));
            down.chain((0..waves).map(move |number| wave(i % cols, cols, number)))
        })
        .collect();
    Ok(Tensor::from_vec(numbers, (rows * cols, 2 * waves), device)?)
}

/// A clean latent says nothing of a velocity: below this sigma it is divided by this one.
const LEAST_SIGMA: f64 = 1e-3;

/// Time steps of every frame, f32 `[batch, frames]`.
fn per_frame(timesteps: &Tensor, latent: &Tensor) -> Result<Tensor> {
    let (batch, frames) = (latent.dim(0)?, latent.dim(2)?);
    let each = match timesteps.dims() {
        &[b] if b == batch => timesteps.unsqueeze(1)?.broadcast_as((batch, frames))?,
        &[b, f] if (b, f) == (batch, frames) => timesteps.clone(),
        other => {
            let expected = format!("[{batch}] or [{batch}, {frames}]");
            return Err(Error::argument("timesteps", expected, format!("{other:?}")));
        }
    };
    Ok(each.to_dtype(DType::F32)?.contiguous()?)
}

/// Cosines, then sines, of a time step at frequencies from 1 down to 1 / 10,000: `[.., dim]`.
fn sinusoids(timesteps: &Tensor, dim: usize) -> Result<Tensor> {
    let half = dim / 2;
    let frequencies: Vec<f64> = (0..half).map(|i| 1e4f64.powf(-(i as f64) / half as f64)).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, 1, half), timesteps.device())?;
    let angles = timesteps
        .to_dtype(DType::F64)?
        .unsqueeze(2)?
        .broadcast_mul(&frequencies)?;
    Ok(Tensor::cat(&[angles.cos()?, angles.sin()?], D::Minus1)?.to_dtype(DType::F32)?)
}

/// `x (1 + scale) + shift` with rows `first` (shift) and `first + 1` (scale) of `[batch, frames, rows, width]`.
fn modulate(x: &Tensor, modulation: &Tensor, first: usize, dtype: DType) -> Result<Tensor> {
    let scaled = mul_rows(x, &(modulation.narrow(2, first + 1, 1)? + 1.0)?)?;
    Ok(add_rows(&scaled, &modulation.narrow(2, first, 1)?)?.to_dtype(dtype)?)
}

#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor, // [to, from]
    bias: Tensor,   // [to]
}

impl Linear {
    pub(crate) fn new(weights: &mut impl Weights, name: &str, from: usize, to: usize) -> Result<Linear> {
        Ok(Linear {
            weight: weights.get(&format!("{name}.weight"), &[to, from])?,
            bias: weights.get(&format!("{name}.bias"), &[to])?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(linear(x, &self.weight, &self.bias)?)
    }
}

/// Queries, keys and values of an attention, its norms over all heads, and the way out.
#[derive(Debug, Clone)]
struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    q_norm: Tensor, // [width]
    k_norm: Tensor,
}

impl Projections {
    fn new(weights: &mut impl Weights, name: &str, width: usize) -> Result<Projections> {
        let mut linear = |part: &str| Linear::new(weights, &format!("{name}.{part}"), width, width);
        let [q, k, v, out] = [linear("to_q")?, linear("to_k")?, linear("to_v")?, linear("to_out.0")?];
        Ok(Projections {
            q,
            k,
            v,
            out,
            q_norm: weights.get(&format!("{name}.norm_q.weight"), &[width])?,
            k_norm: weights.get(&format!("{name}.norm_k.weight"), &[width])?,
        })
    }

    fn queries(&self, x: &Tensor, config: &Config) -> Result<Tensor> {
        heads(&scaled_rms_norm(&self.q.forward(x)?, &self.q_norm, config.eps)?, config)
    }

    fn keys_and_values(&self, x: &Tensor, config: &Config) -> Result<(Tensor, Tensor)> {
        let k = scaled_rms_norm(&self.k.forward(x)?, &self.k_norm, config.eps)?;
        Ok((heads(&k, config)?, heads(&self.v.forward(x)?, config)?))
    }
}

/// RMS norm in f32, then back.
fn scaled_rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let scaled = mul_rows(&rms_norm(x, eps)?, &weight.to_dtype(DType::F32)?)?;
    Ok(scaled.to_dtype(x.dtype())?)
}

fn heads(x: &Tensor, config: &Config) -> Result<Tensor> {
    let (batch, tokens, _) = x.dims3()?;
    Ok(x.reshape((batch, tokens, config.heads, config.head_dim))?)
}

#[derive(Debug, Clone)]
struct Layer {
    table: Tensor, // [1, MODULATION, width]
    own: Projections,
    cross: Projections,
    cross_norm: Linear, // weight and bias of a layer norm, [width]
    up: Linear,
    down: Linear,
}

impl Layer {
    fn new(config: &Config, weights: &mut impl Weights, name: &str) -> Result<Layer> {
        let (width, hidden) = (config.width(), config.ffn_dim);
        Ok(Layer {
            table: weights.get(&format!("{name}.scale_shift_table"), &[1, MODULATION, width])?,
            own: Projections::new(weights, &format!("{name}.attn1"), width)?,
            cross: Projections::new(weights, &format!("{name}.attn2"), width)?,
            cross_norm: Linear {
                weight: weights.get(&format!("{name}.norm2.weight"), &[width])?,
                bias: weights.get(&format!("{name}.norm2.bias"), &[width])?,
            },
            up: Linear::new(weights, &format!("{name}.ffn.net.0.proj"), width, hidden)?,
            down: Linear::new(weights, &format!("{name}.ffn.net.2"), hidden, width)?,
        })
    }

    fn forward(
        &self,
        number: usize,
        x: &Tensor,
        modulation: &Tensor,
        (context_k, context_v): &(Tensor, Tensor),
        config: &Config,
        attention: &mut impl SelfAttention,
    ) -> Result<Tensor> {
        let dtype = x.dtype();
        let modulation = modulation.broadcast_add(&self.table.to_dtype(DType::F32)?.unsqueeze(0)?)?;
        let gated = |x: &Tensor, added: &Tensor, gate: usize| {
            let [x, added] = [x.to_dtype(DType::F32)?, added.to_dtype(DType::F32)?];
            Ok::<_, Error>(add_scaled(&x, &added, &modulation.narrow(2, gate, 1)?)?.to_dtype(dtype)?)
        };

        let normed = modulate(&layer_norm(x, config.eps)?, &modulation, 0, dtype)?;
        let q = self.own.queries(&normed, config)?;
        let (k, v) = self.own.keys_and_values(&normed, config)?;
        let seen = attention.attend(number, &q, &k, &v)?.flatten_from(2)?;
        let x = gated(x, &self.own.out.forward(&seen)?, 2)?;

        let [weight, bias] = [&self.cross_norm.weight, &self.cross_norm.bias].map(|t| t.to_dtype(DType::F32));
        let normed = mul_rows(&layer_norm(&x, config.eps)?, &weight?)?;
        let normed = add_rows(&normed, &bias?)?.to_dtype(dtype)?;
        let read = softmax_attention(&self.cross.queries(&normed, config)?, context_k, context_v, None)?;
        let x = (x + self.cross.out.forward(&read.flatten_from(2)?)?)?;

        let normed = modulate(&layer_norm(&x, config.eps)?, &modulation, 3, dtype)?;
        gated(&x, &self.down.forward(&gelu(&self.up.forward(&normed)?)?)?, 5)
    }
}
