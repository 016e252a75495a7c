//! What stands between Rust and a card: streams and threads, captures, staging, errors. All of it runs on a double of the
//! driver (`scripts/cuda-double.sh`), what needs no failing driver on a GPU too.

mod common;
#[path = "common/double.rs"]
mod double;

use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use common::{Rng, Suite};
use packforcing::cudarc::driver::CudaContext;
use packforcing::ops::attention::{Attention, attention};
use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, denoise_step};
use packforcing::paging::{Context, KvPages, Segment};
use packforcing::{DType, Device, Error, Result, Rope3d, Tensor};

/// `x = 2 x + term`, as a launch.
struct Doubling {
    x: Tensor,
    term: Tensor,
    coefficients: Coefficients,
}

impl Doubling {
    fn new(device: &Device) -> Doubling {
        let tensor = |x: f32| Tensor::from_slice(device, &[x; 64], &[1, 64]).expect("there is memory");
        Doubling {
            x: tensor(0.0),
            term: tensor(1.0),
            coefficients: Coefficients::new(device, &[vec![vec![2.0], vec![1.0], vec![0.0]]]).expect("finite"),
        }
    }

    fn launch(&mut self) -> Result<()> {
        step(&mut self.x, &self.term, &self.coefficients)
    }

    fn x(&self) -> f32 {
        let all = self.x.to_vec::<f32>().expect("numbers");
        assert!(all.iter().all(|x| *x == all[0]), "{all:?}");
        all[0]
    }
}

fn step(x: &mut Tensor, term: &Tensor, coefficients: &Coefficients) -> Result<()> {
    let step = DenoiseStep {
        terms: vec![term.view()],
        in_place: 1,
        frame_axis: 0,
        coefficients,
        noise: None,
        noise_base: None,
        guidance: None,
    };
    denoise_step(&step, &mut [x.view_mut()])
}

fn says<T>(result: Result<T>, parts: &[&str]) -> Error {
    let error = result.err().expect("it is refused");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
    error
}

/// On a thread with this name.
fn elsewhere<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let named = thread::Builder::new().name(name.into());
        let ended = named.spawn_scoped(scope, work).expect("a thread").join();
        ended.unwrap_or_else(|panic| match panic.downcast::<String>() {
            Ok(text) => panic!("on {name}: {text}"),
            Err(_) => panic!("on {name}"),
        })
    })
}

fn a_per_thread_stream_stays_on_its_thread(_: &Device) {
    let stream = CudaContext::new(0).expect("a context").per_thread_stream();
    let device = elsewhere("owner", || Device::from_cuda_stream(stream).expect("a device"));
    // Everything is refused where it is not at home, and both threads are named.
    let both = ["per-thread stream", "\"owner\"", "\"guest\""];
    elsewhere("guest", || {
        let error = says(Tensor::zeros(&device, DType::F32, &[4]), &both);
        assert!(matches!(error, Error::WrongThread { .. }), "{error:?}");
        says(device.synchronize(), &both);
        says(device.capture(|| Ok(())), &both);
    });

    // At home it works, and what was made there may be dropped anywhere: the drop waits for the whole card.
    let mut work = elsewhere("home", || {
        let stream = CudaContext::new(0).expect("a context").per_thread_stream();
        let device = Device::from_cuda_stream(stream).expect("a device");
        let mut work = Doubling::new(&device);
        (0..5).for_each(|_| work.launch().expect("it runs"));
        assert_eq!(work.x(), 31.0);
        work.launch().expect("it is under way at the drop");
        work
    });
    says(work.launch(), &["per-thread stream", "\"home\""]);
    drop(work);
}

fn a_capture_stays_on_its_thread(device: &Device) {
    let mut work = Doubling::new(device);
    work.launch().expect("it runs");
    let captured = device.capture(|| {
        elsewhere("guest", || {
            says(work.launch(), &["a capture of the device's stream", "\"guest\""]);
        });
        work.launch()
    });
    let graph = captured.expect("it records");
    // SAFETY: the tensors are there, and nothing borrows them.
    unsafe { graph.launch().expect("it runs") };
    assert_eq!(work.x(), 3.0, "one launch was recorded");
}

