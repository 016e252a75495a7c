//! What stands between the products of a layer, each in one pass there and one back.
//!
//! On the CPU in f32 these are ops of their own: put together from candle's they take more time than the products.
//! Elsewhere they are put together, in [`composed`], which is also what tests hold them against.

mod attention;
pub(crate) mod in_place;
mod loops;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, DType, Error, Layout, Result, Shape, Tensor};

pub(crate) use attention::{LOGITS, Sight, sighted_attention, softmax_attention};

/// Whether the loops take a tensor.
pub(crate) fn takes(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// With tanh, as Wan2.1 has it.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    match takes(x) {
        true => x.contiguous()?.apply_op1(Gelu),
        false => composed::gelu(x),
    }
}

/// Over the last dimension.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    match takes(x) {
        true => x.contiguous()?.apply_op1(Softmax),
        false => composed::softmax(x),
    }
}

/// Layer norm over the last dimension, in f32, without weights.
pub(crate) fn layer_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    norm(x, true, eps)
}

/// RMS norm over the last dimension, in f32, without weights.
pub(crate) fn rms_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    norm(x, false, eps)
}

fn norm(x: &Tensor, centered: bool, eps: f64) -> Result<Tensor> {
    let x = x.to_dtype(DType::F32)?;
    match takes(&x) {
        true => x.contiguous()?.apply_op1(Norm { centered, eps }),
        false => composed::norm(&x, centered, eps),
    }
}

/// `x` by rows of its last dimension: each of `rows` stands for as many consecutive rows of `x` as it takes.
pub(crate) fn mul_rows(x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    match takes(x) && takes(rows) {
        true => x.contiguous()?.apply_op2(&rows.contiguous()?, MulRows),
        false => composed::join_rows(x, rows, Tensor::broadcast_mul),
    }
}

/// `x` and rows of its last dimension, as in [`mul_rows`].
pub(crate) fn add_rows(x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    match takes(x) && takes(rows) {
        true => x.contiguous()?.apply_op2(&rows.contiguous()?, AddRows),
        false => composed::join_rows(x, rows, Tensor::broadcast_add),
    }
}

/// `x` by a matrix `[to, from]`, and a row `[to]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let from = x.dim(D::Minus1)?;
    let flat = x.reshape(((), from))?.contiguous()?;
    let out = match [x, weight, bias].into_iter().all(takes) {
        true => flat.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear)?,
        false => flat.matmul(&weight.t()?)?.broadcast_add(bias)?,
    };
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(weight.dim(0)?);
    out.reshape(shape)
}

/// `x` and `added` by rows, as in [`mul_rows`].
pub(crate) fn add_scaled(x: &Tensor, added: &Tensor, rows: &Tensor) -> Result<Tensor> {
    match [x, added, rows].into_iter().all(takes) {
        true => x
            .contiguous()?
            .apply_op3(&added.contiguous()?, &rows.contiguous()?, AddScaled),
        false => x + composed::join_rows(added, rows, Tensor::broadcast_mul)?,
    }
}

/// Pairs of neighbours of `[batch, tokens, heads, dim]` (f32) turned by angles of their tokens, given as cosines and
/// sines `[tokens, dim / 2]`.
pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    match takes(x) {
        true => x.contiguous()?.apply_op3(cos, sin, Rotate { back: false }),
        false => composed::rotate(x, cos, sin),
    }
}

/// The numbers of a contiguous tensor.
fn numbers<'s>(storage: &'s CpuStorage, layout: &Layout) -> Result<&'s [f32]> {
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&all[from..to]),
        None => Err(Error::RequiresContiguous { op: "fused" }.bt()),
    }
}

/// The last dimension.
fn width(layout: &Layout) -> Result<usize> {
    layout.shape().dim(D::Minus1)
}

/// A result of this shape that `fill` makes of zeros.
fn made(shape: &Shape, fill: impl FnOnce(&mut [f32])) -> Result<(CpuStorage, Shape)> {
    let mut out = vec![0.0; shape.elem_count()];
    // Rows of nothing are no rows.
    if !out.is_empty() {
        fill(&mut out);
    }
    Ok((CpuStorage::F32(out), shape.clone()))
}

/// Refuses rows that are not a part of `x`.
fn check_rows(x: &Layout, rows: &Layout) -> Result<usize> {
    let width = width(x)?;
    let (all, few) = (x.shape().elem_count(), rows.shape().elem_count());
    if self::width(rows)? != width || few == 0 || all % few != 0 {
        candle_core::bail!("rows {:?} do not share {:?} evenly", rows.shape(), x.shape());
    }
    Ok(width)
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = numbers(x, l)?;
        made(l.shape(), |out| loops::gelu(out, x))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&gradient.contiguous()?, &GeluBack)?))
    }
}

