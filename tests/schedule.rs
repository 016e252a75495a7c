//! Time steps, and whole trajectories through `denoise_step`.
mod common;

use common::{Golden, Suite, widen};
use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, denoise_step, reference, rows};
use packforcing::sampler::Sampler;
use packforcing::schedule::{Schedule, Solver};
use packforcing::{Device, Error, Result, SimtOptions, Tensor};
use serde_json::Value;

fn main() -> std::process::ExitCode {
    let mut suite = Suite::new();
    suite
        .plain("the paper's time steps", paper)
        .plain("euler shifts an even way once", euler)
        .plain("steps follow one another", chain)
        .plain("rows of a step", rows_of_a_step)
        .plain("refuses bad input", bad_input)
        .plain("sigma 1 is the limit", limits)
        .plain("solvers reach their order", orders)
        .plain("a time step of diffusers is a whole number", whole_timesteps)
        .on_devices("a sampler follows the rows, whatever was before", samplers)
        .on_devices("few steps find what the model points at", few_steps_arrive)
        .golden("schedules", golden_schedules)
        .golden("trajectories", golden_trajectories)
        .run()
}

fn near(got: &[f64], expected: &[f64], bound: f64) {
    assert_eq!(got.len(), expected.len());
    for (a, b) in got.iter().zip(expected) {
        assert!((a - b).abs() <= bound, "{got:?} instead of {expected:?}");
    }
}

fn timesteps(schedule: &Schedule) -> Vec<f64> {
    schedule.steps().iter().map(|s| s.timestep).collect()
}

/// Sigmas of all steps and what is left after the last.
fn sigmas(schedule: &Schedule) -> Vec<f64> {
    let last = schedule.steps().last().map(|s| s.sigma_next);
    schedule.steps().iter().map(|s| s.sigma).chain(last).collect()
}

fn paper() {
    let schedule = Schedule::few_step(&[1000.0, 750.0, 500.0, 250.0], 5.0).unwrap();
    near(&timesteps(&schedule), &[1000.0, 937.5, 2500.0 / 3.0, 625.0], 1e-9);
    near(&sigmas(&schedule), &[1.0, 0.9375, 5.0 / 6.0, 0.625, 0.0], 1e-12);
    assert_eq!(schedule.solver(), Solver::Renoise);
}

fn euler() {
    let even = Schedule::euler(4, 1.0).unwrap();
    assert_eq!(sigmas(&even), [1.0, 0.75, 0.5, 0.25, 0.0]);
    assert_eq!(timesteps(&even), [1000.0, 750.0, 500.0, 250.0]);
    let shifted = Schedule::euler(4, 5.0).unwrap();
    near(&sigmas(&shifted), &[1.0, 0.9375, 5.0 / 6.0, 0.625, 0.0], 1e-15);
    assert_eq!(sigmas(&Schedule::euler(1, 3.0).unwrap()), [1.0, 0.0]);
}

fn chain() {
    let schedules = [
        Schedule::euler(50, 3.0),
        Schedule::diffusers_euler(50, 3.0),
        Schedule::diffusers_euler(1, 3.0),
        Schedule::diffusers_unipc(1, 5.0),
        Schedule::diffusers_unipc(50, 1.0),
        Schedule::diffusers_dpm_solver(1, 5.0),
        Schedule::diffusers_dpm_solver(50, 5.0),
        Schedule::few_step(&[1000.0, 1.0], 0.5),
        Schedule::from_sigmas(&[0.9, 0.5, 0.2], Solver::Euler),
    ];
    for schedule in schedules.map(Result::unwrap) {
        for pair in schedule.steps().windows(2) {
            assert_eq!(pair[0].sigma_next, pair[1].sigma);
        }
        for step in schedule.steps() {
            assert!(step.sigma > step.sigma_next && step.sigma <= 1.0, "{step:?}");
        }
    }
    let part = Schedule::from_sigmas(&[0.9, 0.5, 0.2], Solver::Euler).unwrap();
    assert_eq!(sigmas(&part), [0.9, 0.5, 0.2]);
}

