//! Attention by the kernels of sm_90: under many schedules, however they were built, and what they refuse.
mod common;
#[path = "common/problem.rs"]
mod problem;

use std::time::Instant;

use common::{Rng, Suite};
use packforcing::device::AsyncCopies;
use packforcing::ops::attention::{Kernel, attention, attention_by};
use packforcing::paging::KvPages;
use packforcing::{DType, Device, Error, SimtCard, SimtOptions, Tensor};
use problem::{Part, Problem, check, check_by, mixed, part, same, turned};

/// Ways to build the kernel that know pages and segments; the others than `Sm90` for bf16 of 128 alone.
const PACKED: [Kernel; 3] = [Kernel::Sm90, Kernel::Sm90Free, Kernel::Sm90Overlapped];

fn dtypes(kernel: Kernel) -> &'static [(DType, usize)] {
    match kernel {
        Kernel::Sm90 => &[
            (DType::F16, 64),
            (DType::F16, 128),
            (DType::BF16, 64),
            (DType::BF16, 128),
        ],
        _ => &[(DType::BF16, 128)],
    }
}

/// Whether the device is a card of sm_90, or stands for one; if not, the kernel must be refused.
fn takes(device: &Device) -> bool {
    let problem = Problem::random(&mut Rng::new("takes"), DType::F16, 1, [1, 1], 64, &[vec![part(1)]]);
    match problem_result(&problem, device, 8, Kernel::Sm90) {
        Ok(()) => true,
        Err(Error::Argument { argument: "device", .. }) => false,
        other => panic!("{other:?}"),
    }
}

fn problem_result(problem: &Problem, device: &Device, page_tokens: usize, kernel: Kernel) -> packforcing::Result<()> {
    let placed = problem.placed(device, page_tokens, &mut Rng::new("placed"));
    let mut out = Tensor::zeros(device, problem.dtype, placed.q.shape())?;
    attention_by(kernel, &placed.args(), &mut out.view_mut(), None)
}

/// Segments that end in, at and beside the ends of tiles and pages, and more tiles than stages.
fn long(rng: &mut Rng, dtype: DType, tokens: usize, dim: usize) -> Problem {
    let biased = Part {
        key_bias: 0.7,
        slot_bias: true,
        ..turned(97, -4.0)
    };
    let stream = vec![
        turned(192, 3.0),
        biased,
        turned(0, 1.0),
        turned(95, 9.0),
        part(1),
        turned(301, -30.0),
    ];
    Problem::random(rng, dtype, tokens, [1, 1], dim, &[stream])
}

/// Each kernel under many schedules and every way of landing, with pages of several sizes and one page a
/// segment: the same bits, and on the first run the right ones.
fn schedules() {
    const SCHEDULES: u64 = 24;
    let start = Instant::now();
    let mut launches = 0;
    for kernel in PACKED {
        for &(dtype, dim) in dtypes(kernel) {
            let mut rng = Rng::new("schedules");
            let problem = long(&mut rng, dtype, 70, dim);
            // One page holds all of these: whole tiles are fetched, past the page's end, too.
            let single = Problem::random(&mut rng, dtype, 70, [1, 1], dim, &[vec![turned(301, 2.0)]]);
            let mut expected = None;
            let mut expected_single = None;
            for schedule in 0..SCHEDULES {
                let device = Device::simt(SimtOptions {
                    card: SimtCard::Sm90,
                    seed: rng.bits(),
                    copies: [AsyncCopies::Late, AsyncCopies::Random, AsyncCopies::Early][schedule as usize % 3],
                    in_order: schedule == SCHEDULES - 1,
                    threads: 1,
                    ..SimtOptions::default()
                })
                .expect("it was built");
                if schedule == 0 {
                    check_by(kernel, &problem, &device, 96, &mut rng);
                }
                // 304 tokens hold the longest segment: nothing is paged then.
                let page_tokens = [96, 8, 304, 192, 32, 16][schedule as usize % 6];
                let got = problem.placed(&device, page_tokens, &mut rng).run_by(kernel);
                let expected = expected.get_or_insert_with(|| got.clone());
                let what =
                    format!("{kernel:?} {dtype} {dim}, pages of {page_tokens}, on {device}, schedule {schedule}");
                same(&got, expected, &what);
                let page_tokens = [301, 96, 8, 32, 200][schedule as usize % 5];
                let got = single.placed(&device, page_tokens, &mut rng).run_by(kernel);
                let expected = expected_single.get_or_insert_with(|| got.clone());
                let what = format!("{kernel:?} {dtype} {dim}, one segment, pages of {page_tokens}, on {device}");
                same(&got, expected, &what);
                launches += 2;
            }
        }
    }
    println!(
        "attention_sm90: {SCHEDULES} schedules of 6 kernels, {launches} launches with the same bits, in {:.1} s",
        start.elapsed().as_secs_f64()
    );
}

