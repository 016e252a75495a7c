//! The device that the user asks for.

use std::fmt;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use packforcing::{Device, SimtOptions};

/// Where ops run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// The fastest that is here
    Best,
    /// The CPU
    Cpu,
    /// An NVIDIA GPU
    Cuda,
    /// The GPU's kernels on the CPU: a test device, slow
    Simt,
}

impl Wanted {
    pub fn open(self, simt: SimtOptions) -> Result<Device> {
        let device = match self {
            Wanted::Best => Ok(Device::best().0),
            Wanted::Cpu => Ok(Device::cpu()),
            Wanted::Cuda => Device::cuda(0),
            Wanted::Simt => Device::simt(simt),
        };
        device.with_context(|| format!("--device {self}"))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// Where a model runs, on candle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModelDevice {
    /// The fastest that is here
    Best,
    /// The CPU
    Cpu,
    /// An NVIDIA GPU
    Cuda,
}

impl ModelDevice {
    pub fn open(self) -> Result<candle_core::Device> {
        // A stream of its own: `new_cuda` has one a thread, and what is made on it stays on that thread.
        let cuda = || candle_core::Device::new_cuda_with_stream(0);
        match self {
            ModelDevice::Cpu => Ok(candle_core::Device::Cpu),
            ModelDevice::Best if cfg!(feature = "cuda") => Ok(cuda().unwrap_or(candle_core::Device::Cpu)),
            ModelDevice::Best => Ok(candle_core::Device::Cpu),
            ModelDevice::Cuda => {
                ensure!(
                    cfg!(feature = "cuda"),
                    "--device cuda: this program was built without it: cargo run --release --features \
                     packforcing-cli/cuda"
                );
                Ok(cuda()?)
            }
        }
    }
}

/// Where a model is, as every command tells it.
pub fn name(device: &candle_core::Device) -> &'static str {
    match device {
        candle_core::Device::Cpu => "cpu",
        candle_core::Device::Cuda(_) => "cuda",
        candle_core::Device::Metal(_) => "metal",
    }
}