fn rows_of_a_step() {
    let euler = Schedule::euler(2, 1.0).unwrap();
    assert_eq!(euler.rows(0, 2).unwrap(), [rows::euler(&[1.0; 2], &[0.5; 2])]);
    let few = Schedule::few_step(&[1000.0, 500.0], 1.0).unwrap();
    assert_eq!(few.rows(0, 3).unwrap(), [rows::renoise(&[1.0; 3], &[0.5; 3])]);
    // The last step keeps the clean latent: no noise.
    assert_eq!(few.rows(1, 1).unwrap(), [rows::x0(&[0.5])]);
    assert_eq!(few.steps()[0].x0(1), [[1.0], [-1.0], [0.0]]);
    assert_eq!(argument(few.rows(2, 1)), "step");
    // Guidance of a solver that remembers: v is the last term, and the states stay where they are.
    let rows = Schedule::unipc(3, 1.0).unwrap().rows(1, 2).unwrap();
    for rows in rows {
        let [x, clean, sum, v, noise] = &rows[..] else {
            panic!("{rows:?}")
        };
        let times = |factor: f64| v.iter().map(|c| factor * c).collect::<Vec<f64>>();
        let split = [
            x.clone(),
            clean.clone(),
            sum.clone(),
            times(5.0),
            times(-4.0),
            noise.clone(),
        ];
        assert_eq!(rows::guided(rows.clone(), 5.0), split);
        let twice = [x, clean, sum, v, v, noise].map(Clone::clone);
        assert_eq!(rows::weighted(rows.clone()), twice);
    }
}

/// A coefficient of frame 0.
fn flat(rows: &[rows::Rows]) -> Vec<f64> {
    rows.iter().flatten().map(|row| row[0]).collect()
}

/// What the formulas would be at sigma 1 if they could: 1e-9 before it, lambda is 21 instead of
/// infinite, so q is at most 0.2 instead of 0, and shrinks as 1 / lambda.
fn limits() {
    for solver in [Solver::DpmSolver, Solver::UniPc] {
        let rows = |first: f64| -> Vec<Vec<f64>> {
            let schedule = Schedule::from_sigmas(&[first, 0.8, 0.5, 0.3, 0.0], solver).unwrap();
            (0..4).map(|i| flat(&schedule.rows(i, 1).unwrap())).collect()
        };
        let exact = rows(1.0);
        assert!(exact.iter().flatten().all(|c| c.is_finite()));
        let mut last = f64::INFINITY;
        for far in [1e-4, 1e-8, 1e-12, 1e-15] {
            let difference = rows(1.0 - far)
                .iter()
                .flatten()
                .zip(exact.iter().flatten())
                .fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
            assert!(difference < last, "{solver:?}: {difference} at 1 - {far:e}");
            last = difference;
        }
        // q is (lambda(0.5) - lambda(0.8)) / (lambda(0.8) - lambda(1 - 1e-15)) = 1.39 / 33.2.
        assert!(last < 0.05, "{solver:?}: {last}");
        // To sigma 0 in one step of first order: the clean latent, and nothing of the latent.
        let [x, rest @ ..] = &exact[3][..] else { unreachable!() };
        match solver {
            Solver::DpmSolver => assert_eq!((*x, rest[0], rest[1]), (1.0, 0.0, -0.3)),
            _ => assert_eq!((*x, rest[0], rest[1], rest[2]), (1.0, 0.0, 0.0, -0.3)),
        }
    }
    // Two steps, and one: never of second order.
    for steps in 1..3 {
        let schedule = Schedule::dpm_solver(steps, 5.0).unwrap();
        for (i, step) in schedule.steps().iter().enumerate() {
            let rows = schedule.rows(i, 1).unwrap();
            let euler = step.euler(1);
            near(&[rows[0][0][0], rows[0][2][0]], &[euler[0][0], euler[1][0]], 1e-15);
            assert_eq!(rows[0][1][0], 0.0);
        }
    }
}

