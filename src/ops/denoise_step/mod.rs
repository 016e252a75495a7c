//! One step of any solver: linear combinations of terms, with coefficients per frame, and noise.
//!
//! Samplers differ in their coefficients only, so those come from the host in f64 ([`rows`] has
//! the usual ones, [`crate::schedule`] the time steps) and one kernel does for all.

use crate::device::{Device, DeviceKind};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ffi;
use crate::ops::check::{Check, ensure};
use crate::ops::guidance::GuidanceWeights;
use crate::tensor::{Tensor, View, ViewMut};

mod cpu;
mod gpu;
pub(crate) mod layout;
pub(crate) mod noise;
pub mod reference;
pub mod rows;

use layout::{Layout, MAX_ELEMENTS, layout};

const MAX_TERMS: usize = ffi::PF_MAX_TERMS as usize;
const MAX_OUTPUTS: usize = ffi::PF_MAX_OUTPUTS as usize;

/// The numbers of a step in device memory: a row for each output and term, a number a frame.
#[derive(Debug)]
pub struct Coefficients {
    rows: Tensor, // f32 [outputs, terms + 1, frames]
    /// Whether any noise is asked for.
    noisy: bool,
}

impl Coefficients {
    /// Rounds host numbers to f32: `rows[output][term][frame]`, the last term is the noise.
    ///
    /// # Errors
    ///
    /// No output or more than 4; no noise row or more than 8 terms before it; no frame; rows of
    /// different lengths; numbers that are not finite in f32.
    pub fn new(device: &Device, rows: &[rows::Rows]) -> Result<Coefficients> {
        let (shape, numbers, noisy) = flatten("Coefficients::new", rows)?;
        let rows = Tensor::from_slice(device, &numbers, &shape)?;
        Ok(Coefficients { rows, noisy })
    }

    /// Other numbers in the same memory, in the order of the device's stream: what was launched
    /// before still sees the old ones.
    ///
    /// # Errors
    ///
    /// As [`Coefficients::new`]; another number of outputs, terms or frames than before.
    pub fn set(&mut self, rows: &[rows::Rows]) -> Result<()> {
        const OP: &str = "Coefficients::set";
        let (shape, numbers, noisy) = flatten(OP, rows)?;
        if shape != self.rows.shape() {
            return Err(Error::argument(
                OP,
                "rows",
                format!("outputs, rows and frames {:?}", self.rows.shape()),
                format!("{shape:?}"),
            ));
        }
        self.rows.view_mut().copy_from_slice(&numbers)?;
        self.noisy = noisy;
        Ok(())
    }

    /// How many outputs they are for.
    pub fn outputs(&self) -> usize {
        self.rows.shape()[0]
    }

    /// How many terms they are for; the noise does not count.
    pub fn terms(&self) -> usize {
        self.rows.shape()[1] - 1
    }

    /// Whether any of them asks for noise.
    pub fn noisy(&self) -> bool {
        self.noisy
    }

    /// How many frames they are for.
    pub fn frames(&self) -> usize {
        self.rows.shape()[2]
    }
}

/// Shape and numbers of checked rows, and whether the last of any output is not 0.
fn flatten(op: &'static str, rows: &[rows::Rows]) -> Result<([usize; 3], Vec<f32>, bool)> {
    let outputs = rows.len();
    let terms = rows.first().map_or(0, Vec::len);
    let frames = rows.first().and_then(|r| r.first()).map_or(0, Vec::len);
    let sizes = (1..=MAX_OUTPUTS).contains(&outputs) && (1..=MAX_TERMS + 1).contains(&terms) && frames > 0;
    if !sizes {
        return Err(Error::argument(
            op,
            "rows",
            format!("1 to {MAX_OUTPUTS} outputs of 1 to {MAX_TERMS} + 1 rows of 1 number or more"),
            format!("{outputs} outputs of {terms} rows of {frames} numbers"),
        ));
    }
    let mut numbers = Vec::with_capacity(outputs * terms * frames);
    let mut noisy = false;
    for (j, output) in rows.iter().enumerate() {
        if output.len() != terms || output.iter().any(|row| row.len() != frames) {
            let lengths: Vec<usize> = output.iter().map(Vec::len).collect();
            return Err(Error::argument(
                op,
                "rows",
                format!("{terms} rows of {frames} numbers for every output"),
                format!("rows of {lengths:?} numbers for output {j}"),
            ));
        }
        if let Some(&x) = output.iter().flatten().find(|x| !(**x as f32).is_finite()) {
            return Err(Error::argument(
                op,
                "rows",
                "numbers that are finite in f32",
                x.to_string(),
            ));
        }
        numbers.extend(output.iter().flatten().map(|&x| x as f32));
        noisy |= output[terms - 1].iter().any(|&x| x != 0.0);
    }
    Ok(([outputs, terms, frames], numbers, noisy))
}

