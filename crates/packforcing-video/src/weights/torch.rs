//! Files of `torch.save`: a zip with a pickle that describes tensors, and their storages. The file is mapped, and a tensor is
//! read when it is asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::Dtype;

use super::pickle::{Id, Pickle, Value};

/// How a zip begins.
pub(crate) const ZIP: &[u8] = b"PK\x03\x04";
/// Many times what describes 2,500 tensors.
const LONGEST_PICKLE: usize = 64 << 20;
/// Dictionaries inside one another.
const DEEPEST: usize = 8;

/// A tensor where it lies.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// In numbers.
    strides: Vec<usize>,
    /// Of the file: from the first number to the end of the last.
    bytes: Range<usize>,
}

/// A file of `torch.save`, mapped.
pub(crate) struct TorchFile {
    map: Mmap,
    /// Tensors of the whole file: under no name those that lie at the top, and under a name those of a dictionary there.
    sets: BTreeMap<String, BTreeMap<String, Stored>>,
    /// What else is named, and what it is.
    others: BTreeMap<String, String>,
}

impl TorchFile {
    /// Opens a file and reads what describes its tensors.
    pub fn open(path: &Path) -> Result<TorchFile, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        // SAFETY: the file must not change while it is mapped: the caller names a checkpoint, which nobody writes in place.
        // Every range is held against the file's length before it is read.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| e.to_string())?;
        let mut zip = zip::ZipArchive::new(Cursor::new(&map[..]))
            .map_err(|e| format!("a zip whose end is not there: the file is cut short ({e})"))?;
        // Where every entry's bytes lie.
        let mut entries = BTreeMap::new();
        for number in 0..zip.len() {
            let entry = zip.by_index_raw(number).map_err(|e| e.to_string())?;
            let name = entry.name().map_err(|e| e.to_string())?.into_owned();
            let start = entry.data_start().ok_or_else(|| format!("{name} is nowhere in it"))?;
            let size = entry.size();
            let within = start.checked_add(size).is_some_and(|end| end <= map.len() as u64);
            if !within {
                return Err(format!("{name} ends behind the end of the file, which is cut short"));
            }
            let stored = entry.compression() == zip::CompressionMethod::Stored;
            entries.insert(name, (start as usize..(start + size) as usize, stored));
        }
        let described = |name: &&String| name.ends_with("/data.pkl") || *name == "data.pkl";
        let Some(name) = entries.keys().find(described).cloned() else {
            return Err("a zip, but none of torch.save's: no data.pkl in it".into());
        };
        let folder = name.strip_suffix("data.pkl").unwrap_or_default().to_string();
        if entries.contains_key(&format!("{folder}constants.pkl")) {
            return Err("a TorchScript program, and not the weights of one: save its state_dict()".into());
        }
        if entries
            .get(&format!("{folder}byteorder"))
            .is_some_and(|(at, _)| &map[at.clone()] == b"big")
        {
            return Err("its numbers are big-endian".into());
        }
        let (at, plain) = &entries[&name];
        if !plain || at.len() > LONGEST_PICKLE {
            return Err(format!(
                "its description is compressed, or longer than {LONGEST_PICKLE} bytes"
            ));
        }
        let pickle = Pickle::read(&map[at.clone()])?;
        let storage = |key: &str| entries.get(&format!("{folder}data/{key}"));
        let mut found = Found {
            pickle: &pickle,
            storage: &storage,
            sets: BTreeMap::new(),
            others: BTreeMap::new(),
            looked: 0,
        };
        found.top(pickle.root())?;
        let (sets, others) = (found.sets, found.others);
        Ok(TorchFile { map, sets, others })
    }

    /// The tensors of a set, by their names; the set without a name are those at the top.
    pub fn set(&self, name: &str) -> Option<&BTreeMap<String, Stored>> {
        self.sets.get(name)
    }

    /// Names of all sets, and how many tensors each has.
    pub fn sets(&self) -> impl Iterator<Item = (&str, usize)> {
        self.sets.iter().map(|(name, tensors)| (name.as_str(), tensors.len()))
    }

    /// What is named and is no tensor.
    pub fn others(&self) -> &BTreeMap<String, String> {
        &self.others
    }

    /// A tensor's bytes, where its numbers lie one behind the other.
    pub fn bytes(&self, tensor: &Stored) -> Option<&[u8]> {
        let mut whole = 1;
        let dense = tensor.shape.iter().zip(&tensor.strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == whole;
            whole *= n;
            fits
        });
        (dense || tensor.shape.contains(&0)).then(|| &self.map[tensor.bytes.clone()])
    }

    /// A tensor's numbers, as they are stored; f32, f16, bf16 and f64.
    pub fn load(&self, tensor: &Stored, device: &Device) -> candle_core::Result<Tensor> {
        let (dtype, size) = match tensor.dtype {
            Dtype::F64 => (DType::F64, 8),
            Dtype::F32 => (DType::F32, 4),
            Dtype::F16 => (DType::F16, 2),
            Dtype::BF16 => (DType::BF16, 2),
            other => candle_core::bail!("{other:?} are no numbers of weights"),
        };
        if let Some(bytes) = self.bytes(tensor) {
            return Tensor::from_raw_buffer(bytes, dtype, &tensor.shape, device);
        }
        let bytes = &self.map[tensor.bytes.clone()];
        let Stored { shape, strides, .. } = tensor;
        let count: usize = shape.iter().product();
        let mut gathered = Vec::with_capacity(count * size);
        for mut number in 0..count {
            let mut at = 0;
            for (&n, &stride) in shape.iter().zip(strides).rev() {
                at += number % n * stride;
                number /= n;
            }
            gathered.extend_from_slice(&bytes[at * size..][..size]);
        }
        Tensor::from_raw_buffer(&gathered, dtype, shape, device)
    }
}

