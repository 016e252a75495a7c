//! The launch for CUDA and SIMT.

use super::{MatchTokens, Matching, Shape, UnmergeTokens};
use crate::error::{Error, Result};
use crate::ops::check::Check;
use crate::paging::KvPagesMut;
use crate::tensor::ViewMut;

fn absent(device: &crate::device::Device) -> Error {
    Error::argument("match_tokens", "kv.k", "the cpu", device.to_string())
}

pub(super) fn checked(check: &Check<'_>, _: &Shape, _: &KvPagesMut<'_>) -> Result<()> {
    Err(absent(check.device))
}

pub(super) fn run(_: &MatchTokens<'_>, _: &Shape, _: &mut Matching, kv: &mut KvPagesMut<'_>) -> Result<()> {
    Err(absent(kv.k.device()))
}

pub(super) fn unmerge(_: &UnmergeTokens<'_>, out: &mut ViewMut<'_>) -> Result<()> {
    Err(absent(out.device()))
}
