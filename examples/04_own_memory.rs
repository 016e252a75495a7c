//! Ops borrow: the caller's buffers are used in place. Here a context is split in two, each half
//! is attended to by itself, and the results are merged.
//!
//! `cargo run --example 04_own_memory`

use packforcing::ops::attention::{Attention, attention};
use packforcing::ops::merge_states::{State, merge_states};
use packforcing::paging::{Context, KvPages, Segment};
use packforcing::{Device, Result, Rope3d, View, ViewMut};

const TOKENS: usize = 100;
const HEADS: usize = 2;
const DIM: usize = 16;

/// Attention over a range of the keys. A dense `[tokens, heads, dim]` buffer is a pool of one page.
fn attend(q: &[f32], k: &[f32], v: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
    let device = Device::cpu();
    let tokens = k.len() / (HEADS * DIM);
    // [tokens, heads, dim] seen as the page's [1, heads, tokens, dim].
    let pages = |x| {
        let (shape, strides) = ([1, HEADS, tokens, DIM], [tokens * HEADS * DIM, DIM, HEADS * DIM, 1]);
        View::from_slice(&device, x, &[tokens * HEADS * DIM])?.strided(0, &shape, &strides)
    };
    let context = Context::from_host(&device, (1, tokens), &[vec![Segment::new(vec![0], tokens)]])?;
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; q.len() / DIM]);
    let arguments = Attention {
        q: View::from_slice(&device, q, &[1, TOKENS, HEADS, DIM])?,
        kv: KvPages {
            k: pages(k)?,
            v: pages(v)?,
            slot_bias: None,
        },
        context: &context,
        rope: &Rope3d::wan(DIM),
        scale: 0.25,
    };
    attention(
        &arguments,
        &mut ViewMut::from_slice(&device, &mut out, &[1, TOKENS, HEADS, DIM])?,
        Some(&mut ViewMut::from_slice(&device, &mut lse, &[1, TOKENS, HEADS])?),
    )?;
    Ok((out, lse))
}

fn main() -> Result<()> {
    let device = Device::cpu();
    let numbers = |scale: f32| -> Vec<f32> { (0..TOKENS * HEADS * DIM).map(|i| (i as f32 * scale).sin()).collect() };
    let (q, k, v) = (numbers(0.7), numbers(0.3), numbers(0.1));

    let (whole, _) = attend(&q, &k, &v)?;
    let half = 40 * HEADS * DIM;
    let (a, a_lse) = attend(&q, &k[..half], &v[..half])?;
    let (b, b_lse) = attend(&q, &k[half..], &v[half..])?;

    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; q.len() / DIM]);
    let (shape, rows) = ([TOKENS, HEADS, DIM], [TOKENS, HEADS]);
    merge_states(
        &State {
            out: View::from_slice(&device, &a, &shape)?,
            lse: View::from_slice(&device, &a_lse, &rows)?,
        },
        &State {
            out: View::from_slice(&device, &b, &shape)?,
            lse: View::from_slice(&device, &b_lse, &rows)?,
        },
        &mut ViewMut::from_slice(&device, &mut out, &shape)?,
        &mut ViewMut::from_slice(&device, &mut lse, &rows)?,
    )?;
    let error = whole.iter().zip(&out).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("two halves merged differ from the whole by at most {error:.1e}");
    assert!(error < 1e-5);
    Ok(())
}
