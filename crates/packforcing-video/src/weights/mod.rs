//! Where a model's tensors come from: files under two schemes of names, or random numbers.
//!
//! The names inside this crate are diffusers'.

mod lora;
mod pickle;
mod sizes;
mod torch;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::safetensors::{BufferedSafetensors, MmapedSafetensors};
use candle_core::{DType, Device, Tensor};
use packforcing::ops::denoise_step::{Coefficients, Noise};
use packforcing_candle::denoise_step;

use crate::error::{Error, Result, WeightsFault};
pub use lora::Lora;
use torch::{Stored, TorchFile, ZIP};

/// Gives a model its tensors by diffusers' names.
pub trait Weights {
    /// The tensor of this name and shape, in the model's dtype; the sources here give time embedding, modulation and
    /// norms of a model of 16 bits in f32.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being there. A source that collects faults returns something of the
    /// right shape, and its first error at the end.
    fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor>;
}

/// Safetensors files or one of `torch.save`, mapped into memory, under diffusers' names or those of the original Wan.
///
/// Of a file of several sets of weights, as training leaves it, the first of `generator_ema`, `generator`, `model` and
/// `state_dict` counts, else what lies at its top; what wrappers put into names (`_fsdp_wrapped_module.`, `model.` in
/// front, `model.diffusion_model.` in front) is taken away. Nothing of a pickle is ever carried out.
pub struct FileWeights {
    file: std::path::PathBuf,
    tensors: Tensors,
    prefix: String,
    original: bool,
    dtype: DType,
    device: Device,
    /// What else the file holds, in words.
    left_out: Vec<String>,
    lora: Option<Lora>,
    /// Names that were asked for and are there.
    taken: HashSet<String>,
    missing: Vec<String>,
    wrong: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Numbers in place of those.
    stood_in: usize,
}

enum Tensors {
    Mapped(MmapedSafetensors),
    Read(BufferedSafetensors),
    Torch(TorchFile, BTreeMap<String, Stored>),
}

impl Tensors {
    fn names(&self) -> Vec<String> {
        let named = match self {
            Tensors::Mapped(tensors) => tensors.tensors(),
            Tensors::Read(tensors) => tensors.tensors(),
            Tensors::Torch(_, tensors) => return tensors.keys().cloned().collect(),
        };
        named.into_iter().map(|(name, _)| name).collect()
    }

    /// What its numbers are, and its shape.
    fn about(&self, name: &str) -> Option<(safetensors::Dtype, Vec<usize>)> {
        let view = match self {
            Tensors::Mapped(tensors) => tensors.get(name),
            Tensors::Read(tensors) => tensors.get(name),
            Tensors::Torch(_, tensors) => {
                let stored = tensors.get(name)?;
                return Some((stored.dtype, stored.shape.clone()));
            }
        };
        view.ok().map(|view| (view.dtype(), view.shape().to_vec()))
    }

    /// A tensor's bytes where they lie one behind the other, with what its numbers are and its shape.
    fn bytes(&self, name: &str) -> Option<(safetensors::Dtype, Vec<usize>, &[u8])> {
        let (dtype, shape) = self.about(name)?;
        let bytes = match self {
            Tensors::Mapped(tensors) => tensors.get(name).ok()?.data(),
            Tensors::Read(tensors) => tensors.get(name).ok()?.data(),
            Tensors::Torch(file, tensors) => file.bytes(tensors.get(name)?)?,
        };
        Some((dtype, shape, bytes))
    }

    fn load(&self, name: &str, device: &Device) -> candle_core::Result<Tensor> {
        match self {
            Tensors::Mapped(tensors) => tensors.load(name, device),
            Tensors::Read(tensors) => tensors.load(name, device),
            Tensors::Torch(file, tensors) => match tensors.get(name) {
                Some(stored) => file.load(stored, device),
                None => candle_core::bail!("{name} is not there"),
            },
        }
    }
}

