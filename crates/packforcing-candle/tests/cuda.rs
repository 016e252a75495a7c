//! The same on a GPU: candle's memory on candle's stream. Runs with `--features cuda` only, and fails
//! where neither a GPU nor a double of its driver is (`scripts/candle-double.sh`).
mod common;

use candle_core::cuda::CudaStorageSlice;
use candle_core::{DType, Device, IndexOp, Storage, Tensor};
use common::{Rng, numbers, refused};
use packforcing::cache::{Heads, PackConfig, PackedKvCache};
use packforcing::cudarc::driver::DevicePtr;
use packforcing::ops::merge_states::{State, merge_states};
use packforcing::{Blocks, DeviceKind, Grid};
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
    assert_eq!(row.to_vec1::<f32>().expect("numbers"), [7.0; 5]);
}

/// Attention results of two rows, and where they are merged into: all there before a capture.
struct Halves {
    parts: [Tensor; 4],
    merged: [Tensor; 2],
}

impl Halves {
    fn new(on: &Device, seed: u64) -> Halves {
        let mut rng = Rng(seed);
        let mut random = |shape: &[usize]| rng.tensor(DType::F32, shape).to_device(on).expect("a copy");
        Halves {
            parts: [
                random(&[2, 3, 64]),
                random(&[2, 3]),
                random(&[2, 3, 64]),
                random(&[2, 3]),
            ],
            merged: [random(&[2, 3, 64]), random(&[2, 3])],
        }
    }

    fn merge(&self, on: &packforcing::Device) -> packforcing_candle::Result<()> {
        let [a, a_lse, b, b_lse] = &self.parts;
        let [out, lse] = &self.merged;
        with_views(
            on,
            "merge",
            [("a", a), ("a_lse", a_lse), ("b", b), ("b_lse", b_lse)],
            [("out", out), ("lse", lse)],
            |[a, a_lse, b, b_lse], [mut out, mut lse]| {
                let (a, b) = (State { out: a, lse: a_lse }, State { out: b, lse: b_lse });
                merge_states(&a, &b, &mut out, &mut lse)
            },
        )
    }

    fn numbers(&self) -> [Vec<f32>; 2] {
        let copied = |tensor: &Tensor| numbers(&tensor.to_device(&Device::Cpu).expect("a copy"));
        [copied(&self.merged[0]), copied(&self.merged[1])]
    }
}

#[test]
fn work_on_candles_tensors_is_captured_and_replayed() {
    let candle = gpu();
    let cuda = candle.as_cuda_device().expect("a CUDA device");
    // SAFETY: this thread alone uses the context's streams, one at a time.
    unsafe { cuda.disable_event_tracking() };
    let on = device(&candle).expect("a device");
    let halves = Halves::new(&candle, 5);
    halves.merge(&on).expect("a merge");
    let expected = halves.numbers();

    let graph = on.capture(|| halves.merge(&on)).expect("a capture");
    with_views(&on, "clear", [], [("lse", &halves.merged[1])], |[], [mut lse]| {
        lse.copy_from_slice(&[0f32; 6])
    })
    .expect("a write");
    assert_ne!(
        halves.numbers(),
        expected,
        "nothing ran while it was captured, and the LSE is cleared"
    );
    // SAFETY: the tensors are there and unmoved, and nobody touches them before the copies that follow.
    unsafe { graph.launch() }.expect("a replay");
    assert_eq!(halves.numbers(), expected);
}

#[test]
fn a_capture_beside_candles_event_tracking_is_refused() {
    let candle = gpu();
    let on = device(&candle).expect("a device");
    let halves = Halves::new(&candle, 6);
    halves.merge(&on).expect("a merge");
    let refused = on.capture(|| halves.merge(&on)).expect_err("a refusal").to_string();
    assert!(
        refused.contains("CudaDevice::disable_event_tracking (candle)"),
        "{refused}"
    );
    halves.merge(&on).expect("a merge after it");
}

/// A double of the driver has no kernels but packforcing's own.
#[test]
fn a_kernel_of_candles_own() {
    let candle = gpu();
    let on = device(&candle).expect("a device");
    let x = Rng(7).tensor(DType::F32, &[4]).to_device(&candle).expect("a copy");
    let sum = &x + &x;
    match on.kind() {
        DeviceKind::CudaDouble => {
            let refused = sum.expect_err("no kernel of candle's").to_string();
            assert!(refused.contains("NOT_FOUND"), "{refused}");
        }
        _ => {
            let twice: Vec<f32> = numbers(&x.to_device(&Device::Cpu).expect("a copy"))
                .iter()
                .map(|x| 2.0 * x)
                .collect();
            assert_eq!(
                numbers(&sum.expect("a sum").to_device(&Device::Cpu).expect("a copy")),
                twice
            );
        }
    }
    // What follows is as if nothing had been asked.
    let halves = Halves::new(&candle, 8);
    halves.merge(&on).expect("a merge");
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
