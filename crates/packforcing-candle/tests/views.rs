//! Candle tensors as views: where they are, what is refused and in which words, who sees a write.
mod common;

use std::sync::mpsc;
use std::time::Duration;

use candle_core::{CpuStorage, DType, Device, IndexOp, Storage, Tensor, Var};
use common::{Rng, bits, numbers, open, open_mut, refused, view_bits};
use packforcing_candle::{cause, device, dtype, with_views};

/// Where candle keeps the first element.
fn address(tensor: &Tensor) -> u64 {
    let (storage, layout) = tensor.storage_and_layout();
    let start = match &*storage {
        Storage::Cpu(CpuStorage::F32(x)) => x.as_ptr() as u64,
        Storage::Cpu(CpuStorage::F16(x)) => x.as_ptr() as u64,
        Storage::Cpu(CpuStorage::BF16(x)) => x.as_ptr() as u64,
        Storage::Cpu(CpuStorage::I32(x)) => x.as_ptr() as u64,
        Storage::Cpu(CpuStorage::U8(x)) => x.as_ptr() as u64,
        other => panic!("{other:?}"),
    };
    start + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64
}

#[test]
fn views_lie_in_candles_memory() {
    let cpu = device(&Device::Cpu).expect("the cpu");
    for of in [DType::F32, DType::F16, DType::BF16, DType::I32, DType::U8] {
        let x = Tensor::arange(0f32, 120.0, &Device::Cpu).expect("numbers");
        let x = x.reshape((2, 3, 4, 5)).expect("a shape").to_dtype(of).expect("a cast");
        let parts = [
            x.clone(),
            x.narrow(1, 1, 2).expect("a part"),
            x.transpose(0, 2).expect("a transposed part"),
            x.i((1, .., 1..3, 2..)).expect("a part"),
        ];
        for part in parts {
            let (at, shape, strides) = (address(&part), part.dims().to_vec(), part.stride().to_vec());
            let expected = bits(&part);
            with_views(&cpu, "read", [("x", &part)], [], |[view], []| {
                assert_eq!(view.address(), at);
                assert_eq!((view.shape(), view.strides()), (&shape[..], &strides[..]));
                assert_eq!(Some(view.dtype()), dtype(of));
                let elements: Vec<f32> = match of {
                    DType::I32 => view.to_vec::<i32>()?.into_iter().map(|x| x as f32).collect(),
                    DType::U8 => view.to_vec::<u8>()?.into_iter().map(f32::from).collect(),
                    _ => view.to_f32_vec()?,
                };
                assert_eq!(elements.into_iter().map(f32::to_bits).collect::<Vec<_>>(), expected);
                Ok(())
            })
            .expect("a view");
            with_views(&cpu, "write", [], [("x", &part)], |[], [view]| {
                assert_eq!(view.address(), at);
                assert_eq!((view.shape(), view.strides()), (&shape[..], &strides[..]));
                Ok(())
            })
            .expect("a view");
        }
    }
}

#[test]
fn what_is_read_may_repeat() {
    let row = Tensor::arange(0f32, 4.0, &Device::Cpu).expect("numbers");
    let rows = row.broadcast_as((3, 4)).expect("rows");
    with_views(
        &packforcing::Device::cpu(),
        "read",
        [("rows", &rows)],
        [],
        |[view], []| {
            assert_eq!(view.strides(), [0, 1]);
            assert_eq!(view_bits(&view), bits(&rows.contiguous().expect("a copy")));
            Ok(())
        },
    )
    .expect("a view");
    assert_eq!(refused(open_mut(&rows)), ("open", "x"));
}

