//! The double by the manual: what it takes, refuses and leaves open. Each test has a card of its own, since faults stay.

use std::ffi::{CString, c_int};
use std::ptr::null;
use std::sync::Once;

use crate::api::*;
use crate::images;

/// An image that the table knows, with a planted kernel's correct twin: `out[i] = in[n - 1 - i]`.
const KERNEL: &str = "planted_missing_barrier_fixed";
const N: usize = 128;

/// `PlantedParams` of `kernels/simt/planted/planted.h`.
#[repr(C)]
struct Params {
    input: u64,
    out: u64,
    n: i32,
    reserved: i32,
}

/// A fatbin's header, and some bytes that tell one from another.
fn image(what: &str) -> Vec<u8> {
    let mut bytes = 0xBA55_ED50u32.to_le_bytes().to_vec();
    bytes.extend([1, 0, 16, 0]);
    bytes.extend((what.len() as u64).to_le_bytes());
    bytes.extend(what.as_bytes());
    bytes
}

fn row(name: &str, archs: &str) -> String {
    let bytes = image(name);
    format!(
        "{name}\t{}\t{:016x}\t{archs}\t{KERNEL}\n",
        bytes.len(),
        images::hash(&bytes)
    )
}

/// Makes a card this thread's own: its context, current.
fn card(ordinal: c_int) -> u64 {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // SAFETY: nothing else in this program reads the environment at the same time.
        unsafe {
            std::env::set_var("CUDA_DOUBLE_DEVICES", "16");
            std::env::set_var("CUDA_DOUBLE_MEMORY", "1048576");
        }
        let table = row("known", "80,90a\t80") + &row("newer", "100\t100") + &row("exact", "80a\t");
        let table = CString::new(table).unwrap();
        // SAFETY: a text that ends in a zero.
        unsafe { cuda_double_setup(13000, 13000, table.as_ptr()) };
        assert_eq!(cuInit(0), 0);
    });
    let mut context = 0;
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { cuDevicePrimaryCtxRetain(&raw mut context, ordinal) }, 0);
    assert_eq!(cuCtxSetCurrent(context), 0);
    context
}

fn stream() -> u64 {
    let mut stream = 0;
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { cuStreamCreate(&raw mut stream, 1) }, 0);
    stream
}

fn event() -> u64 {
    let mut event = 0;
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { cuEventCreate(&raw mut event, 0) }, 0);
    event
}

fn memory(bytes: usize) -> u64 {
    let mut address = 0;
    // SAFETY: a place for the address.
    assert_eq!(unsafe { cuMemAlloc_v2(&raw mut address, bytes) }, 0);
    address
}

fn function(name: &str) -> (u32, u64) {
    let (mut module, mut function) = (0, 0);
    let kernel = CString::new(KERNEL).unwrap();
    // SAFETY: places for the handles; the image says how long it is.
    unsafe {
        let loaded = cuModuleLoadData(&raw mut module, image(name).as_ptr());
        if loaded != 0 {
            return (loaded, 0);
        }
        (
            cuModuleGetFunction(&raw mut function, module, kernel.as_ptr()),
            function,
        )
    }
}

fn launch(function: u64, stream: u64, params: &Params, shared: u32, threads: u32) -> u32 {
    let arguments = [std::ptr::from_ref(params).cast::<u8>()];
    // SAFETY: the kernel takes this struct.
    unsafe {
        cuLaunchKernel(
            function,
            1,
            1,
            1,
            threads,
            1,
            1,
            shared,
            stream,
            arguments.as_ptr(),
            null(),
        )
    }
}

fn numbers() -> Vec<i32> {
    (0..N as i32).map(|i| 3 * i + 1).collect()
}

/// Copies that wait.
fn upload(to: u64, from: &[i32]) -> u32 {
    // SAFETY: as many bytes.
    unsafe { cuMemcpyHtoD_v2(to, from.as_ptr().cast(), 4 * from.len()) }
}

