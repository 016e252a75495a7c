//! Attention over keys in pages: two segments, one of them turned in time and biased.
//!
//! `cargo run --example 01_paged_attention`

use packforcing::ops::attention::{Attention, attention};
use packforcing::paging::{Context, KvPages, Segment};
use packforcing::{DType, Device, Result, Rope3d, Tensor};

fn main() -> Result<()> {
    let device = Device::cpu();
    let (pages, heads, page_tokens, dim) = (4, 1, 8, 16);

    // Keys and values of a pool of four pages; the caller's own memory would do as well.
    let numbers = |scale: f32| -> Vec<f32> {
        (0..pages * heads * page_tokens * dim)
            .map(|i| (i as f32 * scale).sin())
            .collect()
    };
    let shape = [pages, heads, page_tokens, dim];
    let k = Tensor::from_slice(&device, &numbers(0.37), &shape)?;
    let v = Tensor::from_slice(&device, &numbers(0.11), &shape)?;

    // 12 old tokens in pages 3 and 0, eight frames back and standing for four tokens each; then
    // 8 new ones in page 2.
    let old = Segment {
        rotation: 8.0,
        key_bias: 4f32.ln(),
        ..Segment::new(vec![3, 0], 12)
    };
    let context = Context::from_host(&device, (pages, page_tokens), &[vec![old, Segment::new(vec![2], 8)]])?;

    let q = Tensor::from_slice(&device, &numbers(0.23)[..2 * dim], &[1, 2, 1, dim])?;
    let mut out = Tensor::zeros(&device, DType::F32, &[1, 2, 1, dim])?;
    let mut lse = Tensor::zeros(&device, DType::F32, &[1, 2, 1])?;
    let arguments = Attention {
        q: q.view(),
        kv: KvPages {
            k: k.view(),
            v: v.view(),
            slot_bias: None,
        },
        context: &context,
        rope: &Rope3d::wan(dim),
        scale: (dim as f32).sqrt().recip(),
    };
    attention(&arguments, &mut out.view_mut(), Some(&mut lse.view_mut()))?;
    println!("lse {:?}", lse.to_vec::<f32>()?);
    println!("out {:.3?}", &out.to_vec::<f32>()?[..4]);
    Ok(())
}
