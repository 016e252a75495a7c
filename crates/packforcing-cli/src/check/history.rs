//! A history that is made block after block: captured and replayed, and twice the same.

use anyhow::{Result, ensure};
use packforcing::cache::{Block, BlockGraph, Compression, Heads, PackConfig, PagePool, Stream};
use packforcing::{Blocks, DType, Device, Grid, Tensor};

use super::Checks;

const GRID: Grid = Grid {
    frames: 2,
    rows: 4,
    cols: 4,
};
const SHAPE: [usize; 4] = [1, 32, 2, 64];
/// Compressed blocks that are kept.
const ARCHIVE: usize = 6;

/// More blocks than there is room for whole and packed, so that some leave the archive; on a card two minutes of them.
pub(super) fn all(device: &Device, small: bool, checks: &mut Checks) -> Result<()> {
    let blocks = if small { ARCHIVE + 6 } else { 240 };
    let history = |device: &Device, replays| history(device, blocks, replays);
    let mut first = None;
    checks.check("a long history", || {
        let made = first.insert(history(device, false)?);
        Ok(format!("{blocks} blocks, {} numbers of the last", made.len()))
    })?;
    let Some(first) = first else { return Ok(()) };
    checks.check("the same again", || {
        ensure!(history(device, false)? == first, "the second run gave other bits");
        Ok("the same bits".into())
    })?;
    checks.check("captured and replayed", || {
        ensure!(
            history(device, true)? == first,
            "replayed blocks gave other bits than launched ones"
        );
        Ok("the same bits".into())
    })
}

/// What the layers gave over the last block: each attends to what the one below gave, and the next block to what this one did.
fn history(device: &Device, blocks: usize, replays: bool) -> Result<Vec<f32>> {
    let config = PackConfig::builder()
        .layers(2)
        .heads(Heads {
            query: 2,
            kv: 2,
            dim: 64,
        })
        .dtype(DType::BF16)
        .block(GRID)
        .sink(Blocks(1))
        .recent(Blocks(1))
        .selected(Blocks(3))
        .archive(Blocks(ARCHIVE))
        .compression(Compression::mean_pool([2, 2, 2]))
        .build()?;
    let pool = PagePool::new(device, &config)?;
    let mut video: Stream = pool.stream()?;
    let start: Vec<f32> = (0..32 * 2 * 64)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0)
        .collect();
    let mut x = Tensor::from_f32(device, DType::BF16, &start, &SHAPE)?;
    let mut y = Tensor::zeros(device, DType::BF16, &SHAPE)?;
    let mut graph: Option<BlockGraph> = None;
    for number in 0..blocks {
        let mut block = pool.begin([&mut video])?;
        let captured = replays && number >= blocks / 2;
        if captured && graph.is_none() {
            graph = Some(block.capture(|block| passes(block, &mut x, &mut y))?);
        }
        match graph.as_ref().filter(|_| captured) {
            // SAFETY: the tensors stay where they are, and nothing borrows them.
            Some(graph) => unsafe { block.replay(graph)? },
            None => passes(&mut block, &mut x, &mut y)?,
        }
        block.commit()?;
    }
    Ok(x.to_f32_vec()?)
}

fn passes(block: &mut Block<'_>, x: &mut Tensor, y: &mut Tensor) -> packforcing::Result<()> {
    let mut pass = block.denoise_pass()?;
    pass.attend(0, x.view(), x.view(), x.view(), &mut y.view_mut())?;
    pass.attend(1, y.view(), y.view(), y.view(), &mut x.view_mut())?;
    let mut pass = block.commit_pass()?;
    pass.attend(0, x.view(), x.view(), x.view(), &mut y.view_mut())?;
    pass.attend(1, y.view(), y.view(), y.view(), &mut x.view_mut())
}