#[test]
fn what_would_need_a_copy_is_refused_by_name() {
    let x = Tensor::zeros((4, 6), DType::F32, &Device::Cpu).expect("a tensor");
    let columns = x.t().expect("columns");
    let every_second = x
        .reshape((4, 3, 2))
        .expect("pairs")
        .i((.., .., 0))
        .expect("their first");
    for strange in [&columns, &every_second] {
        assert_eq!(refused(open(strange)), ("open", "x"));
        assert_eq!(refused(open_mut(strange)), ("open", "x"));
        open(&strange.contiguous().expect("a copy")).expect("what the message tells to do");
    }
    let message = open(&columns).expect_err("columns").to_string();
    assert!(
        message.contains("contiguous") && message.contains("[1, 6]"),
        "{message}"
    );
    // A last dimension of one element has no stride to speak of.
    open(&x.i((.., 2..3)).expect("a column")).expect("a column");
    let sideways = x
        .i((.., 2..3))
        .expect("a column")
        .t()
        .expect("a row of 4, each 6 apart");
    assert_eq!(refused(open(&sideways)), ("open", "x"));
}

#[test]
fn other_dtypes_scalars_and_gradients_are_refused() {
    for of in [DType::F64, DType::U32, DType::I64] {
        let x = Tensor::zeros(3, of, &Device::Cpu).expect("a tensor");
        assert_eq!(refused(open(&x)), ("open", "x"));
        let message = open(&x).expect_err("refused").to_string();
        assert!(message.contains(of.as_str()), "{message}");
    }
    let scalar = Tensor::new(1f32, &Device::Cpu).expect("a scalar");
    assert_eq!(refused(open(&scalar)), ("open", "x"));

    let weight = Var::ones(4, DType::F32, &Device::Cpu).expect("a variable");
    let tracked = weight.affine(2.0, 0.0).expect("a product");
    for x in [weight.as_tensor(), &tracked] {
        assert_eq!(refused(open(x)), ("open", "x"));
        assert_eq!(refused(open_mut(x)), ("open", "x"));
        assert!(open(x).expect_err("refused").to_string().contains("detach"));
        open(&x.detach()).expect("what the message tells to do");
    }
}

#[test]
fn nothing_can_be_read_but_not_written() {
    let x = Tensor::zeros((3, 0, 4), DType::F32, &Device::Cpu).expect("a tensor");
    open(&x).expect("a view");
    assert_eq!(refused(open_mut(&x)), ("open", "x"));
}

#[test]
fn memory_that_is_written_is_nobody_elses() {
    let cpu = packforcing::Device::cpu();
    let x = Tensor::zeros((4, 6), DType::F32, &Device::Cpu).expect("a tensor");
    let (top, bottom) = (x.narrow(0, 0, 2).expect("a half"), x.narrow(0, 2, 2).expect("a half"));
    let both = with_views(&cpu, "op", [("x", &top)], [("out", &bottom)], |[_], [_]| Ok(()));
    assert_eq!(refused(both), ("op", "out"));
    let twice = with_views(&cpu, "op", [], [("k", &top), ("v", &bottom)], |[], [_, _]| Ok(()));
    assert_eq!(refused(twice), ("op", "v"));
    let named = with_views(&cpu, "op", [("x", &x)], [("out", &x.clone())], |[_], [_]| Ok(()));
    assert!(
        named
            .expect_err("refused")
            .to_string()
            .contains("memory that x has too")
    );
    let apart = with_views(
        &cpu,
        "op",
        [("x", &x)],
        [("out", &x.copy().expect("a copy"))],
        |[_], [_]| Ok(()),
    );
    apart.expect("memory of its own");
}

#[test]
fn a_write_shows_in_every_tensor_of_the_memory() {
    let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).expect("a tensor");
    let (clone, row) = (x.clone(), x.i(1).expect("a row"));
    with_views(
        &packforcing::Device::cpu(),
        "fill",
        [],
        [("row", &row)],
        |[], [mut view]| view.copy_from_slice(&[1f32, 2.0, 3.0]),
    )
    .expect("a write");
    for tensor in [&x, &clone] {
        assert_eq!(numbers(tensor), [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]);
    }
    assert_eq!(numbers(&row), [1.0, 2.0, 3.0]);
}

#[test]
fn a_refused_tensor_keeps_everything_from_running() {
    let cpu = packforcing::Device::cpu();
    let good = Tensor::zeros(4, DType::F32, &Device::Cpu).expect("a tensor");
    let bad = Tensor::zeros(4, DType::F64, &Device::Cpu).expect("a tensor");
    let mut ran = false;
    let refusal = with_views(&cpu, "op", [("a", &good)], [("b", &bad)], |[_], [_]| {
        ran = true;
        Ok(())
    });
    assert_eq!((refused(refusal), ran), (("op", "b"), false));
}

