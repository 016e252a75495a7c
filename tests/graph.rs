//! Launches captured once and made again, against the same work launched one by one.

mod common;

use std::process::ExitCode;

use common::Suite;
use packforcing::cache::{
    Block, BlockGraph, Compression, Heads, PackConfig, PagePool, Pass, Policy, Selection, Stream,
};
use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, NoiseBase, denoise_step};
use packforcing::{Blocks, DType, Device, DeviceKind, Error, Grid, Result, SimtOptions, Tensor};

const GRID: Grid = Grid {
    frames: 2,
    rows: 4,
    cols: 4,
};
const TOKENS: usize = 32;
const DIM: usize = 64;
const STEPS: usize = 3;
const STREAMS: usize = 2;
const ELEMENTS: usize = STREAMS * TOKENS * DIM;
/// Draws of noise in a block: the latent to begin with, and one a step.
const DRAWS: usize = STEPS + 1;

/// A model of two layers that is made of launches alone: each layer attends with what the one below
/// it gave, and the latent goes towards the last.
struct Model {
    kind: Kind,
    pool: PagePool,
    streams: Vec<Stream>,
    x: Tensor,
    below: Tensor,
    above: Tensor,
    update: Coefficients,
    start: Coefficients,
    noise: NoiseBase,
}

/// Compressed tokens of the model's own.
const HANDED_IN: Grid = Grid {
    frames: 1,
    rows: 2,
    cols: 2,
};

/// What a block's passes launch depends on these.
#[derive(Debug, Clone, Copy)]
struct Kind {
    compression: Compression,
    selection: Selection,
    policy: Policy,
    selected: usize,
}

const PLAIN: Kind = Kind {
    compression: Compression::mean_pool([2, 2, 2]),
    selection: Selection::PerLayer,
    policy: Policy::Top,
    selected: 2,
};

fn config(kind: Kind) -> PackConfig {
    PackConfig::builder()
        .layers(2)
        .heads(Heads {
            query: 1,
            kv: 1,
            dim: DIM,
        })
        .block(GRID)
        .sink(Blocks(1))
        .recent(Blocks(1))
        .selected(Blocks(kind.selected))
        .archive(Blocks(5))
        .streams(STREAMS)
        .compression(kind.compression)
        .selection(kind.selection)
        .policy(kind.policy)
        .build()
        .expect("it fits")
}

impl Model {
    fn new(device: &Device, kind: Kind) -> Model {
        let pool = PagePool::new(device, &config(kind)).expect("there is memory");
        let tensor = || Tensor::zeros(device, DType::BF16, &[STREAMS, TOKENS, 1, DIM]).expect("there is memory");
        let row = |c: f64| vec![c; TOKENS];
        let mut model = Model {
            kind,
            streams: (0..STREAMS).map(|_| pool.stream().expect("a stream")).collect(),
            x: tensor(),
            below: tensor(),
            above: tensor(),
            update: Coefficients::new(device, &[vec![row(0.6), row(0.4), row(0.5)]]).expect("finite"),
            start: Coefficients::new(device, &[vec![row(1.0)]]).expect("finite"),
            noise: NoiseBase::new(device, Noise { seed: 7, offset: 0 }).expect("there is memory"),
            pool,
        };
        // One of the streams is two blocks ahead of the other, and stays so.
        for _ in 0..2 {
            let mut block = model.pool.begin(&mut model.streams[..1]).expect("there is room");
            let one = || model.x.view().narrow(0, 0, 1).expect("a part");
            let mut pass = block.commit_pass().expect("alive");
            for layer in 0..2 {
                let mut out = model.below.view_mut().narrow(0, 0, 1).expect("a part");
                pass.attend(layer, one(), one(), one(), &mut out).expect("it attends");
                hand_in(&mut pass, kind, layer, &model.x, 1).expect("it is handed in");
            }
            block.commit().expect("it is whole");
        }
        model
    }

    /// What a graph does not hold: which noise the block's draws are.
    fn start(&mut self, block: usize) {
        let offset = (block * DRAWS * ELEMENTS / 4) as u64;
        self.noise.set(Noise { seed: 7, offset }).expect("it is uploaded");
    }
}

