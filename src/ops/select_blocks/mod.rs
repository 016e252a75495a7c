//! Choosing the compressed blocks that a block attends to, and laying its context out.
//!
//! The paper scores a block by the sum of all logits between the queries and the block's keys. That
//! is linear in both, so it is a dot product of sums: those of the keys are made once a block
//! ([`sum_keys`]), those of the queries once a choice ([`select_blocks`]).

use crate::device::DeviceKind;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::check::{Check, ensure};
use crate::paging::{Context, KvPages, PageLists, PageShape};
use crate::tensor::{View, ViewMut};

mod cpu;
mod gpu;
pub mod reference;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const FLOAT_NAMES: &str = "f32, f16, bf16";
/// A head's numbers that one thread block adds up.
const MAX_DIM: usize = 256;
/// Summed queries that stay in shared memory: `kv_heads * dim`.
const MAX_WIDTH: usize = 8_192;
/// Candidates of a stream, whose scores stay in shared memory.
const MAX_CANDIDATES: usize = 8_192;
/// Blocks chosen for a stream.
const MAX_SELECTED: usize = 1_024;
/// Of the grid's second and third dimension.
const MAX_GRID: usize = 65_535;

/// Arguments of [`sum_keys`].
#[derive(Debug, Clone)]
pub struct SumKeys<'a> {
    /// The pool; only the keys are read.
    pub kv: KvPages<'a>,
    /// Pages of each block, in order. One list a block; lists past the last of `rows` are not read.
    pub pages: &'a PageLists,
    /// Row of `sums` that each block fills, i32. A block whose row is outside (-1, say) is skipped.
    /// `[blocks]`
    pub rows: View<'a>,
    /// Keys of each block.
    pub tokens: usize,
}

/// `sums[rows[b], h] = sum_j k_j[h]` over the keys of block b, as stored. `sums` is f32
/// `[rows, kv_heads, dim]`; rows that no block names stay as they are.
///
/// ```
/// use packforcing::ops::select_blocks::{SumKeys, sum_keys};
/// use packforcing::paging::{KvPages, PageLists};
/// use packforcing::{Device, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let cpu = Device::cpu();
/// // Two pages of two tokens, one head of dim 2. The block is three tokens: page 1, then page 0.
/// let k = Tensor::from_slice(&cpu, &[1.0f32, 2.0, 9.0, 9.0, 3.0, 4.0, 5.0, 6.0], &[2, 1, 2, 2])?;
/// let kv = KvPages { k: k.view(), v: k.view(), slot_bias: None };
/// let pages = PageLists::from_host(&cpu, 2, &[vec![1, 0]])?;
/// let rows = Tensor::from_slice(&cpu, &[0i32], &[1])?;
/// let mut sums = Tensor::from_slice(&cpu, &[0.0f32; 2], &[1, 1, 2])?;
/// sum_keys(&SumKeys { kv, pages: &pages, rows: rows.view(), tokens: 3 }, &mut sums.view_mut())?;
/// assert_eq!(sums.to_vec::<f32>()?, [9.0, 12.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Shapes, dtypes and devices that do not fit together; pages that do not hold `tokens`; kernels
/// take a head dim of at most 256.
pub fn sum_keys(args: &SumKeys<'_>, sums: &mut ViewMut<'_>) -> Result<()> {
    let check = Check {
        op: "sum_keys",
        device: args.rows.device(),
    };
    check.some("rows", args.rows.elements() > 0)?;
    run_sum_keys(args, sums)
}

/// [`sum_keys`], where no block is none too few.
pub(crate) fn run_sum_keys(args: &SumKeys<'_>, sums: &mut ViewMut<'_>) -> Result<()> {
    const OP: &str = "sum_keys";
    let pool = PageShape::of(OP, &args.kv)?;
    let device = args.kv.k.device().clone();
    let check = Check {
        op: OP,
        device: &device,
    };
    check.dtype("kv.k", args.kv.k.dtype(), &FLOATS, FLOAT_NAMES)?;
    ensure!(
        check,
        pool.dim <= MAX_DIM,
        "kv.k",
        format!("a head dim of at most {MAX_DIM}"),
        pool.dim.to_string()
    );
    check_lists(&check, "pages", args.pages, pool.pages)?;
    let blocks = args.rows.elements();
    check.tensor("rows", &args.rows, DType::I32, &[blocks])?;
    let most = args.pages.streams().min(MAX_GRID);
    ensure!(
        check,
        blocks <= most,
        "rows",
        format!("at most {most}, one a list of pages"),
        blocks.to_string()
    );
    ensure!(
        check,
        args.tokens <= args.pages.length() * pool.page_tokens,
        "tokens",
        format!(
            "at most {}, what {} pages hold",
            args.pages.length() * pool.page_tokens,
            args.pages.length()
        ),
        args.tokens.to_string()
    );
    let rows = sums.shape().first().copied().unwrap_or(0);
    check.tensor("sums", sums, DType::F32, &[rows, pool.heads, pool.dim])?;
    match device.kind() {
        DeviceKind::Cpu => cpu::sum_keys(args, pool, sums),
        _ => gpu::sum_keys(args, pool, sums)?,
    }
    Ok(())
}

