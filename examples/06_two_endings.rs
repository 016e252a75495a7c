//! Two endings of one beginning, each with guidance: a fork shares the past, and the streams of a
//! batch go through the model in one launch.
//!
//! `cargo run --example 06_two_endings`

use packforcing::cache::{Heads, PackConfig, PagePool, Stream};
use packforcing::{Blocks, DType, Device, Grid, Result, Tensor};

/// One block of a batch; every stream gets the numbers of its `scenes`.
fn block(pool: &PagePool, streams: &mut [&mut Stream], scenes: &[f32]) -> Result<()> {
    let shape = [streams.len(), pool.config().block_tokens().0, 2, 32];
    let size = shape[1..].iter().product::<usize>();
    // Stands for what the model's layer makes of the block.
    let of = |&scene: &f32| (0..size).map(move |i| (i as f32 * scene).sin());
    let x: Vec<f32> = scenes.iter().flat_map(of).collect();
    let x = Tensor::from_slice(pool.device(), &x, &shape)?;
    let mut out = Tensor::zeros(pool.device(), DType::F32, &shape)?;
    let mut block = pool.begin(streams.iter_mut().map(|s| &mut **s))?;
    let mut pass = block.commit_pass()?;
    pass.attend(0, x.view(), x.view(), x.view(), &mut out.view_mut())?;
    block.commit()
}

fn main() -> Result<()> {
    let config = PackConfig::builder()
        .layers(1)
        .heads(Heads {
            query: 2,
            kv: 2,
            dim: 32,
        })
        .dtype(DType::F32)
        .block(Grid {
            frames: 4,
            rows: 8,
            cols: 8,
        })
        .selected(Blocks(4))
        .archive(Blocks(12))
        .streams(4)
        .build()?;
    let pool = PagePool::new(&Device::cpu(), &config)?;

    // With the prompt, and without it: guidance is two streams in one batch.
    let (mut with, mut without) = (pool.stream()?, pool.stream()?);
    for _ in 0..8 {
        block(&pool, &mut [&mut with, &mut without], &[0.01, 0.02])?;
    }
    println!("the beginning:       {} free", pool.free_pages());
    let (mut with_2, mut without_2) = (with.fork()?, without.fork()?);
    println!("forked, not copied:  {} free", pool.free_pages());
    for _ in 0..4 {
        let mut all = [&mut with, &mut without, &mut with_2, &mut without_2];
        block(&pool, &mut all, &[0.03, 0.02, 0.05, 0.02])?;
    }
    println!("two endings:         {} free", pool.free_pages());
    drop((with, without));
    println!("one of them dropped: {} free", pool.free_pages());
    println!("{with_2:?}");
    Ok(())
}
