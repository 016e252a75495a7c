//! Tensors, views, page lists and contexts; devices that are not there.
mod common;

use common::Rng;
use cudarc::driver::CudaContext;
use packforcing::dtype::{bf16, f16};
use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, denoise_step, rows};
use packforcing::paging::{Context, PageLists, Segment};
use packforcing::{DType, Device, DeviceKind, Error, Result, Tensor, View, ViewMut};

/// Op and argument of a refusal.
#[track_caller]
fn refused<T>(result: Result<T>) -> (&'static str, &'static str) {
    match result {
        Err(Error::Argument { op, argument, .. }) => (op, argument),
        Err(other) => panic!("{other:?} is no refusal of an argument"),
        Ok(_) => panic!("nothing was refused"),
    }
}

/// 0, 1, 2, ... in a shape.
fn counted(device: &Device, shape: &[usize]) -> Tensor {
    let numbers: Vec<i32> = (0..shape.iter().product::<usize>() as i32).collect();
    Tensor::from_slice(device, &numbers, shape).expect("a tensor")
}

fn numbers(view: &View<'_>) -> Vec<i32> {
    view.to_vec().expect("a download")
}

fn parts_of_views(device: &Device) {
    let x = counted(device, &[2, 3, 4]);
    let view = x.view();
    assert_eq!((view.shape(), view.strides()), (&[2, 3, 4][..], &[12, 4, 1][..]));
    assert!(view.is_contiguous() && view.elements() == 24 && view.device() == device);

    let rows = view.narrow(1, 1, 2).expect("rows");
    assert_eq!((rows.shape(), rows.strides()), (&[2, 2, 4][..], &[12, 4, 1][..]));
    assert!(!rows.is_contiguous());
    assert_eq!(
        numbers(&rows),
        [4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23]
    );
    let columns = view.narrow(2, 1, 2).expect("columns");
    assert_eq!(numbers(&columns), [1, 2, 5, 6, 9, 10, 13, 14, 17, 18, 21, 22]);
    let both = rows.narrow(2, 3, 1).expect("a column of rows");
    assert_eq!(numbers(&both), [7, 11, 19, 23]);
    assert!(numbers(&view.narrow(0, 2, 0).expect("nothing")).is_empty());
    assert!(numbers(&view.narrow(1, 3, 0).expect("nothing")).is_empty());

    let plane = view.select(1, 2).expect("a plane");
    assert_eq!((plane.shape(), plane.strides()), (&[2, 4][..], &[12, 1][..]));
    assert_eq!(numbers(&plane), [8, 9, 10, 11, 20, 21, 22, 23]);
    assert_eq!(numbers(&plane.select(0, 1).expect("a row")), [20, 21, 22, 23]);

    let flat = view
        .select(0, 1)
        .expect("a half")
        .reshape(&[2, 6])
        .expect("another shape");
    assert_eq!((flat.shape(), flat.strides()), (&[2, 6][..], &[6, 1][..]));
    assert_eq!(numbers(&flat.select(0, 1).expect("a row")), [18, 19, 20, 21, 22, 23]);
    // Dimensions of 1 make no gap, whatever their stride.
    let one = view.narrow(1, 2, 1).expect("a row").narrow(0, 1, 1).expect("a row");
    assert!(one.is_contiguous());
    assert_eq!(numbers(&one.reshape(&[4]).expect("a row")), [20, 21, 22, 23]);
    assert_eq!(
        format!("{columns:?}"),
        format!("View(i32 [2, 3, 2], strides [12, 4, 1], {device})")
    );
}

