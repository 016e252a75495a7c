//! Devices and dtypes of the one side for the other.

use packforcing::Device;

use crate::error::{Result, refused};

/// Packforcing's device for candle's: the CPU, or the GPU **on candle's stream**, so that work of the
/// two is in one order. Make it once and keep it: on a GPU this loads the kernels.
///
/// There is no way back: candle makes the streams that its devices run on. What begins with
/// packforcing on a GPU begins with a candle device therefore.
///
/// # Threads
///
/// `candle_core::Device::new_cuda` runs on CUDA's *per-thread* stream, whose handle means another
/// stream on every thread. Whatever is made with a device on it (page pools, streams, contexts) is
/// used on the thread that called this; elsewhere every call is `Error::WrongThread`.
/// `candle_core::Device::new_cuda_with_stream` has a stream of its own and knows no such limit:
/// prefer it.
///
/// # Errors
///
/// Metal; CUDA without the feature `cuda` of this crate; on a GPU those of
/// `packforcing::Device::from_cuda_stream`.
pub fn device(candle: &candle_core::Device) -> Result<Device> {
    match candle {
        candle_core::Device::Cpu => Ok(Device::cpu()),
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(cuda) => Ok(Device::from_cuda_stream(cuda.cuda_stream())?),
        other => {
            let got = format!("{other:?}");
            let expected = if cfg!(feature = "cuda") {
                "the CPU or a CUDA device"
            } else {
                "the CPU (this build lacks the feature `cuda` of packforcing-candle)"
            };
            Err(refused("device", "candle", expected, got).into())
        }
    }
}

/// Packforcing's dtype for candle's, where it has one.
///
/// ```
/// assert_eq!(packforcing_candle::dtype(candle_core::DType::BF16), Some(packforcing::DType::BF16));
/// assert_eq!(packforcing_candle::dtype(candle_core::DType::F64), None);
/// ```
pub fn dtype(candle: candle_core::DType) -> Option<packforcing::DType> {
    use candle_core::DType as Candle;
    use packforcing::DType;
    match candle {
        Candle::F32 => Some(DType::F32),
        Candle::F16 => Some(DType::F16),
        Candle::BF16 => Some(DType::BF16),
        Candle::I32 => Some(DType::I32),
        Candle::U8 => Some(DType::U8),
        _ => None,
    }
}

/// Candle's dtype for packforcing's, where it has one: all that are there today.
pub fn candle_dtype(dtype: packforcing::DType) -> Option<candle_core::DType> {
    use packforcing::DType;
    Some(match dtype {
        DType::F32 => candle_core::DType::F32,
        DType::F16 => candle_core::DType::F16,
        DType::BF16 => candle_core::DType::BF16,
        DType::I32 => candle_core::DType::I32,
        DType::U8 => candle_core::DType::U8,
        _ => return None,
    })
}
