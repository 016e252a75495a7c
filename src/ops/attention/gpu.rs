//! Attention by the kernels.

use super::{Attention, Shape};
use crate::error::Result;
use crate::tensor::ViewMut;

pub(super) fn attention(
    args: &Attention<'_>,
    shape: Shape,
    out: &mut ViewMut<'_>,
    lse: Option<&mut ViewMut<'_>>,
) -> Result<()> {
    let _ = (args, shape, out, lse);
    unimplemented!()
}
