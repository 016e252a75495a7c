//! Merging the tokens of a block by likeness: bipartite soft matching, and its way back.

mod cpu;
mod gpu;
mod matching;
pub mod reference;

pub use matching::{Destinations, Matching, Merges, Metric, Mode, SoftMatch};

use crate::device::DeviceKind;
use crate::dtype::{DType, with_float};
use crate::error::Result;
use crate::ops::check::{Check, ensure};
use crate::paging::{KvPagesMut, PageLists, PageShape};
use crate::tensor::{View, ViewMut};

const OP_NEW: &str = "Matching::new";
const OP: &str = "match_tokens";
const OP_UNMERGE: &str = "unmerge_tokens";

/// Arguments of [`match_tokens`].
#[derive(Debug, Clone)]
pub struct MatchTokens<'a> {
    /// Pages of whole blocks, keys rotated with time 0 at the block's first frame. One list a block.
    pub source: &'a PageLists,
    /// Pages that the merged tokens fill. One list a block; disjoint from `source`, which is not looked
    /// for: what an overlap gives depends on the device.
    pub dest: &'a PageLists,
    /// How many sources merge.
    pub merges: Merges,
    /// Whether `kv.slot_bias` of the source says how many tokens each stands for (their natural log);
    /// otherwise each stands for itself.
    pub weighted: bool,
}

/// Extents that the checks found.
struct Shape {
    batch: usize,
    heads: usize,
    dim: usize,
    page_tokens: usize,
    /// Matchings of a block: one for each head, or one for all.
    maps: usize,
    tokens: usize,
    /// Most merged tokens of a block.
    merged: usize,
    /// Sources that merge by rank; `None`: by threshold.
    top: Option<usize>,
    /// Pages of each dest list that are written.
    used_pages: usize,
}

/// Merges tokens of whole blocks into those that they are like, from pages to other pages of one pool.
///
/// Token (t, r, c) of a block lies at slot `i % page_tokens` of page `source[block][i / page_tokens]`
/// with `i = (t * rows + r) * cols + c`, its key rotated at (t, r, c). Every token that is no destination
/// is a source; it is matched with the destination whose key, both turned back at their own places, makes
/// the largest cosine with its own (of equal ones the first). Of the sources those that `merges` says
/// merge. The tokens that stay, destinations and sources that did not merge, lie in `dest` **in the order
/// of the grid**. A token that nothing merged into is copied as it is. One that stands for several, with
/// [`Mode::Mean`]:
///
/// - its value is the mean of their values, weighted by what each stands for;
/// - its key is the same mean of their keys, each turned back at its own place, turned to the centroid,
///   the (fractional) mean of their positions;
/// - where `kv.slot_bias` is there, the natural log of how many tokens it stands for: proportional
///   attention adds it to the logits, and then tokens that are one key at one place attend as before.
///
/// Where heads are matched by themselves, all of this differs from head to head. Slots past the merged
/// tokens, up to the end of the last page that the most merged tokens would touch, become 0 in keys and
/// values and minus infinity in the bias: attention gives them nothing, so heads of different counts fit
/// one segment.
///
/// `matching` gets the map and the counts. Scores are never stored; products are those of the dtype's
/// keys, sums are f32, and means are summed in the order of the grid. The same inputs give the same bits
/// on a device; devices agree on the choice where products and sums of squares are exact, as with keys of
/// small integers at places that turn nothing, and within rounding else. On the CPU the bits are the same
/// for any instruction set. Dtypes: f32, f16, bf16.
///
/// `dest` pages must be disjoint from `source` pages, and none may stand twice in `dest`; a source page
/// may be shared. Host devices check it; a GPU cannot, and the merged tokens are then undefined.
///
/// ```
/// use packforcing::ops::match_tokens::{MatchTokens, Matching, Merges, SoftMatch, match_tokens};
/// use packforcing::paging::{KvPagesMut, PageLists};
/// use packforcing::{DType, Device, Grid, Rope3d, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let cpu = Device::cpu();
/// let grid = Grid { frames: 1, rows: 1, cols: 4 };
/// let rope = Rope3d::new([1, 0, 0], 10_000.0)?; // time alone turns keys
/// // Tokens 0 and 2 are destinations. Token 1 is most like 2, token 3 most like 0.
/// let keys = [[1.0f32, 0.0], [0.6, 0.8], [0.0, 1.0], [1.0, 0.1]].concat();
/// let values = [[1.0f32; 2], [2.0; 2], [4.0; 2], [3.0; 2]].concat();
/// let mut k = Tensor::from_slice(&cpu, &[keys, vec![0.0; 8]].concat(), &[2, 1, 4, 2])?;
/// let mut v = Tensor::from_slice(&cpu, &[values, vec![0.0; 8]].concat(), &[2, 1, 4, 2])?;
/// let mut matching = Matching::new(&cpu, SoftMatch::strided([1, 1, 2]), grid, &rope, (1, 1))?;
/// match_tokens(
///     &MatchTokens {
///         source: &PageLists::from_host(&cpu, 2, &[vec![0]])?,
///         dest: &PageLists::from_host(&cpu, 2, &[vec![1]])?,
///         merges: Merges::Top(1), // the best pair alone
///         weighted: false,
///     },
///     &mut matching,
///     &mut KvPagesMut { k: k.view_mut(), v: v.view_mut(), slot_bias: None },
/// )?;
/// assert_eq!(matching.map().to_vec::<i32>()?, [0, 1, 2, 0]);
/// assert_eq!(v.view().select(0, 1)?.to_vec::<f32>()?, [2.0, 2.0, 2.0, 2.0, 4.0, 4.0, 0.0, 0.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Pages that do not agree; a matching made for another device, head dim or number of heads, or for fewer
/// blocks; a threshold that is not a number; sizes asked for where there is no slot bias; lists of another
/// number of blocks, too short (for a threshold: for no merge at all) or of a larger pool; on host devices
/// a dest page that is a source page or another dest page. Where kernels run: heads and rows that are not
/// on 16-byte boundaries, a head dim above 128, more than 16,384 tokens, more than 65,535 blocks or heads.
/// Nothing has been written then. Later: whatever the device reports.
pub fn match_tokens(args: &MatchTokens<'_>, matching: &mut Matching, kv: &mut KvPagesMut<'_>) -> Result<()> {
    let device = kv.k.device();
    Check { op: OP, device }.some("source", args.source.streams() > 0)?;
    run(args, matching, kv)
}

