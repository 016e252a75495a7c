//! What a time is held against: the least that the work can take on this device.
//!
//! For bytes that is a copy measured in the same run. For operations it is, on a GPU, the peak rate
//! of its data sheet, and on the CPU a plain f32 product measured in the same run.

use packforcing::{DType, Device, DeviceKind, Result, Tensor};
use rayon::prelude::*;

use crate::case::{Call, Case, Results, Work, rotated_bytes};
use crate::random::Random;
use crate::timer::{Plan, measure};

/// A floor is the median of so many.
const SAMPLES: usize = 7;

/// A floor, and what it was taken from.
#[derive(Debug, Clone, PartialEq)]
pub struct Floor {
    /// What it is and where it comes from.
    pub what: String,
    /// The rate, in `unit`.
    pub value: f64,
    /// `GB/s` or `TFLOP/s`.
    pub unit: &'static str,
    /// What the work takes at that rate, in seconds.
    pub seconds: f64,
}

/// The floor of this work: of those that are known the one that takes longer. None on the SIMT
/// device and on a double of the driver, and on a GPU whose peak is not listed where only operations count.
///
/// # Errors
///
/// Memory that the device does not have for a copy; a device that is lost.
pub fn floor(device: &Device, work: Work) -> Result<Option<Floor>> {
    if matches!(device.kind(), DeviceKind::Simt | DeviceKind::CudaDouble) {
        return Ok(None);
    }
    let plan = Plan {
        samples: SAMPLES,
        ..Plan::of(device)
    };
    let mut floors = Vec::new();
    if work.bytes > 0 {
        let mut case = copy(device, rotated_bytes(device))?;
        let rate = case.work().bytes as f64 / measure(&mut case, &plan)?.median();
        let what = match device.kind() {
            DeviceKind::Cuda => "a device-to-device copy, measured in this run",
            _ => "a copy by all threads, measured in this run",
        };
        floors.push(Floor {
            what: what.into(),
            value: rate * 1e-9,
            unit: "GB/s",
            seconds: work.bytes as f64 / rate,
        });
    }
    if work.flops > 0.0
        && let Some((what, rate)) = operations(device, &plan)?
    {
        floors.push(Floor {
            what,
            value: rate * 1e-12,
            unit: "TFLOP/s",
            seconds: work.flops / rate,
        });
    }
    Ok(floors.into_iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds)))
}

/// Operations a second, and where the number comes from.
fn operations(device: &Device, plan: &Plan) -> Result<Option<(String, f64)>> {
    let Some(cuda) = device.as_cuda() else {
        let mut case = product();
        let rate = case.work().flops / measure(&mut case, plan)?.median();
        return Ok(Some((
            "an f32 product by the crate gemm, measured in this run".into(),
            rate,
        )));
    };
    let name = cuda.context().name().unwrap_or_default();
    let peak = peak(&name, cuda.compute_capability());
    Ok(peak.map(|rate| (format!("bf16 / f16 dense, data sheet of {name}"), rate)))
}

/// Dense bf16 and f16 operations a second as data sheets have them. Cards of the same name with
/// less power (PCIe, NVL) have other numbers, and are not listed.
fn peak(name: &str, capability: (i32, i32)) -> Option<f64> {
    let has = |word: &str| name.split_whitespace().any(|part| part == word);
    match capability {
        (9, 0) if (has("H100") || has("H200")) && !has("PCIe") && !has("NVL") => Some(989e12),
        _ => None,
    }
}

