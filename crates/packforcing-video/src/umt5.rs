//! The text encoder of Wan2.1: UMT5 (arXiv 2304.09151), its encoder alone.
//!
//! 5.7 billion numbers, of which one layer is in memory at a time: weights are read from the map when their layer comes, and
//! of the table of embeddings the rows of the prompt alone.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result, WeightsFault};
use crate::fused::{gelu, mul_rows, rms_norm, softmax};
use crate::weights::FileWeights;

/// Distances from which on all are alike.
const FAR: f32 = 128.0;
const EPS: f64 = 1e-6;

/// A UMT5 encoder over its files.
pub struct TextEncoder {
    weights: FileWeights,
    /// Names as Wan has them, and not Hugging Face's.
    original: bool,
    layers: usize,
    heads: usize,
    head_dim: usize,
    width: usize,
    vocabulary: usize,
    buckets: usize,
    dtype: DType,
    device: Device,
}

impl TextEncoder {
    /// Opens a `models_t5_umt5-xxl-enc-bf16.pth` or the safetensors of a diffusers folder; computed in `dtype` on `device`.
    ///
    /// # Errors
    ///
    /// As [`FileWeights::open`]; files of something else, a tensor that is missing, f16 (whose range UMT5 leaves).
    pub fn open<P: AsRef<Path>>(files: &[P], dtype: DType, device: &Device) -> Result<TextEncoder> {
        if !matches!(dtype, DType::F32 | DType::BF16) {
            return Err(Error::argument("dtype", "f32 or bf16", format!("{dtype:?}")));
        }
        let weights = FileWeights::open(files, "", dtype, device)?;
        let original = weights.has("token_embedding.weight");
        let mut encoder = TextEncoder {
            weights,
            original,
            layers: 0,
            heads: 0,
            head_dim: 0,
            width: 0,
            vocabulary: 0,
            buckets: 0,
            dtype,
            device: device.clone(),
        };
        let pair = |name: String| match encoder.weights.shape(&name)[..] {
            [rows, columns] => Ok((rows, columns)),
            _ => Err(encoder.refused(format!("no UMT5 encoder: {name} is not there, or no matrix"))),
        };
        let (vocabulary, width) = pair(encoder.table().into())?;
        let (buckets, heads) = pair(encoder.name(0, "bias"))?;
        let (inner, _) = pair(encoder.name(0, "q"))?;
        if heads == 0 || inner % heads != 0 || buckets < 4 || buckets % 4 != 0 {
            return Err(encoder.refused(format!(
                "no UMT5 encoder: {inner} numbers of {heads} heads, {buckets} buckets"
            )));
        }
        let layers = encoder
            .weights
            .counted(if original { "blocks." } else { "encoder.block." });
        let parts = ["norm1", "q", "k", "v", "o", "bias", "norm2", "gate", "up", "down"];
        let names = (0..layers).flat_map(|layer| parts.map(|part| encoder.name(layer, part)));
        let missing: Vec<String> = names
            .chain([encoder.last().to_string()])
            .filter(|name| !encoder.weights.has(name))
            .collect();
        if !missing.is_empty() {
            return Err(encoder.refused_as(WeightsFault::Incomplete {
                missing,
                wrong: Vec::new(),
                surplus: Vec::new(),
            }));
        }
        (encoder.layers, encoder.heads, encoder.head_dim) = (layers, heads, inner / heads);
        (encoder.width, encoder.vocabulary, encoder.buckets) = (width, vocabulary, buckets);
        Ok(encoder)
    }

    /// Numbers of an embedding.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Embeddings of a prompt's tokens, the end mark among them, `[tokens, width]`.
    ///
    /// Padding cannot reach them and is not computed: whoever wants 512 rows puts zeros behind them, as
    /// [`Model::context`](crate::Model::context) does.
    ///
    /// # Errors
    ///
    /// No tokens, one that the table does not have, weights that are not of the shapes that the first layer tells.
    pub fn encode(&self, tokens: &[u32]) -> Result<Tensor> {
        if let Some(token) = tokens.iter().find(|token| **token as usize >= self.vocabulary) {
            let expected = format!("numbers below {}", self.vocabulary);
            return Err(Error::argument("tokens", expected, token.to_string()));
        }
        if tokens.is_empty() {
            return Err(Error::argument("tokens", "one or more", "none"));
        }
        let mut x = self.weights.rows(self.table(), tokens, self.dtype, &self.device)?;
        let distances = distances(tokens.len(), self.buckets, &self.device)?;
        for layer in 0..self.layers {
            x = self.layer(layer, &x, &distances)?;
        }
        let last = self.weights.load(self.last(), &[self.width], DType::F32)?;
        self.norm(&x, &last)
    }

