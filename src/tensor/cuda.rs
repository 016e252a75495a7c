//! cudarc's slices and views as tensors, in the order of the device's stream.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, SyncOnDrop};

use crate::device::{Device, Order};
use crate::dtype::Element;
use crate::error::{Error, Result};

use super::view::{GuardedBorrow, View, ViewMut};

impl GuardedBorrow for SyncOnDrop<'_> {}

macro_rules! from_cuda {
    ($(#[$doc:meta])* $name:ident, $owner:ident, $slice:ty, $ptr:ident, $borrow:ty) => {
        impl<'a> $owner<'a> {
            $(#[$doc])*
            ///
            /// # Errors
            ///
            /// A device that is not CUDA; a shape of another size; memory whose use cudarc could not
            /// order. It can where stream and device share one `CudaContext` object, and the stream
            /// is the device's or the context manages the synchronization of its streams; and on
            /// the device's stream in another context object, if that one does not manage it.
            pub fn $name<T: Element + DeviceRepr>(
                device: &'a Device,
                data: $borrow,
                shape: &[usize],
            ) -> Result<$owner<'a>> {
                const OP: &str = concat!(stringify!($owner), "::", stringify!($name));
                let cuda = device.as_cuda().ok_or_else(|| {
                    Error::argument(OP, "device", "a cuda device", device.to_string())
                })?;
                let elements = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
                if elements != Some(data.len()) {
                    return Err(Error::argument(
                        OP,
                        "shape",
                        format!("{} elements", data.len()),
                        format!("{shape:?}"),
                    ));
                }
                let stranger = || {
                    Error::argument(
                        OP,
                        "data",
                        "memory of the device's stream (or of a stream of the same CudaContext, with its events)",
                        "memory of another stream",
                    )
                };
                let by_events = match cuda.order(data.stream()) {
                    Order::Stream => false,
                    Order::Events => true,
                    Order::None => return Err(stranger()),
                };
                let (address, sync) = data.$ptr(cuda.stream());
                // A slice that was made while the context tracked no events has none.
                if by_events && !matches!(sync, SyncOnDrop::Record(Some(_))) {
                    return Err(stranger());
                }
                $owner::guarded(OP, device, address, T::DTYPE, shape, Arc::new(sync))
            }
        }
    };
}

from_cuda!(
    /// A slice that cudarc owns, dense, in the order of the device's stream.
    from_cuda_slice, View, CudaSlice<T>, device_ptr, &'a CudaSlice<T>
);
from_cuda!(
    /// A part of a slice that cudarc owns, dense, in the order of the device's stream.
    from_cuda_view, View, CudaView<'a, T>, device_ptr, &'a CudaView<'a, T>
);
from_cuda!(
    /// A slice that cudarc owns, dense, in the order of the device's stream.
    from_cuda_slice, ViewMut, CudaSlice<T>, device_ptr_mut, &'a mut CudaSlice<T>
);
from_cuda!(
    /// A part of a slice that cudarc owns, dense, in the order of the device's stream.
    from_cuda_view, ViewMut, CudaViewMut<'a, T>, device_ptr_mut, &'a mut CudaViewMut<'a, T>
);
