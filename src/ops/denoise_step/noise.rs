//! Normal numbers that are the same to the bit on every device: Philox 4x32-10, then Box-Muller in
//! f32 with nothing but additions, multiplications, one division and one square root, all rounded
//! as IEEE 754 says and in the order that `kernels/device/philox.cuh` has them.

use super::Noise;

/// Four words for a counter under a key (Salmon et al., "Parallel random numbers: as easy as 1, 2,
/// 3", 2011).
pub(crate) fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// ln u for u in [2^-33, 1]. u = m 2^e with m in [sqrt 1/2, sqrt 2), and
/// ln m = 2 artanh s = 2 (s + s^3/3 + s^5/5 + ...) with s = (m - 1) / (m + 1), |s| < 0.172.
fn ln(u: f32) -> f32 {
    const SQRT_HALF: u32 = 0x3F35_04F3;
    let exponent = (u.to_bits() as i32 - SQRT_HALF as i32) >> 23;
    let m = f32::from_bits((u.to_bits() as i32 - (exponent << 23)) as u32);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let series = (((z * (1.0 / 9.0) + 1.0 / 7.0) * z + 1.0 / 5.0) * z + 1.0 / 3.0) * z;
    let s = s + s;
    exponent as f32 * std::f32::consts::LN_2 + (s + s * series)
}

/// Sine and cosine of `word / 2^32` turns: the nearest quarter turn is taken off exactly, and the
/// rest, at most an eighth, goes into the Taylor series.
fn sin_cos(word: u32) -> (f32, f32) {
    let quarter = word.wrapping_add(1 << 29) >> 30;
    let rest = word.wrapping_sub(quarter << 30) as i32;
    let x = rest as f32 * (std::f32::consts::TAU / 4_294_967_296.0);
    let z = x * x;
    let s = (((z * (1.0 / 362_880.0) - 1.0 / 5_040.0) * z + 1.0 / 120.0) * z - 1.0 / 6.0) * z;
    let c = (((z * (1.0 / 40_320.0) - 1.0 / 720.0) * z + 1.0 / 24.0) * z - 0.5) * z;
    let (s, c) = (x + x * s, 1.0 + c);
    match quarter & 3 {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

/// Two independent normal numbers of two words.
fn box_muller(a: u32, b: u32) -> [f32; 2] {
    let u = a as f32 * (1.0 / 4_294_967_296.0) + 1.0 / 8_589_934_592.0;
    let radius = (-2.0 * ln(u)).sqrt();
    let (s, c) = sin_cos(b);
    [radius * c, radius * s]
}

impl Noise {
    /// The normal numbers of elements `4 * group` to `4 * group + 3`.
    pub(super) fn group(self, group: u64) -> [f32; 4] {
        let counter = self.offset.wrapping_add(group);
        let words = philox(
            [counter as u32, (counter >> 32) as u32, 0, 0],
            [self.seed as u32, (self.seed >> 32) as u32],
        );
        let [a, b] = box_muller(words[0], words[1]);
        let [c, d] = box_muller(words[2], words[3]);
        [a, b, c, d]
    }

    /// The normal numbers of the elements from `first` on.
    pub(super) fn fill(self, first: u64, out: &mut [f32]) {
        let mut index = first;
        let mut out = out;
        while !out.is_empty() {
            let from = (index % 4) as usize;
            let n = (4 - from).min(out.len());
            let (now, later) = out.split_at_mut(n);
            now.copy_from_slice(&self.group(index / 4)[from..from + n]);
            index += n as u64;
            out = later;
        }
    }
}