/// Copies `bytes` from one place to another in the device's memory: as many are read as written.
///
/// # Errors
///
/// Memory that the device does not have.
pub fn copy(device: &Device, bytes: usize) -> Result<Case> {
    let bytes = bytes.max(1);
    let random = Random::new(1).normal(1 << 18);
    let pattern: Vec<u8> = random.iter().flat_map(|x| x.to_ne_bytes()).collect();
    Case::new("copy", device, Work::bytes(2 * bytes), 2 * bytes, || {
        // Never zeros: a card may spend less power on them.
        let mut data = pattern.repeat(bytes.div_ceil(pattern.len()));
        data.truncate(bytes);
        let from = Tensor::from_slice(device, &data, &[bytes])?;
        let to = Tensor::zeros(device, DType::U8, &[bytes])?;
        Ok(Box::new(move |_: Results<'_>| copy_once(&from, &to, bytes)) as Call)
    })
}

fn copy_once(from: &Tensor, to: &Tensor, bytes: usize) -> Result<()> {
    let (source, target) = (from.address(), to.address());
    if let Some(cuda) = from.device().as_cuda() {
        use packforcing::cudarc::driver::result::memcpy_dtod_async;
        // SAFETY: both tensors are this device's, hold so many bytes, and are freed in the order of
        // the stream that copies.
        let copied = unsafe { memcpy_dtod_async(target, source, bytes, cuda.stream().cu_stream()) };
        return copied.map_err(|e| packforcing::Error::Cuda {
            call: "a copy on the device",
            code: e.0 as u32,
            name: format!("{:?}", e.0),
            advice: Default::default(),
        });
    }
    // One part a thread: past some size the C library's copy goes around the caches.
    let part = bytes.div_ceil(rayon::current_num_threads()).next_multiple_of(4096);
    (0..bytes.div_ceil(part)).into_par_iter().for_each(|i| {
        let (first, length) = (i * part, part.min(bytes - i * part));
        // SAFETY: both tensors are host memory of `bytes` bytes that this call alone touches; parts
        // do not overlap and end where the tensors do.
        unsafe {
            std::ptr::copy_nonoverlapping((source as *const u8).add(first), (target as *mut u8).add(first), length)
        };
    });
    Ok(())
}

/// The product that attention on the CPU is held against, in extents like those of the queries of
/// one Wan frame and one head: `[1560, 128] . [128, 8192]` in f32, by the crate gemm on all threads.
pub fn product() -> Case {
    const M: usize = 1_560;
    const N: usize = 8_192;
    const K: usize = 128;
    let work = Work::flops(2.0 * (M * N * K) as f64);
    let mut random = Random::new(2);
    let (a, b) = (random.normal(M * K), random.normal(K * N));
    let bytes = 4 * (M * K + K * N + M * N);
    let made = Case::new("gemm_f32", &Device::cpu(), work, bytes, || {
        let (a, b, mut to) = (a.clone(), b.clone(), vec![0.0f32; M * N]);
        let call = move |_: Results<'_>| {
            // SAFETY: the three matrices have the extents and strides that are passed.
            unsafe {
                gemm::gemm(
                    M,
                    N,
                    K,
                    to.as_mut_ptr(),
                    1,
                    N as isize,
                    false,
                    a.as_ptr(),
                    1,
                    K as isize,
                    b.as_ptr(),
                    1,
                    N as isize,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::Rayon(0),
                );
            }
            Ok(())
        };
        Ok::<_, std::convert::Infallible>(Box::new(call) as Call)
    });
    match made {
        Ok(case) => case,
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_copies_all_of_it() {
        let device = Device::cpu();
        for bytes in [1, 4_095, 100_001] {
            let data: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
            let from = Tensor::from_slice(&device, &data, &[bytes]).unwrap();
            let to = Tensor::zeros(&device, DType::U8, &[bytes]).unwrap();
            copy_once(&from, &to, bytes).unwrap();
            assert_eq!(to.view().to_vec::<u8>().unwrap(), data);
        }
    }

    #[test]
    fn peaks_are_of_the_cards_that_are_listed() {
        assert_eq!(peak("NVIDIA H100 80GB HBM3", (9, 0)), Some(989e12));
        assert_eq!(peak("NVIDIA H200", (9, 0)), Some(989e12));
        for other in ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GH200 480GB"] {
            assert_eq!(peak(other, (9, 0)), None, "{other}");
        }
        assert_eq!(peak("NVIDIA A100-SXM4-80GB", (8, 0)), None);
    }

    #[test]
    fn the_slower_of_two_bounds_is_the_floor() {
        let device = Device::cpu();
        let much = Work { flops: 1e15, bytes: 1 };
        assert_eq!(floor(&device, much).unwrap().unwrap().unit, "TFLOP/s");
        let floor = floor(&device, Work::bytes(1 << 30)).unwrap().unwrap();
        assert!(floor.unit == "GB/s" && floor.value > 0.1 && floor.seconds > 0.0);
    }
}