/// Rows beside the ends of a block's and of a warpgroup's, several blocks, heads that share keys, a batch.
fn shapes(device: &Device) {
    if !takes(device) {
        return;
    }
    let mut rng = Rng::new("sm90 shapes");
    for kernel in PACKED {
        for &(dtype, dim) in dtypes(kernel) {
            for (tokens, heads, keys) in [
                (1, [1, 1], 1),
                (63, [2, 1], 96),
                (129, [1, 1], 97),
                (191, [1, 1], 95),
                (193, [2, 2], 400),
            ] {
                let mut some = mixed(&mut rng, 2 * keys);
                some.push(part(1));
                let streams = [vec![turned(keys, 2.0)], some];
                let problem = Problem::random(&mut rng, dtype, tokens, heads, dim, &streams);
                check_by(kernel, &problem, device, [96, 8, 24, 48][rng.below(0..4)], &mut rng);
            }
        }
    }
}

/// Logits that grow from segment to segment by little and by much, and fall; and segments of no weight at all.
fn growing_logits(device: &Device) {
    if !takes(device) {
        return;
    }
    let mut rng = Rng::new("growing");
    for (kernel, dtype, dim) in [
        (Kernel::Sm90, DType::F16, 64),
        (Kernel::Sm90, DType::BF16, 128),
        (Kernel::Sm90Overlapped, DType::BF16, 128),
    ] {
        for steps in [[0.0, 3.0, 5.0, 7.0], [0.0, 30.0, 60.0, 90.0], [40.0, 0.0, -40.0, 41.0]] {
            let stream = steps.map(|bias| Part {
                key_bias: bias,
                ..turned(110, 5.0)
            });
            let problem = Problem::random(&mut rng, dtype, 80, [1, 1], dim, &[stream.to_vec()]);
            check_by(kernel, &problem, device, 32, &mut rng);
        }
        let nothing = Part {
            key_bias: f32::NEG_INFINITY,
            ..part(130)
        };
        for stream in [vec![nothing], vec![nothing, part(100)], vec![part(100), nothing]] {
            let problem = Problem::random(&mut rng, dtype, 5, [1, 1], dim, &[stream]);
            let (out, lse) = problem.placed(device, 16, &mut rng).run_by(kernel);
            let truth = problem.truth();
            for (got, truth) in out.iter().zip(&truth.0).chain(lse.iter().zip(&truth.1)) {
                let near = (f64::from(*got) - truth).abs() <= 0.02 * truth.abs().max(1.0);
                assert!(near || f64::from(*got) == *truth, "{got} for {truth}");
            }
        }
    }
}

/// What is measured against: one page, one segment, no rotation. The same sums in the same order.
fn plain_builds(device: &Device) {
    if !takes(device) {
        return;
    }
    let mut rng = Rng::new("plain");
    for (plain, packed) in [
        (Kernel::Sm90Plain, Kernel::Sm90),
        (Kernel::Sm90OverlappedPlain, Kernel::Sm90Overlapped),
    ] {
        for keys in [1, 96, 300] {
            let problem = Problem::random(&mut rng, DType::BF16, 200, [2, 1], 128, &[vec![part(keys)]]);
            // Stream 0 reads page 0.
            let placed = loop {
                let placed = problem.placed(device, keys, &mut rng);
                if placed.context.to_host().expect("a download")[0][0].pages == [0] {
                    break placed;
                }
            };
            same(
                &placed.run_by(plain),
                &placed.run_by(packed),
                &format!("{plain:?}, {keys} keys"),
            );
        }
        let two = Problem::random(&mut rng, DType::BF16, 2, [1, 1], 128, &[vec![part(3), part(4)]]);
        refused("context", problem_result(&two, device, 8, plain));
        let mut falling = Problem::random(&mut rng, DType::BF16, 2, [1, 1], 128, &[vec![part(3)]]);
        falling.scale = 0.0;
        refused("scale", problem_result(&falling, device, 8, plain));
    }
}

