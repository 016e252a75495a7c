//! Time steps, and whole trajectories through `denoise_step`.
mod common;

use common::{Golden, Suite, widen};
use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, denoise_step, reference, rows};
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
        assert_eq!(argument(Schedule::few_step(&[1000.0], shift)), "shift");
    }
    assert_eq!(argument(Schedule::euler(0, 5.0)), "steps");
    assert_eq!(argument(Schedule::diffusers_euler(0, 5.0)), "steps");
    let lists: [&[f64]; 6] = [&[], &[1000.0, 1000.0], &[500.0, 750.0], &[0.0], &[1001.0], &[f64::NAN]];
    for list in lists {
        assert_eq!(argument(Schedule::few_step(list, 5.0)), "base_timesteps");
    }
    let lists: [&[f64]; 6] = [&[], &[1.0], &[0.5, 0.5], &[1.1, 0.0], &[1.0, -0.1], &[f64::NAN, 0.0]];
    for list in lists {
        assert_eq!(argument(Schedule::from_sigmas(list, Solver::Euler)), "sigmas");
    }
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

fn golden_trajectories(golden: &Golden) {
    let load = |name: &str| golden.tensor("trajectories.safetensors", name);
    let (start, shape) = load("x0");
    let (w, _) = load("w");
    let velocity = |x: &[f64], sigma: f64| -> Vec<f64> {
        let v = |(x, w): (&f64, &f64)| 0.7 * x.tanh() - 0.3 * x + sigma * w;
        x.iter().zip(&w).map(v).collect()
    };
    let cases = golden.cases("trajectories");
    let mut ran = 0;
    for case in cases.iter().filter(|c| c["solver"] == "euler") {
        let schedule = Schedule::from_sigmas(&numbers(&case["sigmas"]), Solver::Euler).unwrap();
        let steps = schedule.steps().len();
        let (golden_x, _) = load(&format!("euler.{steps}"));
        let golden_x: Vec<&[f64]> = golden_x.chunks(start.len()).collect();
        assert_eq!(golden_x.len(), steps + 1);
        // The vectors were made in f32: each step rounds the velocity, the product and the sum.
        let largest = golden_x.iter().copied().flatten().fold(0.0f64, |a, x| a.max(x.abs()));
        let bound = |step: usize| 3.0 * (step + 1) as f64 * f64::from(f32::EPSILON) * largest;

        let mut x = start.clone();
        for (i, expected) in golden_x[1..].iter().enumerate() {
            let v = velocity(&x, schedule.steps()[i].sigma);
            x = reference::combine(
                &[&x, &v],
                &schedule.rows(i, shape[0]).unwrap()[0],
                start.len() / shape[0],
            );
            near(&x, expected, bound(i));
        }
        let devices = [Ok(Device::cpu()), Device::simt(SimtOptions::default()), Device::cuda(0)];
        for device in devices.into_iter().flatten() {
            let narrow: Vec<f32> = start.iter().map(|&x| x as f32).collect();
            let mut x = Tensor::from_slice(&device, &narrow, &shape).unwrap();
            for (i, expected) in golden_x[1..].iter().enumerate() {
                let now = widen(&x.to_vec::<f32>().unwrap());
                let v = velocity(&now, schedule.steps()[i].sigma);
                let v: Vec<f32> = v.iter().map(|&v| v as f32).collect();
                let v = Tensor::from_slice(&device, &v, &shape).unwrap();
                let args = DenoiseStep {
                    terms: vec![v.view()],
                    in_place: 1,
                    frame_axis: 0,
                    coefficients: &Coefficients::new(&device, &schedule.rows(i, shape[0]).unwrap()).unwrap(),
                    noise: None,
                };
                denoise_step(&args, &mut [x.view_mut()]).unwrap();
                near(&widen(&x.to_vec::<f32>().unwrap()), expected, bound(i));
            }
        }
        ran += 1;
    }
    assert!(ran > 0);
}
