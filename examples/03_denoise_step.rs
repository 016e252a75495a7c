//! A sampler is a list of coefficients: four steps with fresh noise, by one kernel. `Sampler` is this loop for
//! every solver.
//!
//! `cargo run --example 03_denoise_step`

use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, denoise_step};
use packforcing::schedule::Schedule;
use packforcing::{DType, Device, Result, Tensor};

fn main() -> Result<()> {
    let (device, _) = Device::best();
    let schedule = Schedule::few_step(&[1000.0, 750.0, 500.0, 250.0], 5.0)?;
    let (frames, numbers) = (2, 1000);

    // Starts from noise; the model of this example knows that the clean latent is 3 everywhere.
    let mut x = Tensor::zeros(&device, DType::F32, &[frames, numbers])?;
    let mut v = Tensor::zeros(&device, DType::F32, &[frames, numbers])?;
    let mut noise = Noise { seed: 1, offset: 0 };
    let start = Coefficients::new(&device, &[vec![vec![1.0; frames]]])?;
    let draw = DenoiseStep {
        terms: vec![],
        in_place: 0,
        frame_axis: 0,
        coefficients: &start,
        noise: Some(noise),
        noise_base: None,
        guidance: None,
    };
    denoise_step(&draw, &mut [x.view_mut()])?;

    for (i, step) in schedule.steps().iter().enumerate() {
        let latent = x.to_vec::<f32>()?;
        let mean = latent.iter().sum::<f32>() / latent.len() as f32;
        println!("time step {:6.1}: mean {mean:6.3}", step.timestep);
        let velocity: Vec<f32> = latent.iter().map(|x| (x - 3.0) / step.sigma as f32).collect();
        v.view_mut().copy_from_slice(&velocity)?;

        noise = noise.after(latent.len());
        let coefficients = Coefficients::new(&device, &schedule.rows(i, frames)?)?;
        let terms = vec![v.view()]; // after x, which is read and written in place
        let update = DenoiseStep {
            terms,
            in_place: 1,
            frame_axis: 0,
            coefficients: &coefficients,
            noise: Some(noise),
            noise_base: None,
            guidance: None,
        };
        denoise_step(&update, &mut [x.view_mut()])?;
    }
    println!("clean: {:.3?}", &x.to_vec::<f32>()?[..4]);
    Ok(())
}
