//! Changes of a tensor where it lies, for what nobody takes a gradient of: f32 on the CPU.

use candle_core::{CpuStorage, Error, InplaceOp2, InplaceOp3, Layout, Result, Tensor};

use super::{loops, numbers};

/// `to = f(to, from)`, number by number.
pub(crate) fn join(to: &Tensor, from: &Tensor, f: impl Fn(f32, f32) -> f32) -> Result<()> {
    to.inplace_op2(&from.contiguous()?, &Join(f))
}

/// `to = f(to, a, b)`, number by number.
pub(crate) fn join_two(to: &Tensor, a: &Tensor, b: &Tensor, f: impl Fn(f32, f32, f32) -> f32) -> Result<()> {
    to.inplace_op3(&a.contiguous()?, &b.contiguous()?, &Join(f))
}

struct Join<F>(F);

impl<F: Fn(f32, f32) -> f32> InplaceOp2 for Join<F> {
    fn name(&self) -> &'static str {
        "join"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, tl: &Layout, from: &CpuStorage, l: &Layout) -> Result<()> {
        let (from, to) = (numbers(from, l)?, numbers_mut(to, tl, l.shape().elem_count())?);
        loops::join(to, from, &self.0);
        Ok(())
    }
}

impl<F: Fn(f32, f32, f32) -> f32> InplaceOp3 for Join<F> {
    fn name(&self) -> &'static str {
        "join-two"
    }

    fn cpu_fwd(
        &self,
        to: &mut CpuStorage,
        tl: &Layout,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<()> {
        let (a, b) = (numbers(a, al)?, numbers(b, bl)?);
        let to = numbers_mut(to, tl, a.len().min(b.len()))?;
        loops::join_two(to, a, b, &self.0);
        Ok(())
    }
}

/// As many numbers as there must be.
fn numbers_mut<'s>(storage: &'s mut CpuStorage, layout: &Layout, count: usize) -> Result<&'s mut [f32]> {
    let CpuStorage::F32(all) = storage else {
        candle_core::bail!("f32 is changed in place, and nothing else");
    };
    match layout.contiguous_offsets() {
        Some((from, to)) if to - from == count => Ok(&mut all[from..to]),
        _ => Err(Error::RequiresContiguous { op: "in-place" }.bt()),
    }
}

/// The sum of squares, in f64.
pub(crate) fn square_sum(x: &Tensor) -> Result<f64> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => Ok(loops::square_sum(numbers(storage, layout)?)),
        _ => candle_core::bail!("not on the CPU"),
    }
}