/// Where the configuration asks for compressed tokens: the first of the layer's own.
fn hand_in(pass: &mut Pass<'_, '_>, kind: Kind, layer: usize, x: &Tensor, streams: usize) -> Result<()> {
    let tokens = HANDED_IN.tokens().0;
    let mid = x.view().narrow(0, 0, streams)?.narrow(1, 0, tokens)?;
    match kind.compression {
        Compression::External(_) => pass.hand_in(layer, mid.clone(), mid),
        _ => Ok(()),
    }
}

/// The borrows of a model that a block's passes work with.
struct Work<'a> {
    kind: Kind,
    x: &'a mut Tensor,
    below: &'a mut Tensor,
    above: &'a mut Tensor,
    update: &'a Coefficients,
    start: &'a Coefficients,
    noise: &'a NoiseBase,
}

impl Model {
    fn parts(&mut self) -> (&PagePool, &mut Vec<Stream>, Work<'_>) {
        let work = Work {
            kind: self.kind,
            x: &mut self.x,
            below: &mut self.below,
            above: &mut self.above,
            update: &self.update,
            start: &self.start,
            noise: &self.noise,
        };
        (&self.pool, &mut self.streams, work)
    }
}

impl Work<'_> {
    /// Every pass of a block, from noise through the denoising steps to the commit pass.
    fn passes(&mut self, block: &mut Block<'_>) -> Result<()> {
        self.update(self.start, 0)?;
        for step in 0..STEPS {
            let mut pass = block.denoise_pass()?;
            self.layers(|layer, q, out| pass.attend(layer, q.view(), q.view(), q.view(), &mut out.view_mut()))?;
            self.update(self.update, step + 1)?;
        }
        let kind = self.kind;
        let mut pass = block.commit_pass()?;
        self.layers(|layer, q, out| {
            pass.attend(layer, q.view(), q.view(), q.view(), &mut out.view_mut())?;
            hand_in(&mut pass, kind, layer, q, STREAMS)
        })
    }

    /// The latent from itself, the last layer and the noise of one draw.
    fn update(&mut self, coefficients: &Coefficients, draw: usize) -> Result<()> {
        let in_place = coefficients.terms().min(1);
        let step = DenoiseStep {
            terms: vec![self.above.view(); coefficients.terms() - in_place],
            in_place,
            frame_axis: 1,
            coefficients,
            noise: Some(Noise {
                seed: 0,
                offset: (draw * ELEMENTS / 4) as u64,
            }),
            noise_base: Some(self.noise),
            guidance: None,
        };
        denoise_step(&step, &mut [self.x.view_mut()])
    }

    fn layers(&mut self, mut attend: impl FnMut(usize, &Tensor, &mut Tensor) -> Result<()>) -> Result<()> {
        attend(0, self.x, self.below)?;
        attend(1, self.below, self.above)
    }
}

/// Three blocks in a row, each with other noise and another choice of the past.
fn replayed_blocks_are_the_launched_ones(device: &Device, kind: Kind) {
    const CAPTURED: usize = 6;
    let (mut eager, mut replayed) = (Model::new(device, kind), Model::new(device, kind));
    let mut graph: Option<BlockGraph> = None;
    let (mut latents, mut choices) = (Vec::new(), Vec::new());
    for number in 0..CAPTURED + 3 {
        let mut results = Vec::new();
        for (model, replays) in [(&mut eager, false), (&mut replayed, true)] {
            model.start(number);
            let (pool, streams, mut work) = model.parts();
            let mut block = pool.begin(streams).expect("there is room");
            if replays && number >= CAPTURED {
                let graph = graph.get_or_insert_with(|| block.capture(|block| work.passes(block)).expect("it records"));
                // SAFETY: the model's tensors are there, and nothing borrows them.
                unsafe { block.replay(graph).expect("it replays") };
            } else {
                work.passes(&mut block).expect("it runs");
            }
            let numbers = |t: &Tensor| t.to_f32_vec().expect("numbers");
            let chosen: Vec<_> = (0..2).map(|layer| block.chosen(layer).expect("it attended")).collect();
            results.push((numbers(work.x), numbers(work.above), chosen));
            block.commit().expect("a commit pass was made");
        }
        assert_eq!(results[0], results[1], "{kind:?}, block {number}");
        if number >= CAPTURED {
            let (x, _, chosen) = results.swap_remove(0);
            latents.push(x);
            choices.push(chosen);
        }
    }
    // Otherwise a graph that froze the first block's tables would have passed.
    assert!(latents[0] != latents[1] && latents[1] != latents[2]);
    let chooses = kind.selected > 0;
    let others = choices[0] != choices[1] && choices[1] != choices[2];
    assert_eq!(others, chooses, "{kind:?}: {choices:?}");
    assert_eq!(eager.streams[0].timeline(), replayed.streams[0].timeline());

    // The graph is the last that holds the pool, and another thread lets it go.
    drop(replayed);
    std::thread::spawn(move || drop(graph)).join().expect("it drops");
}