fn refused_parts(device: &Device) {
    let mut x = counted(device, &[2, 3, 4]);
    let view = x.view();
    assert_eq!(refused(view.narrow(3, 0, 1)), ("narrow", "range"));
    assert_eq!(refused(view.narrow(1, 2, 2)), ("narrow", "range"));
    assert_eq!(refused(view.narrow(1, usize::MAX, 2)), ("narrow", "range"));
    assert_eq!(refused(view.select(2, 0)), ("select", "dim"));
    assert_eq!(refused(view.select(9, 0)), ("select", "dim"));
    assert_eq!(refused(view.select(usize::MAX, 0)), ("select", "dim"));
    assert_eq!(refused(view.select(0, 2)), ("select", "index"));
    assert_eq!(refused(view.reshape(&[5, 5])), ("reshape", "shape"));
    assert_eq!(refused(view.reshape(&[usize::MAX, 2])), ("reshape", "shape"));
    assert_eq!(
        refused(view.narrow(2, 0, 2).and_then(|v| v.reshape(&[12]))),
        ("reshape", "shape")
    );
    assert_eq!(refused(view.to_vec::<f32>()), ("to_vec", "dtype"));
    assert_eq!(refused(view.to_f32_vec()), ("to_f32_vec", "dtype"));
    drop(view);
    assert_eq!(
        refused(x.view_mut().copy_from_slice(&[0i32; 23])),
        ("copy_from_slice", "data")
    );
    assert_eq!(
        refused(x.view_mut().copy_from_slice(&[0f32; 24])),
        ("copy_from_slice", "dtype")
    );
    let gapped = x
        .view_mut()
        .narrow(2, 0, 2)
        .expect("a view")
        .copy_from_slice(&[0i32; 12]);
    assert_eq!(refused(gapped), ("copy_from_slice", "data"));
    assert_eq!(
        numbers(&x.view()),
        (0..24).collect::<Vec<i32>>(),
        "a refused copy has written"
    );
}

fn strided_parts(device: &Device) {
    let mut x = counted(device, &[2, 3, 4]);
    let view = x.view();
    let turned = view.strided(1, &[3, 2, 2], &[4, 12, 1]).expect("a transposed part");
    assert_eq!((turned.shape(), turned.strides()), (&[3, 2, 2][..], &[4, 12, 1][..]));
    assert_eq!(numbers(&turned), [1, 2, 13, 14, 5, 6, 17, 18, 9, 10, 21, 22]);
    assert_eq!(turned.address(), view.address() + 4);
    let repeated = view.strided(22, &[3, 2], &[0, 1]).expect("a row three times");
    assert_eq!(numbers(&repeated), [22, 23, 22, 23, 22, 23]);
    // A stride that nothing is reached by does not count.
    let column = view.strided(3, &[6, 1], &[4, 99]).expect("a column");
    assert_eq!(
        (column.strides(), numbers(&column)),
        (&[4, 1][..], vec![3, 7, 11, 15, 19, 23])
    );
    assert!(numbers(&view.strided(24, &[0, 4], &[4, 1]).expect("nothing")).is_empty());

    for (offset, shape, strides, argument) in [
        (0, &[3, 2, 2][..], &[4, 15, 1][..], "strides"), // one past the end
        (12, &[3, 2, 2], &[4, 12, 1], "strides"),
        (25, &[0], &[1], "offset"),
        (usize::MAX, &[1], &[1], "offset"),
        (24, &[1], &[1], "strides"),
        (0, &[2, 3], &[1, 2], "strides"), // the innermost is not 1
        (0, &[2, 3], &[3], "strides"),
        (0, &[], &[], "strides"),
        (0, &[2, 2], &[usize::MAX, 1], "strides"),
        (0, &[usize::MAX, 2], &[0, 1], "shape"),
    ] {
        assert_eq!(refused(view.strided(offset, shape, strides)), ("strided", argument));
        assert_eq!(refused(x_mut(&view, offset, shape, strides)), ("strided", argument));
    }
    let gapped = view.narrow(2, 0, 2).expect("a part");
    assert_eq!(refused(gapped.strided(0, &[2], &[1])), ("strided", "self"));
    drop((turned, repeated, column, gapped, view));

    // Written through, where no element has two addresses' worth of names.
    for (shape, strides) in [(&[2, 2][..], &[0, 1][..]), (&[2, 3], &[2, 1]), (&[3, 2, 2], &[1, 2, 1])] {
        assert_eq!(refused(x.view_mut().strided(0, shape, strides)), ("strided", "strides"));
    }
    let part = x.view_mut().strided(2, &[1, 2, 2], &[0, 12, 1]).expect("a part");
    let mut row = part.select(1, 1).expect("its second row");
    row.copy_from_slice(&[-1, -2]).expect("an upload");
    drop(row);
    let expected: Vec<i32> = (0..24)
        .map(|i| [-1, -2].get((i as usize).wrapping_sub(14)).copied().unwrap_or(i))
        .collect();
    assert_eq!(numbers(&x.view()), expected);
}

