//! Attention by the kernels.

use smallvec::SmallVec;

use super::{Attention, Kernel, OP, Shape, sm90};
use crate::device::{Device, Launch, Span};
use crate::dtype::DType;
use crate::error::Result;
use crate::ffi;
use crate::ops::check::{Check, ensure, strides};
use crate::tensor::{View, ViewMut};

// As in attention_sm80.cu.
const THREADS: usize = 256;
const ROWS: usize = 128;
const KEYS: usize = 64;
const STAGES: usize = 2;

/// Bytes of the kernel's `Plan`: queries, then of every stage keys, values, angles and biases.
const fn shared(dim: usize) -> usize {
    let elements = (ROWS + STAGES * 2 * KEYS) * dim;
    2 * elements + STAGES * (8 * ffi::PF_MAX_PAIRS as usize + 4 * KEYS)
}

pub(super) fn attention(
    kernel: Kernel,
    args: &Attention<'_>,
    shape: Shape,
    out: &mut ViewMut<'_>,
    lse: Option<&mut ViewMut<'_>>,
) -> Result<()> {
    let device = &out.device().clone();
    let Attention { q, kv, context, .. } = args;
    let (k, v, slot_bias) = (&kv.k, &kv.v, kv.slot_bias.as_ref());
    let lse = lse.as_deref();
    let params = ffi::AttentionParams {
        q: q.address(),
        k: k.address(),
        v: v.address(),
        slot_bias: slot_bias.map_or(0, View::address),
        pages: context.pages.view().address(),
        segments: context.segments.address(),
        counts: context.counts.address(),
        out: out.address(),
        lse: lse.map_or(0, ViewMut::address),
        q_strides: strides(q),
        k_strides: strides(k),
        v_strides: strides(v),
        bias_strides: slot_bias.map_or([0; 2], strides),
        out_strides: strides(out),
        lse_strides: lse.map_or([0; 2], strides),
        rope: args.rope.params(),
        streams: shape.streams as i32,
        q_tokens: shape.tokens as i32,
        q_heads: shape.q_heads as i32,
        kv_heads: shape.kv_heads as i32,
        page_tokens: shape.page_tokens as i32,
        max_pages: context.max_pages() as i32,
        max_segments: context.max_segments() as i32,
        scale: args.scale,
    };
    let mut memory: SmallVec<[Span; 9]> = SmallVec::from_slice(&[q.span(), k.span(), v.span(), out.span()]);
    memory.extend(context.spans());
    memory.extend(slot_bias.map(View::span));
    memory.extend(lse.map(ViewMut::span));
    let auto = kernel == Kernel::Auto;
    if kernel != Kernel::Sm80 && (!auto || sm90::suits(args, shape, device)) {
        match sm90::plan(kernel, args, shape, device) {
            Ok(plan) => return plan.launch(args, shape, device, &params, &memory),
            // All that is left to refuse it is the driver.
            Err(refused) if auto => device.note(OP, || {
                format!("attention by the kernel for 8.0 on a card of 9.0: {refused}")
            }),
            Err(refused) => return Err(refused),
        }
    }
    device.launch(&Launch {
        module: "attention_sm80",
        kernel: match shape.dim {
            64 => match q.dtype() {
                DType::F16 => "attention_sm80_f16_64",
                _ => "attention_sm80_bf16_64",
            },
            _ => match q.dtype() {
                DType::F16 => "attention_sm80_f16_128",
                _ => "attention_sm80_bf16_128",
            },
        },
        grid: [shape.tokens.div_ceil(ROWS), shape.q_heads, shape.streams],
        threads: THREADS,
        shared: shared(shape.dim),
        params: &params,
        memory: &memory,
    })
}

/// What the kernels do not take of all that makes sense.
pub(super) fn taken(args: &Attention<'_>, shape: Shape, out: &ViewMut<'_>, device: &Device) -> Result<()> {
    let check = Check { op: OP, device };
    let Attention { q, kv, context, .. } = args;
    check.dtype("q", q.dtype(), &[DType::F16, DType::BF16], "f16 and bf16")?;
    ensure!(
        check,
        matches!(shape.dim, 64 | 128),
        "q",
        format!("a head dim of 64 or 128 on the {} device", device.kind().name()),
        shape.dim.to_string()
    );
    check.aligned_rows("q", q, q.address())?;
    check.aligned_rows("kv.k", &kv.k, kv.k.address())?;
    check.aligned_rows("kv.v", &kv.v, kv.v.address())?;
    check.aligned_rows("out", out, out.address())?;
    // The grid's second and third extent end at 65,535; the rest is counted in i32.
    for (argument, got, most) in [
        ("q", shape.streams, 65_535),
        ("q", shape.q_heads, 65_535),
        // Counted on to the end of the last tile, which has up to 192 rows.
        ("q", shape.tokens, i32::MAX as usize - 192),
        ("kv.k", shape.page_tokens, i32::MAX as usize),
        ("context", context.max_pages(), i32::MAX as usize),
        ("context", context.max_segments(), i32::MAX as usize),
    ] {
        ensure!(
            check,
            got <= most,
            argument,
            format!("extents of at most {most}"),
            got.to_string()
        );
    }
    let (needed, limit) = (shared(shape.dim), device.shared_memory_limit());
    ensure!(
        check,
        needed <= limit,
        "device",
        format!("one with {needed} bytes of shared memory a block"),
        format!("{device} with {limit}")
    );
    Ok(())
}
