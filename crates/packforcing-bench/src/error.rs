//! What can go wrong.

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A shape that makes no case.
    #[error("{field}: expected {expected}, got {got}")]
    Shape {
        /// The field of the shape.
        field: &'static str,
        /// What makes a case.
        expected: String,
        /// What came.
        got: String,
    },

    /// What the op or the device refused.
    #[error(transparent)]
    Op(#[from] packforcing::Error),
}

impl Error {
    pub(crate) fn shape(field: &'static str, expected: impl Into<String>, got: impl ToString) -> Error {
        Error::Shape {
            field,
            expected: expected.into(),
            got: got.to_string(),
        }
    }
}
