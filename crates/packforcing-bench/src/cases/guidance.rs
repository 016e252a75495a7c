//! [`guidance`]: the weights of CFG-Zero* and rescale from two velocities.

use packforcing::Device;
use packforcing::ops::guidance::{GuidanceWeights, guidance};

use super::denoise_step::Shape;
use super::{Numbers, guided};
use crate::case::{Call, Case, Results, Work, tell};
use crate::error::Result;
use crate::random::Random;

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
            guidance(&guided(cond.view(), uncond.view()), &mut weights)?;
            tell(results, &[("weights", weights.view())])
        };
        Ok(Box::new(call) as Call)
    })
}
