//! Normal numbers that are the same to the bit on every device: Philox 4x32-10, then Box-Muller in
//! f32 with nothing but additions, multiplications, one division and one square root, all rounded
//! as IEEE 754 says and in the order that `kernels/device/philox.cuh` has them.
//!
//! Nothing branches on the numbers, so that a compiler that may use a processor's vectors does; it
//! may not fuse or reorder, so the bits stay.

use super::Noise;

/// Counters that are worked on at once.
const LANES: usize = 16;

/// Turns counters into four words each under a key (Salmon et al., "Parallel random numbers: as easy
/// as 1, 2, 3", 2011).
#[inline(always)]
pub(crate) fn philox<const N: usize>(words: &mut [[u32; N]; 4], mut key: [u32; 2]) {
    let [w0, w1, w2, w3] = words;
    for _ in 0..10 {
        for (((w0, w1), w2), w3) in w0.iter_mut().zip(&mut *w1).zip(&mut *w2).zip(&mut *w3) {
            let a = u64::from(*w0) * 0xD251_1F53;
            let b = u64::from(*w2) * 0xCD9E_8D57;
            *w0 = (b >> 32) as u32 ^ *w1 ^ key[0];
            *w1 = b as u32;
            *w2 = (a >> 32) as u32 ^ *w3 ^ key[1];
            *w3 = a as u32;
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
}

/// ln u for u in [2^-33, 1]. u = m 2^e with m in [sqrt 1/2, sqrt 2), and
/// ln m = 2 artanh s = 2 (s + s^3/3 + s^5/5 + ...) with s = (m - 1) / (m + 1), |s| < 0.172.
#[inline(always)]
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
#[inline(always)]
fn sin_cos(word: u32) -> (f32, f32) {
    let quarter = word.wrapping_add(1 << 29) >> 30;
    let rest = word.wrapping_sub(quarter << 30) as i32;
    let x = rest as f32 * (std::f32::consts::TAU / 4_294_967_296.0);
    let z = x * x;
    let s = (((z * (1.0 / 362_880.0) - 1.0 / 5_040.0) * z + 1.0 / 120.0) * z - 1.0 / 6.0) * z;
    let c = (((z * (1.0 / 40_320.0) - 1.0 / 720.0) * z + 1.0 / 24.0) * z - 0.5) * z;
    let (s, c) = (x + x * s, 1.0 + c);
    // Odd quarters swap the two; signs are flipped as bits.
    let odd = 0u32.wrapping_sub(quarter & 1);
    let (s, c) = (s.to_bits(), c.to_bits());
    let swap = (s ^ c) & odd;
    let signed = |bits: u32, turn: u32| f32::from_bits(bits ^ (turn & 2) << 30);
    (signed(s ^ swap, quarter), signed(c ^ swap, quarter + 1))
}

/// Two independent normal numbers of two words.
#[inline(always)]
fn box_muller(a: u32, b: u32) -> [f32; 2] {
    let u = a as f32 * (1.0 / 4_294_967_296.0) + 1.0 / 8_589_934_592.0;
    let radius = (-2.0 * ln(u)).sqrt();
    let (s, c) = sin_cos(b);
    [radius * c, radius * s]
}

impl Noise {
    /// The normal numbers of elements `4 * group` to `4 * (group + LANES) - 1`.
    #[inline(always)]
    fn groups(self, group: u64, out: &mut [f32; 4 * LANES]) {
        let first = self.offset.wrapping_add(group);
        let counters: [u64; LANES] = std::array::from_fn(|lane| first.wrapping_add(lane as u64));
        let (low, high) = (counters.map(|c| c as u32), counters.map(|c| (c >> 32) as u32));
        let mut words = [low, high, [0; LANES], [0; LANES]];
        philox(&mut words, [self.seed as u32, (self.seed >> 32) as u32]);
        let mut numbers = [[0.0f32; LANES]; 4];
        for pair in [0, 2] {
            for lane in 0..LANES {
                [numbers[pair][lane], numbers[pair + 1][lane]] = box_muller(words[pair][lane], words[pair + 1][lane]);
            }
        }
        for (lane, out) in out.chunks_exact_mut(4).enumerate() {
            out.copy_from_slice(&[0, 1, 2, 3].map(|i| numbers[i][lane]));
        }
    }

    /// The normal numbers of the elements from `first` on.
    pub(super) fn fill(self, first: u64, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has the instructions.
                return unsafe { self.fill_avx512(first, out) };
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the instructions.
                return unsafe { self.fill_avx2(first, out) };
            }
        }
        self.fill_with(first, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn fill_avx512(self, first: u64, out: &mut [f32]) {
        self.fill_with(first, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn fill_avx2(self, first: u64, out: &mut [f32]) {
        self.fill_with(first, out);
    }

    #[inline(always)]
    fn fill_with(self, first: u64, out: &mut [f32]) {
        let mut numbers = [0.0; 4 * LANES];
        let (mut group, mut skip) = (first / 4, (first % 4) as usize);
        let mut out = out;
        while !out.is_empty() {
            self.groups(group, &mut numbers);
            let count = (numbers.len() - skip).min(out.len());
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&numbers[skip..skip + count]);
            group = group.wrapping_add(LANES as u64);
            (out, skip) = (later, 0);
        }
    }
}
