//! A causal video diffusion transformer in candle, whose history is the packed cache of
//! [packforcing].
//!
//! One code for every size: [`Config::wan2_1_t2v_1_3b`] takes the published weights of Wan2.1 under
//! diffusers' or the original names, [`Config::tiny`] is for a CPU. [`Model::velocity`] is the whole of
//! it; what its tokens see is decided by a [`SelfAttention`]:
//!
//! | | sees | memory | backward |
//! | --- | --- | --- | --- |
//! | [`Packed`] | the packed history and the block itself | bounded | no |
//! | [`FullHistory`] | all blocks so far | grows with the video | no |
//! | [`Window`] | a history laid out as in sampling | of the window | yes |
//! | [`Clip`] | one clip, whole or causal by blocks | of the clip | yes |
//!
//! Old blocks become few tokens by a [`Compressor`] that is trained with the model, or by what the cache does
//! itself (`packforcing::cache::Compression`).

mod attention;
mod compressor;
mod config;
mod error;
pub mod few_step;
mod fused;
mod model;
pub mod picture;
mod prompt;
mod recipe;
mod rng;
pub mod sample;
pub mod train;
mod umt5;
mod weights;
pub mod world;

pub use attention::{Clip, FullHistory, Layout, Packed, SelfAttention, Window};
pub use compressor::{Compressor, CompressorConfig, LowRes, Pooled, Stage};
pub use config::{Config, Prediction};
pub use error::{Error, Result, WeightsFault};
pub use model::{Context, Model};
pub use prompt::{PromptTokenizer, clean_prompt};
pub use recipe::Recipe;
pub use umt5::TextEncoder;
pub use weights::{FileWeights, Lora, RandomWeights, Weights};