/// Every policy, compression and kind of selection, and none.
fn blocks_of_every_kind_are_replayed(device: &Device) {
    let kinds = [
        PLAIN,
        Kind {
            compression: Compression::matching([2, 2, 2]),
            selection: Selection::Shared,
            ..PLAIN
        },
        Kind {
            compression: Compression::External(HANDED_IN),
            selection: Selection::Shared,
            policy: Policy::Random { seed: 3 },
            ..PLAIN
        },
        Kind {
            compression: Compression::None,
            policy: Policy::Newest,
            ..PLAIN
        },
        Kind { selected: 0, ..PLAIN },
    ];
    // Kernels are the same on a double of the driver, and what a driver sees of one kind it sees of all.
    let here = if device.kind() == DeviceKind::CudaDouble {
        1
    } else {
        kinds.len()
    };
    for kind in &kinds[..here] {
        replayed_blocks_are_the_launched_ones(device, *kind);
    }
}

fn refused<T>(result: Result<T>, says: &[&str]) {
    let error = result.err().expect("it is refused").to_string();
    for part in says {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

/// A zeroed tensor and the coefficients of `x = 2 x + 1 term`.
fn doubling(device: &Device) -> (Tensor, Tensor, Coefficients) {
    let tensor = |x: f32| Tensor::from_slice(device, &[x; 64], &[1, 64]).expect("there is memory");
    let rows = [vec![vec![2.0], vec![1.0], vec![0.0]]];
    (
        tensor(0.0),
        tensor(1.0),
        Coefficients::new(device, &rows).expect("finite"),
    )
}

fn double(x: &mut Tensor, term: &Tensor, coefficients: &Coefficients) -> Result<()> {
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

fn a_capture_runs_nothing_and_takes_launches_only(device: &Device) {
    let (mut x, term, coefficients) = doubling(device);
    double(&mut x, &term, &coefficients).expect("it runs");
    let graph = device
        .capture(|| {
            double(&mut x, &term, &coefficients)?;
            double(&mut x, &term, &coefficients)
        })
        .expect("it records");
    assert_eq!(x.to_vec::<f32>().expect("numbers"), [1.0; 64]);
    for expected in [7.0, 31.0] {
        // SAFETY: the tensors are there, and nothing borrows them.
        unsafe { graph.launch().expect("it runs") };
        assert_eq!(x.to_vec::<f32>().expect("numbers"), [expected; 64]);
    }

    let says = ["a capture of this device is under way"];
    let inside = |work: &mut dyn FnMut() -> Result<()>| device.capture(work);
    refused(inside(&mut || Tensor::zeros(device, DType::F32, &[4]).map(drop)), &says);
    refused(inside(&mut || x.view_mut().copy_from_slice(&[1.0f32; 64])), &says);
    refused(inside(&mut || x.to_vec::<f32>().map(drop)), &says);
    refused(inside(&mut || device.synchronize()), &says);
    refused(inside(&mut || device.time(|| Ok(())).map(drop)), &says);
    refused(inside(&mut || device.capture(|| Ok(())).map(drop)), &says);
    // SAFETY: it is refused.
    refused(inside(&mut || unsafe { graph.launch() }), &says);

    let half = Tensor::zeros(device, DType::F32, &[1, 32]).expect("there is memory");
    // An error of the work, or a panic, ends the capture: what comes next runs.
    let argument = device.capture(|| double(&mut x, &half, &coefficients));
    refused(argument, &["denoise_step: terms"]);
    let panics = std::panic::AssertUnwindSafe(|| device.capture::<Error>(|| panic!("on purpose")).map(drop));
    assert!(std::panic::catch_unwind(panics).is_err());
    double(&mut x, &term, &coefficients).expect("it runs");
    assert_eq!(x.to_vec::<f32>().expect("numbers"), [63.0; 64]);
}

fn the_cpu_has_nothing_to_record() {
    let cpu = Device::cpu();
    refused(cpu.capture(|| Ok(())), &["Device::capture: device", "cuda or simt"]);
    let pool = PagePool::new(&cpu, &config(PLAIN)).expect("there is memory");
    let mut stream = pool.stream().expect("a stream");
    let mut block = pool.begin([&mut stream]).expect("there is room");
    refused(block.capture(|_| Ok(())), &["Device::capture: device"]);
}

fn a_graph_fits_its_own_pool_and_batch(device: &Device) {
    let (mut model, mut other) = (Model::new(device, PLAIN), Model::new(device, PLAIN));
    let (pool, streams, mut work) = model.parts();
    // Once before, in a block that is dropped.
    work.passes(&mut pool.begin(streams.iter_mut()).expect("there is room"))
        .expect("it runs");
    let mut block = pool.begin(streams.iter_mut()).expect("there is room");
    let graph = block.capture(|block| work.passes(block)).expect("it records");
    refused(block.commit(), &["commit", "layer 0"]);

    let replay = |block: &mut Block<'_>| {
        // SAFETY: the tensors are there, and nothing borrows them.
        unsafe { block.replay(&graph) }
    };
    let (others_pool, others, _) = other.parts();
    let mut block = others_pool.begin(others).expect("there is room");
    refused(replay(&mut block), &["Block::replay: graph", "another pool"]);
    drop(block);
    let mut block = pool.begin(&mut streams[..1]).expect("there is room");
    refused(
        replay(&mut block),
        &["Block::replay: graph", "a graph of 1 streams", "2 streams"],
    );
    drop(block);
    let mut block = pool
        .begin_with(streams.iter_mut(), Policy::Newest)
        .expect("there is room");
    refused(replay(&mut block), &["Block::replay: graph", "Newest"]);
    drop(block);
    let mut block = pool.begin(streams.iter_mut()).expect("there is room");
    replay(&mut block).expect("it replays");
    refused(replay(&mut block), &["choice 0 was still to make", "made already"]);
    block.denoise_pass().expect("alive");
    refused(block.commit(), &["commit", "layer 0"]);

    // A graph without a pass neither makes a commit pass nor undoes one.
    let mut block = pool.begin(streams.iter_mut()).expect("there is room");
    replay(&mut block).expect("it replays");
    let start = block.capture(|_| work.update(work.start, 0)).expect("it records");
    // SAFETY: as above.
    unsafe { block.replay(&start).expect("it replays") };
    block.commit().expect("the commit pass was made");
    let mut block = pool.begin(streams.iter_mut()).expect("there is room");
    // SAFETY: as above.
    unsafe { block.replay(&start).expect("it replays") };
    refused(block.commit(), &["commit", "layer 0"]);
}

fn a_fault_in_a_replay_is_reported(simt: &Device) {
    let (mut x, term, coefficients) = doubling(simt);
    double(&mut x, &term, &coefficients).expect("launch 0");
    let graph = simt
        .capture(|| double(&mut x, &term, &coefficients))
        .expect("it records");
    // SAFETY: the tensors are there, and nothing borrows them.
    unsafe { graph.launch().expect("launch 1") };
    let fails = Device::simt(SimtOptions {
        fail_launch: Some(2),
        deferred_faults: true,
        ..SimtOptions::default()
    })
    .expect("it is in this build");
    let (mut x, term, coefficients) = doubling(&fails);
    double(&mut x, &term, &coefficients).expect("launch 0");
    let graph = fails
        .capture(|| (0..3).try_for_each(|_| double(&mut x, &term, &coefficients)))
        .expect("it records");
    // SAFETY: as above.
    unsafe { graph.launch().expect("the fault is reported later") };
    refused(fails.synchronize(), &["the simt device is lost", "launch 2"]);
    // SAFETY: as above.
    refused(unsafe { graph.launch() }, &["the simt device is lost"]);
}

fn main() -> ExitCode {
    Suite::new()
        .on(
            &["simt", "simt90", "cuda"],
            "blocks_of_every_kind_are_replayed",
            blocks_of_every_kind_are_replayed,
        )
        .on_kernels(
            "a_capture_runs_nothing_and_takes_launches_only",
            a_capture_runs_nothing_and_takes_launches_only,
        )
        .on_kernels(
            "a_graph_fits_its_own_pool_and_batch",
            a_graph_fits_its_own_pool_and_batch,
        )
        .on(
            &["simt"],
            "a_fault_in_a_replay_is_reported",
            a_fault_in_a_replay_is_reported,
        )
        .plain("the_cpu_has_nothing_to_record", the_cpu_has_nothing_to_record)
        .run()
}
