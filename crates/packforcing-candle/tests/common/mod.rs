//! Random tensors of both sides from the same numbers, and their bits.
#![allow(dead_code)]

use candle_core::{DType, Device, Tensor};
use packforcing::{SimtOptions, View};
use packforcing_candle::{cause, device, dtype, with_views};

/// Devices whose memory is the host's, as candle's CPU tensors are: the CPU, and the kernels'
/// source. The float dtypes that each takes everywhere.
pub fn devices() -> Vec<(packforcing::Device, &'static [DType])> {
    let cpu = device(&Device::Cpu).expect("the cpu");
    let simt = packforcing::Device::simt(SimtOptions::default());
    vec![
        (cpu, &[DType::F32, DType::F16, DType::BF16]),
        (
            simt.expect("the SIMT device (it wants a C++ compiler)"),
            &[DType::F16, DType::BF16],
        ),
    ]
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let numbers = self.numbers(shape.iter().product());
        let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).expect("a tensor");
        tensor.to_dtype(dtype).expect("a cast")
    }
}

/// The elements in order, widened to f32, which is exact for every dtype here.
pub fn numbers(tensor: &Tensor) -> Vec<f32> {
    let wide = tensor.to_dtype(DType::F32).expect("a cast");
    wide.flatten_all().expect("a copy").to_vec1().expect("numbers")
}

pub fn bits(tensor: &Tensor) -> Vec<u32> {
    numbers(tensor).into_iter().map(f32::to_bits).collect()
}

pub fn view_bits(view: &View<'_>) -> Vec<u32> {
    view.to_f32_vec()
        .expect("numbers")
        .into_iter()
        .map(f32::to_bits)
        .collect()
}

/// The same elements, dense, in memory of packforcing's own.
pub fn own(on: &packforcing::Device, tensor: &Tensor) -> packforcing::Tensor {
    let dtype = dtype(tensor.dtype()).expect("a dtype of both sides");
    if dtype == packforcing::DType::I32 {
        let whole: Vec<i32> = tensor.flatten_all().expect("a copy").to_vec1().expect("numbers");
        return packforcing::Tensor::from_slice(on, &whole, tensor.dims()).expect("a tensor");
    }
    packforcing::Tensor::from_f32(on, dtype, &numbers(tensor), tensor.dims()).expect("a tensor")
}

/// `x` again, laid out otherwise: two dimensions swapped in memory, inside of a larger tensor that
/// is NaN around it.
pub fn scattered(x: &Tensor, swap: (usize, usize)) -> Tensor {
    let swapped = x.transpose(swap.0, swap.1).expect("a transposed tensor");
    let frame = Tensor::full(f32::NAN, swapped.shape(), &Device::Cpu).expect("a frame");
    let frame = frame.to_dtype(x.dtype()).expect("a cast");
    let whole = Tensor::cat(&[&frame, &swapped, &frame], 1).expect("a copy");
    let part = whole.narrow(1, swapped.dims()[1], swapped.dims()[1]).expect("a part");
    part.transpose(swap.0, swap.1).expect("the shape it had")
}

/// Op and argument that a call refuses.
#[track_caller]
pub fn refused<T>(result: packforcing_candle::Result<T>) -> (&'static str, &'static str) {
    let Err(error) = result else {
        panic!("nothing was refused")
    };
    let error = candle_core::Error::from(error);
    match cause(&error) {
        Some(packforcing::Error::Argument { op, argument, .. }) => (op, argument),
        Some(packforcing::Error::UnsupportedDType { op, argument, .. }) => (op, argument),
        _ => panic!("{error} is no refusal of an argument"),
    }
}

/// Opens one tensor and nothing else.
pub fn open(tensor: &Tensor) -> packforcing_candle::Result<()> {
    with_views(&packforcing::Device::cpu(), "open", [("x", tensor)], [], |[_], []| {
        Ok(())
    })
}

/// Opens one tensor for writing and nothing else.
pub fn open_mut(tensor: &Tensor) -> packforcing_candle::Result<()> {
    with_views(&packforcing::Device::cpu(), "open", [], [("x", tensor)], |[], [_]| {
        Ok(())
    })
}