/// Numbers that weights are taken in.
fn is_float(dtype: safetensors::Dtype) -> bool {
    use safetensors::Dtype;
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

/// Sets of weights in files of `torch.save`, the first that is there.
const SETS: [&str; 5] = ["generator_ema", "generator", "model", "state_dict", ""];
/// What data-parallel training puts into names, anywhere.
const WRAPPED: &str = "_fsdp_wrapped_module.";
/// What the trainer's wrapper puts in front, and what others' single files have in front.
const IN_FRONT: [&str; 2] = ["model.diffusion_model.", "model."];
/// The same in safetensors, where the names after it are those of a transformer.
const FRONTS: [&str; 5] = [
    "",
    "model.diffusion_model.",
    "diffusion_model.",
    "model._fsdp_wrapped_module.",
    "model.",
];
const PATCH: &str = "patch_embedding.weight";
/// Tables that some exports have, and that everybody computes.
const COMPUTED: [&str; 1] = ["freqs"];

/// The weights in a file of `torch.save`, and in words what else is in it.
fn chosen(file: &TorchFile) -> std::result::Result<(BTreeMap<String, Stored>, Vec<String>), String> {
    let of_name = |name: &&str| file.set(name).is_some();
    let Some(set) = SETS.iter().copied().find(of_name) else {
        let sets: Vec<&str> = file.sets().map(|(name, _)| name).collect();
        return Err(match sets.is_empty() {
            true => "no tensors in it".into(),
            false => format!("none of {} in it: there are {}", SETS[..4].join(", "), sets.join(", ")),
        });
    };
    let mut named = BTreeMap::new();
    for (name, stored) in file.set(set).into_iter().flatten() {
        let plain = name.replace(WRAPPED, "");
        let plain = IN_FRONT
            .iter()
            .find_map(|front| plain.strip_prefix(front))
            .unwrap_or(&plain);
        if named.insert(plain.to_string(), stored.clone()).is_some() {
            return Err(format!(
                "{set}: {plain} is in it twice, under names that differ by what wrappers put into them"
            ));
        }
    }
    let sets = file.sets().filter(|(name, _)| *name != set);
    let mut left_out: Vec<String> = sets.map(|(name, count)| format!("{name} ({count} tensors)")).collect();
    left_out.extend(file.others().iter().map(|(name, what)| format!("{name} ({what})")));
    // One of the weights that is none, a call for example, is no weight that is left out.
    let inside = match set {
        "" => String::new(),
        set => format!("{set}."),
    };
    let odd = file
        .others()
        .iter()
        .find(|(name, what)| name.starts_with(&inside) && what.contains("not carried out"));
    match odd {
        Some((name, what)) => Err(format!("{name} is {what}")),
        None => Ok((named, left_out)),
    }
}

/// How names end under which the factors of 8-bit weights are shared.
const FACTORS: [&str; 4] = [".scale_weight", ".weight_scale", ".scale_input", "scaled_fp8"];

/// What a file is that is no safetensors file, by how it begins.
pub(crate) fn instead(begin: &[u8]) -> Option<&'static str> {
    let is = |what: &[u8]| begin.starts_with(what);
    Some(match () {
        () if begin.is_empty() => "it is empty",
        () if is(b"version https://git-lfs") => "it is a pointer of git-lfs: git lfs pull fetches the file itself",
        () if is(ZIP) => "it is a file of PyTorch's",
        () if is(b"\x80\x02") => {
            "it is a pickle of PyTorch's in its format before 1.6: torch.save(torch.load(file), file) with a newer one writes it \
             anew"
        }
        () if is(b"<") => "it is a page of HTML: what was downloaded is the page about it",
        () if is(b"{") => "it is JSON: an index names the files that hold the weights, which are opened together",
        () if is(b"GGUF") => "it is a GGUF file",
        _ => return None,
    })
}

/// The first bytes of a file, by which it is told what it is.
pub(crate) fn begin_of(file: &Path) -> std::result::Result<Vec<u8>, String> {
    if file.is_dir() {
        return Err("it is a folder".into());
    }
    let mut begin = Vec::new();
    let read = File::open(file).and_then(|file| file.take(64).read_to_end(&mut begin));
    read.map_err(|e| e.to_string())?;
    Ok(begin)
}

/// Why a file that begins like this is no whole safetensors file, as far as its length and its first bytes tell.
fn safetensors_fault(file: &Path, begin: &[u8]) -> Option<String> {
    if let Some(fault) = instead(begin) {
        return Some(fault.into());
    }
    let length = std::fs::metadata(file).map_or(u64::MAX, |about| about.len());
    let header = begin.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    match header {
        Some(header) if begin.get(8) == Some(&b'{') && header.saturating_add(8) > length => Some(format!(
            "it is cut short: {length} bytes, and its header alone has {header}; fetch it again"
        )),
        _ => None,
    }
}

/// The one tensor that tells the schemes apart.
const TELLING: &str = "time_embedding.0.weight";

