//! Block after block with a small model of which everything is known.

mod common;

use std::process::ExitCode;

use common::{Errors, Rng, Suite, widen};
use packforcing::cache::{Compression, Heads, PackConfig, PagePool, Pass};
use packforcing::rollout::{Denoiser, Input, Rollout, RolloutConfig};
use packforcing::schedule::{Schedule, Solver};
use packforcing::{Blocks, DType, Device, DeviceKind, Error, Grid, Tensor, ViewMut};

const GRID: Grid = Grid {
    frames: 2,
    rows: 4,
    cols: 4,
};
const DIM: usize = 64;
/// Of the latent: a number for each of a token's numbers.
const LATENT: [usize; 3] = [GRID.frames, GRID.rows * GRID.cols, DIM];

fn cache(device: &Device) -> PagePool {
    let dtype = if device.kind() == DeviceKind::Cpu {
        DType::F32
    } else {
        DType::BF16
    };
    let config = PackConfig::builder()
        .layers(1)
        .heads(Heads {
            query: 1,
            kv: 1,
            dim: DIM,
        })
        .dtype(dtype)
        .block(GRID)
        .sink(Blocks(1))
        .selected(Blocks(2))
        .archive(Blocks(3))
        .compression(Compression::mean_pool([2, 2, 2]))
        .build()
        .expect("it fits");
    PagePool::new(device, &config).expect("there is memory")
}

fn config(schedule: Schedule) -> RolloutConfig {
    RolloutConfig {
        latent: LATENT.to_vec(),
        frame_axis: 0,
        dtype: DType::F32,
        schedule,
        seed: 5,
        streams: 1,
    }
}

/// Pulls every block towards what it attends to: x0 = 0.5 attention(x) + target.
struct Pull {
    target: Vec<f32>,
    /// The pass that fails, if one does.
    fails: Option<usize>,
    passes: usize,
    /// Blocks and time steps that came by.
    seen: Vec<(usize, f64)>,
    /// The clean latent of the last denoise pass.
    x0: Vec<f32>,
}

#[derive(Debug)]
enum Broken {
    Model,
    Cache(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Broken {
        Broken::Cache(error)
    }
}

impl Pull {
    fn new() -> Pull {
        let target = Rng::new("target").normals(LATENT.iter().product());
        Pull {
            target,
            fails: None,
            passes: 0,
            seen: Vec::new(),
            x0: Vec::new(),
        }
    }
}

impl Denoiser for Pull {
    type Error = Broken;

