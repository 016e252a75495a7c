//! [`guidance`]: the weights of CFG-Zero* and rescale from two velocities.

use packforcing::ops::guidance::{Guidance, GuidanceWeights, guidance};
use packforcing::{Device, View};

use super::Numbers;
use super::denoise_step::Shape;
use crate::case::{Call, Case, Results, Work, tell};
use crate::error::Result;
use crate::random::Random;

/// Both of what the op can do, for every shape.
pub(super) fn arguments<'a>(cond: View<'a>, uncond: View<'a>) -> Guidance<'a> {
    Guidance {
        cond,
        uncond,
        frame_axis: 1,
        scale: 5.0,
        zero_star: true,
        rescale: 0.7,
    }
}

/// The case on this device; solver and guidance of the shape do not matter. Both velocities are
/// read, two numbers written.
///
/// # Errors
///
/// A shape that makes no case; what the op refuses comes with the first call.
pub fn case(shape: &Shape, device: &Device) -> Result<Case> {
    shape.check()?;
    let &Shape { latents, dtype, .. } = shape;
    let mut random = Random::new(shape.seed);
    let [cond, uncond] = [
        Numbers::new(&mut random, "channels", &latents)?,
        Numbers::new(&mut random, "channels", &latents)?,
    ];
    let read = 2 * cond.data.len() * dtype.bytes();
    Case::new("guidance", device, Work::bytes(read), read, || {
        let (cond, uncond) = (cond.tensor(device, dtype)?, uncond.tensor(device, dtype)?);
        let mut weights = GuidanceWeights::new(device, &latents, 1)?;
        let call = move |results: Results<'_>| {
            guidance(&arguments(cond.view(), uncond.view()), &mut weights)?;
            tell(results, &[("weights", weights.view())])
        };
        Ok(Box::new(call) as Call)
    })
}
