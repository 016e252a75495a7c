//! The layouts of operands and results as the PTX ISA publishes them. Nothing here may be taken from
//! the SIMT device or from kernels: it is what both are held against.

use super::Operand;

/// Row and column of element i of a lane's A (16 x 16) of mma.m16n8k16 with 16-bit elements.
pub(super) fn mma_a(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
    let column = in_group * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
    (row, column)
}

/// The same of B (16 x 8).
pub(super) fn mma_b(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    (in_group * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group)
}

/// The same of C and D (16 x 8, f32).
pub(super) fn mma_d(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, in_group * 2 + (i & 1))
}

/// Row and column of element i of a thread's D (64 x N) of wgmma: a warp has 16 rows, and its columns
/// come in eights.
pub(super) fn wgmma_d(thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    let row = 16 * warp + lane / 4 + if i % 4 >= 2 { 8 } else { 0 };
    (row, (i / 4) * 8 + (lane % 4) * 2 + i % 2)
}

/// The same of A (64 x 16) in registers.
pub(super) fn wgmma_a(thread: usize, i: usize) -> (usize, usize) {
    let (row, column) = mma_a(thread % 32, i);
    (16 * (thread / 32) + row, column)
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Major {
    /// Eight elements of 16 bytes follow each other along k.
    K,
    /// Along m or n: the transposed operand.
    Mn,
}

/// Extents and strides, in elements, the fastest first: a CuTe mode.
type Mode = [(usize, usize)];

fn along(mode: &Mode, mut i: usize) -> usize {
    let mut offset = 0;
    for &(extent, stride) in mode {
        offset += i % extent * stride;
        i /= extent;
    }
    offset
}

/// Of a mode that goes on for as long as the operand does.
const ANY: usize = usize::MAX;

/// The canonical layouts of wgmma's operands ("Asynchronous warpgroup level canonical layouts"): the
/// byte of element (mn, k).
pub(super) fn wgmma_byte(operand: &Operand, major: Major, mn: usize, k: usize) -> usize {
    const T: usize = 8; // 16-bit elements in 128 bits
    let (lbo, sbo) = (operand.leading as usize / 2, operand.stride as usize / 2);
    // The swizzle Swizzle<B, 4, 3>, by the descriptor's bits 62 and 63.
    let b = [0, 3, 2, 1][operand.swizzle as usize];
    let offset = match (major, b) {
        (Major::Mn, 0) => along(&[(T, 1), (ANY, sbo)], mn) + along(&[(8, T), (ANY, lbo)], k),
        (Major::Mn, 1) => along(&[(T, 1), (2, T), (ANY, lbo)], mn) + along(&[(8, 2 * T), (ANY, sbo)], k),
        (Major::Mn, 2) => along(&[(T, 1), (4, T), (ANY, lbo)], mn) + along(&[(8, 4 * T), (ANY, sbo)], k),
        (Major::Mn, _) => along(&[(T, 1), (8, T), (ANY, lbo)], mn) + along(&[(8, 8 * T), (ANY, sbo)], k),
        (Major::K, 0) => along(&[(8, T), (ANY, sbo)], mn) + along(&[(T, 1), (ANY, lbo)], k),
        (Major::K, 1) => along(&[(8, 2 * T), (ANY, sbo)], mn) + along(&[(T, 1), (ANY, T)], k),
        (Major::K, 2) => along(&[(8, 4 * T), (ANY, sbo)], mn) + along(&[(T, 1), (ANY, T)], k),
        (Major::K, _) => along(&[(8, 8 * T), (ANY, sbo)], mn) + along(&[(T, 1), (ANY, T)], k),
    };
    let address = operand.start as usize + 2 * offset;
    let yyy = address & (((1 << b) - 1) << 7);
    address ^ (yyy >> 3)
}