/// A mutable view's answer for what a view of the same elements is asked.
fn x_mut(view: &View<'_>, offset: usize, shape: &[usize], strides: &[usize]) -> Result<()> {
    let mut copy = counted(view.device(), view.shape());
    copy.view_mut().strided(offset, shape, strides).map(drop)
}

fn writing(device: &Device) {
    let mut x = counted(device, &[2, 3, 4]);
    let mut row = x.view_mut().select(0, 1).and_then(|v| v.select(0, 2)).expect("a row");
    row.copy_from_slice(&[-1i32, -2, -3, -4]).expect("a copy");
    assert_eq!(numbers(&row.reborrow().view()), [-1, -2, -3, -4]);
    drop(row);
    let mut expected: Vec<i32> = (0..20).collect();
    expected.extend([-1, -2, -3, -4]);
    assert_eq!(numbers(&x.view()), expected);
}

/// Any nesting of narrowing and selection downloads what index arithmetic says.
fn strided_downloads(device: &Device) {
    let mut rng = Rng::new("strided_downloads");
    for _ in 0..100 {
        let shape: Vec<usize> = (0..rng.below(1..5)).map(|_| rng.below(1..5)).collect();
        let x = counted(device, &shape);
        let mut view = x.view();
        let mut places: Vec<(usize, usize)> = shape.iter().map(|&n| (0, n)).collect();
        for (dim, place) in places.iter_mut().enumerate() {
            let start = rng.below(0..shape[dim] + 1);
            let len = rng.below(0..shape[dim] - start + 1);
            view = view.narrow(dim, start, len).expect("a range inside");
            *place = (start, len);
        }
        let mut expected = vec![0usize];
        for (&n, &(start, len)) in shape.iter().zip(&places) {
            expected = expected
                .iter()
                .flat_map(|at| (start..start + len).map(move |i| at * n + i))
                .collect();
        }
        let expected: Vec<i32> = expected.into_iter().map(|x| x as i32).collect();
        assert_eq!(numbers(&view), expected, "{places:?} of {shape:?}");
    }
}

fn rounding(device: &Device) {
    // Ties go to even: 1 + 2^-8 lies between 1 and 1 + 2^-7.
    let data = [1.0f32, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -65504.0, f32::NAN];
    let halves = Tensor::from_f32(device, DType::BF16, &data, &[5]).expect("a tensor");
    let back = halves.to_f32_vec().expect("numbers");
    assert_eq!(back[..4], [1.0, 1.0, 1.0 + 4.0 / 256.0, -65536.0]);
    assert!(back[4].is_nan());
    let halves = Tensor::from_f32(device, DType::F16, &data[..4], &[4]).expect("a tensor");
    assert_eq!(halves.to_f32_vec().expect("numbers"), data[..4]);
    let made = Tensor::from_slice(device, &[bf16::from_f32(1.5)], &[1]).expect("a tensor");
    assert_eq!(made.to_vec::<bf16>().expect("numbers"), [bf16::from_f32(1.5)]);
    assert_eq!(refused(made.to_vec::<f16>()), ("to_vec", "dtype"));
    assert_eq!(made.bytes(), 2);
}

