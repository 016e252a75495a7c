//! Attention at the shapes of a long video, and a plain matrix product beside it.
mod common;

use common::{Work, devices, time};
use criterion::{Criterion, criterion_group, criterion_main};
use packforcing::ops::attention::{Attention, attention};
use packforcing::paging::{Context, KvPages, Segment};
use packforcing::{DType, Device, DeviceKind, Result, Rope3d, Tensor};

/// Numbers in [-1, 1) that follow no pattern.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

struct Shape {
    case: &'static str,
    dtype: DType,
    tokens: usize,
    heads: usize,
    page_tokens: usize,
    /// Tokens of each segment.
    segments: Vec<usize>,
}

fn case(c: &mut Criterion, device: &Device, shape: &Shape) -> Result<()> {
    const DIM: usize = 128;
    let Shape {
        dtype,
        tokens,
        heads,
        page_tokens,
        ..
    } = *shape;
    let mut pages = 0u32;
    let segments: Vec<Segment> = shape
        .segments
        .iter()
        .enumerate()
        .map(|(i, &tokens)| {
            let first = pages;
            pages += tokens.div_ceil(page_tokens) as u32;
            Segment {
                rotation: i as f32 * 4.0,
                ..Segment::new((first..pages).collect(), tokens)
            }
        })
        .collect();
    let pool = [pages as usize, heads, page_tokens, DIM];
    let data = numbers(pool.iter().product());
    let k = Tensor::from_f32(device, dtype, &data, &pool)?;
    let v = Tensor::from_f32(device, dtype, &data, &pool)?;
    let q = [1, tokens, heads, DIM];
    let mut out = Tensor::zeros(device, dtype, &q)?;
    let q = Tensor::from_f32(device, dtype, &numbers(q.iter().product()), &q)?;
    let args = Attention {
        q: q.view(),
        kv: KvPages {
            k: k.view(),
            v: v.view(),
            slot_bias: None,
        },
        context: &Context::from_host(device, (pool[0], page_tokens), &[segments])?,
        rope: &Rope3d::wan(DIM),
        scale: (DIM as f32).powf(-0.5),
    };
    let keys: usize = shape.segments.iter().sum();
    let work = Work::Flops(4.0 * (tokens * keys * heads * DIM) as f64);
    time(c, "attention", shape.case, &work, device, || {
        attention(&args, &mut out.view_mut(), None)
    });
    Ok(())
}

fn attentions(c: &mut Criterion) {
    // Sink, sixteen mid blocks, the recent block and the current one.
    let wan: Vec<usize> = [12_480].into_iter().chain([182; 16]).chain([6_240; 2]).collect();
    let frame = Shape {
        case: "wan_frame_f32",
        dtype: DType::F32,
        tokens: 1_560,
        heads: 12,
        page_tokens: 96,
        segments: vec![8_192],
    };
    let small = Shape {
        case: "small_paged_bf16",
        dtype: DType::BF16,
        tokens: 256,
        heads: 4,
        page_tokens: 32,
        segments: vec![256, 60, 60, 60, 256],
    };
    let block = Shape {
        case: "wan_block_bf16",
        dtype: DType::BF16,
        tokens: 6_240,
        heads: 12,
        page_tokens: 96,
        segments: wan,
    };
    for device in devices() {
        let shapes: &[&Shape] = match device.kind() {
            DeviceKind::Cuda => &[&small, &block],
            _ => &[&small, &frame],
        };
        for shape in shapes {
            case(c, &device, shape).unwrap_or_else(|e| panic!("{}: {e}", shape.case));
        }
    }
}

/// What the CPU's case is to be compared with: the same operations in two plain products.
fn product(c: &mut Criterion) {
    let (m, n, k) = (1_560, 8_192, 128);
    let (a, b) = (numbers(m * k), numbers(k * n));
    let mut to = vec![0.0f32; m * n];
    let work = Work::Flops(2.0 * (m * n * k) as f64);
    time(c, "attention", "gemm_f32", &work, &Device::cpu(), || {
        // SAFETY: the three matrices have the extents and strides that are passed.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                to.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.as_ptr(),
                1,
                k as isize,
                b.as_ptr(),
                1,
                n as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        }
        Ok(())
    });
}

criterion_group!(benches, attentions, product);
criterion_main!(benches);