fn download(from: u64) -> Result<Vec<i32>, u32> {
    let mut to = vec![0i32; N];
    // SAFETY: as many bytes.
    match unsafe { cuMemcpyDtoH_v2(to.as_mut_ptr().cast(), from, 4 * N) } {
        0 => Ok(to),
        code => Err(code),
    }
}

#[test]
fn only_what_the_card_runs_is_loaded_and_only_what_is_known_is_found() {
    card(0);
    assert_eq!(function("known").0, 0);
    assert_eq!(function("newer").0, 209, "code and PTX for 10.0 on a card of 9.0");
    assert_eq!(function("exact").0, 209, "80a on another card");
    assert_eq!(function("nobody's").0, 500, "foreign code has no SIMT build");
    let mut module = 0;
    // SAFETY: a text, as the manual allows.
    let loaded = unsafe { cuModuleLoadData(&raw mut module, c"no image".as_ptr().cast()) };
    assert_eq!(loaded, 200);
}

#[test]
fn launches_are_held_to_the_card() {
    card(1);
    let (_, kernel) = function("known");
    let params = Params {
        input: memory(4 * N),
        out: memory(4 * N),
        n: N as i32,
        reserved: 0,
    };
    let queue = stream();
    assert_eq!(
        launch(kernel, queue, &params, 60 * 1024, 128),
        1,
        "more than 48 KB, unasked"
    );
    assert_eq!(
        cuFuncSetAttribute(kernel, 8, 228 * 1024),
        1,
        "more than a block may have"
    );
    assert_eq!(cuFuncSetAttribute(kernel, 8, 60 * 1024), 0);
    assert_eq!(upload(params.input, &numbers()), 0);
    assert_eq!(launch(kernel, queue, &params, 60 * 1024, 128), 0);
    assert_eq!(launch(kernel, queue, &params, 512, 2048), 1, "threads");
    assert_eq!(launch(kernel, 12345, &params, 512, 128), 400, "no stream");
    assert_eq!(cuStreamSynchronize(queue), 0);
    let reversed: Vec<i32> = numbers().into_iter().rev().collect();
    assert_eq!(download(params.out), Ok(reversed));
}

#[test]
fn memory_has_ends_and_is_freed_once() {
    let context = card(2);
    let x = memory(4 * N);
    assert_eq!(upload(x + 4, &numbers()), 1, "past the end");
    assert_eq!(download(x).unwrap(), vec![-1; N], "poison until it is written");
    assert_eq!(cuMemFree_v2(x), 0);
    assert_eq!(cuMemFree_v2(x), 1);
    assert_eq!(download(x), Err(1));
    let mut address = 0;
    // SAFETY: a place for the address.
    let allocated = unsafe { cuMemAlloc_v2(&raw mut address, 2 << 20) };
    assert_eq!(allocated, 2, "more than the card has");

    // What is there when the context goes was never freed.
    let (mut faults, mut before, mut after) = (0, 0, 0);
    memory(64);
    // SAFETY: places for numbers.
    unsafe { cuda_double_found(&raw mut faults, &raw mut before) };
    assert_eq!(cuDevicePrimaryCtxRelease_v2(2), 0);
    // SAFETY: as above.
    unsafe { cuda_double_found(&raw mut faults, &raw mut after) };
    assert_eq!(after, before + 1);
    assert_eq!(cuCtxSynchronize(), 709);
    assert_eq!(cuCtxSetCurrent(context), 201);
}