struct GeluBack;

impl CustomOp2 for GeluBack {
    fn name(&self) -> &'static str {
        "gelu-back"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, g) = (numbers(x, l)?, numbers(g, gl)?);
        made(l.shape(), |out| loops::gelu_back(out, x, g))
    }
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, width) = (numbers(x, l)?, width(l)?);
        made(l.shape(), |out| loops::softmax(out, x, width))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(y.apply_op2_no_bwd(&gradient.contiguous()?, &SoftmaxBack)?))
    }
}

struct SoftmaxBack;

impl CustomOp2 for SoftmaxBack {
    fn name(&self) -> &'static str {
        "softmax-back"
    }

    fn cpu_fwd(&self, y: &CpuStorage, l: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (y, g, width) = (numbers(y, l)?, numbers(g, gl)?, width(l)?);
        made(l.shape(), |out| loops::softmax_back(out, y, g, width))
    }
}

#[derive(Clone, Copy)]
struct Norm {
    centered: bool,
    eps: f64,
}

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, width) = (numbers(x, l)?, width(l)?);
        made(l.shape(), |out| {
            loops::norm(out, x, width, self.centered, self.eps as f32)
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&gradient.contiguous()?, &NormBack(*self))?))
    }
}

struct NormBack(Norm);

impl CustomOp2 for NormBack {
    fn name(&self) -> &'static str {
        "norm-back"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, g, width) = (numbers(x, l)?, numbers(g, gl)?, width(l)?);
        let Norm { centered, eps } = self.0;
        made(l.shape(), |out| {
            loops::norm_back(out, x, g, width, centered, eps as f32);
        })
    }
}

struct MulRows;

impl CustomOp2 for MulRows {
    fn name(&self) -> &'static str {
        "mul-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout, rows: &CpuStorage, rl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, rows, width) = (numbers(x, l)?, numbers(rows, rl)?, check_rows(l, rl)?);
        made(l.shape(), |out| loops::mul_rows(out, x, rows, width))
    }

    fn bwd(
        &self,
        x: &Tensor,
        rows: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let back = SumProducts(rows.shape().clone());
        Ok((
            Some(gradient.apply_op2_no_bwd(rows, &MulRows)?),
            Some(x.apply_op2_no_bwd(&gradient, &back)?),
        ))
    }
}

struct AddRows;

impl CustomOp2 for AddRows {
    fn name(&self) -> &'static str {
        "add-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout, rows: &CpuStorage, rl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, rows, width) = (numbers(x, l)?, numbers(rows, rl)?, check_rows(l, rl)?);
        made(l.shape(), |out| loops::add_rows(out, x, rows, width))
    }

    fn bwd(
        &self,
        _: &Tensor,
        rows: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let back = SumRows(rows.shape().clone());
        let sums = gradient.contiguous()?.apply_op1_no_bwd(&back)?;
        Ok((Some(gradient.clone()), Some(sums)))
    }
}

/// Sums of products over the rows that each row of this shape stands for.
struct SumProducts(Shape);

impl CustomOp2 for SumProducts {
    fn name(&self) -> &'static str {
        "sum-products"
    }

    fn cpu_fwd(&self, a: &CpuStorage, l: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b, width) = (numbers(a, l)?, numbers(b, bl)?, width(l)?);
        made(&self.0, |out| loops::sum_products(out, a, b, width))
    }
}

/// Sums over the rows that each row of this shape stands for.
struct SumRows(Shape);

impl CustomOp1 for SumRows {
    fn name(&self) -> &'static str {
        "sum-rows"
    }

    fn cpu_fwd(&self, a: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, width) = (numbers(a, l)?, width(l)?);
        made(&self.0, |out| loops::sum_rows(out, a, width))
    }
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        l: &Layout,
        weight: &CpuStorage,
        wl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, from) = l.shape().dims2()?;
        let (to, inner) = wl.shape().dims2()?;
        if inner != from || bl.shape().elem_count() != to {
            candle_core::bail!("{:?} by {:?} and {:?}", l.shape(), wl.shape(), bl.shape());
        }
        let mut out = x.matmul(weight, (1, rows, to, from), l, &wl.transpose(0, 1)?)?;
        if let CpuStorage::F32(out) = &mut out {
            loops::add_row(out, numbers(bias, bl)?);
        }
        Ok((out, (rows, to).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let sums = gradient.apply_op1_no_bwd(&SumRows(bias.shape().clone()))?;
        let of_weight = gradient.t()?.matmul(x)?;
        Ok((Some(gradient.matmul(weight)?), Some(of_weight), Some(sums)))
    }
}

struct AddScaled;