/// Where the bytes of an entry of a zip lie, and whether they lie there as they are.
type Entry = (Range<usize>, bool);

/// What is found on the way through a pickle.
struct Found<'p> {
    pickle: &'p Pickle,
    /// Of a storage by its key.
    storage: &'p dyn Fn(&str) -> Option<&'p Entry>,
    sets: BTreeMap<String, BTreeMap<String, Stored>>,
    others: BTreeMap<String, String>,
    /// How many names were looked at.
    looked: usize,
}

/// A model has a thousand tensors, a trainer some copies of them and its settings. A dictionary may be named many times over:
/// a file of a few bytes would be walked for years.
const MOST_NAMES: usize = 1 << 18;

impl Found<'_> {
    fn top(&mut self, root: Id) -> Result<(), String> {
        let Value::Dict(items) = self.pickle.value(root) else {
            return Err(format!("{}, and no dictionary of tensors", self.what(root)));
        };
        for (key, value) in items {
            let name = self.key(*key);
            match self.pickle.value(*value) {
                Value::Dict(inner) => {
                    let before = self.sets.insert(name.clone(), BTreeMap::new());
                    if before.is_some() {
                        return Err(format!("{name} is in it twice"));
                    }
                    self.inside(&name, "", inner, 0)?;
                }
                _ => self.leaf("", &name, *value)?,
            }
        }
        // Settings, states of optimizers and the like.
        self.sets.retain(|name, tensors| {
            if tensors.is_empty() && !name.is_empty() {
                let inside = format!("{name}.");
                self.others.retain(|other, _| !other.starts_with(&inside));
                self.others.insert(name.clone(), "a dictionary without tensors".into());
            }
            !tensors.is_empty()
        });
        Ok(())
    }

    fn inside(&mut self, set: &str, before: &str, items: &[(Id, Id)], depth: usize) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(format!("{set}: more than {DEEPEST} dictionaries inside one another"));
        }
        for (key, value) in items {
            self.looked += 1;
            if self.looked > MOST_NAMES {
                return Err(format!("more than {MOST_NAMES} names are in it"));
            }
            let name = match before {
                "" => self.key(*key),
                before => format!("{before}.{}", self.key(*key)),
            };
            match self.pickle.value(*value) {
                Value::Dict(inner) => self.inside(set, &name, inner, depth + 1)?,
                _ => self.leaf(set, &name, *value)?,
            }
        }
        Ok(())
    }

    fn leaf(&mut self, set: &str, name: &str, value: Id) -> Result<(), String> {
        let full = match set {
            "" => name.to_string(),
            set => format!("{set}.{name}"),
        };
        match self.tensor(value).map_err(|e| format!("{full}: {e}"))? {
            Some(stored) => {
                let tensors = self.sets.entry(set.into()).or_default();
                if tensors.insert(name.into(), stored).is_some() {
                    return Err(format!("{full} is in it twice"));
                }
            }
            None => {
                let what = self.what(value);
                self.others.insert(full, what);
            }
        }
        Ok(())
    }

    fn key(&self, key: Id) -> String {
        match self.pickle.value(key) {
            Value::Text(text) => text.clone(),
            Value::Int(number) => number.to_string(),
            other => format!("{other:?}"),
        }
    }

    /// In words.
    fn what(&self, value: Id) -> String {
        match self.pickle.value(value) {
            Value::None => "None".into(),
            Value::Bool(yes) => yes.to_string(),
            Value::Int(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Text(_) | Value::Opaque => "a text".into(),
            Value::Tuple(_) | Value::List(_) => "a list".into(),
            Value::Dict(_) => "a dictionary".into(),
            Value::Global(name) => format!("the class {name}"),
            Value::Outside(_) => "a storage".into(),
            Value::Call { what, .. } => match self.pickle.global(*what) {
                Some("torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_parameter") => "a tensor".into(),
                Some(name) => format!("a call of {name}, which is not carried out"),
                None => "a call, which is not carried out".into(),
            },
        }
    }

    /// Nothing where the value is no tensor.
    fn tensor(&self, value: Id) -> Result<Option<Stored>, String> {
        let Some((what, arguments)) = self.pickle.call(value) else {
            return Ok(None);
        };
        match (what, arguments) {
            ("torch._utils._rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
                self.view(*storage, *offset, *shape, *strides, None).map(Some)
            }
            ("torch._utils._rebuild_tensor_v3", [storage, offset, shape, strides, _, _, dtype, ..]) => {
                self.view(*storage, *offset, *shape, *strides, Some(*dtype)).map(Some)
            }
            ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", [inner, ..]) => {
                self.inner(*inner)
            }
            ("torch._tensor._rebuild_from_type_v2", [rebuild, _, inner, ..]) => {
                let (Some(rebuild), Some(inner)) = (self.pickle.global(*rebuild), self.pickle.tuple(*inner)) else {
                    return Ok(None);
                };
                match (rebuild, inner) {
                    ("torch._utils._rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
                        self.view(*storage, *offset, *shape, *strides, None).map(Some)
                    }
                    _ => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }

    /// A parameter's tensor, which is no parameter.
    fn inner(&self, value: Id) -> Result<Option<Stored>, String> {
        match self.pickle.call(value) {
            Some(("torch._utils._rebuild_tensor_v2", _)) => self.tensor(value),
            _ => Ok(None),
        }
    }

    fn view(&self, storage: Id, offset: Id, shape: Id, strides: Id, dtype: Option<Id>) -> Result<Stored, String> {
        let damaged = || "it is described in a way that torch does not".to_string();
        let Value::Outside(about) = self.pickle.value(storage) else {
            return Err(damaged());
        };
        let Some([_, kind, key, _, numbers]) = self.pickle.tuple(*about) else {
            return Err(damaged());
        };
        let kind = self.pickle.global(*kind).ok_or_else(damaged)?;
        let (kind, untyped) = match dtype.and_then(|dtype| self.pickle.global(dtype)) {
            Some(dtype) => (dtype, true),
            None => (kind, false),
        };
        let dtype = named(kind).ok_or_else(|| format!("its numbers are {kind}"))?;
        let size = dtype.bitsize() / 8;
        let key = self.pickle.text(*key).ok_or_else(damaged)?;
        let (place, plain) = (self.storage)(key).ok_or_else(|| format!("its storage {key} is not in the file"))?;
        if !plain {
            return Err(format!(
                "its storage {key} is compressed, which torch.save does not do: save it again"
            ));
        }
        let numbers = self.pickle.number(*numbers).ok_or_else(damaged)?;
        let said = if untyped {
            Some(numbers)
        } else {
            numbers.checked_mul(size)
        };
        if said.is_none_or(|said| said > place.len()) {
            return Err(format!("its storage {key} is cut short"));
        }
        let list = |id: Id| -> Option<Vec<usize>> {
            let items = self.pickle.tuple(id)?;
            items.iter().map(|item| self.pickle.number(*item)).collect()
        };
        let (shape, strides) = (list(shape).ok_or_else(damaged)?, list(strides).ok_or_else(damaged)?);
        let offset = self.pickle.number(offset).ok_or_else(damaged)?;
        if shape.len() != strides.len() {
            return Err(damaged());
        }
        // From the first number to behind the last.
        let span = match shape.contains(&0) {
            true => Some(0),
            false => {
                let mut steps = shape.iter().zip(&strides);
                steps.try_fold(1usize, |span, (n, stride)| {
                    span.checked_add((n - 1).checked_mul(*stride)?)
                })
            }
        };
        let count = shape.iter().copied().try_fold(1usize, usize::checked_mul);
        let range = span.zip(count).and_then(|(span, count)| {
            // What is repeated is written out.
            count.checked_mul(size)?;
            let begin = place.start.checked_add(offset.checked_mul(size)?)?;
            let end = begin.checked_add(span.checked_mul(size)?)?;
            match span {
                0 => Some(place.start..place.start),
                _ => (end <= place.end).then_some(begin..end),
            }
        });
        Ok(Stored {
            dtype,
            shape,
            strides,
            bytes: range.ok_or_else(|| format!("it reaches behind the end of its storage {key}"))?,
        })
    }
}

/// The numbers of a class of storages, or of a dtype.
fn named(kind: &str) -> Option<Dtype> {
    Some(match kind {
        "torch.DoubleStorage" | "torch.float64" => Dtype::F64,
        "torch.FloatStorage" | "torch.float32" => Dtype::F32,
        "torch.HalfStorage" | "torch.float16" => Dtype::F16,
        "torch.BFloat16Storage" | "torch.bfloat16" => Dtype::BF16,
        "torch.LongStorage" | "torch.int64" => Dtype::I64,
        "torch.IntStorage" | "torch.int32" => Dtype::I32,
        "torch.ShortStorage" | "torch.int16" => Dtype::I16,
        "torch.CharStorage" | "torch.int8" => Dtype::I8,
        "torch.ByteStorage" | "torch.uint8" => Dtype::U8,
        "torch.BoolStorage" | "torch.bool" => Dtype::BOOL,
        "torch.float8_e4m3fn" => Dtype::F8_E4M3,
        "torch.float8_e5m2" => Dtype::F8_E5M2,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    /// A text, as a pickle has it.
    fn text(text: &str) -> Vec<u8> {
        [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
    }

    fn number(n: u64) -> Vec<u8> {
        [&b"\x8a\x08"[..], &n.to_le_bytes()].concat()
    }

    /// A dictionary of these.
    fn dictionary(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let items = items
            .iter()
            .flat_map(|(name, value)| [text(name), value.clone(), b"s".to_vec()]);
        [vec![b"}".to_vec()], items.collect::<Vec<_>>()].concat().concat()
    }

    /// A matrix of f32 in a storage of so many numbers.
    fn matrix(storage: &str, numbers: u64, offset: u64, [rows, cols]: [u64; 2]) -> Vec<u8> {
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
            text("storage"),
            b"ctorch\nFloatStorage\n".to_vec(),
            text(storage),
            text("cpu"),
            number(numbers),
            b"tQ".to_vec(),
            number(offset),
            number(rows),
            number(cols),
            b"\x86".to_vec(),
            number(cols),
            number(1),
            b"\x86\x89ccollections\nOrderedDict\n)RtR".to_vec(),
        ]
        .concat()
    }

    /// An entry: name, size, and bytes at places of it.
    type Part<'n> = (&'n str, u64, Vec<(u64, Vec<u8>)>);

    /// A zip of entries that are stored, sizes and places in 64 bits; what an entry does not begin with are holes.
    fn zip(path: &Path, entries: &[Part<'_>]) {
        let mut file = File::create(path).expect("a file");
        let sizes = |size: u64| [size.to_le_bytes(), size.to_le_bytes()].concat();
        let (mut at, mut central) = (0u64, Vec::new());
        for (name, size, parts) in entries {
            let tail = [&[0; 8][..], &[0xff; 8], &(name.len() as u16).to_le_bytes()].concat();
            let head = [
                &b"PK\x03\x04\x2d\0\0\0\0\0"[..],
                &tail,
                &20u16.to_le_bytes(),
                name.as_bytes(),
            ]
            .concat();
            let local = [&head[..], &b"\x01\0\x10\0"[..], &sizes(*size)].concat();
            file.write_all(&local).expect("a header");
            let data = at + local.len() as u64;
            for (place, bytes) in parts {
                file.seek(SeekFrom::Start(data + place)).expect("a place");
                file.write_all(bytes).expect("bytes");
            }
            central.extend([&b"PK\x01\x02\x2d\0\x2d\0\0\0\0\0"[..], &tail, &28u16.to_le_bytes()].concat());
            central.extend(
                [
                    &[0; 10][..],
                    &[0xff; 4],
                    name.as_bytes(),
                    b"\x01\0\x18\0",
                    &sizes(*size),
                    &at.to_le_bytes(),
                ]
                .concat(),
            );
            at = data + size;
            file.seek(SeekFrom::Start(at)).expect("a place");
        }
        let count = entries.len() as u64;
        file.write_all(&central).expect("a directory");
        let end = at + central.len() as u64;
        let of_all = [count, count, central.len() as u64, at].map(u64::to_le_bytes).concat();
        let last = [
            &b"PK\x06\x06"[..],
            &44u64.to_le_bytes(),
            b"\x2d\0\x2d\0\0\0\0\0\0\0\0\0",
            &of_all,
            b"PK\x06\x07\0\0\0\0",
            &end.to_le_bytes(),
            b"\x01\0\0\0PK\x05\x06\0\0\0\0",
            &[0xff; 12],
            b"\0\0",
        ];
        file.write_all(&last.concat()).expect("an end");
    }

    fn described(items: &[(&str, Vec<u8>)]) -> Part<'static> {
        let pickle = [&b"\x80\x02"[..], &dictionary(items), b"."].concat();
        ("archive/data.pkl", pickle.len() as u64, vec![(0, pickle)])
    }

    fn numbers(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            Scratch(std::env::temp_dir().join(format!("packforcing-torch-{}-{name}", std::process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// Of 6 GB as one copy of the weights has it, and of 16 GB as three have it: holes, but for what is read.
    #[test]
    fn files_of_many_gigabytes_are_read_where_their_tensors_lie() {
        const GB: u64 = 1 << 30;
        for (name, sets, each) in [
            ("one", &["generator_ema"][..], 6 * GB),
            ("three", &["generator", "critic", "generator_ema"], 16 * GB / 3),
        ] {
            let scratch = Scratch::new(name);
            let count = each / 4;
            let items: Vec<(&str, Vec<u8>)> = sets
                .iter()
                .enumerate()
                .map(|(i, set)| {
                    let key = i.to_string();
                    let first = ("model.first", matrix(&key, count, 0, [1, 3]));
                    let last = ("model.last", matrix(&key, count, count - 4, [2, 2]));
                    (*set, dictionary(&[first, last]))
                })
                .collect();
            let names: Vec<String> = (0..sets.len()).map(|i| format!("archive/data/{i}")).collect();
            let mut entries = vec![described(&items)];
            for (i, name) in names.iter().enumerate() {
                let x = i as f32;
                let parts = vec![
                    (0, numbers(&[x, 1.0, 2.0])),
                    ((count - 4) * 4, numbers(&[x, 4.0, 5.0, 6.0])),
                ];
                entries.push((name, count * 4, parts));
            }
            zip(&scratch.0, &entries);
            let file = TorchFile::open(&scratch.0).expect("a file of torch.save");
            for (i, set) in sets.iter().enumerate() {
                let tensors = file.set(set).expect("a set");
                let load = |name: &str| file.load(&tensors[name], &Device::Cpu).expect("a tensor");
                let x = i as f32;
                assert_eq!(load("model.first").to_vec2::<f32>().expect("f32"), [[x, 1.0, 2.0]]);
                assert_eq!(
                    load("model.last").to_vec2::<f32>().expect("f32"),
                    [[x, 4.0], [5.0, 6.0]]
                );
            }
        }
    }

    #[test]
    fn files_that_are_wrong_are_told_of() {
        let scratch = Scratch::new("wrong");
        let storage = || {
            (
                "archive/data/0",
                24,
                vec![(0, numbers(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))],
            )
        };
        let whole = |numbers, offset, shape| {
            described(&[("generator", dictionary(&[("a", matrix("0", numbers, offset, shape))]))])
        };
        let refused = |entries: &[Part<'_>], told: &str| {
            zip(&scratch.0, entries);
            let said = TorchFile::open(&scratch.0).err().unwrap_or_default();
            assert!(said.contains(told), "{said} for {told}");
        };
        zip(&scratch.0, &[whole(6, 0, [2, 3]), storage()]);
        assert!(TorchFile::open(&scratch.0).is_ok());
        refused(
            &[whole(6, 1, [2, 3]), storage()],
            "generator.a: it reaches behind the end of its storage 0",
        );
        refused(&[whole(6, u64::MAX >> 2, [2, 3]), storage()], "behind the end");
        refused(&[whole(6, 0, [1 << 40, 1 << 40]), storage()], "behind the end");
        refused(&[whole(7, 0, [2, 3]), storage()], "its storage 0 is cut short");
        refused(&[whole(6, 0, [2, 3])], "its storage 0 is not in the file");
        refused(&[storage()], "no data.pkl");
        refused(
            &[whole(6, 0, [2, 3]), storage(), ("archive/constants.pkl", 0, Vec::new())],
            "TorchScript",
        );
        // Cut short anywhere.
        zip(&scratch.0, &[whole(6, 0, [2, 3]), storage()]);
        let bytes = std::fs::read(&scratch.0).expect("the file");
        for end in [30, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&scratch.0, &bytes[..end]).expect("a file");
            let said = TorchFile::open(&scratch.0).err().unwrap_or_default();
            assert!(said.contains("cut short"), "{said}");
        }
    }
}
