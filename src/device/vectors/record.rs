//! What a card did, in a file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{Case, Values, bits, value};

const ABOUT: &str = "What a card's instructions did with the inputs of src/device/vectors/, whose hashes are \
                     beside this. A tensor is a case's output: accumulators thread by thread in the narrowest \
                     float type that holds them, a quarter of them where all four warps have the same; or the \
                     16-bit elements of shared memory or of registers.";

/// A record's tensor: element type, shape, bytes.
pub(super) type Stored = (Dtype, Vec<usize>, Vec<u8>);

pub(super) fn stored(case: &Case, values: &Values) -> Stored {
    let x = match values {
        Values::Words(x) => return (Dtype::U16, vec![x.len()], bytemuck::cast_slice(x).to_vec()),
        Values::Floats(x) => x,
    };
    let quarter = x.len() / 4;
    let same = |i: usize, j: usize| x[i].to_bits() == x[j].to_bits();
    let folds = case.threads == 128 && (quarter..x.len()).all(|i| same(i, i - quarter));
    let (x, rows) = if folds {
        (&x[..quarter], 32)
    } else {
        (&x[..], case.threads)
    };
    let shape = vec![rows, x.len() / rows];
    let narrow = |half| -> Option<Vec<u8>> {
        let exact = |&x: &f32| value(bits(x, half), half).to_bits() == x.to_bits();
        let all = x.iter().all(exact);
        all.then(|| x.iter().flat_map(|&x| bits(x, half).to_le_bytes()).collect())
    };
    if let Some(bytes) = narrow(true) {
        return (Dtype::F16, shape, bytes);
    }
    if let Some(bytes) = narrow(false) {
        return (Dtype::BF16, shape, bytes);
    }
    (Dtype::F32, shape, bytemuck::cast_slice(x).to_vec())
}

pub(super) fn restored(case: &Case, (dtype, shape, bytes): &Stored) -> Result<Values, String> {
    let words = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let mut x: Vec<f32> = match dtype {
        Dtype::U16 => return Ok(Values::Words(words().collect())),
        Dtype::F16 => words().map(|b| value(b, true)).collect(),
        Dtype::BF16 => words().map(|b| value(b, false)).collect(),
        Dtype::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        other => return Err(format!("{}: recorded as {other:?}", case.name)),
    };
    if case.threads == 128 && shape.first() == Some(&32) {
        x = x.repeat(4);
    }
    Ok(Values::Floats(x))
}

/// What a card did.
pub(super) struct Record {
    pub card: String,
    cases: HashMap<String, Stored>,
    hashes: HashMap<String, String>,
}

impl Record {
    pub fn path() -> PathBuf {
        let folder = match std::env::var_os("PACKFORCING_GOLDEN") {
            Some(folder) => PathBuf::from(folder),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
        };
        folder.join("instructions.safetensors")
    }

    /// None where there is no file.
    pub fn open(path: &Path) -> Result<Option<Record>, String> {
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| format!("{}: {e}", path.display()))?,
        };
        Record::parse(&bytes)
            .map(Some)
            .map_err(|e| format!("{}: {e}", path.display()))
    }

    pub fn parse(bytes: &[u8]) -> Result<Record, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let mut hashes = header.metadata().clone().unwrap_or_default();
        let card = hashes.remove("card").ok_or("it names no card")?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?.tensors();
        let cases = tensors
            .into_iter()
            .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())));
        Ok(Record {
            card,
            cases: cases.collect(),
            hashes,
        })
    }

    pub fn bytes(card: &str, results: &[(&Case, Values)]) -> Result<Vec<u8>, String> {
        let stored: Vec<Stored> = results.iter().map(|(case, values)| stored(case, values)).collect();
        let mut views = Vec::new();
        for ((case, _), (dtype, shape, bytes)) in results.iter().zip(&stored) {
            let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| e.to_string())?;
            views.push((case.name.clone(), view));
        }
        let about = [
            ("about".to_string(), ABOUT.to_string()),
            ("card".to_string(), card.to_string()),
        ];
        let hashes = results.iter().map(|(case, _)| (case.name.clone(), case.inputs_hash()));
        safetensors::serialize(views, Some(hashes.chain(about).collect())).map_err(|e| e.to_string())
    }

    /// What this case's result is by the record, or that it holds none of these inputs.
    pub fn values(&self, case: &Case) -> Result<Values, String> {
        match self.cases.get(&case.name) {
            Some(stored) if self.hashes.get(&case.name) == Some(&case.inputs_hash()) => restored(case, stored),
            Some(_) => Err(format!(
                "{}: recorded of other inputs; record again on a card",
                case.name
            )),
            None => Err(format!("{}: not in the record; record again on a card", case.name)),
        }
    }
}
