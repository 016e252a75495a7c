//! Sizes of a model.

use packforcing::Grid;
use packforcing::Rope3d;
use packforcing::cache::Heads;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What the network gives; [`Model::velocity`](crate::Model::velocity) turns either into a velocity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prediction {
    /// The velocity, noise less clean latent: Wan2.1.
    #[default]
    Velocity,
    /// The clean latent, from which the velocity follows by `(x - x0) / sigma`. A patch of noise has
    /// more numbers than a narrow model can carry through, a clean patch has few that matter.
    Clean,
}

/// Sizes of a Wan2.1 text-to-video transformer, or one like it.
///
/// ```
/// use packforcing_video::Config;
///
/// let config = Config::wan2_1_t2v_1_3b();
/// assert_eq!((config.width(), config.tokens([4, 60, 104])?.tokens().0), (1536, 6240));
/// assert_eq!(Config::tiny(3).tokens([4, 30, 32]).unwrap_err().to_string(),
///     "latent: expected frames, rows and columns in whole patches of [1, 4, 4], got [4, 30, 32]");
/// # Ok::<(), packforcing_video::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Channels of the latent.
    pub channels: usize,
    /// Frames, rows and columns of the latent in one token.
    pub patch: [usize; 3],
    /// Heads of self- and cross-attention.
    pub heads: usize,
    /// Numbers a head.
    pub head_dim: usize,
    /// Width inside the feed-forward network.
    pub ffn_dim: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Numbers a token of the context that comes in (text embeddings).
    pub context_dim: usize,
    /// Tokens of the context; shorter ones are filled up with zeros before they are embedded.
    pub context_len: usize,
    /// Numbers of the sinusoidal embedding of a time step.
    pub freq_dim: usize,
    /// Of the layer and RMS norms.
    pub eps: f64,
    /// Base of the frequencies by which queries and keys turn. Wan2.1's 10,000 is for frames of many tokens; in
    /// small ones most pairs would hardly turn.
    pub rope_theta: f64,
    /// Cosines along rows, and as many along columns, that tell a token its place in the frame. Wan2.1 has
    /// none: it sees places relative to one another alone, not where a frame ends.
    pub place_waves: usize,
    /// What the network gives.
    pub prediction: Prediction,
}

impl Config {
    /// Wan2.1-T2V-1.3B: 1536 wide, 30 layers of 12 heads; latents of 16 channels; context of 512
    /// UMT5 embeddings.
    pub fn wan2_1_t2v_1_3b() -> Config {
        Config {
            channels: 16,
            patch: [1, 2, 2],
            heads: 12,
            head_dim: 128,
            ffn_dim: 8960,
            layers: 30,
            context_dim: 4096,
            context_len: 512,
            freq_dim: 256,
            eps: 1e-6,
            rope_theta: 1e4,
            place_waves: 0,
            prediction: Prediction::Velocity,
        }
    }

    /// A model of 2.3 million parameters that a CPU trains: 192 wide, 4 layers of 3 heads, patches of 4 x 4
    /// pixels (or latents) of so many channels, which are predicted clean.
    pub fn tiny(channels: usize) -> Config {
        Config {
            channels,
            patch: [1, 4, 4],
            heads: 3,
            head_dim: 64,
            ffn_dim: 512,
            layers: 4,
            context_dim: 16,
            context_len: 4,
            freq_dim: 64,
            eps: 1e-6,
            rope_theta: 100.0,
            place_waves: 8,
            prediction: Prediction::Clean,
        }
    }

    /// Numbers a token inside the model.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Numbers of the latent in one token.
    pub fn patch_numbers(&self) -> usize {
        self.channels * self.patch.iter().product::<usize>()
    }

    /// The heads, as the packed cache wants them.
    pub fn cache_heads(&self) -> Heads {
        Heads {
            query: self.heads,
            kv: self.heads,
            dim: self.head_dim,
        }
    }

    /// The rotation of queries and keys: Wan2.1's split of a head.
    ///
    /// # Errors
    ///
    /// A theta that is none.
    pub fn rope(&self) -> Result<Rope3d> {
        Ok(Rope3d::new(Rope3d::wan(self.head_dim).pairs(), self.rope_theta)?)
    }

    /// Tokens of a latent of so many frames, rows and columns.
    ///
    /// # Errors
    ///
    /// A latent that is not made of whole patches, or of none.
    pub fn tokens(&self, latent: [usize; 3]) -> Result<Grid> {
        let whole = latent.iter().zip(&self.patch).all(|(n, p)| *n > 0 && n % p == 0);
        if !whole {
            let expected = format!("frames, rows and columns in whole patches of {:?}", self.patch);
            return Err(Error::argument("latent", expected, format!("{latent:?}")));
        }
        Ok(Grid {
            frames: latent[0] / self.patch[0],
            rows: latent[1] / self.patch[1],
            cols: latent[2] / self.patch[2],
        })
    }

    /// Refuses sizes that no model has.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |expected: &str, got: String| Err(Error::argument("config", expected, got));
        // Far above what anyone has: a file that says more is not to be believed, and products of these are numbers.
        let [_, ph, pw] = self.patch;
        for (what, size, most) in [
            ("channels", self.channels, 1 << 16),
            ("rows of a patch", ph, 1 << 10),
            ("columns of a patch", pw, 1 << 10),
            ("heads", self.heads, 1 << 10),
            ("numbers a head", self.head_dim, 1 << 10),
            ("ffn_dim", self.ffn_dim, 1 << 20),
            ("layers", self.layers, 1 << 10),
            ("context_dim", self.context_dim, 1 << 20),
            ("context_len", self.context_len, 1 << 20),
            ("freq_dim", self.freq_dim, 1 << 20),
            ("place_waves", self.place_waves, 1 << 20),
        ] {
            if size > most {
                return refuse(&format!("at most {most} {what}"), size.to_string());
            }
        }
        let sizes = [
            self.channels,
            self.patch_numbers(),
            self.width(),
            self.ffn_dim,
            self.context_dim,
            self.context_len,
        ];
        if sizes.contains(&0) {
            return refuse("sizes above 0", format!("{self:?}"));
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim < 6 {
            return refuse(
                "an even head_dim from 6, for three axes of pairs",
                self.head_dim.to_string(),
            );
        }
        if !self.freq_dim.is_multiple_of(2) || self.freq_dim == 0 {
            return refuse("an even freq_dim, for sines and cosines", self.freq_dim.to_string());
        }
        if self.patch[0] != 1 {
            return refuse(
                "patches of one frame, since frames have time steps of their own",
                format!("{:?}", self.patch),
            );
        }
        Ok(())
    }
}