#[test]
fn a_kernel_that_touches_freed_memory_loses_the_card() {
    card(3);
    let (_, kernel) = function("known");
    let params = Params {
        input: memory(4 * N),
        out: memory(4 * N),
        n: N as i32,
        reserved: 0,
    };
    let queue = stream();
    assert_eq!(launch(kernel, queue, &params, 512, 128), 0);
    // The driver waits for nobody here, and the launch has not run.
    assert_eq!(cuMemFree_v2(params.out), 0);
    assert_eq!(cuStreamSynchronize(queue), 700);
    assert_eq!(launch(kernel, queue, &params, 512, 128), 700);
    assert_eq!(cuMemFree_v2(params.input), 700);
    // For the whole process: whoever opens the card again meets the same.
    assert_eq!(cuDevicePrimaryCtxRelease_v2(3), 0);
    card(3);
    assert_eq!(cuCtxSynchronize(), 700);
}

#[test]
fn pinned_memory_is_read_late_and_pageable_at_once() {
    card(4);
    let (queue, x) = (stream(), memory(4 * N));
    let mut pinned = 0;
    // SAFETY: a place for the address, and then pinned memory of so many bytes.
    let host = unsafe {
        assert_eq!(cuMemHostAlloc(&raw mut pinned, 4 * N, 0), 0);
        std::slice::from_raw_parts_mut(pinned as *mut i32, N)
    };
    host.fill(1);
    // SAFETY: as many bytes.
    assert_eq!(unsafe { cuMemcpyHtoDAsync_v2(x, pinned as *const u8, 4 * N, queue) }, 0);
    host.fill(2);
    assert_eq!(cuStreamSynchronize(queue), 0);
    assert_eq!(download(x).unwrap(), vec![2; N]);

    let mut pageable = vec![3i32; N];
    // SAFETY: as many bytes.
    let copied = unsafe { cuMemcpyHtoDAsync_v2(x, pageable.as_ptr().cast(), 4 * N, queue) };
    assert_eq!(copied, 0);
    pageable.fill(4);
    assert_eq!(cuStreamSynchronize(queue), 0);
    assert_eq!(download(x).unwrap(), vec![3; N]);

    // SAFETY: as above.
    assert_eq!(unsafe { cuMemcpyHtoDAsync_v2(x, pinned as *const u8, 4 * N, queue) }, 0);
    assert_eq!(cuMemFreeHost(pinned), 0);
    assert_eq!(cuStreamSynchronize(queue), 700, "freed while a copy was under way");
}

#[test]
fn streams_are_ordered_by_events_and_by_nothing_else() {
    card(5);
    let (a, b, x, y) = (stream(), stream(), memory(4 * N), memory(4 * N));
    let mut late = 0;
    for round in 0..20u8 {
        let copied = |waits: bool| {
            assert_eq!(cuMemsetD8Async(x, 0xff, 4 * N, 0), 0);
            assert_eq!(cuCtxSynchronize(), 0);
            let done = event();
            assert_eq!(cuMemsetD8Async(x, round, 4 * N, a), 0);
            assert_eq!(cuEventRecord(done, a), 0);
            if waits {
                assert_eq!(cuStreamWaitEvent(b, done, 0), 0);
            }
            assert_eq!(cuMemcpyDtoDAsync_v2(y, x, 4 * N, b), 0);
            assert_eq!(cuStreamSynchronize(b), 0);
            assert_eq!(cuEventDestroy_v2(done), 0);
            download(y).unwrap()[0] == i32::from_ne_bytes([round; 4])
        };
        assert!(copied(true), "round {round}");
        late += u32::from(!copied(false));
    }
    assert!(late > 0, "without a wait the copy came too early at least once");
}

#[test]
fn events_are_over_when_their_turn_came() {
    card(6);
    let (queue, x) = (stream(), memory(4 * N));
    let (start, end) = (event(), event());
    let mut ms = -1.0;
    // SAFETY: a place for the number.
    let elapsed = |ms: &mut f32| unsafe { cuEventElapsedTime(ms, start, end) };
    assert_eq!(elapsed(&mut ms), 400, "never recorded");
    assert_eq!(cuEventRecord(start, queue), 0);
    assert_eq!(cuMemsetD8Async(x, 0, 4 * N, queue), 0);
    assert_eq!(cuEventRecord(end, queue), 0);
    assert_eq!(cuEventQuery(end), 600, "nobody has waited");
    assert_eq!(elapsed(&mut ms), 600);
    assert_eq!(cuEventSynchronize(end), 0);
    assert_eq!((cuEventQuery(end), elapsed(&mut ms)), (0, 0));
    assert!(ms >= 0.0);
}

