//! The ops, and the options that make their shapes. Defaults are those of a block of Wan2.1-T2V-1.3B
//! at 832 x 480.

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use packforcing::ops::attention::Kernel;
use packforcing::ops::match_tokens::Metric;
use packforcing::{DType, Device, Grid, SimtCard};
use packforcing_bench::cases::{
    append_kv, attention, denoise_step, guidance, match_tokens, merge_states, merge_tokens, select_blocks,
};
use packforcing_bench::{Case, Error};
use serde::Serialize;
use serde_json::Value;

use super::{Common, Float, count};

/// What is measured.
#[derive(Debug, Subcommand)]
#[command(rename_all = "snake_case")]
pub enum Op {
    /// Attention over pages in segments
    Attention(Attention),
    /// Norm, rotation and write of new keys and values
    #[command(alias = "append-kv")]
    AppendKv(AppendKv),
    /// Mean pooling of whole blocks
    #[command(alias = "merge-tokens")]
    MergeTokens(Merge),
    /// Merging of like tokens of whole blocks
    #[command(alias = "match-tokens")]
    MatchTokens(Match),
    /// Merged tokens back over the grid
    #[command(alias = "unmerge-tokens")]
    UnmergeTokens(Match),
    /// Two results of attention into one
    #[command(alias = "merge-states")]
    MergeStates(MergeStates),
    /// Scores, choice and the packed context
    #[command(alias = "select-blocks")]
    SelectBlocks(SelectBlocks),
    /// Key sums of compressed blocks
    #[command(alias = "sum-keys")]
    SumKeys(SumKeys),
    /// A step of a solver
    #[command(alias = "denoise-step")]
    DenoiseStep(DenoiseStep),
    /// The weights of guidance
    Guidance(Guidance),
}

#[derive(Debug, Args, Serialize)]
pub struct Attention {
    /// Queries
    #[arg(long, value_name = "N", default_value_t = 6_240, value_parser = count)]
    queries: usize,
    /// Keys of all segments together
    #[arg(long, value_name = "N", default_value_t = 27_872, value_parser = count)]
    keys: usize,
    /// Heads of queries
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = count)]
    heads: usize,
    /// Heads of keys and values [default: as many]
    #[arg(long, value_name = "N", value_parser = count)]
    kv_heads: Option<usize>,
    /// Numbers of a head
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = count)]
    dim: usize,
    /// Dtype of everything
    #[arg(long, value_enum, default_value_t = Float::Bf16)]
    #[serde(skip)]
    dtype: Float,
    /// Tokens of a page
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = count)]
    page_tokens: usize,
    /// Segments that keys are split into [default: 19 from 8,192 keys on, else 1]
    #[arg(long, value_name = "N", value_parser = count)]
    segments: Option<usize>,
    /// One page with all keys, one segment, no rotation and no bias
    #[arg(long, conflicts_with_all = ["page_tokens", "segments"])]
    contiguous: bool,
    /// Which kernel: auto, sm80, sm90, or another build of it to measure it against (sm90-free,
    /// sm90-overlapped, and with --contiguous sm90-plain and sm90-overlapped-plain)
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = kernel)]
    #[serde(serialize_with = "by_name")]
    kernel: Kernel,
    #[command(flatten)]
    #[serde(skip)]
    common: Common,
}

fn kernel(name: &str) -> Result<Kernel, String> {
    let names = || Kernel::ALL.map(Kernel::name).join(", ");
    let found = Kernel::ALL.into_iter().find(|kernel| kernel.name() == name);
    found.ok_or_else(|| format!("one of {} is expected", names()))
}

fn by_name<S: serde::Serializer>(kernel: &Kernel, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kernel.name())
}

/// The grid of a block.
#[derive(Debug, Clone, Copy, Args, Serialize)]
struct Block {
    /// Latent frames of a block
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = count)]
    frames: usize,
    /// Rows of tokens
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = count)]
    rows: usize,
    /// Columns of tokens
    #[arg(long, value_name = "N", default_value_t = 52, value_parser = count)]
    cols: usize,
}