impl FileWeights {
    /// Opens the parts of one set of weights. Their names all begin with `prefix`, which is empty in published
    /// files. Tensors become `dtype` on `device`.
    ///
    /// # Errors
    ///
    /// No file, one that is not there, cut short or not safetensors.
    pub fn open<P: AsRef<Path>>(files: &[P], prefix: &str, dtype: DType, device: &Device) -> Result<FileWeights> {
        let Some(first) = files.first() else {
            return Err(Error::argument("files", "at least one", "none"));
        };
        let file = first.as_ref().to_path_buf();
        for (number, shard) in files.iter().enumerate() {
            let shard = shard.as_ref();
            let begin = begin_of(shard).map_err(|fault| Error::Weights {
                file: shard.to_path_buf(),
                fault: WeightsFault::Unreadable(fault),
            })?;
            if number == 0 && begin.starts_with(ZIP) {
                return FileWeights::torch(files, file, prefix, dtype, device);
            }
            // Each by itself, for an error of all of them names none.
            safetensors_fault(shard, &begin).map_or(Ok(()), |fault| {
                Err(Error::Weights {
                    file: shard.to_path_buf(),
                    fault: WeightsFault::Unreadable(fault),
                })
            })?;
        }
        // SAFETY: candle maps the files, and they must not change while they are mapped: the caller
        // names checkpoints, which nobody writes in place (ours are renamed into place). Their
        // headers are checked before anything is read.
        let tensors = unsafe { MmapedSafetensors::multi(files) };
        FileWeights::safetensors(file, (tensors.map(Tensors::Mapped), b"?"), prefix, dtype, device)
    }