/// [`match_tokens`], where no block is none too few.
pub(crate) fn run(args: &MatchTokens<'_>, matching: &mut Matching, kv: &mut KvPagesMut<'_>) -> Result<()> {
    let shape = checked(args, matching, kv)?;
    if shape.batch == 0 {
        return Ok(());
    }
    match kv.k.device().kind() {
        DeviceKind::Cpu => {
            with_float!(kv.k.dtype(), T => cpu::run::<T>(args, &shape, matching, kv), else unreachable!("checked"));
            Ok(())
        }
        DeviceKind::Simt | DeviceKind::Cuda | DeviceKind::CudaDouble => gpu::run(args, &shape, matching, kv),
    }
}

fn checked(args: &MatchTokens<'_>, matching: &Matching, kv: &KvPagesMut<'_>) -> Result<Shape> {
    let check = Check {
        op: OP,
        device: kv.k.device(),
    };
    check.dtype(
        "kv.k",
        kv.k.dtype(),
        &[DType::F32, DType::F16, DType::BF16],
        "f32, f16, bf16",
    )?;
    let paged = PageShape::of(OP, &kv.view())?;
    let batch = args.source.streams();
    let fits = matching.map.view().device() == check.device
        && matching.rope.dim() == paged.dim
        && matching.kv_heads == paged.heads
        && matching.batch >= batch;
    ensure!(
        check,
        fits,
        "matching",
        format!(
            "one for {batch} blocks of {} heads of {} on {}",
            paged.heads, paged.dim, check.device
        ),
        format!(
            "one for {} blocks of {} heads of {} on {}",
            matching.batch,
            matching.kv_heads,
            matching.rope.dim(),
            matching.map.view().device()
        )
    );
    let top = match args.merges {
        Merges::Top(n) => Some(n.min(matching.grid.tokens().0 - matching.destinations.view().elements())),
        Merges::Above(threshold) => {
            ensure!(check, !threshold.is_nan(), "merges", "a threshold", "NaN");
            None
        }
    };
    ensure!(
        check,
        !args.weighted || kv.slot_bias.is_some(),
        "kv.slot_bias",
        "log sizes of the source's tokens",
        "none"
    );
    let tokens = matching.grid.tokens().0;
    let merged = tokens - top.unwrap_or(0);
    let source_pages = tokens.div_ceil(paged.page_tokens);
    let used_pages = merged.div_ceil(paged.page_tokens);
    check.page_lists("source", args.source, paged.pages, (batch, source_pages))?;
    check.page_lists("dest", args.dest, paged.pages, (batch, used_pages))?;
    ensure!(
        check,
        args.dest.streams() == batch,
        "dest",
        format!("{batch} lists, as source has"),
        args.dest.streams().to_string()
    );
    let shape = Shape {
        batch,
        heads: paged.heads,
        dim: paged.dim,
        page_tokens: paged.page_tokens,
        maps: matching.how.maps(paged.heads),
        tokens,
        merged,
        top,
        used_pages,
    };
    if check.device.kind() != DeviceKind::Cpu {
        gpu::checked(&check, &shape, kv)?;
    }
    if check.device.is_host() && batch > 0 {
        let mut taken = vec![false; paged.pages];
        for list in args.source.view().host::<i32>().chunks_exact(args.source.length()) {
            list[..source_pages]
                .iter()
                .for_each(|&page| taken[page as usize] = true);
        }
        check.distinct_pages("dest", args.dest, (batch, used_pages), &mut taken)?;
    }
    Ok(shape)
}

