//! Pictures of latents and latents of pictures, one block after the other: Wan2.1's autoencoder, and TAEHV, a small one.

mod conv;
mod taehv;
mod tiles;
mod vae;

pub use taehv::{Taehv, TaehvDecoder};
pub use tiles::Tiles;
pub use vae::{Vae, VaeDecoder, VaeEncoder};