#[track_caller]
fn refused(name: &str, result: packforcing::Result<()>) {
    match result {
        Err(Error::Argument { argument, .. }) if argument == name => {}
        other => panic!("expected a refusal of {name}, got {other:?}"),
    }
}

/// By name where the kernel is asked for; where it is not, the other kernel does it.
fn refusals(device: &Device) {
    let mut rng = Rng::new("refusals");
    let odd_pages = Problem::random(&mut rng, DType::F16, 5, [1, 1], 64, &[vec![part(30), turned(20, 1.0)]]);
    check(&odd_pages, device, 12, &mut rng);
    if !takes(device) {
        refused("device", problem_result(&odd_pages, device, 16, Kernel::Sm90));
        return;
    }
    refused("kv", problem_result(&odd_pages, device, 12, Kernel::Sm90));
    let f16 = Problem::random(&mut rng, DType::F16, 5, [1, 1], 128, &[vec![part(30)]]);
    refused("q", problem_result(&f16, device, 16, Kernel::Sm90Free));
    let small = Problem::random(&mut rng, DType::BF16, 5, [1, 1], 64, &[vec![part(30)]]);
    refused("q", problem_result(&small, device, 16, Kernel::Sm90Overlapped));
    for dim in [32, 96] {
        let dim = Problem::random(&mut rng, DType::F16, 5, [1, 1], dim, &[vec![part(30)]]);
        refused("q", problem_result(&dim, device, 16, Kernel::Sm90));
    }
    // Two heads that read the same keys: a stride of 0, which the copy engine does not take.
    let placed = f16.placed(device, 16, &mut rng);
    let (shape, strides) = ([placed.k.shape()[0], 2, 16, 128], [16 * 128, 0, 128, 1]);
    let (k, v) = (placed.k.elements(), placed.v.elements());
    let k = placed
        .k
        .view()
        .reshape(&[k])
        .and_then(|k| k.strided(0, &shape, &strides));
    let v = placed
        .v
        .view()
        .reshape(&[v])
        .and_then(|v| v.strided(0, &shape, &strides));
    let q = Tensor::zeros(device, DType::F16, &[1, 5, 2, 128]).expect("q");
    let mut out = Tensor::zeros(device, DType::F16, q.shape()).expect("out");
    let mut args = placed.args();
    args.q = q.view();
    args.kv = KvPages {
        k: k.expect("inside"),
        v: v.expect("inside"),
        slot_bias: None,
    };
    refused("kv.k", attention_by(Kernel::Sm90, &args, &mut out.view_mut(), None));
    attention(&args, &mut out.view_mut(), None).expect("the other kernel takes it");
}

fn kernels_are_not_for_the_cpu() {
    let problem = Problem::random(&mut Rng::new("cpu"), DType::F16, 1, [1, 1], 64, &[vec![part(1)]]);
    for kernel in Kernel::ALL {
        let result = problem_result(&problem, &Device::cpu(), 8, kernel);
        match kernel {
            Kernel::Auto => result.expect("the cpu's own"),
            _ => refused("kernel", result),
        }
    }
}

fn main() -> std::process::ExitCode {
    let mut suite = Suite::new();
    let kernels = ["simt90", "cuda"];
    suite
        .on(&kernels, "shapes", shapes)
        .on(&kernels, "growing_logits", growing_logits)
        .on(&kernels, "plain_builds", plain_builds)
        .on(&["simt", "simt90", "cuda"], "refusals", refusals)
        .plain("kernels_are_not_for_the_cpu", kernels_are_not_for_the_cpu);
    if Device::simt(SimtOptions::default()).is_ok() {
        suite.plain("schedules", schedules);
    }
    suite.run()
}
