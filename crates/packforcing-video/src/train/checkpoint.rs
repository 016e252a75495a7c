//! Checkpoints: safetensors with a description of the model in the header. The averaged weights lie under the
//! names of the model, so that a checkpoint of a run is a checkpoint to sample from.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Pair, TrainConfig, Trainer};
use crate::compressor::{Compressor, CompressorConfig};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::weights::{FileWeights, Weights, instead};

/// Name of the description in the header.
const KEY: &str = "packforcing";
/// Prefixes of what only training needs: weights and the optimizer's moments.
const TRAINED: [&str; 3] = ["train.weight.", "train.mean.", "train.square."];

/// What a checkpoint is one of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Sizes of the model.
    pub model: Config,
    /// Sizes of the compressor.
    pub compressor: CompressorConfig,
    /// How it was trained.
    pub train: TrainConfig,
    /// Steps that were made.
    pub steps: u64,
    /// Rows and columns of the clips that it was trained on.
    pub size: [usize; 2],
    /// Where the clips came from, in words.
    pub data: String,
}

/// A trained model, ready to sample.
pub struct Checkpoint {
    /// What it is.
    pub description: Description,
    /// With the averaged weights.
    pub model: Model,
    /// With the averaged weights.
    pub compressor: Compressor,
    numbers: usize,
}

/// Weights that are counted on their way.
struct Counted<'w, W>(&'w mut W, usize);

impl<W: Weights> Weights for Counted<'_, W> {
    fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.1 += shape.iter().product::<usize>();
        self.0.get(name, shape)
    }
}

impl Checkpoint {
    /// Reads a checkpoint; its weights become `dtype` on `device`.
    ///
    /// # Errors
    ///
    /// A file that is no checkpoint, is cut short, of another shape than it says, or has a NaN.
    pub fn open(file: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Checkpoint> {
        let file = file.as_ref();
        Checkpoint::new(describe(file)?, FileWeights::open(&[file], "", dtype, device)?)
    }

    /// The same of a file that is in memory already, by this name in errors.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn from_bytes(name: &str, bytes: &[u8], dtype: DType, device: &Device) -> Result<Checkpoint> {
        let description = read_description(name.as_ref(), bytes)?;
        Checkpoint::new(description, FileWeights::from_bytes(name, bytes, dtype, device)?)
    }

    fn new(description: Description, mut weights: FileWeights) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::from_weights(&description, &mut weights)?;
        weights.finish_beside(&TRAINED)?;
        Ok(checkpoint)
    }

    /// A model of any weights, random ones for example.
    ///
    /// # Errors
    ///
    /// Sizes that make no sense, and what `weights` reports.
    pub fn from_weights(description: &Description, weights: &mut impl Weights) -> Result<Checkpoint> {
        description.check()?;
        let mut counted = Counted(weights, 0);
        let pair = Pair::new(&description.model, &description.compressor, &mut counted)?;
        Ok(Checkpoint {
            description: description.clone(),
            model: pair.model,
            compressor: pair.compressor,
            numbers: counted.1,
        })
    }

    /// Numbers of model and compressor together.
    pub fn numbers(&self) -> usize {
        self.numbers
    }
}

impl Trainer {
    /// Writes everything that [`Trainer::resume`] needs, or without the `moments` what samples alone. The file is
    /// there whole or not at all.
    ///
    /// # Errors
    ///
    /// A folder that cannot be written, a disk that is full.
    pub fn save(&self, file: impl AsRef<Path>, size: [usize; 2], data: &str, moments: bool) -> Result<()> {
        let file = file.as_ref();
        let description = Description {
            model: self.tracked.model.config().clone(),
            compressor: self.tracked.compressor.config().clone(),
            train: self.config.clone(),
            steps: self.done,
            size,
            data: data.into(),
        };
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for p in &self.parameters {
            // Half the bytes are enough to sample; to go on takes all.
            let dtype = if moments { DType::F32 } else { DType::F16 };
            tensors.insert(p.name.clone(), p.average.to_dtype(dtype)?);
            if moments {
                let kept = [p.weight.as_detached_tensor(), p.mean.clone(), p.square.clone()];
                let named = TRAINED.iter().map(|prefix| format!("{prefix}{}", p.name));
                tensors.extend(named.zip(kept));
            }
        }
        let fails = |e: &dyn std::fmt::Display| Error::Checkpoint {
            file: file.into(),
            reason: format!("not written: {e}"),
        };
        let text = serde_json::to_string(&description).map_err(|e| fails(&e))?;
        let header = HashMap::from([(KEY.to_string(), text)]);
        let mut part = file.as_os_str().to_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let written = safetensors::serialize_to_file(&tensors, Some(header), &part).map_err(|e| fails(&e));
        let written = written.and_then(|()| std::fs::rename(&part, file).map_err(|e| fails(&e)));
        if written.is_err() {
            // Half a file is of no use, and an error about it neither.
            let _ = std::fs::remove_file(&part);
        }
        written
    }