/// A device whose context orders its streams by events, as candle's does unless it is told otherwise.
fn a_capture_wants_no_event_tracking(_: &Device) {
    let context = CudaContext::new(0).expect("a context");
    let stream = context.new_stream().expect("a stream");
    let device = Device::from_cuda_stream(stream).expect("a device");
    let mut work = Doubling::new(&device);
    work.launch().expect("it runs");
    says(
        device.capture(|| work.launch()),
        &["Device::capture: device", "disable_event_tracking"],
    );
    work.launch().expect("nothing is captured");
    assert_eq!(work.x(), 3.0);

    // SAFETY: all work of this context is on one stream from here on.
    unsafe { context.disable_event_tracking() };
    let mut work = Doubling::new(&device);
    work.launch().expect("it runs");
    let graph = device.capture(|| work.launch()).expect("it records");
    // SAFETY: the tensors are there, and nothing borrows them.
    unsafe { graph.launch().expect("it runs") };
    assert_eq!(work.x(), 3.0);
}

fn a_capture_loads_nothing(device: &Device) {
    let mut work = Doubling::new(device);
    let error = says(
        device.capture(|| work.launch()),
        &["denoise_step_", "was not launched before", "run the work once"],
    );
    assert!(matches!(error, Error::Order { .. }), "{error:?}");
    work.launch().expect("outside it is loaded");
    device.capture(|| work.launch()).expect("and then recorded");
    assert_eq!(work.x(), 1.0);
}

fn what_is_dropped_in_a_capture_lives_as_long_as_the_graph(device: &Device) {
    let mut work = Doubling::new(device);
    work.launch().expect("it runs");
    let one = Tensor::from_slice(device, &[1.0f32; 64], &[1, 64]).expect("there is memory");
    let other = Tensor::zeros(device, DType::F32, &[1024]).expect("there is memory");
    let graph = device
        .capture(|| {
            let term = one;
            step(&mut work.x, &term, &work.coefficients)?;
            drop(other);
            Ok::<(), Error>(())
        })
        .expect("it records");
    // Whoever took the place of what was dropped would be read as the term.
    let others: Vec<_> = (0..8)
        .map(|_| Tensor::from_slice(device, &[9.0f32; 64], &[1, 64]))
        .collect();
    for expected in [3.0, 7.0] {
        // SAFETY: the graph keeps the term, the rest is here, and nothing borrows it.
        unsafe { graph.launch().expect("it runs") };
        assert_eq!(work.x(), expected);
    }
    drop(others);

    // An abandoned capture lets go, too.
    let gone = Tensor::zeros(device, DType::F32, &[64]).expect("there is memory");
    let abandoned: Result<_> = device.capture(|| {
        drop(gone);
        device.synchronize()
    });
    says(abandoned, &["a capture of this device"]);
    device.synchronize().expect("nothing is wrong");
    work.launch().expect("it runs");
    assert_eq!(work.x(), 15.0);
}

/// Freed in the order of the stream: what is under way still reads it.
fn what_is_dropped_is_freed_behind_the_work(device: &Device) {
    let mut work = Doubling::new(device);
    for i in 0..20 {
        let term = Tensor::from_slice(device, &[i as f32; 64], &[1, 64]).expect("there is memory");
        step(&mut work.x, &term, &work.coefficients).expect("it runs");
    }
    let expected = (0..20).fold(0.0f32, |x, i| 2.0 * x + i as f32);
    assert_eq!(work.x(), expected);
}

/// Uploads of every size follow each other without a wait; the bytes are the caller's again at once.
fn uploads_are_read_when_the_call_returns(device: &Device) {
    let mut rng = Rng::new("uploads");
    let sizes = [1usize, 3, 16, 1000, 65_536, 100_000, 262_144, 262_145, 700_000];
    let mut kept = Vec::new();
    for round in 0..60 {
        let n = sizes[(rng.bits() % sizes.len() as u64) as usize];
        let mut bytes: Vec<u8> = (0..n).map(|i| (i as u8).wrapping_mul(31) ^ round as u8).collect();
        let tensor = Tensor::from_slice(device, &bytes, &[n]).expect("there is memory");
        let expected = bytes.clone();
        bytes.fill(0xee);
        kept.push((tensor, expected));
    }
    for (tensor, expected) in kept {
        assert!(
            tensor.to_vec::<u8>().expect("bytes") == expected,
            "{} bytes",
            expected.len()
        );
    }
}