/// dx/dsigma = v with a known end: halving the steps must divide the error by 2^order. Between two
/// inner sigmas, so that no end is special but for the two steps of first order, whose error is of
/// second order each.
fn orders() {
    let velocity = |x: &[f64], sigma: f64| vec![-x[0] + (3.0 * sigma).sin()];
    let end = |solver: Solver, steps: usize| {
        let sigmas: Vec<f64> = (0..=steps).map(|i| 0.9 - 0.8 * i as f64 / steps as f64).collect();
        let schedule = Schedule::from_sigmas(&sigmas, solver).unwrap();
        integrate(&schedule, 1, &[1.0], &velocity).last().unwrap()[0]
    };
    // The solution of x' = -x + sin 3s is c e^-s + (sin 3s - 3 cos 3s) / 10.
    let part = |s: f64| ((3.0 * s).sin() - 3.0 * (3.0 * s).cos()) / 10.0;
    let truth = (1.0 - part(0.9)) * (0.8f64).exp() + part(0.1);
    let error = |solver, steps| (end(solver, steps) - truth).abs();
    for (solver, order) in [(Solver::Euler, 1), (Solver::DpmSolver, 2), (Solver::UniPc, 2)] {
        let got = (error(solver, 200) / error(solver, 400)).log2();
        assert!((got - f64::from(order)).abs() < 0.2, "{solver:?} is of order {got}");
    }
    assert!(error(Solver::DpmSolver, 400) < error(Solver::Euler, 400) / 10.0);
    assert!(error(Solver::UniPc, 400) < error(Solver::Euler, 400) / 10.0);
}

fn whole_timesteps() {
    let unipc = Schedule::diffusers_unipc(4, 5.0).unwrap();
    assert_eq!(timesteps(&unipc), [999.0, 937.0, 833.0, 625.0]);
    let dpm = Schedule::diffusers_dpm_solver(4, 5.0).unwrap();
    assert_eq!(timesteps(&dpm), [999.0, 937.0, 833.0, 624.0]);
    for schedule in [unipc, dpm] {
        assert_eq!(schedule.steps()[3].sigma_next, 0.0);
    }
}

/// Two runs in a row give the same bits, the first with states full of the other run's numbers.
fn samplers(device: &Device) {
    let start = Tensor::zeros(device, packforcing::DType::BF16, &[2, 3, 37]).unwrap();
    for schedule in [
        Schedule::euler(5, 3.0),
        Schedule::lcm(5, 3.0),
        Schedule::dpm_solver(5, 3.0),
        Schedule::unipc(5, 3.0),
    ] {
        let schedule = schedule.unwrap();
        let mut sampler = Sampler::new(&start, 1, schedule.clone()).unwrap();
        let mut run = |broken: bool| {
            let mut noise = Noise { seed: 2, offset: 0 };
            sampler.start(noise).unwrap();
            for (i, step) in schedule.steps().iter().enumerate() {
                let mut v: Vec<f32> = sampler.latent().to_f32_vec().unwrap();
                v.iter_mut().for_each(|x| *x = (*x - 2.0) / step.sigma as f32);
                if broken && i == 2 {
                    v.fill(f32::NAN);
                }
                noise = noise.after(v.len());
                let v = Tensor::from_slice(device, &v, &[2, 3, 37]).unwrap();
                sampler.step(i, v.view(), noise).unwrap();
            }
            sampler.latent().to_f32_vec().unwrap()
        };
        let (first, broken, again) = (run(false), run(true), run(false));
        assert!(broken.iter().all(|x| x.is_nan()));
        assert_eq!(first, again, "{:?}", schedule.solver());
        // The latent is bf16: of numbers below 8, a unit is 2^-5, and the last step ends at 2.
        assert!(
            first.iter().all(|x| (x - 2.0).abs() < 0.05),
            "{:?}: {first:?}",
            schedule.solver()
        );
        let noise = Noise { seed: 0, offset: 0 };
        assert_eq!(argument(sampler.step(5, start.view(), noise)), "step");
        sampler.start(noise).unwrap();
        let skipped = sampler.step(2, start.view(), noise).unwrap_err();
        assert!(
            matches!(
                skipped,
                Error::Order {
                    op: "Sampler::step",
                    ..
                }
            ),
            "{skipped}"
        );
        let other = Tensor::zeros(device, packforcing::DType::F32, &[2, 3, 36]).unwrap();
        assert_eq!(argument(sampler.step(0, other.view(), noise)), "terms");
    }
    let schedule = Schedule::unipc(3, 1.0).unwrap();
    assert_eq!(argument(Sampler::new(&start, 3, schedule.clone())), "frame_axis");
    let whole = Tensor::zeros(device, packforcing::DType::I32, &[2]).unwrap();
    assert_eq!(argument(Sampler::new(&whole, 0, schedule)), "like");
}