    /// Goes on where a checkpoint with moments was written.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`]; a checkpoint of another configuration, or one without moments.
    pub fn resume(
        file: impl AsRef<Path>,
        model: &Config,
        compressor: &CompressorConfig,
        config: &TrainConfig,
        device: &Device,
    ) -> Result<Trainer> {
        let file = file.as_ref();
        let there = describe(file)?;
        let refuse = |reason: String| {
            let file = file.to_path_buf();
            Err(Error::Checkpoint { file, reason })
        };
        if (&there.model, &there.compressor) != (model, compressor) {
            let model = differences(&there.model, model);
            let compressor = differences(&there.compressor, compressor);
            return refuse(format!("of another model: {}", [model, compressor].join(" ").trim()));
        }
        if there.train != *config {
            return refuse(format!("trained another way: {}", differences(&there.train, config)));
        }
        let kept = FileWeights::open(&[file], "", DType::F32, device)?;
        if !kept.has(&format!("{}proj_out.weight", TRAINED[0])) {
            return refuse("it has no moments to go on from: it was written to sample".into());
        }
        drop(kept);
        let mut weights = FileWeights::open(&[file], TRAINED[0], DType::F32, device)?;
        let mut trainer = Trainer::from_weights(model, compressor, config, &mut weights, device)?;
        weights.finish()?;
        for (prefix, place) in [("", 0), (TRAINED[1], 1), (TRAINED[2], 2)] {
            let mut weights = FileWeights::open(&[file], prefix, DType::F32, device)?;
            for p in &mut trainer.parameters {
                let tensor = weights.get(&p.name, p.weight.dims())?;
                match place {
                    0 => p.average = tensor,
                    1 => p.mean = tensor,
                    _ => p.square = tensor,
                }
            }
            weights.finish_beside(&TRAINED)?;
        }
        trainer.done = there.steps;
        Ok(trainer)
    }
}

impl Description {
    /// Refuses sizes that nobody has, and those that do not fit one another.
    fn check(&self) -> Result<()> {
        self.model.check()?;
        let ([rows, cols], frames) = (self.size, self.train.block_frames);
        if rows.max(cols) > MOST_PIXELS || frames > MOST_FRAMES {
            let expected =
                format!("at most {MOST_PIXELS} rows and columns, and blocks of at most {MOST_FRAMES} frames");
            return Err(Error::argument(
                "description",
                expected,
                format!("{rows} x {cols}, {frames} frames"),
            ));
        }
        self.model.tokens([frames, rows, cols])?;
        self.compressor.grid(&self.model, [frames, rows, cols])?;
        Ok(())
    }

    /// That of a checkpoint, from its header alone.
    ///
    /// # Errors
    ///
    /// A file that is no checkpoint.
    pub fn read(file: impl AsRef<Path>) -> Result<Description> {
        describe(file.as_ref())
    }
}

/// The fields in which two descriptions differ, by name, with both values.
pub fn differences(there: &impl Serialize, here: &impl Serialize) -> String {
    fn walk(name: &str, there: &serde_json::Value, here: &serde_json::Value, found: &mut Vec<String>) {
        match (there, here) {
            (serde_json::Value::Object(a), serde_json::Value::Object(b)) => {
                for (key, value) in a {
                    let name = if name.is_empty() {
                        key.clone()
                    } else {
                        format!("{name}.{key}")
                    };
                    walk(&name, value, b.get(key).unwrap_or(&serde_json::Value::Null), found);
                }
            }
            _ if there != here => found.push(format!("{name} {there} and not {here}")),
            _ => {}
        }
    }
    let mut found = Vec::new();
    // Numbers and texts: they are always written.
    let [there, here] = [serde_json::to_value(there), serde_json::to_value(here)].map(Result::unwrap_or_default);
    walk("", &there, &here, &mut found);
    found.join(", ")
}

/// The description in a file's header.
fn describe(file: &Path) -> Result<Description> {
    let open = std::fs::File::open(file).map_err(|e| Error::Checkpoint {
        file: file.into(),
        reason: e.to_string(),
    })?;
    read_description(file, open)
}

fn read_description(file: &Path, mut from: impl Read) -> Result<Description> {
    let fails = |reason: String| Error::Checkpoint {
        file: file.into(),
        reason,
    };
    let mut length = [0; 8];
    let mut header = Vec::new();
    let read = from.read_exact(&mut length).and_then(|()| {
        let length = u64::from_le_bytes(length);
        from.take(length.min(LONGEST)).read_to_end(&mut header)
    });
    read.map_err(|e| fails(format!("not a checkpoint: {e}")))?;
    let parsed = serde_json::from_slice(&header);
    let header: serde_json::Value = parsed.map_err(|_| {
        let begin = [&length[..], &header[..header.len().min(56)]].concat();
        let hint = instead(&begin).unwrap_or("no safetensors header");
        fails(format!("not a checkpoint: {hint}"))
    })?;
    let text = header["__metadata__"][KEY].as_str();
    let text = text.ok_or_else(|| fails("not a checkpoint of this project: its header does not describe it".into()))?;
    serde_json::from_str(text).map_err(|e| fails(format!("its description is of another kind: {e}")))
}

/// No latent has more rows or columns than this, and no block more frames.
const MOST_PIXELS: usize = 1 << 14;
const MOST_FRAMES: usize = 1 << 10;
/// No header is as long as this, in bytes.
const LONGEST: u64 = 100_000_000;