fn making_tensors(device: &Device) {
    let zeros = Tensor::zeros(device, DType::F32, &[3, 5]).expect("a tensor");
    assert_eq!(zeros.to_vec::<f32>().expect("numbers"), [0.0; 15]);
    let empty = Tensor::zeros(device, DType::F32, &[3, 0, 2]).expect("a tensor");
    assert!(empty.to_vec::<f32>().expect("numbers").is_empty());
    assert_eq!(
        refused(Tensor::zeros(device, DType::F32, &[])),
        ("Tensor::zeros", "strides")
    );
    assert_eq!(
        refused(Tensor::zeros(device, DType::U8, &[usize::MAX, 2])),
        ("Tensor::zeros", "shape")
    );
    assert_eq!(
        refused(Tensor::zeros(device, DType::U8, &[usize::MAX])),
        ("Tensor::zeros", "shape")
    );
    assert_eq!(
        refused(Tensor::from_slice(device, &[1i32; 5], &[2, 3])),
        ("Tensor::from_slice", "shape")
    );
    assert_eq!(
        refused(Tensor::from_f32(device, DType::I32, &[1.0; 5], &[5])),
        ("Tensor::from_f32", "dtype")
    );
    // Nothing in it, and yet a stride that no number holds.
    assert_eq!(
        refused(Tensor::zeros(device, DType::U8, &[0, 1 << 61, 8])),
        ("Tensor::zeros", "strides")
    );
    // An exbibyte: what an address holds, and no machine.
    const HUGE: usize = 1 << 60;
    match Tensor::zeros(device, DType::U8, &[HUGE]) {
        Err(Error::OutOfMemory { device: name, bytes }) => assert_eq!((name, bytes), (device.kind().name(), HUGE)),
        other => panic!("{other:?} instead of too little memory"),
    }
}

fn slices_of_the_caller(device: &Device) {
    let mut data = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    if !device.is_host() {
        assert_eq!(
            refused(View::from_slice(device, &data, &[6])),
            ("View::from_slice", "device")
        );
        assert_eq!(
            refused(ViewMut::from_slice(device, &mut data, &[6])),
            ("ViewMut::from_slice", "device")
        );
        return;
    }
    assert_eq!(
        refused(View::from_slice(device, &data, &[7])),
        ("View::from_slice", "shape")
    );
    assert_eq!(
        refused(ViewMut::from_slice(device, &mut data, &[2, 2])),
        ("ViewMut::from_slice", "shape")
    );
    assert_eq!(
        refused(View::from_slice(device, &[0f32; 0], &[])),
        ("View::from_slice", "shape")
    );
    let view = View::from_slice(device, &data, &[2, 3]).expect("a view");
    assert_eq!(view.address(), data.as_ptr() as u64);
    assert_eq!(
        view.select(0, 1).and_then(|v| v.to_vec::<f32>()).expect("numbers"),
        [4.0, 5.0, 6.0]
    );
    drop(view);
    let mut view = ViewMut::from_slice(device, &mut data, &[3, 2]).expect("a view");
    view.reborrow()
        .select(0, 0)
        .and_then(|mut row| row.copy_from_slice(&[9.0f32, 8.0]))
        .expect("a copy");
    drop(view);
    assert_eq!(data, [9.0, 8.0, 3.0, 4.0, 5.0, 6.0]);
}

