//! The CUDA kernel's own source on the CPU, under several schedules of its threads.
//!
//! `cargo run --features simt --example 05_simt_device`

use packforcing::ops::attention::{Attention, attention};
use packforcing::paging::{Context, KvPages, Segment};
use packforcing::{DType, Device, Result, Rope3d, SimtOptions, Tensor};

fn main() -> Result<()> {
    let mut results = Vec::new();
    for seed in 0..3 {
        let device = match Device::simt(SimtOptions {
            seed,
            ..SimtOptions::default()
        }) {
            Ok(device) => device,
            Err(reason) => {
                println!("{reason}");
                return Ok(());
            }
        };
        let numbers = |n: usize, scale: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * scale).sin()).collect() };
        let pages = [3, 1, 32, 64]; // pages, heads, tokens of a page, dim
        let tensor = |scale, shape: &[usize]| {
            Tensor::from_f32(&device, DType::BF16, &numbers(shape.iter().product(), scale), shape)
        };
        let (k, v, q) = (
            tensor(0.3, &pages)?,
            tensor(0.1, &pages)?,
            tensor(0.7, &[1, 70, 1, 64])?,
        );
        let mut out = tensor(0.0, &[1, 70, 1, 64])?;
        let context = Context::from_host(&device, (3, 32), &[vec![Segment::new(vec![2, 0, 1], 90)]])?;
        let arguments = Attention {
            q: q.view(),
            kv: KvPages {
                k: k.view(),
                v: v.view(),
                slot_bias: None,
            },
            context: &context,
            rope: &Rope3d::wan(64),
            scale: 0.125,
        };
        let took = device.time(|| attention(&arguments, &mut out.view_mut(), None))?;
        println!("{device}: {took:.1?}");
        results.push(out.to_f32_vec()?);
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    println!("the same bits under every schedule");
    Ok(())
}
