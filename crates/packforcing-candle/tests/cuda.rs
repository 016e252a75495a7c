//! The same on a GPU: candle's memory on candle's stream. Runs with `--features cuda` only, and fails
//! where no GPU is.
mod common;

use candle_core::cuda::CudaStorageSlice;
use candle_core::{DType, Device, IndexOp, Storage, Tensor};
use common::{Rng, numbers, refused};
use packforcing::cache::{Heads, PackConfig, PackedKvCache};
use packforcing::cudarc::driver::DevicePtr;
use packforcing::{Blocks, Grid};
use packforcing_candle::{attend, device, with_views};

fn gpu() -> Device {
    Device::new_cuda_with_stream(0).expect("a GPU")
}

#[test]
fn one_stream_for_both() {
    let candle = gpu();
    let (a, b) = (device(&candle).expect("a device"), device(&candle).expect("a device"));
    assert_eq!(a, b, "the same stream is the same device");
    assert_ne!(a, device(&gpu()).expect("a device"), "another stream is another");
}

#[test]
fn views_lie_in_candles_memory() {
    let candle = gpu();
    let on = device(&candle).expect("a device");
    let x = Rng(1)
        .tensor(DType::F32, &[3, 4, 5])
        .to_device(&candle)
        .expect("a copy");
    let part = x
        .i((1.., .., 1..))
        .expect("a part")
        .transpose(0, 1)
        .expect("a transposed part");
    let address = {
        let (storage, layout) = part.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            panic!("{storage:?}")
        };
        let CudaStorageSlice::F32(slice) = &storage.slice else {
            panic!("not f32")
        };
        slice.device_ptr(slice.stream()).0 + 4 * layout.start_offset() as u64
    };
    let expected = numbers(&part.to_device(&Device::Cpu).expect("a copy"));
    with_views(&on, "read", [("x", &part)], [], |[view], []| {
        assert_eq!((view.address(), view.strides()), (address, part.stride()));
        assert_eq!(view.to_vec::<f32>()?, expected);
        Ok(())
    })
    .expect("a view");

    let row = x.i((2, 3)).expect("a row");
    with_views(&on, "write", [], [("row", &row)], |[], [mut view]| {
        view.copy_from_slice(&[7f32; 5])
    })
    .expect("a write");
    // Candle reads behind it, on the same stream.
    let sum = row.sum_all().and_then(|s| s.to_scalar::<f32>()).expect("a sum");
    assert_eq!(sum, 35.0);
}

#[test]
fn tensors_of_other_devices_are_refused_by_name() {
    let (candle, other) = (gpu(), gpu());
    let on = device(&candle).expect("a device");
    let here = Tensor::zeros(4, DType::F32, &candle).expect("a tensor");
    for strange in [&other, &Device::Cpu] {
        let x = Tensor::zeros(4, DType::F32, strange).expect("a tensor");
        assert_eq!(
            refused(with_views(&on, "op", [("x", &x)], [], |[_], []| Ok(()))),
            ("op", "x")
        );
        assert_eq!(
            refused(with_views(&on, "op", [("a", &here)], [("x", &x)], |[_], [_]| Ok(()))),
            ("op", "x")
        );
    }
    let cpu = packforcing::Device::cpu();
    assert_eq!(
        refused(with_views(&cpu, "op", [("x", &here)], [], |[_], []| Ok(()))),
        ("op", "x")
    );
}

/// Kernels round the probabilities to bf16 too, the CPU does not: 2^-9 of an output below 1, and one
/// rounding of either output.
#[test]
fn a_video_agrees_with_the_cpus() {
    let candle = gpu();
    let config = PackConfig::builder()
        .layers(1)
        .heads(Heads {
            query: 4,
            kv: 2,
            dim: 64,
        })
        .block(Grid {
            frames: 2,
            rows: 4,
            cols: 4,
        })
        .sink(Blocks(1))
        .selected(Blocks(2))
        .archive(Blocks(2)) // all are chosen: no tie is broken otherwise
        .build()
        .expect("a configuration");
    let mut caches =
        [&Device::Cpu, &candle].map(|on| PackedKvCache::new(&device(on).expect("a device"), &config).expect("a cache"));
    let mut rng = Rng(3);
    for number in 0..6 {
        let qkv = rng.tensor(DType::BF16, &[1, 32, 8, 64]);
        let mut outs = [&Device::Cpu, &candle].into_iter().zip(&mut caches).map(|(on, cache)| {
            let qkv = qkv.to_device(on).expect("a copy");
            let part = |start, heads| qkv.narrow(2, start, heads).expect("heads");
            let mut block = cache.begin().expect("a block");
            let mut pass = block.commit_pass().expect("a pass");
            let out = attend(&mut pass, 0, &part(0, 4), &part(4, 2), &part(6, 2)).expect("attention");
            block.commit().expect("a commit");
            numbers(&out.to_device(&Device::Cpu).expect("a copy"))
        });
        let pairs = outs
            .next()
            .expect("the CPU's")
            .into_iter()
            .zip(outs.next().expect("the GPU's"));
        let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference <= 3.0 / 512.0, "block {number}: {difference:e}");
    }
}
