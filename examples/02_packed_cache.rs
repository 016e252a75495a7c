//! The history of a long video in bounded memory: what a block attends to as the video grows.
//!
//! `cargo run --example 02_packed_cache`

use packforcing::cache::{Heads, PackConfig, PagePool, Place};
use packforcing::{Blocks, DType, Device, Grid, Result, Tensor};

fn main() -> Result<()> {
    let device = Device::cpu();
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
        .sink(Blocks(2))
        .recent(Blocks(1))
        .selected(Blocks(4))
        .archive(Blocks(12))
        .build()?;
    println!("{} for the cache, however long the video", config.bytes());

    let pool = PagePool::new(&device, &config)?;
    let mut video = pool.stream()?;
    let shape = [1, config.block_tokens().0, 2, 32];
    let mut out = Tensor::zeros(&device, DType::F32, &shape)?;
    println!("block  context  sink  mid  recent  chosen");
    for number in 0..30 {
        // Stands for what the model's layer makes of the block.
        let x: Vec<f32> = (0..shape.iter().product())
            .map(|i| ((i * (number + 3)) as f32 * 0.01).sin())
            .collect();
        let x = Tensor::from_slice(&device, &x, &shape)?;
        let count = |place| video.timeline().iter().filter(|(_, p)| *p == place).count();
        let [sink, mid, recent] = [Place::Sink, Place::Mid, Place::Recent].map(count);
        let mut block = pool.begin([&mut video])?;
        let mut pass = block.commit_pass()?;
        pass.attend(0, x.view(), x.view(), x.view(), &mut out.view_mut())?;
        if number % 5 == 4 {
            let tokens = block.context_tokens(0).unwrap_or_default().0;
            let chosen = &block.chosen(0)?[0];
            println!("{number:5}  {tokens:7}  {sink:4}  {mid:3}  {recent:6}  {chosen:?}");
        }
        block.commit()?;
    }
    Ok(())
}
