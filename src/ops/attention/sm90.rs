//! Attention by the kernels of sm_90: which of them, what they take, and their launch.

use super::{Attention, Kernel, OP, Shape};
use crate::device::tensor_map::{Boxes, ELEMENT_BYTES};
use crate::device::{Device, Launch, Span};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ffi;
use crate::tensor::View;

const MODULE: &str = "attention_sm90";

// As in attention_sm90.cu.
const GROUP_ROWS: usize = 64;
const KEYS: usize = 96;
const STAGES: usize = 3;
const MAX_GROUPS: usize = 3;
const PANEL: usize = 64;
const SWIZZLED_ROWS: usize = 8;

/// One way the kernel was built.
struct Build {
    /// The entries for f16 and bf16 of head dim 64, then of 128; of a build for one, that one.
    kernels: [&'static str; 4],
    /// Warpgroups that compute, of 64 queries each.
    groups: usize,
    /// Whether it knows pages and segments.
    packed: bool,
    /// Whether it was built for head dim 128 in bf16 alone.
    one: bool,
}

impl Build {
    fn of(kernel: Kernel) -> Build {
        let one = |kernel, groups, packed| Build {
            kernels: [kernel; 4],
            groups,
            packed,
            one: true,
        };
        match kernel {
            Kernel::Sm90Free => one("attention_sm90_free_bf16_128", 3, true),
            Kernel::Sm90Overlapped => one("attention_sm90_overlapped_bf16_128", 2, true),
            Kernel::Sm90Plain => one("attention_sm90_plain_bf16_128", 3, false),
            Kernel::Sm90OverlappedPlain => one("attention_sm90_overlapped_plain_bf16_128", 2, false),
            Kernel::Auto | Kernel::Sm80 | Kernel::Sm90 => Build {
                kernels: [
                    "attention_sm90_f16_64",
                    "attention_sm90_bf16_64",
                    "attention_sm90_f16_128",
                    "attention_sm90_bf16_128",
                ],
                groups: 3,
                packed: true,
                one: false,
            },
        }
    }

    fn kernel(&self, dtype: DType, dim: usize) -> &'static str {
        self.kernels[2 * usize::from(dim == 128) + usize::from(dtype == DType::BF16)]
    }

    /// Bytes of the kernel's `Plan`.
    const fn shared(&self, dim: usize) -> usize {
        let tiles = ELEMENT_BYTES * dim * (self.groups * GROUP_ROWS + 2 * STAGES * KEYS);
        let notes = STAGES * (16 + 4 * KEYS);
        let turns = 8 * MAX_GROUPS * ffi::PF_MAX_PAIRS as usize;
        let barriers = 8 * (4 * STAGES + 1);
        (tiles + notes + turns + barriers).next_multiple_of(1024)
    }
}

/// What a launch needs beside the arguments.
pub(super) struct Plan {
    build: Build,
    box_tokens: usize,
    k: ffi::TensorMap,
    v: ffi::TensorMap,
}

/// Whether it is this card's kernel by itself, the copy engine's word aside. It says nothing, and costs nothing.
pub(super) fn suits(args: &Attention<'_>, shape: Shape, device: &Device) -> bool {
    let build = Build::of(Kernel::Auto);
    device.compute_capability() == Some((9, 0))
        && device.has_module(MODULE)
        && build.shared(shape.dim) <= device.shared_memory_limit()
        && box_tokens(args, shape).is_multiple_of(SWIZZLED_ROWS)
}

/// A box that no end of a page crosses; where a stream has one page, none does.
fn box_tokens(args: &Attention<'_>, shape: Shape) -> usize {
    match args.context.max_pages() {
        1 => KEYS,
        _ => gcd(shape.page_tokens, KEYS),
    }
}

/// How this is computed, or what keeps the kernel from taking it.
pub(super) fn plan(kernel: Kernel, args: &Attention<'_>, shape: Shape, device: &Device) -> Result<Plan, Error> {
    let build = Build::of(kernel);
    if device.compute_capability() != Some((9, 0)) {
        return Err(refuse("device", "a card of compute capability 9.0", device.to_string()));
    }
    if !device.has_module(MODULE) {
        let expected = format!("{MODULE} compiled (PACKFORCING_CUDA_ARCHS with 90a)");
        return Err(refuse("device", expected, "a build without it"));
    }
    let (needed, limit) = (build.shared(shape.dim), device.shared_memory_limit());
    if needed > limit {
        let expected = format!("{needed} bytes of shared memory a block");
        return Err(refuse("device", expected, limit.to_string()));
    }
    if build.one && (args.q.dtype() != DType::BF16 || shape.dim != 128) {
        let got = format!("{} of head dim {}", args.q.dtype(), shape.dim);
        return Err(refuse("q", "bf16 of head dim 128", got));
    }
    let context = args.context;
    if !build.packed && (context.max_pages(), context.max_segments()) != (1, 1) {
        let got = format!("{} pages in {} segments", context.max_pages(), context.max_segments());
        return Err(refuse("context", "one page in one segment", got));
    }
    if !build.packed && args.scale <= 0.0 {
        return Err(refuse("scale", "a number above 0", args.scale.to_string()));
    }
    let box_tokens = box_tokens(args, shape);
    if !box_tokens.is_multiple_of(SWIZZLED_ROWS) {
        let expected = format!("pages of a multiple of {SWIZZLED_ROWS} tokens, or one page a stream");
        return Err(refuse("kv", expected, format!("pages of {} tokens", shape.page_tokens)));
    }
    let map = |argument, view: &View<'_>| {
        let map = boxes(view, box_tokens)
            .taken()
            .and_then(|boxes| device.tensor_map(&boxes));
        map.map_err(|got| refuse(argument, "a tensor that the copy engine reads", got))
    };
    Ok(Plan {
        build,
        box_tokens,
        k: map("kv.k", &args.kv.k)?,
        v: map("kv.v", &args.kv.v)?,
    })
}

fn refuse(argument: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Error {
    Error::argument(OP, argument, expected, got)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn boxes(pages: &View<'_>, tokens: usize) -> Boxes {
    let extent = |i: usize| pages.shape()[3 - i];
    let stride = |i: usize| pages.strides()[2 - i] * ELEMENT_BYTES;
    Boxes {
        address: pages.address(),
        extents: std::array::from_fn(extent),
        strides: std::array::from_fn(stride),
        size: [PANEL, tokens, 1, 1],
    }
}

impl Plan {
    pub(super) fn launch(
        self,
        args: &Attention<'_>,
        shape: Shape,
        device: &Device,
        params: &ffi::AttentionParams,
        memory: &[Span],
    ) -> Result<()> {
        let Plan {
            build,
            box_tokens,
            k,
            v,
        } = self;
        device.launch(&Launch {
            module: MODULE,
            kernel: build.kernel(args.q.dtype(), shape.dim),
            grid: [
                shape.tokens.div_ceil(build.groups * GROUP_ROWS),
                shape.q_heads,
                shape.streams,
            ],
            threads: 128 * (1 + build.groups),
            shared: build.shared(shape.dim),
            params: &ffi::AttentionSm90Params {
                k,
                v,
                a: *params,
                box_tokens: box_tokens as i32,
                reserved: 0,
            },
            memory,
        })
    }
}
