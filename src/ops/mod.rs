//! The ops. Each is a free function on views, checked on the host before anything runs, and runs
//! where its views live: `cpu.rs` in every op is the CPU, `gpu.rs` the launch for CUDA and SIMT,
//! `reference.rs` the plain f64 loop that both are held against.

pub mod append_kv;
pub mod attention;
pub mod denoise_step;
pub mod guidance;
pub mod match_tokens;
pub mod merge_states;
pub mod merge_tokens;
pub mod select_blocks;

pub(crate) mod check;
