//! What goes wrong on either side, and how it becomes candle's error.

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of one of the two sides. `?` turns it into candle's error where a function returns
/// that; [`cause`] finds packforcing's again in there.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Packforcing's: an argument that does not fit, or a device's fault. The tensors that this
    /// crate itself refuses are named in the same words.
    #[error(transparent)]
    Packforcing(#[from] packforcing::Error),

    /// Candle's: memory for an output.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl std::fmt::Debug for Error {
    /// As `Display`: candle shows an error that it carries this way.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// An argument that is not taken, in packforcing's words.
pub(crate) fn refused(
    op: &'static str,
    argument: &'static str,
    expected: impl Into<String>,
    got: impl Into<String>,
) -> packforcing::Error {
    packforcing::Error::Argument {
        op,
        argument,
        expected: expected.into(),
        got: got.into(),
    }
}

impl From<Error> for candle_core::Error {
    /// Candle's own errors come out as they went in. Packforcing's are carried whole: the `wrapped`
    /// of a `WrappedContext`.
    fn from(error: Error) -> candle_core::Error {
        match error {
            Error::Candle(error) => error,
            error => candle_core::Error::WrappedContext {
                wrapped: Box::new(error),
                context: "in packforcing".into(),
            },
        }
    }
}

/// Packforcing's error inside one of candle's, whatever context candle has put around it.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use packforcing_candle::{cause, device, with_views};
///
/// fn layer(x: &Tensor) -> candle_core::Result<()> {
///     let cpu = device(x.device())?;
///     Ok(with_views(&cpu, "layer", [("x", x)], [], |[_], []| Ok(()))?)
/// }
///
/// # fn main() -> candle_core::Result<()> {
/// let columns = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu)?.t()?;
/// let error = layer(&columns).map_err(|e| e.context("block 7")).unwrap_err();
/// assert!(matches!(
///     cause(&error),
///     Some(packforcing::Error::Argument { op: "layer", argument: "x", .. })
/// ));
/// # Ok(())
/// # }
/// ```
pub fn cause(error: &candle_core::Error) -> Option<&packforcing::Error> {
    use candle_core::Error as Candle;
    match error {
        Candle::WrappedContext { wrapped, .. } => match wrapped.downcast_ref::<Error>()? {
            Error::Packforcing(error) => Some(error),
            Error::Candle(error) => cause(error),
        },
        Candle::Context { inner, .. } | Candle::WithPath { inner, .. } | Candle::WithBacktrace { inner, .. } => {
            cause(inner)
        }
        _ => None,
    }
}