fn tensors_of_nothing_take_nothing(device: &Device) {
    let empty = Tensor::zeros(device, DType::F32, &[0, 4]).expect("there is no memory to lack");
    assert_eq!((empty.bytes(), empty.elements()), (0, 0));
    assert!(empty.to_vec::<f32>().expect("nothing").is_empty());
}

fn time_passes(device: &Device) {
    let mut work = Doubling::new(device);
    let took = device.time(|| (0..50).try_for_each(|_| work.launch()));
    let took = took.expect("two events");
    assert!(took.as_secs() < 60, "{took:?}");
    says(
        device.capture(|| device.time(|| Ok(())).map(drop)),
        &["Device::time", "a capture"],
    );
}

// -- on a double, whose calls can be made to fail ------------------------------------------------------

fn an_error_of_a_drop_is_told_as_that(device: &Device) {
    let mut work = Doubling::new(device);
    let gone = Tensor::zeros(device, DType::F32, &[64]).expect("there is memory");
    double::fail("cuMemFreeAsync", 1, 1);
    drop(gone);
    let error = says(
        work.launch(),
        &["an earlier call failed", "CUDA error 1", "did not begin"],
    );
    assert!(matches!(error, Error::Earlier { code: 1, .. }), "{error:?}");
    work.launch().expect("it is over with being told");
    assert_eq!(work.x(), 1.0, "one of the two began");
}

fn errors_say_what_to_do(device: &Device) {
    let mut work = Doubling::new(device);
    for (call, code, says_so) in [
        ("cuLaunchKernel", 209, "PACKFORCING_CUDA_ARCHS"),
        ("cuLaunchKernel", 900, "captured"),
        ("cuLaunchKernel", 906, "stream of its own"),
        ("cuStreamSynchronize", 908, "thread"),
        ("cuMemcpyDtoHAsync_v2", 802, "nvidia-smi"),
    ] {
        double::fail(call, 1, code);
        let failed = work.launch().and_then(|()| work.x.to_vec::<f32>().map(drop));
        says(failed, &[&format!("CUDA error {code}"), says_so]);
        double::mend();
    }
    for (call, code, says_so) in [
        ("cuInit", 34, "stub"),
        ("cuInit", 803, "kernel module"),
        ("cuInit", 804, "cuda-compat"),
        ("cuModuleLoadData", 222, "update it"),
        ("cuModuleLoadData", 209, "PACKFORCING_CUDA_ARCHS"),
        ("cuDevicePrimaryCtxRetain", 810, "MPS"),
    ] {
        double::fail(call, 1, code);
        says(Device::cuda(0), &[&code.to_string(), says_so]);
        double::mend();
    }
    double::fail("cuInit", 1, 100);
    assert!(matches!(Device::cuda(0), Err(Error::NoGpu)));
    double::fail("cuMemAllocAsync", 1, 2);
    assert!(matches!(
        Tensor::zeros(device, DType::F32, &[64]),
        Err(Error::OutOfMemory { bytes: 256, .. })
    ));
    work.launch().expect("none of them stays");
}

/// On a card of its own: a fault stays with a card for as long as the process lives.
fn a_lost_device_stays_lost(_: &Device) {
    let Ok(device) = Device::cuda(1) else {
        panic!("the double has two cards: CUDA_DOUBLE_DEVICES=2")
    };
    let mut work = Doubling::new(&device);
    work.launch().expect("it runs");
    double::fail("cuStreamSynchronize", 1, 719);
    let lost = ["is lost", "CUDA error 719", "start it again"];
    let error = says(device.synchronize(), &lost);
    assert!(matches!(error, Error::DeviceLost { .. }), "{error:?}");
    says(work.launch(), &lost);
    says(Tensor::zeros(&device, DType::F32, &[4]), &lost);
    drop(work);
    // Another device on the same card meets the same fault, and says the same.
    says(Device::cuda(1), &["CUDA error 719", "start it again"]);
}