/// Arguments of [`unmerge_tokens`].
#[derive(Debug, Clone)]
pub struct UnmergeTokens<'a> {
    /// Merged tokens. `[batch, merged, heads, dim]`
    pub x: View<'a>,
    /// The merged token of every token, i32: [`Matching::map`]. `[batch, maps, tokens]`, `maps` the number
    /// of heads or 1.
    pub map: View<'a>,
}

/// Spreads merged tokens back over the grid: every token gets those numbers of the merged token that it
/// went into, head by head where the map is. `out` is `[batch, tokens, heads, dim]`.
///
/// Dtypes: f32, f16, bf16, the same for `x` and `out`. On host devices a map that points past the merged
/// tokens is refused; on a GPU the last merged token is taken instead.
///
/// ```
/// use packforcing::ops::match_tokens::{UnmergeTokens, unmerge_tokens};
/// use packforcing::{DType, Device, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let cpu = Device::cpu();
/// let x = Tensor::from_slice(&cpu, &[1.0f32, 2.0], &[1, 2, 1, 1])?;
/// let map = Tensor::from_slice(&cpu, &[0i32, 1, 1, 0], &[1, 1, 4])?;
/// let mut out = Tensor::zeros(&cpu, DType::F32, &[1, 4, 1, 1])?;
/// unmerge_tokens(&UnmergeTokens { x: x.view(), map: map.view() }, &mut out.view_mut())?;
/// assert_eq!(out.to_vec::<f32>()?, [1.0, 2.0, 2.0, 1.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Dtypes or shapes that do not agree, an empty tensor; on host devices a map with entries outside
/// `0..merged`; where kernels run, more than 65,535 blocks or 2^31 tokens. Nothing has been written then.
pub fn unmerge_tokens(args: &UnmergeTokens<'_>, out: &mut ViewMut<'_>) -> Result<()> {
    let check = Check {
        op: OP_UNMERGE,
        device: out.device(),
    };
    check.dtype(
        "out",
        out.dtype(),
        &[DType::F32, DType::F16, DType::BF16],
        "f32, f16, bf16",
    )?;
    let &[batch, tokens, heads, dim] = out.shape() else {
        return check.fail("out", "[batch, tokens, heads, dim]", format!("{:?}", out.shape()));
    };
    check.some("out", out.elements() > 0)?;
    let merged = args.x.shape().get(1).copied().unwrap_or(0);
    check.tensor("x", &args.x, out.dtype(), &[batch, merged, heads, dim])?;
    check.some("x", merged > 0)?;
    let maps = if args.map.shape().get(1) == Some(&1) { 1 } else { heads };
    check.tensor("map", &args.map, DType::I32, &[batch, maps, tokens])?;
    if check.device.is_host() {
        let strides = args.map.strides();
        let map = args.map.host::<i32>();
        for row in 0..batch * maps {
            let from = row / maps * strides[0] + row % maps * strides[1];
            let outside = map[from..][..tokens].iter().find(|&&i| i < 0 || i as usize >= merged);
            if let Some(i) = outside {
                return check.fail("map", format!("merged tokens below {merged}"), i.to_string());
            }
        }
    }
    match check.device.kind() {
        DeviceKind::Cpu => {
            with_float!(out.dtype(), T => cpu::unmerge::<T>(args, out), else unreachable!("checked"));
            Ok(())
        }
        DeviceKind::Simt | DeviceKind::Cuda | DeviceKind::CudaDouble => gpu::unmerge(args, out),
    }
}
