//! What goes wrong.

use std::fmt;
use std::path::PathBuf;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the model or of what it stands on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something that does not fit.
    #[error("{argument}: expected {expected}, got {got}")]
    Argument {
        /// What it is called.
        argument: &'static str,
        /// What is taken.
        expected: String,
        /// What came.
        got: String,
    },

    /// Weights that are not those of this model.
    #[error("{}: {fault}", file.display())]
    Weights {
        /// The file; of several the first.
        file: PathBuf,
        /// What is wrong with it.
        fault: WeightsFault,
    },

    /// A checkpoint that cannot be written, read, or gone on with.
    #[error("{}: {reason}", file.display())]
    Checkpoint {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: String,
    },

    /// Of the kernels or the cache.
    #[error(transparent)]
    Packforcing(#[from] packforcing::Error),

    /// Of candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// What is wrong with a file of weights.
#[derive(Debug)]
#[non_exhaustive]
pub enum WeightsFault {
    /// It cannot be read as safetensors.
    Unreadable(String),
    /// Tensors that are not there, by the names that the file's scheme has for them, those of another shape, and
    /// those that this model does not have.
    Incomplete {
        /// Names.
        missing: Vec<String>,
        /// Name, expected shape, shape in the file.
        wrong: Vec<(String, Vec<usize>, Vec<usize>)>,
        /// Names in the file.
        surplus: Vec<String>,
    },
    /// A tensor with a NaN or an infinity.
    NotFinite(String),
    /// A tensor whose numbers are not of a type that weights have.
    Dtype {
        /// Its name.
        name: String,
        /// What they are.
        dtype: String,
    },
    /// A file of `torch.save` that cannot be taken.
    Torch(String),
    /// Weights in 8 bits with factors beside them, by the name of one of these.
    Scaled(String),
}

impl fmt::Display for WeightsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightsFault::Unreadable(reason) => write!(f, "not a safetensors file that can be read: {reason}"),
            WeightsFault::Incomplete {
                missing,
                wrong,
                surplus,
            } => {
                let (lines, all) = (6, missing.len() + wrong.len() + surplus.len());
                write!(f, "{} tensors missing, {} of another shape", missing.len(), wrong.len())?;
                if !surplus.is_empty() {
                    write!(f, ", {} that this model does not have", surplus.len())?;
                }
                let wrong = wrong
                    .iter()
                    .map(|(name, expected, got)| format!("{name} is {got:?} and not {expected:?}"));
                let missing = missing.iter().map(|name| match nearest(name, surplus) {
                    Some(near) => format!("{name} is missing (there is {near})"),
                    None => format!("{name} is missing"),
                });
                let surplus = surplus.iter().map(|name| format!("{name} has no place"));
                let named: Vec<String> = wrong.chain(missing).chain(surplus).take(lines).collect();
                write!(f, ": {}", named.join(", "))?;
                if all > lines {
                    write!(f, " and {} more", all - lines)?;
                }
                Ok(())
            }
            WeightsFault::Torch(reason) => write!(f, "{reason}"),
            WeightsFault::NotFinite(name) => write!(f, "{name} has numbers that are not finite"),
            WeightsFault::Dtype { name, dtype } => {
                write!(
                    f,
                    "{name} has numbers of {dtype}; weights are taken in f32, f16, bf16 and f64"
                )
            }
            WeightsFault::Scaled(name) => write!(
                f,
                "its weights are 8-bit numbers with factors of their own ({name}), which are not taken: use the file in bf16 or f16"
            ),
        }
    }
}

/// Of the names that are there the one most like this, if one is.
fn nearest<'n>(name: &str, names: &'n [String]) -> Option<&'n String> {
    let likeness = |other: &&String| strsim::normalized_levenshtein(name, other);
    let best = names.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) > 0.7).then_some(best)
}

impl Error {
    pub(crate) fn argument(argument: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Argument {
            argument,
            expected: expected.into(),
            got: got.into(),
        }
    }
}

impl From<packforcing_candle::Error> for Error {
    fn from(error: packforcing_candle::Error) -> Error {
        match error {
            packforcing_candle::Error::Packforcing(error) => Error::Packforcing(error),
            other => Error::Candle(other.into()),
        }
    }
}