/// Where the scores of candidates come from.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "made once a call, and a box would allocate")]
pub enum Scores<'a> {
    /// `score[m] = sum_h (sum_i q_i[h]) . key_sums[m, h / (q_heads / kv_heads)]`
    Dot {
        /// Queries, as attention gets them. `[streams, tokens, q_heads, dim]`
        q: View<'a>,
        /// What [`sum_keys`] made, f32. `[slots, kv_heads, dim]`
        key_sums: View<'a>,
        /// Room for partial sums of the queries, f32: the tokens are summed in `chunks` parts
        /// ([`query_chunks`] says how many are good). `[streams, chunks, q_heads, dim]`
        query_sums: ViewMut<'a>,
        /// Where the scores of the candidates in use go, f32. `[streams, max_candidates]`
        scores: ViewMut<'a>,
    },
    /// Scores of the caller's, f32. `[streams, max_candidates]`
    Given(View<'a>),
}

/// How many partial sums keep a GPU busy with this many query tokens and still add up quickly.
pub fn query_chunks(tokens: usize) -> usize {
    tokens.div_ceil(64).clamp(1, 24)
}

/// What all chosen blocks have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockShape {
    /// Keys; they fill the first pages of a slot's list.
    pub tokens: usize,
    /// Packed time that it takes up, in frames.
    pub frames: f32,
    /// Added to its logits, natural log.
    pub key_bias: f32,
    /// Whether its slots have biases.
    pub slot_bias: bool,
}

/// Arguments of [`select_blocks`].
#[derive(Debug)]
pub struct SelectBlocks<'a> {
    /// Scores, given or to be made.
    pub scores: Scores<'a>,
    /// Slots of the candidates, in time order, i32. A number outside counts as the nearest slot.
    /// `[streams, max_candidates]`
    pub candidates: View<'a>,
    /// Candidates in use, i32; clamped to `0..=max_candidates`. `[streams]`
    pub counts: View<'a>,
    /// Pages of each slot. One list a slot.
    pub slot_pages: &'a PageLists,
    /// What a chosen block is.
    pub shape: BlockShape,
    /// How many are chosen at most.
    pub selected: usize,
    /// The context without chosen blocks. It may have room for more streams than there are.
    pub draft: &'a Context,
    /// Segments of the draft that stand before the chosen blocks (the sink), i32; clamped to the
    /// draft's. `[streams]`
    pub draft_prefix: View<'a>,
}

impl SelectBlocks<'_> {
    fn streams(&self) -> usize {
        self.counts.elements()
    }

    fn max_candidates(&self) -> usize {
        self.candidates.shape()[1]
    }

    /// Pages of a chosen block.
    fn block_pages(&self) -> usize {
        self.shape.tokens.div_ceil(self.draft.page_tokens())
    }
}