impl From<Block> for Grid {
    fn from(block: Block) -> Grid {
        let Block { frames, rows, cols } = block;
        Grid { frames, rows, cols }
    }
}

#[derive(Debug, Args, Serialize)]
pub struct AppendKv {
    /// Streams, a block of each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    streams: usize,
    #[command(flatten)]
    #[serde(flatten)]
    block: Block,
    /// Heads of queries
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = count)]
    heads: usize,
    /// Heads of keys and values [default: as many]
    #[arg(long, value_name = "N", value_parser = count)]
    kv_heads: Option<usize>,
    /// Numbers of a head
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = count)]
    dim: usize,
    /// Dtype of everything
    #[arg(long, value_enum, default_value_t = Float::Bf16)]
    #[serde(skip)]
    dtype: Float,
    /// Tokens of a page
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = count)]
    page_tokens: usize,
    #[command(flatten)]
    #[serde(skip)]
    common: Common,
}

#[derive(Debug, Args, Serialize)]
pub struct Merge {
    /// Blocks that are merged in one call
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    blocks: usize,
    #[command(flatten)]
    #[serde(flatten)]
    block: Block,
    /// What a merged token stands for: frames, rows, columns
    #[arg(long, value_name = "T,R,C", default_value = "2,4,4", value_parser = cell)]
    cell: [usize; 3],
    /// Heads of keys and values
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = count)]
    heads: usize,
    /// Numbers of a head
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = count)]
    dim: usize,
    /// Dtype of keys and values
    #[arg(long, value_enum, default_value_t = Float::Bf16)]
    #[serde(skip)]
    dtype: Float,
    /// Tokens of a page
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = count)]
    page_tokens: usize,
    #[command(flatten)]
    #[serde(skip)]
    common: Common,
}

#[derive(Debug, Args, Serialize)]
pub struct Match {
    #[command(flatten)]
    #[serde(flatten)]
    merge: Merge,
    /// By what tokens are alike
    #[arg(long, value_enum, default_value_t = Alike::PerHead)]
    metric: Alike,
}

/// By what tokens are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
enum Alike {
    /// Each head by itself
    PerHead,
    /// The mean of all heads
    Mean,
}

#[derive(Debug, Args, Serialize)]
pub struct MergeStates {
    /// Queries whose results are merged
    #[arg(long, value_name = "N", default_value_t = 6_240, value_parser = count)]
    queries: usize,
    /// Heads
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = count)]
    heads: usize,
    /// Numbers of a head
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = count)]
    dim: usize,
    /// Dtype of the results
    #[arg(long, value_enum, default_value_t = Float::Bf16)]
    #[serde(skip)]
    dtype: Float,
    #[command(flatten)]
    #[serde(skip)]
    common: Common,
}

#[derive(Debug, Args, Serialize)]
pub struct SelectBlocks {
    /// Queries, and tokens of a whole block
    #[arg(long, value_name = "N", default_value_t = 6_240, value_parser = count)]
    queries: usize,
    /// Heads of queries
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = count)]
    heads: usize,
    /// Heads of keys [default: as many]
    #[arg(long, value_name = "N", value_parser = count)]
    kv_heads: Option<usize>,
    /// Numbers of a head
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = count)]
    dim: usize,
    /// Dtype of the queries
    #[arg(long, value_enum, default_value_t = Float::Bf16)]
    #[serde(skip)]
    dtype: Float,
    /// Tokens of a page
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = count)]
    page_tokens: usize,
    /// Compressed blocks to choose from
    #[arg(long, value_name = "N", default_value_t = 116, value_parser = count)]
    candidates: usize,
    /// How many are chosen
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = count)]
    selected: usize,
    /// Tokens of a compressed block
    #[arg(long, value_name = "N", default_value_t = 182, value_parser = count)]
    mid_tokens: usize,
    #[command(flatten)]
    #[serde(skip)]
    common: Common,
}