fn raw_addresses(device: &Device) {
    let mut data: Vec<i32> = (0..12).collect();
    let address = data.as_mut_ptr() as u64;
    let view = |address: u64, dtype: DType, shape: &[usize], strides: &[usize]| {
        // SAFETY: what the strides reach lies inside `data`, which nobody writes while a view that
        // was not refused lives; the refused ones are not made.
        unsafe { View::from_raw(device, address, dtype, shape, strides) }
    };
    let every_other = view(address, DType::I32, &[2, 3], &[8, 1]).expect("a view");
    assert_eq!(numbers(&every_other), [0, 1, 2, 8, 9, 10]);
    // Rows that overlap may be read.
    assert_eq!(
        numbers(&view(address, DType::I32, &[3, 2], &[1, 1]).expect("a view")),
        [0, 1, 1, 2, 2, 3]
    );
    assert_eq!(
        numbers(&view(address, DType::I32, &[3, 2], &[0, 1]).expect("a view")),
        [0, 1, 0, 1, 0, 1]
    );

    let op = "View::from_raw";
    assert_eq!(refused(view(0, DType::I32, &[2], &[1])), (op, "address"));
    assert_eq!(refused(view(address + 2, DType::I32, &[2], &[1])), (op, "address"));
    assert_eq!(refused(view(address, DType::I32, &[2, 2], &[1])), (op, "strides"));
    assert_eq!(refused(view(address, DType::I32, &[2, 2], &[1, 2])), (op, "strides"));
    assert_eq!(refused(view(address, DType::I32, &[], &[])), (op, "strides"));
    assert_eq!(
        refused(view(address, DType::I32, &[2, 2], &[usize::MAX, 1])),
        (op, "strides")
    );
    assert_eq!(
        refused(view(address, DType::I32, &[usize::MAX, 2], &[2, 1])),
        (op, "shape")
    );
    assert!(view(0, DType::I32, &[0], &[1]).is_ok(), "nothing needs no address");

    // SAFETY: two rows of `data` with a gap between, and `data` is not used while the view lives.
    let mut rows = unsafe { ViewMut::from_raw(device, address, DType::I32, &[2, 4], &[6, 1]) }.expect("a view");
    rows.reborrow()
        .select(0, 1)
        .and_then(|mut row| row.copy_from_slice(&[-1i32; 4]))
        .expect("a copy");
    assert_eq!(data, [0, 1, 2, 3, 4, 5, -1, -1, -1, -1, 10, 11]);
    // SAFETY: refused, so never made.
    let null = unsafe { ViewMut::from_raw(device, 0, DType::I32, &[2], &[1]) };
    assert_eq!(refused(null), ("ViewMut::from_raw", "address"));
}

fn page_lists(device: &Device) {
    let mut lists = PageLists::new(device, 10, 3, 4).expect("lists");
    assert_eq!((lists.streams(), lists.length(), lists.pool_pages()), (3, 4, 10));
    lists.set(&[vec![1, 2, 3, 9], vec![4]]).expect("lists");
    let entries = [1, 2, 3, 9, 4, 0, 0, 0];
    assert_eq!(
        (lists.streams(), numbers(&lists.view())),
        (2, entries.to_vec()),
        "two lists in use"
    );

    for too_much in [
        vec![vec![]; 4],            // lists
        vec![vec![0, 1, 2, 3, 4]],  // pages
        vec![vec![0, 1], vec![10]], // the pool
        vec![vec![u32::MAX]],
    ] {
        let (op, _) = refused(lists.set(&too_much));
        assert_eq!(op, "PageLists::set");
        assert_eq!(numbers(&lists.view()), entries, "a refused list has been written");
    }
    assert_eq!(refused(lists.set(&[vec![10]])), ("PageLists::set", "pages"));
    assert_eq!(refused(lists.set_row(2, &[0])), ("PageLists::set_row", "list"));
    assert_eq!(refused(lists.set_row(0, &[0; 5])), ("PageLists::set_row", "list"));
    assert_eq!(refused(lists.set_row(0, &[10])), ("PageLists::set_row", "pages"));
    assert_eq!(numbers(&lists.view()), entries);
    lists.set_row(1, &[7, 8]).expect("a row");
    assert_eq!(numbers(&lists.view()), [1, 2, 3, 9, 7, 8, 0, 0]);

    let made = PageLists::from_host(device, 10, &[vec![5, 6], vec![7, 8]]).expect("lists");
    assert_eq!(numbers(&made.view()), [5, 6, 7, 8]);
    assert_eq!(
        refused(PageLists::from_host(device, 10, &[vec![5], vec![7, 8]])),
        ("PageLists::set", "lists")
    );
    let none = PageLists::from_host(device, 10, &[]).expect("no lists");
    assert_eq!((none.streams(), none.length()), (0, 0));
    let empty = PageLists::from_host(device, 10, &[vec![], vec![]]).expect("empty lists");
    assert_eq!((empty.streams(), empty.length()), (2, 0));
}

