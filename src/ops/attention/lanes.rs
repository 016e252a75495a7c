//! `W` numbers that move together. Plain arrays and loops: inside a function compiled for wide
//! vectors, everything here becomes single instructions, which is why everything is inlined.

/// `W` queries' worth of one quantity.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Lanes<const W: usize>(pub [f32; W]);

impl<const W: usize> Lanes<W> {
    #[inline(always)]
    pub fn splat(x: f32) -> Self {
        Lanes([x; W])
    }

    /// The first `W` of a slice.
    #[inline(always)]
    pub fn load(from: &[f32]) -> Self {
        let mut lanes = [0.0; W];
        lanes.copy_from_slice(&from[..W]);
        Lanes(lanes)
    }

    #[inline(always)]
    pub fn store(self, to: &mut [f32]) {
        to[..W].copy_from_slice(&self.0);
    }

    #[inline(always)]
    pub fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        for x in &mut self.0 {
            *x = f(*x);
        }
        self
    }

    #[inline(always)]
    pub fn zip(mut self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        for (x, &y) in self.0.iter_mut().zip(&other.0) {
            *x = f(*x, y);
        }
        self
    }

    /// `self * b + c`; with one rounding where the target has the instruction (`FUSED`), because
    /// elsewhere that would be a call.
    #[inline(always)]
    pub fn mul_add<const FUSED: bool>(mut self, b: Self, c: Self) -> Self {
        for i in 0..W {
            self.0[i] = fma::<FUSED>(self.0[i], b.0[i], c.0[i]);
        }
        self
    }

    /// The larger one, and `self` where `other` is NaN: a NaN shows in the sums soon enough.
    #[inline(always)]
    pub fn max(self, other: Self) -> Self {
        self.zip(other, |x, y| if y > x { y } else { x })
    }

    /// 2^x for x at most 0 (or NaN) to within 1 ulp; 0 below the normal numbers.
    #[inline(always)]
    pub fn exp2<const FUSED: bool>(self) -> Self {
        self.map(exp2::<FUSED>)
    }
}

#[inline(always)]
fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn exp2<const FUSED: bool>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // 2^f on [-1/2, 1/2] by interpolation in Chebyshev's points, relative error 5e-9.
    const POWERS: [f32; 6] = [
        1.545_316_3e-4,
        1.339_086_3e-3,
        9.618_083e-3,
        5.550_357e-2,
        2.402_265_1e-1,
        6.931_472e-1,
    ];
    let rounded = x + ROUND;
    let f = x - (rounded - ROUND);
    let power = POWERS[1..].iter().fold(POWERS[0], |sum, &c| fma::<FUSED>(sum, f, c));
    let power = fma::<FUSED>(power, f, 1.0);
    let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    if x < -126.0 { 0.0 } else { power * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_within_an_ulp() {
        for i in 0..=1_260_000 {
            let x = -(i as f32) * 1e-4;
            let truth = f64::from(x).exp2();
            let ulp = f64::from(f32::from_bits((truth as f32).to_bits() + 1)) - f64::from(truth as f32);
            for got in [exp2::<true>(x), exp2::<false>(x)] {
                let error = (f64::from(got) - truth).abs() / ulp;
                assert!(error <= 1.5, "2^{x} is {truth}, got {got}: {error} ulp");
            }
        }
        assert_eq!(exp2::<true>(0.0), 1.0);
        assert_eq!(exp2::<true>(f32::NEG_INFINITY), 0.0);
        assert!(exp2::<true>(f32::NAN).is_nan());
    }
}
