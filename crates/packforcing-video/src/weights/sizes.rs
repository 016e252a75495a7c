//! Sizes of the model whose weights a file holds, by the shapes of its tensors.

use crate::config::{Config, Prediction};
use crate::error::{Error, Result, WeightsFault};

use super::{FileWeights, original_name};

/// Channels of Wan2.1's latents.
const CHANNELS: usize = 16;
/// Numbers a head in every Wan; smaller models have one head.
const HEAD: usize = 128;
/// Tokens of a context in every Wan.
const CONTEXT: usize = 512;

impl FileWeights {
    /// The sizes of the Wan2.1 text-to-video transformer that these are the weights of; those that no shape tells (numbers
    /// a head, tokens of a context, eps) are those of all published ones.
    ///
    /// # Errors
    ///
    /// Weights of something else, by what tells it: image-to-video, latents of other channels, no transformer of Wan.
    pub fn config(&self) -> Result<Config> {
        let refuse = |fault: String| Error::Weights {
            file: self.file.clone(),
            fault: WeightsFault::Torch(fault),
        };
        let shape = |name: &str| {
            let here = if self.original {
                original_name(name)
            } else {
                name.into()
            };
            let about = self.tensors.about(&format!("{}{here}", self.prefix));
            about.map(|(_, shape)| shape).ok_or(here)
        };
        let none = |name: String| refuse(format!("no weights of a Wan transformer: {name} is not there"));
        let has = |part: &str| self.tensors.names().iter().any(|name| name.contains(part));
        let patch = shape("patch_embedding.weight").map_err(none)?;
        let &[width, channels, 1, rows, cols] = &patch[..] else {
            return Err(refuse(format!(
                "patch_embedding.weight is {patch:?}: patches of more than one frame are not taken"
            )));
        };
        if channels == 36 || has("img_emb.") || has("image_embedder.") {
            return Err(refuse(format!(
                "weights of image-to-video ({channels} channels go in): text-to-video has {CHANNELS}"
            )));
        }
        if has("far_patch_embedding.") || has("delta_embedder.") {
            return Err(refuse(
                "weights of AnyFlow-FAR, which has a sampler of two times and a history of its own: they are not here"
                    .into(),
            ));
        }
        if channels != CHANNELS {
            return Err(refuse(format!(
                "weights for latents of {channels} channels, those of another autoencoder (Wan2.2's 5B and LongLive 2.0 have 48): \
                 Wan2.1's have {CHANNELS}"
            )));
        }
        let matrix = |name: &str| match shape(name).map_err(none)?[..] {
            [to, from] => Ok((to, from)),
            ref other => Err(refuse(format!("{name} is {other:?}, and no matrix"))),
        };
        let (_, freq_dim) = matrix("condition_embedder.time_embedder.linear_1.weight")?;
        let (_, context_dim) = matrix("condition_embedder.text_embedder.linear_1.weight")?;
        let (ffn_dim, _) = matrix("blocks.0.ffn.net.0.proj.weight")?;
        let layers = self.counted("blocks.");
        let head_dim = HEAD.min(width);
        if width == 0 || !width.is_multiple_of(head_dim) {
            return Err(refuse(format!("{width} numbers a token are no heads of {HEAD}")));
        }
        let config = Config {
            channels,
            patch: [1, rows, cols],
            heads: width / head_dim,
            head_dim,
            ffn_dim,
            layers,
            context_dim,
            context_len: CONTEXT,
            freq_dim,
            eps: 1e-6,
            rope_theta: 1e4,
            place_waves: 0,
            prediction: Prediction::Velocity,
        };
        config.check()?;
        Ok(config)
    }
}
