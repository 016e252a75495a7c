//! Pictures of latents and latents of pictures, one block after the other: Wan2.1's autoencoder, and TAEHV, a small one.

mod conv;
mod taehv;
mod tiles;
mod vae;

/// Bytes that making pictures takes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PictureBytes {
    /// The weights.
    pub weights: usize,
    /// What is kept from one call to the next.
    pub kept: usize,
    /// What a call works with, about.
    pub work: usize,
}

pub use taehv::{Taehv, TaehvDecoder};
pub use tiles::Tiles;
pub use vae::{Vae, VaeDecoder, VaeEncoder};