#[derive(Debug, Args, Serialize)]
pub struct SumKeys {
    /// Compressed blocks in one call
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    blocks: usize,
    /// Tokens of a compressed block
    #[arg(long, value_name = "N", default_value_t = 182, value_parser = count)]
    mid_tokens: usize,
    /// Heads of keys
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = count)]
    heads: usize,
    /// Numbers of a head
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = count)]
    dim: usize,
    /// Dtype of the keys
    #[arg(long, value_enum, default_value_t = Float::Bf16)]
    #[serde(skip)]
    dtype: Float,
    /// Tokens of a page
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = count)]
    page_tokens: usize,
    #[command(flatten)]
    #[serde(skip)]
    common: Common,
}

/// Latents and the velocities along which they are stepped.
#[derive(Debug, Args, Serialize)]
pub struct Guidance {
    /// Channels of the latents
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = count)]
    channels: usize,
    /// Latent frames
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = count)]
    frames: usize,
    /// Rows of the latents
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = count)]
    rows: usize,
    /// Columns of the latents
    #[arg(long, value_name = "N", default_value_t = 104, value_parser = count)]
    cols: usize,
    /// Dtype of the velocities
    #[arg(long, value_enum, default_value_t = Float::Bf16)]
    #[serde(skip)]
    dtype: Float,
    #[command(flatten)]
    #[serde(skip)]
    common: Common,
}

#[derive(Debug, Args, Serialize)]
pub struct DenoiseStep {
    #[command(flatten)]
    #[serde(flatten)]
    latents: Guidance,
    /// What the step computes
    #[arg(long, value_enum, default_value_t = Solver::Euler)]
    solver: Solver,
    /// Two velocities, and weights of guidance
    #[arg(long)]
    guided: bool,
}

/// What a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Solver {
    /// Along the velocity
    Euler,
    /// To the clean latents, and fresh noise onto them
    Renoise,
}

fn cell(text: &str) -> Result<[usize; 3], String> {
    let numbers: Option<Vec<usize>> = text.split(',').map(|n| count(n.trim()).ok()).collect();
    let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
    numbers.ok_or_else(|| "three whole numbers from 1 on are expected, as in 2,4,4".into())
}

impl Merge {
    fn case_shape(&self) -> merge_tokens::Shape {
        merge_tokens::Shape {
            blocks: self.blocks,
            grid: self.block.into(),
            cell: self.cell,
            heads: self.heads,
            dim: self.dim,
            dtype: self.dtype.into(),
            page_tokens: self.page_tokens,
            seed: self.common.seed,
        }
    }
}

impl Match {
    fn case_shape(&self) -> match_tokens::Shape {
        match_tokens::Shape {
            blocks: self.merge.case_shape(),
            metric: match self.metric {
                Alike::PerHead => Metric::PerHead,
                Alike::Mean => Metric::MeanOverHeads,
            },
        }
    }
}

impl Guidance {
    fn case_shape(&self) -> denoise_step::Shape {
        denoise_step::Shape {
            latents: [self.channels, self.frames, self.rows, self.cols],
            dtype: self.dtype.into(),
            seed: self.common.seed,
            ..denoise_step::Shape::default()
        }
    }
}

impl Attention {
    fn case_shape(&self) -> attention::Shape {
        attention::Shape {
            queries: self.queries,
            keys: self.keys,
            heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or(self.heads),
            dim: self.dim,
            dtype: self.dtype.into(),
            page_tokens: self.page_tokens,
            segments: self.segments,
            contiguous: self.contiguous,
            kernel: self.kernel,
            seed: self.common.seed,
        }
    }
}

impl Op {
    /// The card that the SIMT device stands for: one that has the kernel.
    pub fn card(&self) -> SimtCard {
        match self {
            Op::Attention(Attention { kernel, .. }) if !matches!(kernel, Kernel::Auto | Kernel::Sm80) => SimtCard::Sm90,
            _ => SimtCard::Sm80,
        }
    }

    /// What every op's bench takes.
    pub fn common(&self) -> &Common {
        match self {
            Op::Attention(args) => &args.common,
            Op::AppendKv(args) => &args.common,
            Op::MergeTokens(args) => &args.common,
            Op::MatchTokens(args) | Op::UnmergeTokens(args) => &args.merge.common,
            Op::MergeStates(args) => &args.common,
            Op::SelectBlocks(args) => &args.common,
            Op::SumKeys(args) => &args.common,
            Op::DenoiseStep(args) => &args.latents.common,
            Op::Guidance(args) => &args.common,
        }
    }

