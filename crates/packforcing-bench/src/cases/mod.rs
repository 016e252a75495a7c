//! One module an op: a shape, whose default is that of a block of Wan2.1-T2V-1.3B at 832 x 480, and
//! the case that it makes on a device. Inputs are normally distributed, pages lie in random order.

pub mod append_kv;
pub mod attention;
pub mod denoise_step;
pub mod guidance;
pub mod match_tokens;
pub mod merge_states;
pub mod merge_tokens;
pub mod select_blocks;

use packforcing::ops::guidance::Guidance;
use packforcing::paging::PageLists;
use packforcing::{DType, Device, Grid, Tensor, View};

use crate::error::{Error, Result};
use crate::random::Random;

/// Wan's block of four latent frames at 480p.
pub const WAN_BLOCK: Grid = Grid {
    frames: 4,
    rows: 30,
    cols: 52,
};
/// Wan's latents of such a block: channels, frames, rows, columns.
pub const WAN_LATENTS: [usize; 4] = [16, 4, 60, 104];
/// What a merged token stands for: frames, rows, columns.
pub const WAN_CELL: [usize; 3] = [2, 4, 4];
/// Wan2.1-1.3B's heads.
pub const WAN_HEADS: usize = 12;
/// Numbers of a head.
pub const WAN_DIM: usize = 128;
/// Tokens of a page: a Wan block is 65 of them.
pub const PAGE_TOKENS: usize = 96;

/// No tensor of a case has more numbers; beyond, making it takes longer than a bench is worth.
const MOST_NUMBERS: usize = 1 << 29;

/// How many numbers a tensor has; `field` is what makes it too large.
fn numbers(field: &'static str, shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, &extent| n.checked_mul(extent))
        .filter(|&n| n <= MOST_NUMBERS)
        .ok_or_else(|| {
            let expected = format!("a tensor of at most {MOST_NUMBERS} numbers");
            Error::shape(field, expected, format!("{shape:?}"))
        })
}

/// Refuses a 0 where something must be.
fn some(fields: &[(&'static str, usize)]) -> Result<()> {
    match fields.iter().find(|(_, n)| *n == 0) {
        Some((field, _)) => Err(Error::shape(field, "at least 1", "0")),
        None => Ok(()),
    }
}

/// How many tokens a grid has.
fn tokens(grid: Grid) -> Result<usize> {
    some(&[("frames", grid.frames), ("rows", grid.rows), ("cols", grid.cols)])?;
    numbers("frames", &[grid.frames, grid.rows, grid.cols])
}

/// Host numbers that tensors of a case are made from.
struct Numbers {
    data: Vec<f32>,
    shape: Vec<usize>,
}

impl Numbers {
    /// Normally distributed.
    fn new(random: &mut Random, field: &'static str, shape: &[usize]) -> Result<Numbers> {
        Ok(Numbers {
            data: random.normal(numbers(field, shape)?),
            shape: shape.to_vec(),
        })
    }

    fn tensor(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        Ok(Tensor::from_f32(device, dtype, &self.data, &self.shape)?)
    }
}

/// Page lists in random order over a pool that they fill: for each length, `blocks` lists of it.
fn page_lists(random: &mut Random, device: &Device, blocks: usize, lengths: &[usize]) -> Result<Vec<PageLists>> {
    let pool = blocks * lengths.iter().sum::<usize>();
    let order = random.order(pool);
    let mut left = order.as_slice();
    let mut lists = |length: usize| {
        let (these, rest) = left.split_at(blocks * length);
        left = rest;
        let these: Vec<Vec<u32>> = these.chunks(length).map(<[u32]>::to_vec).collect();
        Ok(PageLists::from_host(device, pool, &these)?)
    };
    lengths.iter().map(|&length| lists(length)).collect()
}

/// Both of what guidance can do, for every shape.
fn guided<'a>(cond: View<'a>, uncond: View<'a>) -> Guidance<'a> {
    Guidance {
        cond,
        uncond,
        frame_axis: 1,
        scale: 5.0,
        zero_star: true,
        rescale: 0.7,
    }
}
