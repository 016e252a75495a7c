//! The device of candle that the user asks for.

use anyhow::{Result, ensure};
use candle_core::Device;
use clap::ValueEnum;

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// The CPU
    Cpu,
    /// An NVIDIA GPU
    Cuda,
}

impl Wanted {
    pub fn open(self) -> Result<Device> {
        match self {
            Wanted::Cpu => Ok(Device::Cpu),
            Wanted::Cuda => {
                ensure!(
                    cfg!(feature = "cuda"),
                    "--device cuda: this program was built without it: cargo run --release --features \
                     packforcing-cli/cuda"
                );
                // A stream of its own: `new_cuda` has one a thread, and what is made on it stays on that thread.
                Ok(Device::new_cuda_with_stream(0)?)
            }
        }
    }
}