/// Where normal noise comes from: Philox 4x32-10 by element, the same numbers to the bit on every
/// device. The element's index counts in the order of the shape, whatever the strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    /// The key.
    pub seed: u64,
    /// The counter of the first four elements; a draw of n elements uses up `n.div_ceil(4)`.
    pub offset: u64,
}

impl Noise {
    /// What is left after a draw of so many elements.
    pub fn after(self, elements: usize) -> Noise {
        Noise {
            offset: self.offset.wrapping_add(elements.div_ceil(4) as u64),
            ..self
        }
    }
}

/// A seed and an offset in device memory that are added (wrapping) to those of [`Noise`]: what one
/// upload before a captured graph is replayed changes for all of its draws. The numbers are the same
/// to the bit as those of the sums given as [`Noise`].
///
/// ```
/// use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, NoiseBase, denoise_step};
/// use packforcing::{DType, Device, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let cpu = Device::cpu();
/// let mut base = NoiseBase::new(&cpu, Noise { seed: 7, offset: 0 })?;
/// let one = Coefficients::new(&cpu, &[vec![vec![1.0]]])?;
/// let draw = |base: Option<&NoiseBase>, noise| {
///     let mut out = Tensor::zeros(&cpu, DType::F32, &[1, 4])?;
///     let step = DenoiseStep { terms: vec![], in_place: 0, frame_axis: 0, coefficients: &one, noise: Some(noise), noise_base: base, guidance: None };
///     denoise_step(&step, &mut [out.view_mut()])?;
///     out.to_vec::<f32>()
/// };
/// base.set(Noise { seed: 8, offset: 100 })?;
/// let captured = Noise { seed: 0, offset: 5 };
/// assert_eq!(draw(Some(&base), captured)?, draw(None, Noise { seed: 8, offset: 105 })?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct NoiseBase {
    numbers: Tensor, // u64 [2], as pairs of i32
}

impl NoiseBase {
    /// These numbers.
    ///
    /// # Errors
    ///
    /// Memory that the device does not have.
    pub fn new(device: &Device, base: Noise) -> Result<NoiseBase> {
        let mut numbers = NoiseBase {
            numbers: Tensor::zeros(device, DType::I32, &[4])?,
        };
        numbers.set(base)?;
        Ok(numbers)
    }

    /// Other numbers in the same memory, in the order of the device's stream: what was launched
    /// before still sees the old ones.
    ///
    /// # Errors
    ///
    /// Whatever the device reports.
    pub fn set(&mut self, base: Noise) -> Result<()> {
        let numbers: [i32; 4] = bytemuck::cast([base.seed, base.offset]);
        self.numbers.view_mut().copy_from_slice(&numbers)
    }

    /// The sum of these numbers and others, on a host device.
    fn plus(&self, noise: Noise) -> Noise {
        let numbers = self.numbers.view();
        let mut base = [0u64; 2];
        bytemuck::cast_slice_mut::<u64, i32>(&mut base).copy_from_slice(numbers.host());
        Noise {
            seed: noise.seed.wrapping_add(base[0]),
            offset: noise.offset.wrapping_add(base[1]),
        }
    }
}

/// Arguments of [`denoise_step`].
#[derive(Debug, Clone)]
pub struct DenoiseStep<'a> {
    /// What is combined, each of its own float dtype, all of one shape.
    pub terms: Vec<View<'a>>,
    /// This many outputs, the first ones, are read too: they are terms before `terms`.
    pub in_place: usize,
    /// Which dimension of the shape is frames.
    pub frame_axis: usize,
    /// The numbers.
    pub coefficients: &'a Coefficients,
    /// The noise, where a coefficient asks for it.
    pub noise: Option<Noise>,
    /// What is added to `noise` from device memory.
    pub noise_base: Option<&'a NoiseBase>,
    /// Factors in device memory, for each sample, of the coefficients of the last two of `terms`: the
    /// conditional and the unconditional velocity, where [`rows::weighted`] gave them one row twice.
    pub guidance: Option<&'a GuidanceWeights>,
}