/// Sixteen queries over one page, by the kernel that is chosen for the card.
fn attend(device: &Device) -> Vec<f32> {
    const SHAPE: [usize; 4] = [1, 1, 96, 64];
    let k = Tensor::zeros(device, DType::BF16, &SHAPE).expect("there is memory");
    let v = Tensor::from_f32(device, DType::BF16, &[2.0; 96 * 64], &SHAPE).expect("there is memory");
    let q = Tensor::zeros(device, DType::BF16, &[1, 16, 1, 64]).expect("there is memory");
    let mut out = Tensor::zeros(device, DType::BF16, &[1, 16, 1, 64]).expect("there is memory");
    let context = Context::from_host(device, (1, 96), &[vec![Segment::new(vec![0], 96)]]).expect("it fits");
    let arguments = Attention {
        q: q.view(),
        kv: KvPages {
            k: k.view(),
            v: v.view(),
            slot_bias: None,
        },
        context: &context,
        rope: &Rope3d::wan(64),
        scale: 0.125,
    };
    attention(&arguments, &mut out.view_mut(), None).expect("it attends");
    out.to_f32_vec().expect("numbers")
}

/// Where the driver refuses a map, attention goes on with the other kernel and says so, once.
fn a_refused_map_is_told_once(device: &Device) {
    let hopper = device.as_cuda().map(|cuda| cuda.compute_capability()) == Some((9, 0));
    for _ in 0..2 {
        double::fail("cuTensorMapEncodeTiled", 1, 1);
        assert_eq!(attend(device), [2.0; 16 * 64]);
        double::mend();
    }
    let notes = device.notes();
    assert_eq!(notes.len(), usize::from(hopper), "{notes:?}");
    assert!(
        notes
            .iter()
            .all(|n| n.contains("the kernel for 8.0") && n.contains("CUDA error 1")),
        "{notes:?}"
    );
    assert_eq!(attend(device), [2.0; 16 * 64]);
}

/// One test at a time: waiting for a context breaks every capture in it, and cudarc does it where a context gets its first
/// stream.
fn alone(test: fn(&Device)) -> impl Fn(&Device) + Send + Sync {
    static TURN: Mutex<()> = Mutex::new(());
    move |device| {
        let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        test(device);
    }
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite
        .on(
            &["cuda"],
            "a_per_thread_stream_stays_on_its_thread",
            alone(a_per_thread_stream_stays_on_its_thread),
        )
        .on(
            &["cuda"],
            "a_capture_stays_on_its_thread",
            alone(a_capture_stays_on_its_thread),
        )
        .on(
            &["cuda"],
            "a_capture_wants_no_event_tracking",
            alone(a_capture_wants_no_event_tracking),
        )
        .on_kernels("a_capture_loads_nothing", alone(a_capture_loads_nothing))
        .on_kernels(
            "what_is_dropped_in_a_capture_lives_as_long_as_the_graph",
            alone(what_is_dropped_in_a_capture_lives_as_long_as_the_graph),
        )
        .on_devices(
            "what_is_dropped_is_freed_behind_the_work",
            alone(what_is_dropped_is_freed_behind_the_work),
        )
        .on_devices(
            "uploads_are_read_when_the_call_returns",
            alone(uploads_are_read_when_the_call_returns),
        )
        .on_devices(
            "tensors_of_nothing_take_nothing",
            alone(tensors_of_nothing_take_nothing),
        )
        .on_kernels("time_passes", alone(time_passes))
        .on_double(
            "an_error_of_a_drop_is_told_as_that",
            alone(an_error_of_a_drop_is_told_as_that),
        )
        .on_double("errors_say_what_to_do", alone(errors_say_what_to_do))
        .on_double("a_lost_device_stays_lost", alone(a_lost_device_stays_lost))
        .on_double("a_refused_map_is_told_once", alone(a_refused_map_is_told_once));
    suite.run()
}