impl CustomOp3 for AddScaled {
    fn name(&self) -> &'static str {
        "add-scaled"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        l: &Layout,
        added: &CpuStorage,
        al: &Layout,
        rows: &CpuStorage,
        rl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, added, rows) = (numbers(x, l)?, numbers(added, al)?, numbers(rows, rl)?);
        let width = check_rows(l, rl)?;
        if x.len() != added.len() {
            candle_core::bail!("{:?} and {:?}", l.shape(), al.shape());
        }
        made(l.shape(), |out| {
            loops::mul_rows(out, added, rows, width);
            loops::join(out, x, |scaled, x| x + scaled);
        })
    }

    fn bwd(
        &self,
        _: &Tensor,
        added: &Tensor,
        rows: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let of_rows = added.apply_op2_no_bwd(&gradient, &SumProducts(rows.shape().clone()))?;
        let of_added = gradient.apply_op2_no_bwd(rows, &MulRows)?;
        Ok((Some(gradient), Some(of_added), Some(of_rows)))
    }
}

struct Rotate {
    back: bool,
}

impl CustomOp3 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        l: &Layout,
        cos: &CpuStorage,
        cl: &Layout,
        sin: &CpuStorage,
        sl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, angles) = (numbers(x, l)?, [numbers(cos, cl)?, numbers(sin, sl)?]);
        let (_, tokens, heads, dim) = l.shape().dims4()?;
        if angles.iter().any(|a| 2 * a.len() != tokens * dim) {
            candle_core::bail!("angles {:?} of {:?}", cl.shape(), l.shape());
        }
        let sign = if self.back { -1.0 } else { 1.0 };
        made(l.shape(), |out| loops::rotate(out, x, angles, heads, dim, sign))
    }

    fn bwd(
        &self,
        _: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let back = Rotate { back: !self.back };
        let turned = gradient.contiguous()?.apply_op3_no_bwd(cos, sin, &back)?;
        Ok((Some(turned), None, None))
    }
}

/// The same in candle's own ops, for every device and dtype.
mod composed {
    use super::{D, Result, Tensor};

    pub fn gelu(x: &Tensor) -> Result<Tensor> {
        let slope = (2.0 / std::f64::consts::PI).sqrt();
        let inner = (x.sqr()?.affine(0.044_715 * slope, slope)? * x)?;
        inner.tanh()?.affine(0.5, 0.5)? * x
    }

    /// The maximum takes no part in the gradient: it cancels.
    pub fn softmax(x: &Tensor) -> Result<Tensor> {
        let e = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
        e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
    }

