//! The driver's error numbers, as far as the double uses them.

/// A `CUresult` that is not success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

pub type Result<T = (), E = Code> = std::result::Result<T, E>;

macro_rules! codes {
    ($($number:literal $name:ident $what:literal)*) => {
        impl Code {
            $(
                #[allow(dead_code, reason = "some come only from CUDA_DOUBLE_FAIL, which wants their names")]
                pub const $name: Code = Code($number);
            )*

            /// The name without `CUDA_ERROR_`'s ending zero, with one for C.
            pub fn name(number: u32) -> Option<&'static str> {
                match number {
                    0 => Some("CUDA_SUCCESS\0"),
                    $($number => Some(concat!("CUDA_ERROR_", stringify!($name), "\0")),)*
                    _ => None,
                }
            }

            pub fn what(number: u32) -> Option<&'static str> {
                match number {
                    0 => Some("no error\0"),
                    $($number => Some(concat!($what, " (the double of the driver)\0")),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    1 INVALID_VALUE "an argument is out of range"
    2 OUT_OF_MEMORY "out of memory"
    3 NOT_INITIALIZED "cuInit was not called"
    4 DEINITIALIZED "the driver is shutting down"
    34 STUB_LIBRARY "the toolkit's stub stands where the driver should"
    100 NO_DEVICE "there is no device"
    101 INVALID_DEVICE "no such device"
    200 INVALID_IMAGE "the image is not one"
    201 INVALID_CONTEXT "no context is current, or another one than the handle's"
    209 NO_BINARY_FOR_GPU "the image has no code for this card"
    222 UNSUPPORTED_PTX_VERSION "the image's PTX is newer than the driver"
    400 INVALID_HANDLE "no such object"
    401 ILLEGAL_STATE "the object's state does not allow it"
    500 NOT_FOUND "no such name"
    600 NOT_READY "work is under way"
    700 ILLEGAL_ADDRESS "memory was touched that is not there"
    702 LAUNCH_TIMEOUT "a kernel did not end"
    709 CONTEXT_IS_DESTROYED "the context was destroyed"
    715 ILLEGAL_INSTRUCTION "an instruction did not take its operands"
    716 MISALIGNED_ADDRESS "misaligned access"
    719 LAUNCH_FAILED "a kernel failed"
    801 NOT_SUPPORTED "the double does not do this"
    803 SYSTEM_DRIVER_MISMATCH "the driver's parts do not fit"
    804 COMPAT_NOT_SUPPORTED_ON_DEVICE "forward compatibility is not for this card"
    810 MPS_CONNECTION_FAILED "the MPS server does not answer"
    900 STREAM_CAPTURE_UNSUPPORTED "not permitted while a stream is captured"
    901 STREAM_CAPTURE_INVALIDATED "an earlier error ended this capture"
    902 STREAM_CAPTURE_MERGE "two captures would become one"
    903 STREAM_CAPTURE_UNMATCHED "the capture did not begin in this stream"
    904 STREAM_CAPTURE_UNJOINED "a fork of the capture was not joined"
    905 STREAM_CAPTURE_ISOLATION "a captured stream would depend on work outside"
    906 STREAM_CAPTURE_IMPLICIT "the legacy stream would wait for a captured one"
    907 CAPTURED_EVENT "the event was recorded in a capture"
    908 STREAM_CAPTURE_WRONG_THREAD "the capture was begun on another thread"
    999 UNKNOWN "something went wrong"
}