/// Chooses the best blocks of each stream, puts them in time order between the draft's prefix and
/// the rest, and writes the stream's whole context. Of equal scores the earlier candidate is taken,
/// scores that are NaN come last, and where there are fewer candidates than `selected`, all are
/// taken. `chosen` becomes the candidates' indices in time order, then -1, i32
/// `[streams, selected]`. Streams of `context` past the batch stay as they are.
///
/// Blocks are packed to the right. The draft's rotations are those of no chosen block. With n
/// chosen blocks, each `frames` long: segments behind them keep their rotation; the j-th of them
/// (0 the oldest) is turned by `r + (n - j) * frames`, where r is the rotation of the first segment
/// behind them (0 without one); the prefix is turned by `n * frames` more.
///
/// ```
/// use packforcing::ops::select_blocks::{BlockShape, Scores, SelectBlocks, select_blocks};
/// use packforcing::paging::{Context, PageLists, Segment};
/// use packforcing::{Device, DType, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let cpu = Device::cpu();
/// // Pages of 8 tokens. Page 0 is the sink, page 1 the block itself, pages 2 to 4 are old blocks.
/// let sink = Segment { rotation: 4.0, ..Segment::new(vec![0], 8) };
/// let draft = Context::from_host(&cpu, (5, 8), &[vec![sink, Segment::new(vec![1], 8)]])?;
/// let mut context = Context::new(&cpu, (5, 8), 1, 4, 4)?;
/// let mut chosen = Tensor::zeros(&cpu, DType::I32, &[1, 2])?;
/// select_blocks(
///     &mut SelectBlocks {
///         scores: Scores::Given(Tensor::from_slice(&cpu, &[5.0f32, 1.0, 7.0], &[1, 3])?.view()),
///         candidates: Tensor::from_slice(&cpu, &[0, 1, 2], &[1, 3])?.view(),
///         counts: Tensor::from_slice(&cpu, &[3], &[1])?.view(),
///         slot_pages: &PageLists::from_host(&cpu, 5, &[vec![2], vec![3], vec![4]])?,
///         shape: BlockShape { tokens: 6, frames: 4.0, key_bias: 0.0, slot_bias: false },
///         selected: 2,
///         draft: &draft,
///         draft_prefix: Tensor::from_slice(&cpu, &[1], &[1])?.view(),
///     },
///     &mut chosen.view_mut(),
///     &mut context,
/// )?;
/// assert_eq!(chosen.to_vec::<i32>()?, [0, 2]);
/// let rotations: Vec<f32> = context.to_host()?[0].iter().map(|s| s.rotation).collect();
/// assert_eq!(rotations, [12.0, 8.0, 4.0, 0.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Shapes, dtypes and devices that do not fit together; contexts of different pools; a `context`
/// without room for the draft and `selected` blocks; a block of no tokens or more than a slot's
/// pages hold; frames or a bias that is not a number. At most 8,192 candidates and 1,024 chosen
/// blocks a stream, a head dim of at most 256, `kv_heads * dim` of at most 8,192.
pub fn select_blocks(args: &mut SelectBlocks<'_>, chosen: &mut ViewMut<'_>, context: &mut Context) -> Result<()> {
    let check = Check {
        op: "select_blocks",
        device: args.counts.device(),
    };
    check.some("counts", args.counts.elements() > 0)?;
    run_select_blocks(args, chosen, context)
}

/// [`select_blocks`], where no stream is none too few.
pub(crate) fn run_select_blocks(
    args: &mut SelectBlocks<'_>,
    chosen: &mut ViewMut<'_>,
    context: &mut Context,
) -> Result<()> {
    let device = context.device().clone();
    let check = Check {
        op: "select_blocks",
        device: &device,
    };
    check_choice(&check, args, chosen)?;
    check_contexts(&check, args, context)?;
    check_scores(&check, args)?;
    match device.kind() {
        DeviceKind::Cpu => cpu::select_blocks(args, chosen, context),
        _ => gpu::select_blocks(args, chosen, context)?,
    }
    Ok(())
}

fn check_lists(check: &Check<'_>, argument: &'static str, lists: &PageLists, pool_pages: usize) -> Result<()> {
    ensure!(
        check,
        lists.view().device() == check.device && lists.pool_pages() <= pool_pages,
        argument,
        format!("lists of a pool of {pool_pages} pages on {}", check.device),
        format!(
            "lists of a pool of {} pages on {}",
            lists.pool_pages(),
            lists.view().device()
        )
    );
    Ok(())
}

fn check_choice(check: &Check<'_>, args: &SelectBlocks<'_>, chosen: &ViewMut<'_>) -> Result<()> {
    let streams = args.streams();
    check.tensor("counts", &args.counts, DType::I32, &[streams])?;
    check.tensor("draft_prefix", &args.draft_prefix, DType::I32, &[streams])?;
    let candidates = args.candidates.shape().last().copied().unwrap_or(0);
    check.tensor("candidates", &args.candidates, DType::I32, &[streams, candidates])?;
    check.tensor("chosen", chosen, DType::I32, &[streams, args.selected])?;
    ensure!(
        check,
        streams <= MAX_GRID,
        "counts",
        format!("at most {MAX_GRID} streams"),
        streams.to_string()
    );
    ensure!(
        check,
        candidates <= MAX_CANDIDATES,
        "candidates",
        format!("at most {MAX_CANDIDATES} a stream"),
        candidates.to_string()
    );
    ensure!(
        check,
        args.selected <= MAX_SELECTED,
        "selected",
        format!("at most {MAX_SELECTED}"),
        args.selected.to_string()
    );
    Ok(())
}