    fn layer(&self, layer: usize, x: &Tensor, distances: &Tensor) -> Result<Tensor> {
        let (width, inner) = (self.width, self.heads * self.head_dim);
        let hidden = self
            .weights
            .shape(&self.name(layer, "gate"))
            .first()
            .copied()
            .unwrap_or(0);
        let load = |part: &str, shape: &[usize], dtype| self.weights.load(&self.name(layer, part), shape, dtype);
        let by = |x: &Tensor, part: &str, to: usize, from: usize| -> Result<Tensor> {
            Ok(x.matmul(&load(part, &[to, from], self.dtype)?.t()?)?)
        };
        let y = self.norm(x, &load("norm1", &[width], DType::F32)?)?;
        let count = y.dim(0)?;
        let heads = |x: Tensor| -> Result<Tensor> {
            Ok(x.reshape((count, self.heads, self.head_dim))?
                .transpose(0, 1)?
                .contiguous()?)
        };
        let [q, k, v] = ["q", "k", "v"].map(|part| by(&y, part, inner, width).and_then(heads));
        // Not divided by anything: the weights are trained so.
        let (q, k) = (q?.to_dtype(DType::F32)?, k?.to_dtype(DType::F32)?);
        let bias = load("bias", &[self.buckets, self.heads], DType::F32)?;
        let bias = bias.index_select(distances, 0)?.reshape((count, count, self.heads))?;
        let logits = (q.matmul(&k.t()?)? + bias.permute((2, 0, 1))?)?;
        let seen = softmax(&logits)?.to_dtype(self.dtype)?.matmul(&v?)?;
        let seen = seen.transpose(0, 1)?.contiguous()?.reshape((count, inner))?;
        let x = (x + by(&seen, "o", width, inner)?)?;

        let y = self.norm(&x, &load("norm2", &[width], DType::F32)?)?;
        let hidden_state = (gelu(&by(&y, "gate", hidden, width)?)? * by(&y, "up", hidden, width)?)?;
        Ok((x + by(&hidden_state, "down", width, hidden)?)?)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(mul_rows(&rms_norm(x, EPS)?, weight)?.to_dtype(self.dtype)?)
    }

    fn table(&self) -> &'static str {
        if self.original {
            "token_embedding.weight"
        } else if self.weights.has("shared.weight") {
            "shared.weight"
        } else {
            // The same table by the name that it is tied to.
            "encoder.embed_tokens.weight"
        }
    }

    fn last(&self) -> &'static str {
        if self.original {
            "norm.weight"
        } else {
            "encoder.final_layer_norm.weight"
        }
    }

    fn name(&self, layer: usize, part: &str) -> String {
        if self.original {
            let part = match part {
                "norm1" | "norm2" => part.to_string(),
                "bias" => "pos_embedding.embedding".into(),
                "gate" => "ffn.gate.0".into(),
                "up" => "ffn.fc1".into(),
                "down" => "ffn.fc2".into(),
                of_attention => format!("attn.{of_attention}"),
            };
            return format!("blocks.{layer}.{part}.weight");
        }
        let part = match part {
            "norm1" => "layer.0.layer_norm".to_string(),
            "norm2" => "layer.1.layer_norm".into(),
            "bias" => "layer.0.SelfAttention.relative_attention_bias".into(),
            "gate" => "layer.1.DenseReluDense.wi_0".into(),
            "up" => "layer.1.DenseReluDense.wi_1".into(),
            "down" => "layer.1.DenseReluDense.wo".into(),
            of_attention => format!("layer.0.SelfAttention.{of_attention}"),
        };
        format!("encoder.block.{layer}.{part}.weight")
    }

    fn refused(&self, fault: String) -> Error {
        self.refused_as(WeightsFault::Torch(fault))
    }

    fn refused_as(&self, fault: WeightsFault) -> Error {
        Error::Weights {
            file: self.weights.file().to_path_buf(),
            fault,
        }
    }
}

/// For every query and key the bucket of how far the key is from the query, `[count count]`.
fn distances(count: usize, buckets: usize, device: &Device) -> Result<Tensor> {
    let all: Vec<u32> = (0..count * count)
        .map(|i| bucket((i % count) as i64 - (i / count) as i64, buckets))
        .collect();
    Ok(Tensor::from_vec(all, count * count, device)?)
}

/// Half of the buckets are for keys behind the query. Of each half the first half are single distances, the others grow
/// with their logarithm, which is taken in f32 as it was in training.
fn bucket(distance: i64, buckets: usize) -> u32 {
    let half = (buckets / 2) as u32;
    let exact = half / 2;
    let far = distance.unsigned_abs().min(1 << 30) as u32;
    let own = if far < exact {
        far
    } else {
        let way = (far as f32 / exact as f32).ln() / (FAR / exact as f32).ln();
        (exact + (way * (half - exact) as f32) as u32).min(half - 1)
    };
    own + if distance > 0 { half } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_begin_where_they_do_in_training() {
        let begins: Vec<i64> = (1..600).filter(|d| bucket(-d, 32) != bucket(1 - d, 32)).collect();
        assert_eq!(begins, [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]);
        assert_eq!(
            (bucket(0, 32), bucket(1, 32), bucket(-1, 32), bucket(i64::MIN, 32)),
            (0, 17, 1, 15)
        );
    }
}
