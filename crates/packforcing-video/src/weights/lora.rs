//! Adapters of low rank, merged into the weights that they were trained on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::torch::{Stored, TorchFile, ZIP};
use super::{begin_of, instead};
use crate::error::{Error, Result, WeightsFault};

/// Sets of adapters in files of training, the first that is there; others (of a critic) are left out.
const SETS: [&str; 2] = ["generator_lora", ""];
/// What PEFT puts in front of names, and into those of adapters that are in use.
const IN_FRONT: &str = "base_model.model.";
const IN_USE: &str = ".default.";
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

/// A low-rank adapter (LoRA) as PEFT saves it: for a linear layer `W`, `[to, from]`, two matrices `A`, `[rank, from]`, and `B`,
/// `[to, rank]`, that stand for `W + alpha / rank B A`.
///
/// ```no_run
/// use candle_core::{DType, Device};
/// use packforcing_video::{FileWeights, Lora};
///
/// # fn main() -> packforcing_video::Result<()> {
/// let base = FileWeights::open(&["models/longlive_base.pt"], "", DType::BF16, &Device::Cpu)?;
/// let weights = base.with_lora(Lora::open("models/lora.pt", None)?);
/// # Ok(())
/// # }
/// ```
pub struct Lora {
    path: PathBuf,
    file: TorchFile,
    /// `A` and `B` by the original names of the layers.
    layers: BTreeMap<String, (Stored, Stored)>,
    rank: usize,
    alpha: f64,
    merged: BTreeSet<String>,
}

impl Lora {
    /// Opens a file of adapters. Without an `alpha` it is the rank, so that the factor is 1: LongLive's.
    ///
    /// # Errors
    ///
    /// A file that is none of `torch.save`'s or has no adapters, an adapter of one matrix alone, ranks that differ, an alpha
    /// that is no number.
    pub fn open(path: impl AsRef<Path>, alpha: Option<f64>) -> Result<Lora> {
        let path = path.as_ref().to_path_buf();
        let begin = begin_of(&path).map_err(|fault| refused(&path, fault))?;
        if !begin.starts_with(ZIP) {
            let what = instead(&begin).unwrap_or("it is no file of PyTorch's");
            return Err(refused(&path, format!("no adapter of torch.save's: {what}")));
        }
        let read = TorchFile::open(&path).and_then(|file| layers(&file).map(|layers| (file, layers)));
        let (file, layers) = read.map_err(|fault| refused(&path, fault))?;
        let rank = layers
            .values()
            .next()
            .and_then(|(a, _)| a.shape.first().copied())
            .unwrap_or(0);
        for (name, (a, b)) in &layers {
            let fits = matches!((&a.shape[..], &b.shape[..]), (&[of_a, _], &[_, of_b]) if of_a == rank && of_b == rank && rank > 0);
            if !fits {
                let fault = format!(
                    "{name}: matrices {:?} and {:?} in an adapter of rank {rank}",
                    a.shape, b.shape
                );
                return Err(refused(&path, fault));
            }
        }
        let alpha = alpha.unwrap_or(rank as f64);
        if !alpha.is_finite() {
            return Err(Error::argument("alpha", "a finite number", alpha.to_string()));
        }
        Ok(Lora {
            path,
            file,
            layers,
            rank,
            alpha,
            merged: BTreeSet::new(),
        })
    }

    /// The inner extent of its products.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// What products are multiplied by, `alpha / rank`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Layers that it changes.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// A weight with what is learned for it, in f32; the weight itself where there is nothing. By the original name.
    pub(super) fn merge(&mut self, name: &str, weight: Tensor, device: &Device) -> Result<Tensor> {
        let Some(layer) = name.strip_suffix(".weight") else {
            return Ok(weight);
        };
        let Some((a, b)) = self.layers.get(layer) else {
            return Ok(weight);
        };
        let (to, from) = (b.shape[0], a.shape[1]);
        if weight.dims() != [to, from] {
            let fault = format!(
                "{layer} is {:?} in the base and [{to}, {from}] in the adapter: it is one of another model",
                weight.dims()
            );
            return Err(refused(&self.path, fault));
        }
        let load = |stored: &Stored| self.file.load(stored, device)?.to_dtype(DType::F32);
        let learned = load(b)?.matmul(&load(a)?)?;
        self.merged.insert(layer.to_string());
        Ok((weight.to_dtype(DType::F32)? + (learned * self.scale())?)?)
    }

    /// Refuses an adapter with layers that the model does not have.
    pub(super) fn finish(&self) -> Result<()> {
        let left: Vec<&String> = self
            .layers
            .keys()
            .filter(|layer| !self.merged.contains(*layer))
            .collect();
        match left.first() {
            None => Ok(()),
            Some(first) => {
                let fault = format!(
                    "{} of its {} layers are none of this model's: {first}",
                    left.len(),
                    self.layers.len()
                );
                Err(refused(&self.path, fault))
            }
        }
    }
}

fn refused(path: &Path, fault: String) -> Error {
    Error::Weights {
        file: path.to_path_buf(),
        fault: WeightsFault::Torch(fault),
    }
}

/// Pairs of matrices by the names of their layers.
fn layers(file: &TorchFile) -> std::result::Result<BTreeMap<String, (Stored, Stored)>, String> {
    let set = SETS
        .iter()
        .find_map(|set| file.set(set))
        .ok_or("no adapters in it: there is no generator_lora")?;
    let mut halves: BTreeMap<String, [Option<Stored>; 2]> = BTreeMap::new();
    for (name, stored) in set {
        let plain = name.strip_prefix(IN_FRONT).unwrap_or(name).replace(IN_USE, ".");
        let (layer, half) = match (plain.strip_suffix(A), plain.strip_suffix(B)) {
            (Some(layer), _) => (layer, 0),
            (_, Some(layer)) => (layer, 1),
            _ => return Err(format!("{name} is no part of an adapter")),
        };
        halves.entry(layer.to_string()).or_default()[half] = Some(stored.clone());
    }
    let mut layers = BTreeMap::new();
    for (layer, halves) in halves {
        match halves {
            [Some(a), Some(b)] => layers.insert(layer, (a, b)),
            _ => return Err(format!("{layer} has one matrix of its two")),
        };
    }
    match layers.is_empty() {
        true => Err("no adapters in it".into()),
        false => Ok(layers),
    }
}
