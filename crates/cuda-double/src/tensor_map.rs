//! `cuTensorMapEncodeTiled`: the manual's rules, and a map as the SIMT device reads it.

use crate::codes::{Code, Result};

/// The driver's arguments, read.
#[derive(Debug, Clone)]
pub struct Tiled {
    pub dtype: u32,
    pub address: u64,
    pub extents: Vec<u64>,
    /// Bytes, of dimensions 1 and on.
    pub strides: Vec<u64>,
    pub size: Vec<u32>,
    pub steps: Vec<u32>,
    pub interleave: u32,
    pub swizzle: u32,
    pub promotion: u32,
    pub fill: u32,
}

impl Tiled {
    /// The 128 bytes of a map, or the rule that was broken.
    pub fn encode(&self) -> Result<[u64; 16], (Code, String)> {
        let refused = |what: String| Err((Code::INVALID_VALUE, format!("cuTensorMapEncodeTiled: {what}")));
        // Elements as CUtensorMapDataType counts them, up to the packed types of Blackwell.
        let element: u64 = match self.dtype {
            0 => 1,
            1 | 6 | 9 => 2,
            2 | 3 | 7 | 10 | 11 | 12 => 4,
            4 | 5 | 8 => 8,
            other => return refused(format!("a dtype of number {other}")),
        };
        let swizzle: u64 = match self.swizzle {
            0 => 0,
            n @ 1..=3 => 16 << n,
            other => return refused(format!("a swizzle of number {other}")),
        };
        let rank = self.extents.len();
        if !(1..=5).contains(&rank) {
            return refused(format!("a rank of {rank}"));
        }
        if self.interleave != 0 {
            let what = "an interleaved layout, which the double does not have".to_string();
            return Err((Code::NOT_SUPPORTED, what));
        }
        if !self.address.is_multiple_of(16) {
            return refused(format!("an address of {:#x}, which 16 does not divide", self.address));
        }
        if let Some(n) = self.extents.iter().find(|&&n| n == 0 || n > 1 << 32) {
            return refused(format!("an extent of {n}"));
        }
        if let Some(n) = self.strides.iter().find(|&&n| n % 16 != 0 || n >> 40 != 0) {
            return refused(format!("a stride of {n} bytes"));
        }
        if let Some(n) = self.size.iter().find(|&&n| n == 0 || n > 256) {
            return refused(format!("a box of {n} elements along one dimension"));
        }
        if let Some(n) = self.steps.iter().find(|&&n| n == 0 || n > 8) {
            return refused(format!("an element stride of {n}"));
        }
        let row = u64::from(self.size[0]) * element;
        if !row.is_multiple_of(16) {
            return refused(format!("rows of {row} bytes in a box, which 16 does not divide"));
        }
        if swizzle != 0 && row > swizzle {
            return refused(format!("rows of {row} bytes in a box with a swizzle of {swizzle}"));
        }
        if self.promotion > 3 || self.fill > 1 {
            return refused(format!("promotion {} or fill {}", self.promotion, self.fill));
        }
        // Of what is left the SIMT device knows boxes of rows of the whole swizzle, zeros outside, every element.
        if self.fill != 0 || self.steps.iter().any(|&n| n != 1) || (swizzle != 0 && row != swizzle) {
            let what = format!("cuTensorMapEncodeTiled: the SIMT device has no such boxes: {self:?}");
            return Err((Code::NOT_SUPPORTED, what));
        }
        const MAGIC: u64 = 0x5041_4D5F_5449_4D53;
        let get = |list: &[u64], i: usize| list.get(i).copied();
        let pair = |low: u64, high: u64| low | high << 32;
        let extent = |i| get(&self.extents, i).unwrap_or(1);
        let side = |i: usize| self.size.get(i).map_or(1, |&n| u64::from(n));
        let mut words = [0; 16];
        words[0] = MAGIC;
        words[1] = self.address;
        for (i, word) in words[2..6].iter_mut().enumerate() {
            *word = get(&self.strides, i).unwrap_or(0);
        }
        words[6] = pair(rank as u64, element);
        words[7] = pair(swizzle, extent(0));
        words[8] = pair(extent(1), extent(2));
        words[9] = pair(extent(3), extent(4));
        words[10] = pair(side(0), side(1));
        words[11] = pair(side(2), side(3));
        words[12] = pair(side(4), 0);
        Ok(words)
    }
}