fn contexts(device: &Device) {
    let turned = Segment {
        rotation: -3.5,
        key_bias: 32f32.ln(),
        slot_bias: true,
        ..Segment::new(vec![4, 0], 5)
    };
    let streams = vec![
        vec![Segment::new(vec![1, 2], 8), turned.clone()],
        vec![Segment::new(vec![7], 1)],
    ];
    let mut context = Context::from_host(device, (8, 4), &streams).expect("a context");
    assert_eq!(
        (context.streams(), context.max_segments(), context.max_pages()),
        (2, 2, 4)
    );
    assert_eq!((context.page_tokens(), context.pool_pages()), (4, 8));
    assert_eq!(context.to_host().expect("a download"), streams);

    let op = "Context::set";
    let one = |s: Segment| vec![vec![s]];
    let with = |change: fn(&mut Segment)| {
        let mut segment = turned.clone();
        change(&mut segment);
        one(segment)
    };
    let refusals = [
        (vec![vec![]; 3], "streams"),
        (vec![vec![Segment::new(vec![], 0); 3]], "segments"),
        (one(Segment::new(vec![8], 1)), "pages"),
        (one(Segment::new(vec![u32::MAX], 1)), "pages"),
        (one(Segment::new(vec![0; 5], 20)), "pages"),
        (one(Segment::new(vec![3, 4], 9)), "tokens"),
        (one(Segment::new(vec![3], usize::MAX)), "tokens"),
        (with(|s| s.rotation = f32::NAN), "rotation, key_bias"),
        (with(|s| s.rotation = f32::INFINITY), "rotation, key_bias"),
        (with(|s| s.key_bias = f32::NAN), "rotation, key_bias"),
        (with(|s| s.key_bias = f32::INFINITY), "rotation, key_bias"),
        // The first stream is sound; nothing of it may arrive.
        (
            vec![vec![Segment::new(vec![3], 2)], vec![Segment::new(vec![9], 1)]],
            "pages",
        ),
    ];
    for (streams_of, argument) in refusals {
        assert_eq!(refused(context.set(&streams_of)), (op, argument), "{streams_of:?}");
        assert_eq!(
            context.to_host().expect("a download"),
            streams,
            "a refused context has been written"
        );
    }

    // Keys that do not count, and fewer streams than there is room for.
    let shut = Segment {
        key_bias: f32::NEG_INFINITY,
        ..Segment::new(vec![3], 2)
    };
    context.set(&one(shut.clone())).expect("a context");
    assert_eq!(context.to_host().expect("a download"), [vec![shut], vec![]]);
    context.set(&[]).expect("an empty context");
    assert_eq!(context.to_host().expect("a download"), [vec![], vec![]]);

    assert_eq!(
        refused(Context::new(device, (8, 0), 1, 1, 1)),
        ("Context::new", "page_tokens")
    );
    let endless = [vec![Segment::new(vec![0, 1], 3)]];
    let context = Context::from_host(device, (8, usize::MAX), &endless).expect("a context");
    assert_eq!(context.page_tokens(), usize::MAX);
    let nothing = Context::from_host(device, (8, 4), &[]).expect("no streams");
    assert_eq!(nothing.to_host().expect("a download"), Vec::<Vec<Segment>>::new());
}

/// A device that is not there says why; the CPU always is.
fn absent_devices() {
    let none = Device::cuda(99).expect_err("nobody has 100 GPUs");
    let message = none.to_string();
    match &none {
        Error::NoDriver { reason } => assert!(message.contains(reason.as_str()) && !reason.is_empty()),
        Error::NoGpu => assert_eq!(message, "the CUDA driver shows no GPU"),
        Error::NoSuchDevice { ordinal: 99, count } => {
            assert!(*count > 0 && message.contains(&count.to_string()), "{message}");
        }
        other => panic!("{other:?} is no reason for a missing GPU"),
    }
    let (best, absent) = Device::best();
    match best.kind() {
        DeviceKind::Cuda | DeviceKind::CudaDouble => assert!(absent.is_empty()),
        DeviceKind::Cpu => {
            assert_eq!(absent.len(), 1);
            assert_eq!(absent[0].kind, DeviceKind::Cuda);
            let again = Device::cuda(0).expect_err("it was not chosen");
            assert_eq!(absent[0].reason.to_string(), again.to_string());
        }
        DeviceKind::Simt => panic!("a test device was chosen"),
    }
    assert!(best.synchronize().is_ok());
}