    pub fn norm(x: &Tensor, centered: bool, eps: f64) -> Result<Tensor> {
        let x = match centered {
            true => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            false => x.clone(),
        };
        let square = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(square + eps)?.sqrt()?)
    }

    pub fn join_rows(x: &Tensor, rows: &Tensor, join: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let width = x.dim(D::Minus1)?;
        let count = rows.elem_count() / width;
        let each = x.reshape((count, (), width))?;
        join(&each, &rows.reshape((count, 1, width))?)?.reshape(x.shape())
    }

    pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let (batch, tokens, heads, dim) = x.dims4()?;
        let pairs = x.reshape(&[batch, tokens, heads, dim / 2, 2][..])?;
        let (a, b) = (pairs.narrow(4, 0, 1)?, pairs.narrow(4, 1, 1)?);
        let angles = |t: &Tensor| t.reshape(&[1, tokens, 1, dim / 2, 1][..]);
        let (cos, sin) = (angles(cos)?, angles(sin)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[first, second], 4)?.reshape(x.shape())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    pub fn normal(seed: u64, shape: &[usize]) -> Var {
        let mut random = crate::RandomWeights::new(seed, DType::F32, &Device::Cpu).expect("the CPU");
        Var::from_tensor(&random.normal(shape, 1.0).expect("numbers")).expect("a variable")
    }

    /// Values and gradients of both, under a loss that treats every number in its own way.
    pub fn hold(name: &str, inputs: &[Var], both: [&dyn Fn() -> Result<Tensor>; 2]) {
        let [a, b] = both.map(|f| {
            let value = f().expect(name);
            let loss = (&value * normal(77, value.dims()).as_tensor()).and_then(|l| l.sum_all());
            let gradients = loss.and_then(|l| l.backward()).expect(name);
            let of = inputs.iter().map(|v| gradients.get(v).expect("a gradient").clone());
            (value, of.collect::<Vec<_>>())
        });
        let off = |a: &Tensor, b: &Tensor| {
            assert_eq!(a.dims(), b.dims(), "{name}");
            let largest = |t: &Tensor| t.abs()?.max_all()?.to_scalar::<f32>();
            let (off, whole) = ((a - b).and_then(|d| largest(&d)), largest(b));
            off.expect(name) / whole.expect(name)
        };
        assert!(off(&a.0, &b.0) < 2e-6, "{name}: {}", off(&a.0, &b.0));
        for (i, (a, b)) in a.1.iter().zip(&b.1).enumerate() {
            assert!(off(a, b) < 1e-5, "gradient {i} of {name}: {}", off(a, b));
        }
    }

    #[test]
    fn values_and_gradients_are_those_of_candles_ops() {
        // Widths on both sides of the lanes' number.
        for width in [3, 16, 50, 192] {
            let x = normal(1, &[2, 6, width]);
            let t = x.as_tensor();
            let one = std::slice::from_ref(&x);
            hold("gelu", one, [&|| gelu(&(t * 3.0)?), &|| composed::gelu(&(t * 3.0)?)]);
            hold(
                "softmax",
                one,
                [&|| softmax(&(t * 5.0)?), &|| composed::softmax(&(t * 5.0)?)],
            );
            for centered in [true, false] {
                let shifted = || t + 2.0;
                hold(
                    "norm",
                    one,
                    [&|| norm(&shifted()?, centered, 1e-6), &|| {
                        composed::norm(&shifted()?, centered, 1e-6)
                    }],
                );
            }
            for count in [&[width][..], &[2, 1, width], &[2, 3, 1, width], &[2, 6, width]] {
                let rows = normal(2, count);
                let r = rows.as_tensor();
                let two = [x.clone(), rows.clone()];
                hold(
                    "products",
                    &two,
                    [&|| mul_rows(t, r), &|| composed::join_rows(t, r, Tensor::broadcast_mul)],
                );
                hold(
                    "sums",
                    &two,
                    [&|| add_rows(t, r)?.sqr(), &|| {
                        composed::join_rows(t, r, Tensor::broadcast_add)?.sqr()
                    }],
                );
            }
        }
        let (x, y, rows) = (
            normal(3, &[2, 6, 50]),
            normal(4, &[2, 6, 50]),
            normal(5, &[2, 3, 1, 50]),
        );
        hold(
            "gates",
            &[x.clone(), y.clone(), rows.clone()],
            [&|| add_scaled(&x, &y, &rows)?.sqr(), &|| {
                (x.as_tensor() + composed::join_rows(&y, &rows, Tensor::broadcast_mul)?)?.sqr()
            }],
        );
        let (weight, bias) = (normal(6, &[20, 50]), normal(7, &[20]));
        hold(
            "linear",
            &[x.clone(), weight.clone(), bias.clone()],
            [&|| linear(&x, &weight, &bias)?.sqr(), &|| {
                x.broadcast_matmul(&weight.t()?)?.broadcast_add(&bias)?.sqr()
            }],
        );
        let x = normal(3, &[2, 5, 3, 8]);
        let angles = normal(4, &[5, 4]);
        let (cos, sin) = (
            angles.cos().expect("cosines").detach(),
            angles.sin().expect("sines").detach(),
        );
        hold(
            "rotation",
            std::slice::from_ref(&x),
            [&|| rotate(x.as_tensor(), &cos, &sin), &|| {
                composed::rotate(x.as_tensor(), &cos, &sin)
            }],
        );
    }

    #[test]
    fn a_masked_logit_has_no_weight_and_rows_must_fit() {
        let logits = Tensor::new(&[[0f32, f32::NEG_INFINITY, 0.0]], &Device::Cpu).expect("numbers");
        let weights = softmax(&logits).and_then(|w| w.to_vec2::<f32>()).expect("weights");
        assert_eq!(weights, [[0.5, 0.0, 0.5]]);
        let x = normal(5, &[4, 6]);
        assert!(mul_rows(&x, &normal(6, &[3, 6])).is_err());
        assert!(add_rows(&x, &normal(6, &[2, 3])).is_err());
        assert!(add_scaled(&x, &normal(6, &[3, 6]), &normal(7, &[1, 6])).is_err());
        assert!(linear(&x, &normal(6, &[2, 5]), &normal(7, &[2])).is_err());
        assert!(linear(&x, &normal(6, &[2, 6]), &normal(7, &[3])).is_err());
    }

    #[test]
    fn other_dtypes_are_put_together_of_candles_ops() {
        let x = normal(7, &[3, 8]).to_dtype(DType::BF16).expect("numbers");
        let wide = x.to_dtype(DType::F32).expect("numbers");
        let off = gelu(&x)
            .and_then(|g| g.to_dtype(DType::F32)? - gelu(&wide)?)
            .expect("numbers");
        let off = off
            .abs()
            .and_then(|o| o.max_all()?.to_scalar::<f32>())
            .expect("a number");
        assert!(off < 0.05, "{off}");
    }
}
