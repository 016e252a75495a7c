//! The ops whose outputs are new tensors. The others change what is there, and go through
//! [`with_views`].

use candle_core::Tensor;
use packforcing::ops::attention::{self, Attention};
use packforcing::ops::denoise_step::{self, Coefficients, DenoiseStep, Noise};
use packforcing::ops::merge_states::{self, State};
use packforcing::paging::{Context, KvPages};
use packforcing::{Device, Rope3d};

use crate::cache::outputs;
use crate::error::{Result, refused};
use crate::views::{Named, with_lists, with_views};

/// A page pool of one's own in candle tensors.
#[derive(Debug, Clone, Copy)]
pub struct Pages<'a> {
    /// Keys, rotated at their place inside their segment. `[pages, kv_heads, page_tokens, dim]`
    pub k: &'a Tensor,
    /// Values. `[pages, kv_heads, page_tokens, dim]`
    pub v: &'a Tensor,
    /// Added to the logits of segments that ask for it, natural log, f32.
    /// `[pages, kv_heads, page_tokens]`
    pub slot_bias: Option<&'a Tensor>,
}

/// Attention over pages, [`packforcing::ops::attention::attention`]: the output, of the shape and
/// dtype of `q` (`[streams, tokens, q_heads, dim]`, rotated), and its natural-log LSE, f32
/// `[streams, tokens, q_heads]`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use packforcing::Rope3d;
/// use packforcing::paging::{Context, Segment};
/// use packforcing_candle::{Pages, attention, device};
///
/// # fn main() -> packforcing_candle::Result<()> {
/// let q = Tensor::zeros((1, 2, 1, 16), DType::F32, &Device::Cpu)?;
/// let pool = Tensor::ones((4, 1, 32, 16), DType::F32, &Device::Cpu)?;
/// let device = device(q.device())?;
/// let context = Context::from_host(&device, (4, 32), &[vec![Segment::new(vec![3, 1], 40)]])?;
/// let pages = Pages { k: &pool, v: &pool, slot_bias: None };
/// let (out, lse) = attention(&device, &q, &pages, &context, &Rope3d::wan(16), 0.25)?;
/// assert_eq!(out.dims(), q.dims());
/// assert!((lse.flatten_all()?.to_vec1::<f32>()?[0] - 40f32.ln()).abs() < 1e-6); // 40 logits of 0
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`packforcing::ops::attention::attention`], and tensors that [`with_views`] does not take.
pub fn attention(
    device: &Device,
    q: &Tensor,
    kv: &Pages<'_>,
    context: &Context,
    rope: &Rope3d,
    scale: f32,
) -> Result<(Tensor, Tensor)> {
    let (out, lse) = outputs(q)?;
    // Without a bias another view is opened, and not used.
    let bias = kv.slot_bias.unwrap_or(kv.k);
    with_views(
        device,
        "attention",
        [("q", q), ("kv.k", kv.k), ("kv.v", kv.v), ("kv.slot_bias", bias)],
        [("out", &out), ("lse", &lse)],
        |[q, k, v, bias], [mut out, mut lse]| {
            let slot_bias = kv.slot_bias.map(|_| bias);
            let kv = KvPages { k, v, slot_bias };
            let arguments = Attention {
                q,
                kv,
                context,
                rope,
                scale,
            };
            attention::attention(&arguments, &mut out, Some(&mut lse))
        },
    )?;
    Ok((out, lse))
}

/// Two attention results over disjoint keys into one,
/// [`packforcing::ops::merge_states::merge_states`]: each an output `[.., heads, dim]` and its
/// natural-log LSE, f32 `[.., heads]`, as [`attention()`] gives them. More than one leading dimension
/// wants contiguous tensors.
///
/// # Errors
///
/// As [`packforcing::ops::merge_states::merge_states`], and tensors that [`with_views`] does not take.
pub fn merge_states(device: &Device, a: (&Tensor, &Tensor), b: (&Tensor, &Tensor)) -> Result<(Tensor, Tensor)> {
    let (out, lse) = outputs(a.0)?;
    with_views(
        device,
        "merge_states",
        [
            ("a.out", &rows(a.0, 2)?),
            ("a.lse", &rows(a.1, 1)?),
            ("b.out", &rows(b.0, 2)?),
            ("b.lse", &rows(b.1, 1)?),
        ],
        [("out", &rows(&out, 2)?), ("lse", &rows(&lse, 1)?)],
        |[a_out, a_lse, b_out, b_lse], [mut out, mut lse]| {
            let a = State { out: a_out, lse: a_lse };
            let b = State { out: b_out, lse: b_lse };
            merge_states::merge_states(&a, &b, &mut out, &mut lse)
        },
    )?;
    Ok((out, lse))
}

/// The same memory with one dimension before the last `keep`, where that takes no copy.
fn rows(tensor: &Tensor, keep: usize) -> Result<Tensor> {
    let leading = tensor.rank().saturating_sub(keep);
    if leading < 2 || !tensor.is_contiguous() {
        return Ok(tensor.clone());
    }
    Ok(tensor.flatten_to(leading - 1)?)
}

/// A step of any solver, [`packforcing::ops::denoise_step::denoise_step`], into new tensors of the
/// first term's shape and dtype: as many as the coefficients have outputs. To step a latent in place,
/// open it with [`with_views`] for writing and call the op itself with `in_place: 1`. So too for solvers
/// that remember (their states are to be f32, whatever the latent is), guidance and a base of the noise.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use packforcing::ops::denoise_step::{Coefficients, rows};
/// use packforcing_candle::{denoise_step, device};
///
/// # fn main() -> packforcing_candle::Result<()> {
/// // Two frames of two numbers: one goes from sigma 1 to 0.5, the other is clean already.
/// let x = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
/// let v = Tensor::new(&[[2.0f32, 2.0], [2.0, 2.0]], &Device::Cpu)?;
/// let device = device(x.device())?;
/// let step = Coefficients::new(&device, &[rows::euler(&[1.0, 0.0], &[0.5, 0.0])])?;
/// let next = &denoise_step(&device, &[&x, &v], 0, &step, None)?[0];
/// assert_eq!(next.to_vec2::<f32>()?, [[0.0, 1.0], [3.0, 4.0]]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// No term; as [`packforcing::ops::denoise_step::denoise_step`], and tensors that [`with_views`] does
/// not take.
pub fn denoise_step(
    device: &Device,
    terms: &[&Tensor],
    frame_axis: usize,
    coefficients: &Coefficients,
    noise: Option<Noise>,
) -> Result<Vec<Tensor>> {
    const OP: &str = "denoise_step";
    let Some(first) = terms.first() else {
        return Err(refused(OP, "terms", "at least one, for shape and dtype", "none").into());
    };
    let new = |_| Tensor::zeros(first.shape(), first.dtype(), first.device());
    let outputs: Vec<Tensor> = (0..coefficients.outputs()).map(new).collect::<Result<_, _>>()?;
    let read: Vec<Named<'_>> = terms.iter().map(|&t| ("terms", t)).collect();
    let write: Vec<Named<'_>> = outputs.iter().map(|t| ("outputs", t)).collect();
    with_lists(device, OP, &read, &write, |terms, mut outputs| {
        let step = DenoiseStep {
            terms,
            in_place: 0,
            frame_axis,
            coefficients,
            noise,
            noise_base: None,
            guidance: None,
        };
        denoise_step::denoise_step(&step, &mut outputs)
    })?;
    Ok(outputs)
}