fn argument<T: std::fmt::Debug>(result: Result<T>) -> &'static str {
    match result.unwrap_err() {
        Error::Argument { argument, .. } => argument,
        other => panic!("{other}"),
    }
}

fn bad_input() {
    for shift in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(argument(Schedule::euler(4, shift)), "shift");
        assert_eq!(argument(Schedule::diffusers_euler(4, shift)), "shift");
        assert_eq!(argument(Schedule::unipc(4, shift)), "shift");
        assert_eq!(argument(Schedule::diffusers_unipc(4, shift)), "shift");
        assert_eq!(argument(Schedule::dpm_solver(4, shift)), "shift");
        assert_eq!(argument(Schedule::diffusers_dpm_solver(4, shift)), "shift");
        assert_eq!(argument(Schedule::few_step(&[1000.0], shift)), "shift");
    }
    assert_eq!(argument(Schedule::euler(0, 5.0)), "steps");
    assert_eq!(argument(Schedule::diffusers_euler(0, 5.0)), "steps");
    // All sigmas would be 1.
    assert_eq!(argument(Schedule::unipc(4, 1e300)), "shift");
    assert_eq!(argument(Schedule::diffusers_dpm_solver(4, 1e300)), "shift");
    let lists: [&[f64]; 6] = [&[], &[1000.0, 1000.0], &[500.0, 750.0], &[0.0], &[1001.0], &[f64::NAN]];
    for list in lists {
        assert_eq!(argument(Schedule::few_step(list, 5.0)), "base_timesteps");
    }
    let lists: [&[f64]; 6] = [&[], &[1.0], &[0.5, 0.5], &[1.1, 0.0], &[1.0, -0.1], &[f64::NAN, 0.0]];
    for list in lists {
        assert_eq!(argument(Schedule::from_sigmas(list, Solver::Euler)), "sigmas");
    }
    // Neighbouring floats: a step after this one would be weighted by a quotient of roundings.
    let close = [0.9, f64::next_up(1e-3), 1e-3, 5e-4, 0.0];
    for solver in [Solver::DpmSolver, Solver::UniPc] {
        assert_eq!(argument(Schedule::from_sigmas(&close, solver)), "sigmas");
    }
    Schedule::from_sigmas(&close, Solver::Euler).unwrap();
}