/// Clones are one device; two SIMT devices are two.
fn device_identity(device: &Device) {
    assert_eq!(device, &device.clone());
    let another = Device::simt(Default::default()).expect("the simt device");
    assert_ne!(device, &another);
    assert_eq!(Device::cpu(), Device::cpu());
    assert_eq!(device.is_host(), !device.kind().is_cuda());
    assert!(device.to_string().starts_with(device.kind().name()));
}

/// `x -= v / 2`, by a kernel.
fn half_step(device: &Device, v: View<'_>, x: ViewMut<'_>) {
    let coefficients = Coefficients::new(device, &[rows::euler(&[1.0], &[0.5])]).expect("numbers");
    let step = DenoiseStep {
        terms: vec![v],
        in_place: 1,
        frame_axis: 0,
        coefficients: &coefficients,
        noise: None,
        noise_base: None,
        guidance: None,
    };
    denoise_step(&step, &mut [x]).expect("a step");
}

/// Slices and views of cudarc's are used in place, on a stream that another library would bring.
fn slices_of_cudarc(_: &Device) {
    let context = CudaContext::new(0).expect("a context");
    let stream = context.default_stream();
    let device = Device::from_cuda_stream(stream.clone()).expect("a device");
    let v = stream.clone_htod(&[2.0f32, 4.0, 6.0, 8.0]).expect("a copy");
    let mut x = stream.clone_htod(&[10.0f32, 20.0, 30.0, 40.0]).expect("a copy");

    let shape = [1, 2, 2];
    half_step(
        &device,
        View::from_cuda_slice(&device, &v, &shape).expect("a view"),
        ViewMut::from_cuda_slice(&device, &mut x, &shape).expect("a view"),
    );
    assert_eq!(stream.clone_dtoh(&x).expect("a copy"), [9.0, 18.0, 27.0, 36.0]);

    half_step(
        &device,
        View::from_cuda_view(&device, &v.slice(..2), &[1, 2]).expect("a view"),
        ViewMut::from_cuda_view(&device, &mut x.slice_mut(1..3), &[1, 2]).expect("a view"),
    );
    assert_eq!(stream.clone_dtoh(&x).expect("a copy"), [9.0, 17.0, 25.0, 36.0]);

    for wrong in [&[3][..], &[2, 4], &[usize::MAX, 4]] {
        assert_eq!(
            refused(View::from_cuda_slice(&device, &v, wrong)),
            ("View::from_cuda_slice", "shape")
        );
    }
    assert_eq!(
        refused(View::from_cuda_slice(&Device::cpu(), &v, &shape)),
        ("View::from_cuda_slice", "device")
    );
}

/// What another stream writes is taken only where cudarc's events order it.
fn slices_of_other_streams(device: &Device) {
    // Another context object of the same GPU: no events between the two.
    let foreign = CudaContext::new(0)
        .and_then(|c| c.new_stream())
        .expect("a stream")
        .clone_htod(&[0.0f32; 4])
        .expect("a copy");
    let mut written = foreign.clone();
    assert_eq!(
        refused(View::from_cuda_slice(device, &foreign, &[4])),
        ("View::from_cuda_slice", "data")
    );
    assert_eq!(
        refused(View::from_cuda_view(device, &foreign.slice(1..), &[3])),
        ("View::from_cuda_view", "data")
    );
    assert_eq!(
        refused(ViewMut::from_cuda_slice(device, &mut written, &[4])),
        ("ViewMut::from_cuda_slice", "data")
    );
    assert_eq!(
        refused(ViewMut::from_cuda_view(device, &mut written.slice_mut(1..), &[3])),
        ("ViewMut::from_cuda_view", "data")
    );

    // Two streams of one context object that tracks events.
    let context = CudaContext::new(0).expect("a context");
    let (ours, theirs) = (
        context.new_stream().expect("a stream"),
        context.new_stream().expect("a stream"),
    );
    let device = Device::from_cuda_stream(ours).expect("a device");
    let n = 1 << 20;
    let v = theirs.clone_htod(&vec![2.0f32; n]).expect("a copy");
    let mut x = theirs.clone_htod(&vec![10.0f32; n]).expect("a copy");
    half_step(
        &device,
        View::from_cuda_slice(&device, &v, &[1, n]).expect("a view"),
        ViewMut::from_cuda_slice(&device, &mut x, &[1, n]).expect("a view"),
    );
    assert_eq!(theirs.clone_dtoh(&x).expect("a copy"), vec![9.0; n]);

    // A slice that was made while no events were tracked has none, even when they are again.
    // SAFETY: the one slice made here is used on its own stream only.
    unsafe { context.disable_event_tracking() };
    let bare = theirs.clone_htod(&[0.0f32; 4]).expect("a copy");
    let door = "View::from_cuda_slice";
    assert_eq!(refused(View::from_cuda_slice(&device, &bare, &[4])), (door, "data"));
    // SAFETY: as above.
    unsafe { context.enable_event_tracking() };
    assert_eq!(refused(View::from_cuda_slice(&device, &bare, &[4])), (door, "data"));
}