/// A thread that waits to write keeps new readers out: one that opened a storage of which it has a
/// lock already would wait for itself.
#[test]
fn parts_of_one_tensor_are_opened_beside_a_writer() {
    let qkv = Rng(1).tensor(DType::F32, &[8, 3, 4]);
    let (done, wait) = mpsc::channel();
    for reads in [true, false] {
        let (qkv, done) = (qkv.clone(), done.clone());
        std::thread::spawn(move || {
            let part = |i| qkv.i((.., i)).expect("a part");
            let cpu = packforcing::Device::cpu();
            for _ in 0..20_000 {
                let result = if reads {
                    let parts = [("q", &part(0)), ("k", &part(1)), ("v", &part(2))];
                    with_views(&cpu, "read", parts, [], |[q, ..], []| {
                        // A write is seen whole or not at all.
                        let row = q.narrow(0, 3, 1)?.to_vec::<f32>()?;
                        assert!(
                            row.iter().all(|x| *x == row[0]) || row.iter().all(|x| x.abs() < 1.0),
                            "{row:?}"
                        );
                        Ok(())
                    })
                } else {
                    with_views(&cpu, "write", [], [("q", &part(0))], |[], [q]| {
                        q.narrow(0, 3, 1)?.reshape(&[4])?.copy_from_slice(&[7f32; 4])
                    })
                };
                result.expect("views");
            }
            done.send(()).expect("a listener");
        });
    }
    for _ in 0..2 {
        wait.recv_timeout(Duration::from_secs(60))
            .expect("two threads that do not wait for each other");
    }
}

#[test]
fn errors_become_candles_and_keep_their_source() {
    fn layer(x: &Tensor) -> candle_core::Result<()> {
        open(x)?;
        Ok(())
    }
    let columns = Tensor::zeros((4, 6), DType::F32, &Device::Cpu)
        .and_then(|x| x.t())
        .expect("columns");
    let ours = open(&columns).expect_err("refused");
    let theirs = layer(&columns).expect_err("refused");
    let plain = cause(&theirs).expect("packforcing's error");
    assert!(matches!(
        plain,
        packforcing::Error::Argument {
            op: "open",
            argument: "x",
            ..
        }
    ));
    assert_eq!(plain.to_string(), ours.to_string());
    assert!(theirs.to_string().contains(&ours.to_string()), "{theirs}");
    assert!(cause(&theirs.context("block 7").bt().with_path("model")).is_some());

    // What `f` returns is one of packforcing's too.
    let x = Tensor::zeros(4, DType::F32, &Device::Cpu).expect("a tensor");
    let failed = with_views(&packforcing::Device::cpu(), "op", [("x", &x)], [], |[x], []| {
        x.narrow(0, 3, 2).map(drop)
    });
    let failed = candle_core::Error::from(failed.expect_err("refused"));
    assert!(matches!(
        cause(&failed),
        Some(packforcing::Error::Argument { op: "narrow", .. })
    ));

    // Candle's own come out as they were.
    let candle = packforcing_candle::Error::from(candle_core::Error::UnwrapNone);
    assert!(matches!(
        candle_core::Error::from(candle),
        candle_core::Error::UnwrapNone
    ));
    assert!(cause(&candle_core::Error::UnwrapNone).is_none());
}

#[test]
fn dtypes_of_both_sides() {
    for of in [DType::F32, DType::F16, DType::BF16, DType::I32, DType::U8] {
        let ours = dtype(of).expect("a dtype");
        assert_eq!(packforcing_candle::candle_dtype(ours), Some(of));
        assert_eq!((ours.bytes(), ours.name()), (of.size_in_bytes(), of.as_str()));
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_in_this_build() {
    let error = device(&Device::Cuda(candle_core::CudaDevice)).expect_err("no cuda in this build");
    assert!(error.to_string().contains("feature `cuda`"), "{error}");
    assert_eq!(refused(Err::<(), _>(error)), ("device", "candle"));
}