fn check_contexts(check: &Check<'_>, args: &SelectBlocks<'_>, context: &Context) -> Result<()> {
    let (draft, shape, streams) = (args.draft, args.shape, args.streams());
    ensure!(
        check,
        draft.device() == check.device
            && draft.pool_pages() == context.pool_pages()
            && draft.page_tokens() == context.page_tokens(),
        "draft",
        format!(
            "a pool of {} pages of {} tokens on {}, as the context's",
            context.pool_pages(),
            context.page_tokens(),
            check.device
        ),
        format!(
            "{} pages of {} tokens on {}",
            draft.pool_pages(),
            draft.page_tokens(),
            draft.device()
        )
    );
    check_lists(check, "slot_pages", args.slot_pages, context.pool_pages())?;
    for (argument, has) in [("draft", draft.streams()), ("context", context.streams())] {
        ensure!(
            check,
            has >= streams,
            argument,
            format!("{streams} streams or more"),
            has.to_string()
        );
    }
    let room = args.slot_pages.length() * context.page_tokens();
    ensure!(
        check,
        (1..=room).contains(&shape.tokens),
        "shape.tokens",
        format!("1 to {room}, what the pages of a slot hold"),
        shape.tokens.to_string()
    );
    ensure!(
        check,
        shape.frames.is_finite() && !shape.key_bias.is_nan() && shape.key_bias < f32::INFINITY,
        "shape.frames, shape.key_bias",
        "a finite number of frames, a bias below infinity",
        format!("{}, {}", shape.frames, shape.key_bias)
    );
    let pages = draft.max_pages() + args.selected * args.block_pages();
    let segments = draft.max_segments() + args.selected;
    ensure!(
        check,
        context.max_pages() >= pages && context.max_segments() >= segments,
        "context",
        format!("room for {pages} pages in {segments} segments"),
        format!("{} pages, {} segments", context.max_pages(), context.max_segments())
    );
    Ok(())
}

fn check_scores(check: &Check<'_>, args: &SelectBlocks<'_>) -> Result<()> {
    let (streams, candidates) = (args.streams(), args.max_candidates());
    let (q, key_sums, query_sums, scores) = match &args.scores {
        Scores::Given(scores) => return check.tensor("scores", scores, DType::F32, &[streams, candidates]),
        Scores::Dot {
            q,
            key_sums,
            query_sums,
            scores,
        } => (q, key_sums, query_sums, scores),
    };
    check.tensor("scores", scores, DType::F32, &[streams, candidates])?;
    check.dtype("q", q.dtype(), &FLOATS, FLOAT_NAMES)?;
    let &[q_streams, _, q_heads, dim] = q.shape() else {
        return check.fail("q", "[streams, tokens, q_heads, dim]", format!("{q:?}"));
    };
    ensure!(
        check,
        q.device() == check.device && q_streams == streams && q_heads > 0 && (1..=MAX_DIM).contains(&dim),
        "q",
        format!("[{streams}, tokens, q_heads, dim up to {MAX_DIM}] on {}", check.device),
        format!("{q:?}")
    );
    let kv_heads = key_sums.shape().get(1).copied().unwrap_or(0);
    let slots = args.slot_pages.streams();
    check.tensor("key_sums", key_sums, DType::F32, &[slots, kv_heads, dim])?;
    ensure!(
        check,
        kv_heads > 0 && q_heads.is_multiple_of(kv_heads) && kv_heads * dim <= MAX_WIDTH,
        "key_sums",
        format!("a number of heads that divides {q_heads}, heads * dim of at most {MAX_WIDTH}"),
        format!("{kv_heads} heads of {dim}")
    );
    let chunks = query_sums.shape().get(1).copied().unwrap_or(0);
    check.tensor("query_sums", query_sums, DType::F32, &[streams, chunks, q_heads, dim])?;
    ensure!(
        check,
        (1..=MAX_GRID).contains(&chunks),
        "query_sums",
        format!("1 to {MAX_GRID} chunks"),
        chunks.to_string()
    );
    Ok(())
}

/// Tokens of each of `chunks` parts; the last may be shorter, or empty.
fn chunk_tokens(tokens: usize, chunks: usize) -> usize {
    tokens.div_ceil(chunks)
}