fn end(stream: u64) -> (u32, u64) {
    let mut graph = 1;
    // SAFETY: a place for the handle.
    (unsafe { cuStreamEndCapture(stream, &raw mut graph) }, graph)
}

#[test]
fn what_a_capture_forbids_breaks_it() {
    card(7);
    let (queue, other, x) = (stream(), stream(), memory(4 * N));
    let begin = || assert_eq!(cuStreamBeginCapture_v2(queue, 1), 0);
    let mut address = 0;

    begin();
    assert_eq!(cuStreamSynchronize(queue), 900);
    assert_eq!(cuMemsetD8Async(x, 0, 4, queue), 901);
    assert_eq!(end(queue), (901, 0));

    begin();
    // SAFETY: a place for the address.
    assert_eq!(unsafe { cuMemAlloc_v2(&raw mut address, 64) }, 900);
    assert_eq!(end(queue).0, 901);

    begin();
    assert_eq!(cuMemFreeAsync(x, queue), 1, "not the graph's");
    assert_eq!(end(queue).0, 901);

    begin();
    let (before, inside) = (event(), event());
    assert_eq!(cuEventRecord(before, other), 0);
    assert_eq!(cuStreamWaitEvent(queue, before, 0), 905, "work outside of the capture");
    assert_eq!(end(queue).0, 901);

    begin();
    assert_eq!(cuEventRecord(inside, queue), 0);
    assert_eq!(cuEventSynchronize(inside), 907);
    assert_eq!(cuStreamWaitEvent(other, inside, 0), 0, "a fork");
    assert_eq!(cuMemsetD8Async(x, 0, 4, other), 0);
    assert_eq!(end(other).0, 903);
    assert_eq!(end(queue).0, 901);

    begin();
    assert_eq!(cuEventRecord(inside, queue), 0);
    assert_eq!(cuStreamWaitEvent(other, inside, 0), 0);
    assert_eq!(cuMemsetD8Async(x, 0, 4, other), 0);
    assert_eq!(end(queue).0, 904, "not joined");

    begin();
    let context = {
        let mut current = 0;
        // SAFETY: a place for the handle.
        unsafe { cuCtxGetCurrent(&raw mut current) };
        current
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(cuCtxSetCurrent(context), 0);
            assert_eq!(end(queue).0, 908);
        });
    });
    assert_eq!(cuCtxSynchronize(), 900);
    assert_eq!(end(queue).0, 901);
    assert_eq!(end(queue).0, 401, "none is under way");
    assert_eq!(cuStreamBeginCapture_v2(0, 1), 900, "the legacy stream");
}

