//! Guidance that depends on what it guides: CFG-Zero* and guidance rescale, without a look from the
//! host.
//!
//! Every guided velocity here is `a c + b u` with two numbers a sample, so a pass over the
//! velocities makes the numbers and [`denoise_step`](crate::ops::denoise_step::denoise_step) does
//! the rest: it multiplies the coefficients of its last two terms by them.

mod cpu;
mod gpu;
pub mod reference;

use crate::device::{Device, DeviceKind};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ffi;
use crate::ops::check::{Check, ensure};
use crate::ops::denoise_step::layout::{Layout, MAX_ELEMENTS, layout};
use crate::tensor::{Tensor, View};

const PART: usize = ffi::PF_MOMENTS_PART as usize;
const MOMENTS: usize = ffi::PF_MOMENTS as usize;

/// Arguments of [`guidance`].
#[derive(Debug, Clone)]
pub struct Guidance<'a> {
    /// The velocity under the prompt, c: f32, f16 or bf16, of the weights' shape.
    pub cond: View<'a>,
    /// The velocity without it, u: of its own dtype.
    pub uncond: View<'a>,
    /// Which dimension is frames, as in [`DenoiseStep`](crate::ops::denoise_step::DenoiseStep).
    pub frame_axis: usize,
    /// How far to go from u to c; 1 is c.
    pub scale: f64,
    /// Whether u is scaled by `<c, u> / <u, u>` first: CFG-Zero* (Fan et al., arXiv 2503.18886).
    /// A u of zeros is scaled by 0. That paper's first steps, whose velocity is 0, are steps left out.
    pub zero_star: bool,
    /// How much of the guided velocity's standard deviation is brought back to c's (Lin et al.,
    /// *Common diffusion noise schedules and sample steps are flawed*, arXiv 2305.08891, phi there):
    /// 0 for none. A guided velocity that is constant, to 10^-7 of its size, stays as it is.
    pub rescale: f64,
}

/// Two numbers a sample in device memory, and room for the sums that they are made of.
#[derive(Debug)]
pub struct GuidanceWeights {
    weights: Tensor, // f32 [samples, 2]
    partial: Tensor, // f64 [samples, parts, 5], as pairs of i32
    shape: Vec<usize>,
}

impl GuidanceWeights {
    /// For velocities of this shape; a sample is all of it (`samples` 1) or an index of the first
    /// dimension (`samples` its extent). The weights are those of c alone until [`guidance`] makes
    /// others.
    ///
    /// # Errors
    ///
    /// Another number of samples, no elements or 2^31 and more, memory that the device does not have.
    pub fn new(device: &Device, shape: &[usize], samples: usize) -> Result<GuidanceWeights> {
        const OP: &str = "GuidanceWeights::new";
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let Some(elements) = elements.filter(|n| (1..MAX_ELEMENTS).contains(n)) else {
            let expected = "one element or more, and fewer than 2^31";
            return Err(Error::argument(OP, "shape", expected, format!("{shape:?}")));
        };
        let first = shape.first().copied().unwrap_or(1);
        if samples != 1 && samples != first {
            let expected = format!("1, or {first} as the first dimension has");
            return Err(Error::argument(OP, "samples", expected, samples.to_string()));
        }
        let parts = (elements / samples).div_ceil(PART);
        let weights: Vec<f32> = (0..samples).flat_map(|_| [1.0, 0.0]).collect();
        Ok(GuidanceWeights {
            weights: Tensor::from_slice(device, &weights, &[samples, 2])?,
            partial: Tensor::zeros(device, DType::I32, &[samples, parts, MOMENTS, 2])?,
            shape: shape.to_vec(),
        })
    }

    /// How many samples there are.
    pub fn samples(&self) -> usize {
        self.weights.shape()[0]
    }

    /// The shape of the velocities.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// f32 `[samples, 2]`: what c and u are multiplied by.
    pub fn view(&self) -> View<'_> {
        self.weights.view()
    }

    /// Their device.
    pub fn device(&self) -> &Device {
        self.weights.device()
    }
}