/// A model that always knows the clean latent: v = (x - x0) / sigma. However the noise falls, the
/// last step must end there.
fn few_steps_arrive(device: &Device) {
    let clean = common::Rng::new("clean").normals(2 * 37);
    let schedule = Schedule::few_step(&[1000.0, 750.0, 500.0, 250.0], 5.0).unwrap();
    let shape = [2, 37];
    let mut noise = Noise { seed: 3, offset: 0 };
    let mut x = Tensor::from_slice(device, &common::Rng::new("x").normals(2 * 37), &shape).unwrap();
    let mut seen = Vec::new();
    for (i, step) in schedule.steps().iter().enumerate() {
        let now = x.to_vec::<f32>().unwrap();
        let v: Vec<f32> = now
            .iter()
            .zip(&clean)
            .map(|(x, c)| ((f64::from(*x) - f64::from(*c)) / step.sigma) as f32)
            .collect();
        seen.push(now);
        let v = Tensor::from_slice(device, &v, &shape).unwrap();
        let args = DenoiseStep {
            terms: vec![v.view()],
            in_place: 1,
            frame_axis: 0,
            coefficients: &Coefficients::new(device, &schedule.rows(i, 2).unwrap()).unwrap(),
            noise: Some(noise),
            noise_base: None,
            guidance: None,
        };
        denoise_step(&args, &mut [x.view_mut()]).unwrap();
        noise = noise.after(2 * 37);
    }
    let got = widen(&x.to_vec::<f32>().unwrap());
    // One rounding each of v, sigma, the product and the sum, at numbers below 8.
    near(&got, &widen(&clean), 4.0 * 8.0 * f64::from(f32::EPSILON));
    // In between x holds sigma of the noise: its distance from the clean latent says so.
    let last = seen.last().unwrap();
    let spread = last
        .iter()
        .zip(&clean)
        .map(|(x, c)| (x - 0.375 * c).powi(2))
        .sum::<f32>()
        / 74.0;
    assert!((0.2..0.7).contains(&spread), "variance {spread} where 0.625^2 was due");
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn golden_schedules(golden: &Golden) {
    let (mut euler, mut few) = (0, 0);
    for case in golden.cases("schedules") {
        let shift = case["shift"].as_f64().unwrap();
        match case["scheduler"].as_str().unwrap() {
            "FlowMatchEulerDiscreteScheduler" => {
                let steps = case["steps"].as_u64().unwrap() as usize;
                let schedule = Schedule::diffusers_euler(steps, shift).unwrap();
                // The numbers are f32, written out in decimals that the parser need not round back.
                let narrow = |list: &Value| numbers(list).iter().map(|&x| (x as f32).into()).collect::<Vec<f64>>();
                assert_eq!(
                    sigmas(&schedule),
                    narrow(&case["sigmas"]),
                    "{steps} steps, shift {shift}"
                );
                assert_eq!(
                    timesteps(&schedule),
                    narrow(&case["timesteps"]),
                    "{steps} steps, shift {shift}"
                );
                euler += 1;
            }
            _ => {
                let schedule = Schedule::few_step(&numbers(&case["base_timesteps"]), shift).unwrap();
                near(&timesteps(&schedule), &numbers(&case["timesteps"]), 1e-12);
                few += 1;
            }
        }
    }
    assert!(euler > 0 && few > 0);
}

/// Steps x and the solver's states along `velocity` in f64, by the rows alone; x after each step.
fn integrate(
    schedule: &Schedule,
    frames: usize,
    start: &[f64],
    velocity: &dyn Fn(&[f64], f64) -> Vec<f64>,
) -> Vec<Vec<f64>> {
    // The first step must not look at the states.
    let mut kept = vec![vec![1e300; start.len()]; schedule.states()];
    kept.insert(0, start.to_vec());
    let mut seen = Vec::new();
    for (i, step) in schedule.steps().iter().enumerate() {
        let v = velocity(&kept[0], step.sigma);
        let terms: Vec<&[f64]> = kept.iter().chain([&v]).map(Vec::as_slice).collect();
        let rows = schedule.rows(i, frames).unwrap();
        assert_eq!(rows.len(), 1 + schedule.states());
        kept = rows
            .iter()
            .map(|rows| reference::combine(&terms, rows, start.len() / frames))
            .collect();
        seen.push(kept[0].clone());
    }
    seen
}

fn sampler(device: &Device, start: &[f64], shape: &[usize], schedule: &Schedule) -> Sampler {
    let narrow: Vec<f32> = start.iter().map(|&x| x as f32).collect();
    let start = Tensor::from_slice(device, &narrow, shape).unwrap();
    let mut sampler = Sampler::new(&start, 0, schedule.clone()).unwrap();
    sampler.start(Noise { seed: 1, offset: 0 }).unwrap();
    sampler.latent_mut().view_mut().copy_from_slice(&narrow).unwrap();
    sampler
}

fn golden_trajectories(golden: &Golden) {
    let load = |name: &str| golden.tensor("trajectories.safetensors", name);
    let (start, shape) = load("x0");
    let (w, _) = load("w");
    let velocity = |x: &[f64], sigma: f64| -> Vec<f64> {
        let v = |(x, w): (&f64, &f64)| 0.7 * x.tanh() - 0.3 * x + sigma * w;
        x.iter().zip(&w).map(v).collect()
    };
    let mut ran = Vec::new();
    for case in golden.cases("trajectories") {
        let name = case["solver"].as_str().unwrap();
        let solver = match name {
            "euler" => Solver::Euler,
            "unipc" => Solver::UniPc,
            "dpmpp2m" => Solver::DpmSolver,
            other => panic!("{other}"),
        };
        let schedule = Schedule::from_sigmas(&numbers(&case["sigmas"]), solver).unwrap();
        let steps = schedule.steps().len();
        let ours = match solver {
            Solver::Euler => Schedule::diffusers_euler(steps, 5.0),
            Solver::UniPc => Schedule::diffusers_unipc(steps, 5.0),
            _ => Schedule::diffusers_dpm_solver(steps, 5.0),
        };
        // To the bit of f32: decimals need not round back in f64.
        let narrow = |sigmas: Vec<f64>| sigmas.iter().map(|&s| s as f32).collect::<Vec<f32>>();
        assert_eq!(
            narrow(sigmas(&ours.unwrap())),
            narrow(sigmas(&schedule)),
            "{name} {steps}"
        );
        let (golden_x, _) = load(&format!("{name}.{steps}"));
        let golden_x: Vec<&[f64]> = golden_x.chunks(start.len()).collect();
        assert_eq!(golden_x.len(), steps + 1);
        near(golden_x[0], &start, 0.0);
        let largest = golden_x.iter().copied().flatten().fold(0.0f64, |a, x| a.max(x.abs()));
        let bound = |step: usize| bound(solver, step) * largest;

        for (i, (x, expected)) in integrate(&schedule, shape[0], &start, &velocity)
            .iter()
            .zip(&golden_x[1..])
            .enumerate()
        {
            near(x, expected, bound(i));
        }
        let devices = [Ok(Device::cpu()), Device::simt(SimtOptions::default()), Device::cuda(0)];
        for device in devices.into_iter().flatten() {
            let mut sampler = sampler(&device, &start, &shape, &schedule);
            for (i, expected) in golden_x[1..].iter().enumerate() {
                let now = widen(&sampler.latent().to_vec::<f32>().unwrap());
                let v = velocity(&now, schedule.steps()[i].sigma);
                let v: Vec<f32> = v.iter().map(|&v| v as f32).collect();
                let v = Tensor::from_slice(&device, &v, &shape).unwrap();
                sampler.step(i, v.view(), Noise { seed: 1, offset: 0 }).unwrap();
                near(&widen(&sampler.latent().to_vec::<f32>().unwrap()), expected, bound(i));
            }
        }
        ran.push(name.to_string());
    }
    assert_eq!(ran, ["euler", "euler", "unipc", "unipc", "dpmpp2m", "dpmpp2m"]);
}

/// What the golden vectors, made in f32, may differ by, in units of the largest latent.
fn bound(solver: Solver, step: usize) -> f64 {
    let unit = f64::from(f32::EPSILON);
    match solver {
        // Each step rounds the velocity, the product and the sum.
        Solver::Euler => 3.0 * (step + 1) as f64 * unit,
        // And the clean latent, its difference, its weights and three more products and sums, with
        // lambda in f32 on their side: twice as many.
        _ => 6.0 * (step + 1) as f64 * unit,
    }
}