/// `out_j = sum_k c[j][k][frame] term_k + c[j][last][frame] noise`, summed in f32 in the order of
/// the terms and rounded once: f32 results are the same to the bit on every device. With guidance
/// the c of the last two terms are multiplied, in f32, by the weights of the element's sample.
///
/// ```
/// use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, denoise_step, rows};
/// use packforcing::{Device, Tensor};
/// # fn main() -> packforcing::Result<()> {
/// let cpu = Device::cpu();
/// // Two frames of two numbers: one goes from sigma 1 to 0.5, the other is clean already.
/// let mut x = Tensor::from_slice(&cpu, &[1.0f32, 2.0, 3.0, 4.0], &[2, 2])?;
/// let v = Tensor::from_slice(&cpu, &[2.0f32; 4], &[2, 2])?;
/// let step = DenoiseStep {
///     terms: vec![v.view()],
///     in_place: 1, // x is the first term and the output
///     frame_axis: 0,
///     coefficients: &Coefficients::new(&cpu, &[rows::euler(&[1.0, 0.0], &[0.5, 0.0])])?,
///     noise: None,
///     noise_base: None,
///     guidance: None,
/// };
/// denoise_step(&step, &mut [x.view_mut()])?;
/// assert_eq!(x.to_vec::<f32>()?, [0.0, 1.0, 3.0, 4.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Views that are not of one shape, not on the coefficients' device or not f32, f16 or bf16; another
/// number of outputs, terms or frames than the coefficients have; a view whose dimensions before
/// the frames do not lie like one, or whose dimensions after them are not contiguous; coefficients
/// that ask for noise where there is none; a noise base on another device; guidance on another device
/// or for another shape, or with fewer than two of `terms`; 2^31 elements or more.
pub fn denoise_step(args: &DenoiseStep<'_>, outputs: &mut [ViewMut<'_>]) -> Result<()> {
    let device = args.coefficients.rows.device();
    let check = Check {
        op: "denoise_step",
        device,
    };
    let plan = check_arguments(&check, args, outputs)?;
    check.some("outputs", plan.elements() > 0)?;
    match device.kind() {
        DeviceKind::Cpu => cpu::denoise_step(args, &plan, outputs),
        _ => gpu::denoise_step(args, &plan, outputs)?,
    }
    Ok(())
}

/// Of every term or output one, in place while they are few.
type Layouts = smallvec::SmallVec<[Layout; 8]>;

/// The step's extents and where everything lies.
#[derive(Debug)]
struct Plan {
    outer: usize,
    frames: usize,
    inner: usize,
    /// Of all terms, those in place first.
    terms: Layouts,
    outputs: Layouts,
}

impl Plan {
    fn elements(&self) -> usize {
        self.outer * self.frames * self.inner
    }

    /// Rows of a sample of the guidance.
    fn sample_rows(&self, weights: &GuidanceWeights) -> usize {
        self.outer * self.frames / weights.samples()
    }
}

fn check_arguments(check: &Check<'_>, args: &DenoiseStep<'_>, outputs: &[ViewMut<'_>]) -> Result<Plan> {
    let numbers = args.coefficients;
    ensure!(
        check,
        outputs.len() == numbers.outputs(),
        "outputs",
        format!("{}, as the coefficients are for", numbers.outputs()),
        outputs.len().to_string()
    );
    ensure!(
        check,
        args.in_place <= outputs.len(),
        "in_place",
        format!("at most {}, the number of outputs", outputs.len()),
        args.in_place.to_string()
    );
    ensure!(
        check,
        args.in_place + args.terms.len() == numbers.terms(),
        "terms",
        format!("{} with those in place, as the coefficients are for", numbers.terms()),
        format!("{} and {} in place", args.terms.len(), args.in_place)
    );
    ensure!(
        check,
        args.noise.is_some() || !numbers.noisy,
        "noise",
        "a seed and an offset, because coefficients ask for noise",
        "None"
    );
    let shape = outputs[0].shape();
    ensure!(
        check,
        shape.get(args.frame_axis) == Some(&numbers.frames()),
        "frame_axis",
        format!(
            "a dimension of {} frames, as the coefficients are for",
            numbers.frames()
        ),
        format!("dimension {} of {shape:?}", args.frame_axis)
    );
    if let Some(base) = args.noise_base {
        ensure!(
            check,
            base.numbers.device() == check.device,
            "noise_base",
            format!("numbers on {}", check.device),
            format!("numbers on {}", base.numbers.device())
        );
    }
    if let Some(weights) = args.guidance {
        ensure!(
            check,
            weights.device() == check.device && weights.shape() == shape && args.terms.len() >= 2,
            "guidance",
            format!("weights for {shape:?} on {} and two terms or more", check.device),
            format!(
                "{:?} on {}, {} terms",
                weights.shape(),
                weights.device(),
                args.terms.len()
            )
        );
    }
    let (before, after) = (&shape[..args.frame_axis], &shape[args.frame_axis + 1..]);
    let written = outputs
        .iter()
        .map(|o| layout(check, "outputs", o, shape, args.frame_axis));
    let written: Layouts = written.collect::<Result<_>>()?;
    let read = args
        .terms
        .iter()
        .map(|t| layout(check, "terms", t, shape, args.frame_axis));
    let read: Layouts = read.collect::<Result<_>>()?;
    let plan = Plan {
        outer: before.iter().product(),
        frames: numbers.frames(),
        inner: after.iter().product(),
        terms: written[..args.in_place].iter().copied().chain(read).collect(),
        outputs: written,
    };
    ensure!(
        check,
        plan.elements() < MAX_ELEMENTS,
        "outputs",
        "fewer than 2^31 elements",
        plan.elements().to_string()
    );
    Ok(plan)
}