/// Makes `weights` such that `weights[i][0] c + weights[i][1] u` is the guided velocity of sample i:
///
/// `s = <c, u> / <u, u>` with `zero_star`, else 1; `g = scale c + (1 - scale) s u`;
/// `f = rescale std(c) / std(g) + 1 - rescale`; guided `= f g`.
///
/// Inner products and standard deviations (unbiased; the factor cancels) are over the whole sample,
/// and come of one pass that sums c, u, c c, c u and u u in f64. There the products of f32 numbers
/// are exact, so a variance loses (mean / std)^2 of 2^-53: nothing that f32 weights show up to a
/// mean of 10^4 standard deviations. The sums have one order on every device, and the weights are the
/// same to the bit. What is not a number makes weights that are none.
///
/// ```
/// use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, denoise_step, rows};
/// use packforcing::ops::guidance::{Guidance, GuidanceWeights, guidance};
/// use packforcing::{Device, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let cpu = Device::cpu();
/// let mut x = Tensor::from_slice(&cpu, &[1.0f32, 1.0], &[1, 2])?;
/// let c = Tensor::from_slice(&cpu, &[4.0f32, 2.0], &[1, 2])?;
/// let u = Tensor::from_slice(&cpu, &[2.0f32, 0.0], &[1, 2])?;
/// let mut weights = GuidanceWeights::new(&cpu, &[1, 2], 1)?;
/// let zero_star = Guidance {
///     cond: c.view(),
///     uncond: u.view(),
///     frame_axis: 0,
///     scale: 3.0,
///     zero_star: true, // s = 8 / 4
///     rescale: 0.0,
/// };
/// guidance(&zero_star, &mut weights)?;
/// assert_eq!(weights.view().to_vec::<f32>()?, [3.0, -4.0]);
///
/// // x - 0.5 (3 c - 4 u)
/// let step = DenoiseStep {
///     terms: vec![c.view(), u.view()],
///     in_place: 1,
///     frame_axis: 0,
///     coefficients: &Coefficients::new(&cpu, &[rows::weighted(rows::euler(&[1.0], &[0.5]))])?,
///     noise: None,
///     noise_base: None,
///     guidance: Some(&weights),
/// };
/// denoise_step(&step, &mut [x.view_mut()])?;
/// assert_eq!(x.to_vec::<f32>()?, [-1.0, -2.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Views that are not of the weights' shape and device or not f32, f16 or bf16; a frame axis that
/// the shape does not have; a view whose dimensions before the frames do not lie like one, or whose
/// dimensions after them are not contiguous; numbers that are not finite in f32; whatever the device
/// reports.
pub fn guidance(args: &Guidance<'_>, weights: &mut GuidanceWeights) -> Result<()> {
    let device = &weights.device().clone();
    let check = Check { op: "guidance", device };
    for (name, number) in [("scale", args.scale), ("rescale", args.rescale)] {
        ensure!(
            check,
            (number as f32).is_finite(),
            name,
            "a number that is finite in f32",
            number.to_string()
        );
    }
    let shape = &weights.shape;
    ensure!(
        check,
        args.frame_axis < shape.len(),
        "frame_axis",
        format!("a dimension of {shape:?}"),
        args.frame_axis.to_string()
    );
    let rows: usize = shape[..=args.frame_axis].iter().product();
    let plan = Plan {
        frames: shape[args.frame_axis],
        inner: shape[args.frame_axis + 1..].iter().product(),
        sample_rows: rows / weights.samples(),
        parts: weights.partial.shape()[1],
        cond: layout(&check, "cond", &args.cond, shape, args.frame_axis)?,
        uncond: layout(&check, "uncond", &args.uncond, shape, args.frame_axis)?,
    };
    match device.kind() {
        DeviceKind::Cpu => cpu::guidance(args, &plan, weights),
        _ => gpu::guidance(args, &plan, weights)?,
    }
    Ok(())
}

/// Extents of both velocities, and where they lie.
#[derive(Debug)]
struct Plan {
    frames: usize,
    inner: usize,
    /// Rows of a sample, each of `inner` elements.
    sample_rows: usize,
    /// Parts of a sample.
    parts: usize,
    cond: Layout,
    uncond: Layout,
}