    /// The dtype of what is not f32 always.
    pub fn dtype(&self) -> DType {
        let float = match self {
            Op::Attention(args) => args.dtype,
            Op::AppendKv(args) => args.dtype,
            Op::MergeTokens(args) => args.dtype,
            Op::MatchTokens(args) | Op::UnmergeTokens(args) => args.merge.dtype,
            Op::MergeStates(args) => args.dtype,
            Op::SelectBlocks(args) => args.dtype,
            Op::SumKeys(args) => args.dtype,
            Op::DenoiseStep(args) => args.latents.dtype,
            Op::Guidance(args) => args.dtype,
        };
        float.into()
    }

    /// The options that make the shape, and what became of those that were not given.
    pub fn shape(&self) -> Result<Value> {
        let mut shape = match self {
            Op::Attention(args) => serde_json::to_value(args)?,
            Op::AppendKv(args) => serde_json::to_value(args)?,
            Op::MergeTokens(args) => serde_json::to_value(args)?,
            Op::MatchTokens(args) | Op::UnmergeTokens(args) => serde_json::to_value(args)?,
            Op::MergeStates(args) => serde_json::to_value(args)?,
            Op::SelectBlocks(args) => serde_json::to_value(args)?,
            Op::SumKeys(args) => serde_json::to_value(args)?,
            Op::DenoiseStep(args) => serde_json::to_value(args)?,
            Op::Guidance(args) => serde_json::to_value(args)?,
        };
        if let Some(Value::Null) = shape.get("kv_heads") {
            shape["kv_heads"] = shape["heads"].clone();
        }
        if let Op::Attention(args) = self {
            shape["segments"] = args.case_shape().segment_tokens()?.len().into();
            if args.contiguous {
                shape["page_tokens"] = args.keys.into();
            }
        }
        Ok(shape)
    }

    /// The case on this device.
    pub fn case(&self, device: &Device) -> Result<Case, Error> {
        match self {
            Op::Attention(args) => args.case_shape().case(device),
            Op::AppendKv(args) => append_kv::Shape {
                streams: args.streams,
                grid: args.block.into(),
                heads: args.heads,
                kv_heads: args.kv_heads.unwrap_or(args.heads),
                dim: args.dim,
                dtype: args.dtype.into(),
                page_tokens: args.page_tokens,
                seed: args.common.seed,
            }
            .case(device),
            Op::MergeTokens(args) => args.case_shape().case(device),
            Op::MatchTokens(args) => args.case_shape().case(device),
            Op::UnmergeTokens(args) => args.case_shape().unmerge_case(device),
            Op::MergeStates(args) => merge_states::Shape {
                queries: args.queries,
                heads: args.heads,
                dim: args.dim,
                dtype: args.dtype.into(),
                seed: args.common.seed,
            }
            .case(device),
            Op::SelectBlocks(args) => select_blocks::Shape {
                queries: args.queries,
                heads: args.heads,
                kv_heads: args.kv_heads.unwrap_or(args.heads),
                dim: args.dim,
                dtype: args.dtype.into(),
                page_tokens: args.page_tokens,
                candidates: args.candidates,
                selected: args.selected,
                mid_tokens: args.mid_tokens,
                seed: args.common.seed,
            }
            .case(device),
            Op::SumKeys(args) => select_blocks::SumShape {
                blocks: args.blocks,
                mid_tokens: args.mid_tokens,
                heads: args.heads,
                dim: args.dim,
                dtype: args.dtype.into(),
                page_tokens: args.page_tokens,
                seed: args.common.seed,
            }
            .case(device),
            Op::DenoiseStep(args) => denoise_step::Shape {
                solver: match args.solver {
                    Solver::Euler => denoise_step::Solver::Euler,
                    Solver::Renoise => denoise_step::Solver::Renoise,
                },
                guided: args.guided,
                ..args.latents.case_shape()
            }
            .case(device),
            Op::Guidance(args) => guidance::case(&args.case_shape(), device),
        }
    }
}