    fn velocity(
        &mut self,
        input: &Input<'_>,
        pass: &mut Pass<'_, '_>,
        velocity: &mut ViewMut<'_>,
    ) -> Result<(), Broken> {
        self.passes += 1;
        self.seen.push((input.block, input.timestep));
        assert_eq!(input.commits, input.timestep == 0.0);
        let device = velocity.device().clone();
        let dtype = if device.kind() == DeviceKind::Cpu {
            DType::F32
        } else {
            DType::BF16
        };
        let x = input.latent.to_vec::<f32>()?;
        let shape = [1, GRID.tokens().0, 1, DIM];
        let qkv = Tensor::from_f32(&device, dtype, &x, &shape)?;
        let mut out = Tensor::zeros(&device, dtype, &shape)?;
        pass.attend(0, qkv.view(), qkv.view(), qkv.view(), &mut out.view_mut())?;
        if self.fails == Some(self.passes) {
            return Err(Broken::Model);
        }
        let sigma = (input.timestep / 1000.0).max(1e-3) as f32;
        let x0: Vec<f32> = out
            .to_f32_vec()?
            .into_iter()
            .zip(&self.target)
            .map(|(o, t)| 0.5 * o + t)
            .collect();
        let v: Vec<f32> = x.iter().zip(&x0).map(|(x, x0)| (x - x0) / sigma).collect();
        if !input.commits {
            self.x0 = x0;
        }
        velocity.copy_from_slice(&v)?;
        Ok(())
    }
}

fn few_step() -> Schedule {
    Schedule::few_step(&[1000.0, 500.0], 5.0).expect("it falls")
}

fn video(pool: &PagePool, schedule: Schedule, model: &mut Pull, blocks: usize) -> Vec<Vec<f32>> {
    let mut video = Rollout::new(pool, config(schedule)).expect("it fits");
    let block = |_| {
        video
            .next_block(model)
            .expect("nothing fails")
            .to_vec::<f32>()
            .expect("it is f32")
    };
    (0..blocks).map(block).collect()
}

fn main() -> ExitCode {
    let mut suite = Suite::new();

    suite.on_devices("the_model_sees_every_step_and_the_commit", |device| {
        let mut model = Pull::new();
        video(&cache(device), few_step(), &mut model, 2);
        let warped = few_step().steps()[1].timestep;
        assert_eq!(
            model.seen,
            [(0, 1000.0), (0, warped), (0, 0.0), (1, 1000.0), (1, warped), (1, 0.0)]
        );
    });

    suite.on_devices("a_run_is_repeated_by_its_seed", |device| {
        let runs = [(); 2].map(|()| video(&cache(device), few_step(), &mut Pull::new(), 6));
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0][4], runs[0][5]);
    });

    suite.on_devices("euler_in_one_step_is_the_models_x0", |device| {
        // One step from sigma 1 to 0: x - v = x0, which needs no noise at all.
        let schedule = Schedule::from_sigmas(&[1.0, 0.0], Solver::Euler).expect("it falls");
        let mut model = Pull::new();
        let blocks = video(&cache(device), schedule, &mut model, 3);
        let errors = Errors::of(&blocks[2], &widen(&model.x0));
        assert!(errors.max < 1e-5, "two roundings of numbers below 8: {errors:?}");
    });

    suite.on_devices("every_solver_ends_at_the_models_x0", |device| {
        for solver in [Solver::Euler, Solver::LCM, Solver::DpmSolver, Solver::UniPc] {
            let schedule = Schedule::from_sigmas(&[1.0, 0.9, 0.6, 0.3, 0.0], solver).expect("it falls");
            let mut model = Pull::new();
            let blocks = video(&cache(device), schedule, &mut model, 3);
            let errors = Errors::of(&blocks[2], &widen(&model.x0));
            assert!(
                errors.max < 1e-5,
                "{solver:?}: roundings of numbers below 8: {errors:?}"
            );
        }
    });

    suite.on_kernels("kernels_make_the_cpus_video", |device| {
        // Attention in bf16 rounds queries, keys and weights, 2^-8 each, and half of it goes into x0.
        // Each block attends to those before it, so half of their error comes on top: twice as much.
        let tolerance = 2.0 * 0.5 * 3.0 * 2f64.powi(-8);
        let cpu = video(&cache(&Device::cpu()), few_step(), &mut Pull::new(), 6);
        let kernels = video(&cache(device), few_step(), &mut Pull::new(), 6);
        for (number, (kernels, cpu)) in kernels.iter().zip(&cpu).enumerate() {
            let errors = Errors::of(kernels, &widen(cpu));
            assert!(errors.rel_l2 < tolerance, "block {number}: {errors:?}");
        }
    });

    suite.on_devices("a_model_that_fails_leaves_the_video_as_it_was", |device| {
        // Two solvers of two steps: one that remembers nothing, and one whose states a failed block leaves.
        let schedules = [few_step(), Schedule::unipc(2, 5.0).expect("two steps")];
        for (schedule, pass) in schedules.iter().flat_map(|s| (10..=12).map(move |pass| (s, pass))) {
            let expected = video(&cache(device), schedule.clone(), &mut Pull::new(), 5);
            let mut model = Pull {
                fails: Some(pass),
                ..Pull::new()
            };
            let pool = cache(device);
            let mut video = Rollout::new(&pool, config(schedule.clone())).expect("it fits");
            let mut blocks = Vec::new();
            while blocks.len() < 5 {
                let before = (video.blocks(), pool.free_pages());
                let block = video
                    .next_block(&mut model)
                    .map(|block| block.to_vec::<f32>().expect("it is f32"));
                match block {
                    Ok(block) => blocks.push(block),
                    Err(Broken::Model) => assert_eq!((video.blocks(), pool.free_pages()), before),
                    Err(Broken::Cache(error)) => panic!("{error}"),
                }
            }
            assert_eq!(blocks, expected, "pass {pass} failed and was made again");
        }
    });

    suite.on_devices("reset_begins_the_same_video", |device| {
        let pool = cache(device);
        let mut video = Rollout::new(&pool, config(few_step())).expect("it fits");
        let mut runs = [const { Vec::new() }; 2];
        for run in &mut runs {
            for _ in 0..3 {
                let block = video.next_block(&mut Pull::new()).expect("nothing fails");
                run.push(block.to_vec::<f32>().expect("it is f32"));
            }
            video.reset();
        }
        assert_eq!(runs[0], runs[1]);
    });

    suite.plain("what_does_not_fit_is_refused", || {
        let pool = cache(&Device::cpu());
        let refused = |config: RolloutConfig, name: &str| match Rollout::new(&pool, config) {
            Err(Error::Argument {
                op: "Rollout::new",
                argument,
                ..
            }) => assert_eq!(argument, name),
            other => panic!("{name}: {other:?}"),
        };
        refused(
            RolloutConfig {
                latent: vec![3, 4],
                ..config(few_step())
            },
            "latent",
        );
        refused(
            RolloutConfig {
                latent: vec![2, 0],
                ..config(few_step())
            },
            "latent",
        );
        refused(
            RolloutConfig {
                frame_axis: 7,
                ..config(few_step())
            },
            "latent",
        );
        refused(
            RolloutConfig {
                dtype: DType::I32,
                ..config(few_step())
            },
            "dtype",
        );
        refused(
            RolloutConfig {
                streams: 0,
                ..config(few_step())
            },
            "streams",
        );
        refused(
            RolloutConfig {
                streams: 2,
                ..config(few_step())
            },
            "streams",
        );
        refused(
            RolloutConfig {
                latent: vec![2, usize::MAX, 3],
                ..config(few_step())
            },
            "latent",
        );
    });

    suite.run()
}
