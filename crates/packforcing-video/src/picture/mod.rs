//! Pictures of latents and latents of pictures, one block after the other: Wan2.1's autoencoder, and TAEHV, a small one.

mod conv;
mod taehv;
mod vae;

pub use taehv::{Taehv, TaehvDecoder};
pub use vae::{Vae, VaeDecoder, VaeEncoder};