    /// One file of `torch.save`.
    fn torch<P: AsRef<Path>>(
        files: &[P],
        file: std::path::PathBuf,
        prefix: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<FileWeights> {
        if let Some(second) = files.get(1) {
            let got = format!("{} with it", second.as_ref().display());
            return Err(Error::argument("files", format!("{} alone", file.display()), got));
        }
        let opened = TorchFile::open(&file);
        let read = opened.and_then(|opened| chosen(&opened).map(|(named, left_out)| (opened, named, left_out)));
        let (opened, named, left_out) = read.map_err(|fault| Error::Weights {
            file: file.clone(),
            fault: WeightsFault::Torch(fault),
        })?;
        FileWeights::new(file, Tensors::Torch(opened, named), left_out, prefix, dtype, device)
    }

    /// The same of one file that is in memory already, by this name in errors.
    ///
    /// # Errors
    ///
    /// As [`FileWeights::open`].
    pub fn from_bytes(name: &str, bytes: &[u8], dtype: DType, device: &Device) -> Result<FileWeights> {
        let tensors = BufferedSafetensors::new(bytes.to_vec());
        let begin = &bytes[..bytes.len().min(64)];
        FileWeights::safetensors(name.into(), (tensors.map(Tensors::Read), begin), "", dtype, device)
    }

    fn safetensors(
        file: std::path::PathBuf,
        (tensors, begin): (candle_core::Result<Tensors>, &[u8]),
        prefix: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<FileWeights> {
        let tensors = tensors.map_err(|e| Error::Weights {
            file: file.clone(),
            fault: WeightsFault::Unreadable(match (instead(begin), e.to_string()) {
                (Some(hint), e) => format!("{hint} ({e})"),
                (None, e) if e.contains("not fully covered") => format!("it is cut short: fetch it again ({e})"),
                (None, e) => e,
            }),
        })?;
        FileWeights::new(file, tensors, Vec::new(), prefix, dtype, device)
    }

    fn new(
        file: std::path::PathBuf,
        tensors: Tensors,
        mut left_out: Vec<String>,
        prefix: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<FileWeights> {
        let names = tensors.names();
        // Single files of others, with what else a pipeline wants beside the model.
        let in_front = match &tensors {
            Tensors::Torch(..) => None,
            _ => FRONTS
                .into_iter()
                .find(|front| prefix.is_empty() && tensors.about(&format!("{front}{PATCH}")).is_some()),
        };
        if let Some(front) = in_front.filter(|front| !front.is_empty()) {
            let beside = names.iter().filter(|name| !name.starts_with(front)).count();
            if beside > 0 {
                left_out.push(format!("{beside} tensors without {front} in front"));
            }
        }
        let prefix = in_front.unwrap_or(prefix);
        // Without its factors such a file gives garbage and no error.
        let factors = |name: &String| FACTORS.iter().any(|ending| name.ends_with(ending));
        if let Some(name) = names.into_iter().find(factors) {
            return Err(Error::Weights {
                file,
                fault: WeightsFault::Scaled(name),
            });
        }
        Ok(FileWeights {
            file,
            original: tensors.about(&format!("{prefix}{TELLING}")).is_some(),
            tensors,
            left_out,
            lora: None,
            prefix: prefix.into(),
            dtype,
            device: device.clone(),
            taken: HashSet::new(),
            missing: Vec::new(),
            wrong: Vec::new(),
            stood_in: 0,
        })
    }

    /// Whether a tensor of this name is there, after the prefix.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.about(&format!("{}{name}", self.prefix)).is_some()
    }

    /// One more than the largest number that stands behind `before` in a name: how many layers there are, or were.
    pub(crate) fn counted(&self, before: &str) -> usize {
        let before = format!("{}{before}", self.prefix);
        let number = |name: &String| -> Option<usize> { name.strip_prefix(&before)?.split('.').next()?.parse().ok() };
        let largest = self.tensors.names().iter().filter_map(number).max();
        // More than any model has is no number of a layer.
        largest.map_or(0, |number| number.saturating_add(1).min(1 << 10))
    }

    /// The file; of several the first.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// The shape of a tensor by the file's own name; nothing where it is not there.
    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        let about = self.tensors.about(&format!("{}{name}", self.prefix));
        about.map(|(_, shape)| shape).unwrap_or_default()
    }

    /// A tensor by the file's own name, in this dtype, as it is.
    pub(crate) fn load(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let here = format!("{}{name}", self.prefix);
        let fault = match self.tensors.about(&here) {
            Some((stored, _)) if !is_float(stored) => WeightsFault::Dtype {
                name: here,
                dtype: format!("{stored:?}"),
            },
            Some((_, there)) if there == shape => {
                return Ok(self.tensors.load(&here, &self.device)?.to_dtype(dtype)?);
            }
            Some((_, there)) => WeightsFault::Incomplete {
                missing: Vec::new(),
                wrong: vec![(here, shape.to_vec(), there)],
                surplus: Vec::new(),
            },
            None => WeightsFault::Incomplete {
                missing: vec![here],
                wrong: Vec::new(),
                surplus: Vec::new(),
            },
        };
        Err(Error::Weights {
            file: self.file.clone(),
            fault,
        })
    }

    /// Rows of a matrix by the file's own name, gathered where the file lies: `[rows, columns]`.
    pub(crate) fn rows(&self, name: &str, rows: &[u32], dtype: DType, device: &Device) -> Result<Tensor> {
        let here = format!("{}{name}", self.prefix);
        let whole = |_| Error::Weights {
            file: self.file.clone(),
            fault: WeightsFault::Torch(format!("{here} has no rows of numbers one behind the other")),
        };
        let (stored, shape, bytes) = self.tensors.bytes(&here).ok_or(()).map_err(whole)?;
        let kind = match stored {
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::F16 => DType::F16,
            safetensors::Dtype::BF16 => DType::BF16,
            safetensors::Dtype::F64 => DType::F64,
            other => {
                return Err(Error::Weights {
                    file: self.file.clone(),
                    fault: WeightsFault::Dtype {
                        name: here,
                        dtype: format!("{other:?}"),
                    },
                });
            }
        };
        let &[_, columns] = &shape[..] else {
            return Err(whole(()));
        };
        let row = columns * kind.size_in_bytes();
        let mut gathered = Vec::with_capacity(rows.len() * row);
        for number in rows {
            let begin = *number as usize * row;
            gathered.extend_from_slice(bytes.get(begin..begin + row).ok_or(()).map_err(whole)?);
        }
        let gathered = Tensor::from_raw_buffer(&gathered, kind, &[rows.len(), columns], device)?;
        Ok(gathered.to_dtype(dtype)?)
    }

    /// These weights with an adapter merged in, in f32 before they are rounded.
    pub fn with_lora(mut self, lora: Lora) -> FileWeights {
        self.lora = Some(lora);
        self
    }

    /// Numbers of all tensors.
    pub fn numbers(&self) -> usize {
        let names = self.tensors.names();
        let of_this = names.iter().filter(|name| name.starts_with(&self.prefix));
        let shapes = of_this.filter_map(|name| self.tensors.about(name));
        shapes.map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// What the files hold besides these weights, in words; nothing of it is read.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Everything that was asked for and is not there, or is of another shape, and what is there, begins with the
    /// prefix and was not asked for: a model that has it is another one.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`] with the whole list.
    pub fn finish(self) -> Result<()> {
        self.finish_beside(&[])
    }

    /// The same, where what begins with one of these, after the prefix, is meant for others.
    pub(crate) fn finish_beside(mut self, others: &[&str]) -> Result<()> {
        let mut surplus = self.tensors.names();
        surplus.retain(|name| {
            let of_this = name.strip_prefix(&self.prefix);
            of_this.is_some_and(|rest| !others.iter().any(|other| rest.starts_with(other)) && !COMPUTED.contains(&rest))
                && !self.taken.contains(name)
        });
        surplus.sort();
        if self.missing.is_empty() && self.wrong.is_empty() && surplus.is_empty() {
            return self.lora.map_or(Ok(()), |lora| lora.finish());
        }
        Err(self.incomplete(surplus))
    }

    fn incomplete(&mut self, surplus: Vec<String>) -> Error {
        Error::Weights {
            file: self.file.clone(),
            fault: WeightsFault::Incomplete {
                missing: std::mem::take(&mut self.missing),
                wrong: std::mem::take(&mut self.wrong),
                surplus,
            },
        }
    }

    /// Something of the right shape in place of a tensor that is wrong, so that all that are wrong are told at once; a
    /// model that is wrong as a whole is told of before it takes memory.
    fn stand_in(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let numbers = shape.iter().copied().fold(1, usize::saturating_mul);
        self.stood_in = self.stood_in.saturating_add(numbers);
        match self.stood_in > MOST_STOOD_IN {
            true => Err(self.incomplete(Vec::new())),
            false => Ok(Tensor::zeros(shape, dtype, &self.device)?),
        }
    }
}

/// Numbers in place of tensors that are not there: 1 GB in f32.
const MOST_STOOD_IN: usize = 1 << 28;

impl Weights for FileWeights {
    fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let here = if self.original {
            original_name(name)
        } else {
            name.into()
        };
        let here = format!("{}{here}", self.prefix);
        let dtype = kept(name, self.dtype);
        let Some((stored, there)) = self.tensors.about(&here) else {
            self.missing.push(here);
            return self.stand_in(shape, dtype);
        };
        self.taken.insert(here.clone());
        if there != shape {
            self.wrong.push((here, shape.to_vec(), there));
            return self.stand_in(shape, dtype);
        }
        if !is_float(stored) {
            return Err(Error::Weights {
                file: self.file.clone(),
                fault: WeightsFault::Dtype {
                    name: here,
                    dtype: format!("{stored:?}"),
                },
            });
        }
        let tensor = self.tensors.load(&here, &self.device)?;
        // A sum of finite numbers in f32 may overflow; of their zeros it does not.
        let zeros = (tensor.to_dtype(DType::F32)? * 0.0)?.sum_all()?.to_scalar::<f32>()?;
        if zeros != 0.0 {
            return Err(Error::Weights {
                file: self.file.clone(),
                fault: WeightsFault::NotFinite(here),
            });
        }
        let tensor = match &mut self.lora {
            Some(lora) => lora.merge(&original_name(name), tensor, &self.device)?,
            None => tensor,
        };
        Ok(tensor.to_dtype(dtype)?)
    }
}

/// The dtype of a tensor in a model of this one. The embedding of time, modulation and norms are few numbers that
/// are computed in f32, and stay f32 as diffusers keeps them.
fn kept(name: &str, dtype: DType) -> DType {
    let small = ["time_embedder", "time_proj", "scale_shift_table", "norm"];
    match dtype {
        DType::F16 | DType::BF16 if small.iter().any(|part| name.contains(part)) => DType::F32,
        _ => dtype,
    }
}

/// The name that the original Wan has for diffusers' `name`.
fn original_name(name: &str) -> String {
    let whole = match name {
        "scale_shift_table" => Some("head.modulation"),
        "proj_out.weight" => Some("head.head.weight"),
        "proj_out.bias" => Some("head.head.bias"),
        _ => None,
    };
    if let Some(name) = whole {
        return name.into();
    }
    const PARTS: [(&str, &str); 15] = [
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("scale_shift_table", "modulation"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        (".to_q.", ".q."),
        (".to_k.", ".k."),
        (".to_v.", ".v."),
        (".to_out.0.", ".o."),
        (".norm2.", ".norm3."),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
    ];
    PARTS
        .iter()
        .fold(name.to_string(), |name, (ours, theirs)| name.replace(ours, theirs))
}

/// Random numbers as training begins with them, the same for a seed on every device: linear layers
/// keep the size of what goes through them, biases are 0, norms 1, and the head gives nearly nothing.
pub struct RandomWeights {
    ours: packforcing::Device,
    device: Device,
    dtype: DType,
    noise: Noise,
}

impl RandomWeights {
    /// Numbers of this seed, as `dtype` on `device`.
    ///
    /// # Errors
    ///
    /// A device that packforcing does not have.
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Result<RandomWeights> {
        Ok(RandomWeights {
            ours: packforcing_candle::device(device)?,
            device: device.clone(),
            dtype,
            noise: Noise { seed, offset: 0 },
        })
    }

    /// Normal numbers of this standard deviation, f32.
    ///
    /// # Errors
    ///
    /// Memory for them, and what the device reports.
    pub fn normal(&mut self, shape: &[usize], scale: f64) -> Result<Tensor> {
        let zeros = Tensor::zeros((1, shape.iter().product::<usize>()), DType::F32, &self.device)?;
        let rows = Coefficients::new(&self.ours, &[vec![vec![0.0], vec![scale]]])?;
        let drawn = denoise_step(&self.ours, &[&zeros], 0, &rows, Some(self.noise))?.swap_remove(0);
        self.noise = self.noise.after(drawn.elem_count());
        Ok(drawn.reshape(shape)?)
    }
}

impl Weights for RandomWeights {
    fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let fan_in: usize = shape.iter().skip(1).product();
        let tensor = match name {
            _ if name.ends_with(".bias") => Tensor::zeros(shape, DType::F32, &self.device)?,
            _ if name.contains("norm") => Tensor::ones(shape, DType::F32, &self.device)?,
            "proj_out.weight" => self.normal(shape, 0.02)?,
            _ if name.ends_with("scale_shift_table") => {
                self.normal(shape, (shape.last().copied().unwrap_or(1) as f64).sqrt().recip())?
            }
            _ => self.normal(shape, (fan_in.max(1) as f64).sqrt().recip())?,
        };
        Ok(tensor.to_dtype(kept(name, self.dtype))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_safetensors_file_is_told() {
        for (bytes, told) in [
            (&b""[..], "it is empty"),
            (b"PK\x03\x04 and so on", "a file of PyTorch's"),
            (b"\x80\x02 and so on", "before 1.6"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"<!DOCTYPE html>", "HTML"),
            (b"{\"weight_map\": {}}", "an index names the files"),
            (b"GGUF\x03\0\0\0", "GGUF"),
        ] {
            let error = FileWeights::from_bytes("model", bytes, DType::F32, &Device::Cpu).err();
            let text = error.map(|e| e.to_string()).unwrap_or_default();
            assert!(text.contains("model") && text.contains(told), "{told}: {text}");
        }
    }

    #[test]
    fn what_is_computed_in_f32_stays_f32() {
        let shape = [1, 2, 3];
        // No number of bf16.
        let table = Tensor::full(1.000_976_6f32, &shape[..], &Device::Cpu).expect("numbers");
        let kept = [
            "condition_embedder.time_embedder.linear_1.weight",
            "condition_embedder.time_proj.bias",
            "blocks.0.scale_shift_table",
            "scale_shift_table",
            "blocks.3.norm2.bias",
            "blocks.3.attn2.norm_k.weight",
        ];
        let narrow = [
            "blocks.0.attn1.to_q.weight",
            "proj_out.weight",
            "patch_embedding.weight",
        ];
        let named = kept.iter().chain(&narrow).map(|name| (*name, &table));
        let bytes = safetensors::serialize(named, None).expect("a file");
        let open = |dtype| FileWeights::from_bytes("model", &bytes, dtype, &Device::Cpu).expect("a file");
        let random = |dtype| RandomWeights::new(1, dtype, &Device::Cpu).expect("the CPU");
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let (mut file, mut random) = (open(dtype), random(dtype));
            for name in kept {
                let tensor = file.get(name, &shape).expect(name);
                assert_eq!(
                    (tensor.dtype(), random.get(name, &shape).expect(name).dtype()),
                    (DType::F32, DType::F32)
                );
                let same = tensor.eq(&table).and_then(|same| same.min_all()?.to_scalar::<u8>());
                assert_eq!(same.expect("one shape"), 1, "{name} was rounded");
            }
            for name in narrow {
                assert_eq!(file.get(name, &shape).expect(name).dtype(), dtype, "{name}");
                assert_eq!(random.get(name, &shape).expect(name).dtype(), dtype, "{name}");
            }
            file.finish().expect("all was asked for");
        }
    }
}