/// A raw handle of a stream gives the same device as the stream.
fn raw_streams(_: &Device) {
    let context = CudaContext::new(0).expect("a context");
    let stream = context.new_stream().expect("a stream");
    // SAFETY: `CudaContext::new` retains the primary context, and `stream` outlives the device.
    let device = unsafe { Device::from_raw_cuda_stream(0, stream.cu_stream()) }.expect("a device");
    assert_eq!(
        device,
        Device::from_cuda_stream(stream.clone()).expect("the same device")
    );
    assert_ne!(device, Device::cuda(0).expect("a stream of its own"));
    let v = Tensor::from_slice(&device, &[2.0f32, 4.0], &[1, 2]).expect("a tensor");
    let mut x = stream.clone_htod(&[10.0f32, 20.0]).expect("a copy");
    // The device's own context object has no part in the other one's events.
    assert_eq!(
        refused(View::from_cuda_slice(&device, &x, &[2])),
        ("View::from_cuda_slice", "data")
    );
    // SAFETY: the context has one stream.
    unsafe { context.disable_event_tracking() };
    half_step(
        &device,
        v.view(),
        ViewMut::from_cuda_slice(&device, &mut x, &[1, 2]).expect("a view"),
    );
    assert_eq!(stream.clone_dtoh(&x).expect("a copy"), [9.0, 18.0]);
    // Memory is freed on whatever thread drops it last.
    std::thread::spawn(move || drop(v)).join().expect("no panic");
    device.synchronize().expect("no fault");
}

/// Messages name the op, the argument, what was expected and what came.
fn messages() {
    let cpu = Device::cpu();
    let x = counted(&cpu, &[2, 3]);
    let message = x.view().narrow(1, 2, 5).expect_err("out of range").to_string();
    assert_eq!(
        message,
        "narrow: range: expected a range inside dimension 1 of [2, 3], got 2..7"
    );
    let message = x.view().to_vec::<f32>().expect_err("not f32").to_string();
    assert_eq!(message, "to_vec: dtype: expected f32, got i32");
}

fn main() -> std::process::ExitCode {
    common::Suite::new()
        .on_devices("parts_of_views", parts_of_views)
        .on_devices("refused_parts", refused_parts)
        .on_devices("strided_parts", strided_parts)
        .on_devices("writing", writing)
        .on_devices("strided_downloads", strided_downloads)
        .on_devices("rounding", rounding)
        .on_devices("making_tensors", making_tensors)
        .on_devices("slices_of_the_caller", slices_of_the_caller)
        .on(&["cpu", "simt"], "raw_addresses", raw_addresses)
        .on_devices("page_lists", page_lists)
        .on_devices("contexts", contexts)
        .on_devices("device_identity", device_identity)
        .on(&["cuda"], "slices_of_cudarc", slices_of_cudarc)
        .on(&["cuda"], "slices_of_other_streams", slices_of_other_streams)
        .on(&["cuda"], "raw_streams", raw_streams)
        .plain("absent_devices", absent_devices)
        .plain("messages", messages)
        .run()
}
