//! A block's launches captured once and made again for every block: a CUDA graph on a GPU, the SIMT
//! device's recording where there is none.
//!
//! `cargo run --features simt --example 07_graph`

use packforcing::cache::{Block, BlockGraph, Compression, Heads, PackConfig, PagePool};
use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, NoiseBase, denoise_step};
use packforcing::schedule::Schedule;
use packforcing::{Blocks, DType, Device, Grid, Result, SimtOptions, Tensor};

const GRID: Grid = Grid {
    frames: 2,
    rows: 4,
    cols: 4,
};
const SHAPE: [usize; 4] = [1, 32, 1, 64]; // streams, tokens, heads, dim
const ELEMENTS: usize = 32 * 64;

/// A model whose velocity is what its one layer attends to.
struct Model {
    latent: Tensor,
    velocity: Tensor,
    /// Noise to begin with, then a row of numbers for each step.
    steps: Vec<Coefficients>,
    noise: NoiseBase,
}

impl Model {
    /// Everything that a block launches; nothing here goes to the host or back.
    fn block(&mut self, block: &mut Block<'_>) -> Result<()> {
        for draw in 0..self.steps.len() {
            if draw > 0 {
                let x = self.latent.view();
                let mut pass = block.denoise_pass()?;
                pass.attend(0, x.clone(), x.clone(), x, &mut self.velocity.view_mut())?;
            }
            self.update(draw)?;
        }
        let x = self.latent.view();
        let mut pass = block.commit_pass()?;
        pass.attend(0, x.clone(), x.clone(), x, &mut self.velocity.view_mut())
    }

    fn update(&mut self, draw: usize) -> Result<()> {
        let coefficients = &self.steps[draw];
        let in_place = coefficients.terms().min(1); // the first draw reads nothing
        let step = DenoiseStep {
            terms: vec![self.velocity.view(); coefficients.terms() - in_place],
            in_place,
            frame_axis: 1, // the numbers are the same for every token
            coefficients,
            noise: Some(Noise {
                seed: 0,
                offset: (draw * ELEMENTS / 4) as u64,
            }),
            noise_base: Some(&self.noise), // in device memory: a graph reads it anew
            guidance: None,
        };
        denoise_step(&step, &mut [self.latent.view_mut()])
    }
}

fn main() -> Result<()> {
    let device = match Device::cuda(0).or_else(|_| Device::simt(SimtOptions::default())) {
        Ok(device) => device,
        Err(reason) => {
            println!("{reason}");
            return Ok(());
        }
    };
    let config = PackConfig::builder()
        .layers(1)
        .heads(Heads {
            query: 1,
            kv: 1,
            dim: 64,
        })
        .block(GRID)
        .sink(Blocks(1))
        .selected(Blocks(2))
        .archive(Blocks(6))
        .compression(Compression::mean_pool([2, 2, 2]))
        .build()?;
    let pool = PagePool::new(&device, &config)?;
    let schedule = Schedule::few_step(&[1000.0, 750.0, 500.0, 250.0], 5.0)?;
    let tokens = SHAPE[1];
    let mut steps = vec![Coefficients::new(&device, &schedule.start_rows(tokens))?];
    for step in 0..schedule.steps().len() {
        steps.push(Coefficients::new(&device, &schedule.rows(step, tokens)?)?);
    }
    let mut model = Model {
        latent: Tensor::zeros(&device, DType::BF16, &SHAPE)?,
        velocity: Tensor::zeros(&device, DType::BF16, &SHAPE)?,
        noise: NoiseBase::new(&device, Noise { seed: 1, offset: 0 })?,
        steps,
    };

    let mut video = pool.stream()?;
    let mut graph: Option<BlockGraph> = None;
    for number in 0..8 {
        let offset = (number * model.steps.len() * ELEMENTS / 4) as u64;
        model.noise.set(Noise { seed: 1, offset })?;
        let mut block = pool.begin([&mut video])?;
        let took = device.time(|| {
            if number == 0 {
                return model.block(&mut block); // once launch by launch, so that all kernels are loaded
            }
            if graph.is_none() {
                graph = Some(block.capture(|block| model.block(block))?);
            }
            match &graph {
                // SAFETY: the model's tensors stay where they are, and nothing borrows them meanwhile.
                Some(graph) => unsafe { block.replay(graph) },
                None => Ok(()),
            }
        })?;
        let how = if number == 0 { "launched" } else { "replayed" };
        println!(
            "block {number}: {how} in {took:.1?}, attends to {:?}",
            block.chosen(0)?[0]
        );
        block.commit()?;
    }
    Ok(())
}