#[test]
fn a_graph_runs_again_and_outlives_its_handle() {
    card(8);
    let (queue, other, x, y) = (stream(), stream(), memory(4 * N), memory(4 * N));
    assert_eq!(cuMemsetD8Async(x, 0, 4 * N, queue), 0);
    assert_eq!(cuStreamSynchronize(queue), 0);
    assert_eq!(cuStreamBeginCapture_v2(queue, 1), 0);
    let (fork, join) = (event(), event());
    assert_eq!(cuMemsetD8Async(x, 5, 4 * N, queue), 0);
    assert_eq!(cuEventRecord(fork, queue), 0);
    assert_eq!(cuStreamWaitEvent(other, fork, 0), 0);
    assert_eq!(cuMemcpyDtoDAsync_v2(y, x, 4 * N, other), 0);
    assert_eq!(cuEventRecord(join, other), 0);
    assert_eq!(cuStreamWaitEvent(queue, join, 0), 0);
    let (code, graph) = end(queue);
    assert_eq!(code, 0);
    assert_eq!(download(x).unwrap(), vec![0; N], "nothing ran");

    let mut exec = 0;
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { cuGraphInstantiateWithFlags(&raw mut exec, graph, 0) }, 0);
    assert_eq!(cuGraphDestroy(graph), 0);
    for _ in 0..2 {
        assert_eq!(cuMemsetD8Async(y, 0, 4 * N, queue), 0);
        assert_eq!(cuGraphLaunch(exec, queue), 0);
        assert_eq!(cuStreamSynchronize(queue), 0);
        assert_eq!(download(y).unwrap(), vec![0x0505_0505; N]);
    }
    assert_eq!(cuMemsetD8Async(y, 0, 4 * N, queue), 0);
    assert_eq!(cuGraphLaunch(exec, queue), 0);
    assert_eq!(cuGraphExecDestroy(exec), 0);
    assert_eq!(cuStreamSynchronize(queue), 0);
    assert_eq!(download(y).unwrap(), vec![0x0505_0505; N]);
    assert_eq!(cuGraphLaunch(exec, queue), 400);
}

#[test]
fn contexts_are_of_threads_and_streams_of_contexts() {
    let first = card(9);
    let of_first = stream();
    let second = card(10);
    assert_ne!(first, second);
    assert_eq!(cuStreamSynchronize(of_first), 201, "another context's");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(cuCtxSynchronize(), 201, "a thread begins without one");
            assert_eq!(cuCtxSetCurrent(first), 0);
            // The per-thread stream is another one here.
            let x = memory(64);
            assert_eq!(cuMemsetD8Async(x, 1, 64, 2), 0);
            assert_eq!(cuStreamQuery(2), 600);
            scope.spawn(move || {
                assert_eq!(cuCtxSetCurrent(first), 0);
                assert_eq!(cuStreamQuery(2), 0);
            });
        });
    });
}

#[test]
fn a_call_fails_where_it_was_told_to() {
    card(11);
    let name = c"cuStreamSynchronize";
    let queue = stream();
    // SAFETY: a text that ends in a zero.
    unsafe { cuda_double_fail(name.as_ptr(), 2, 600) };
    assert_eq!([0; 3].map(|_: i32| cuStreamSynchronize(queue)), [0, 600, 0]);
}

#[test]
fn a_tensor_map_is_made_by_the_manuals_rules() {
    card(12);
    #[repr(align(64))]
    struct Map([u64; 16]);
    let encode = |dtype: u32, address: u64, stride: u64, columns: u32, step: u32, swizzle: u32| {
        let mut map = Map([0; 16]);
        let (extents, strides) = ([64u64, 8, 2, 2], [stride, 1024, 4096]);
        let (size, steps) = ([columns, 8, 1, 1], [step, 1, 1, 1]);
        // SAFETY: four of each, three strides.
        unsafe {
            cuTensorMapEncodeTiled(
                &raw mut map.0,
                dtype,
                4,
                address,
                extents.as_ptr(),
                strides.as_ptr(),
                size.as_ptr(),
                steps.as_ptr(),
                0,
                swizzle,
                3,
                0,
            )
        }
    };
    assert_eq!(encode(1, 4096, 128, 64, 1, 3), 0);
    for (what, code) in [
        ("an address off 16", encode(1, 4104, 128, 64, 1, 3)),
        ("a stride off 16", encode(1, 4096, 136, 64, 1, 3)),
        ("rows wider than the swizzle", encode(1, 4096, 128, 128, 1, 3)),
        ("a box of 300", encode(1, 4096, 128, 300, 1, 0)),
        ("an element stride of 9", encode(1, 4096, 128, 64, 9, 3)),
        ("no such dtype", encode(99, 4096, 128, 64, 1, 3)),
        ("no such swizzle", encode(1, 4096, 128, 64, 1, 9)),
    ] {
        assert_eq!(code, 1, "{what}");
    }
}
