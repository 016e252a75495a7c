//! Numbers that move together: one vector register of f32.
//!
//! Everything is inlined into a function that is compiled for the register's instructions; only
//! there does it make sense to call it.

/// `W` queries' worth of one quantity.
pub(super) trait Lanes: Copy {
    const W: usize;
    fn splat(x: f32) -> Self;
    /// The first `W` of a slice.
    fn load(from: &[f32]) -> Self;
    /// Into the first `W` of a slice.
    fn store(self, to: &mut [f32]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// `self * b + c`, rounded once where the processor can.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger one, and `self` where `other` is NaN.
    fn max(self, other: Self) -> Self;
    /// 0 where `x` is below `bound`; where `x` is NaN it is not.
    fn zero_below(self, x: Self, bound: f32) -> Self;
    /// 2^n for the integer n that stands in the low bits of `1.5 * 2^23 + n`.
    fn power_of_low_bits(self) -> Self;

    /// 2^x for x at most 0 (or NaN) to within 1 ulp; 0 below the normal numbers.
    #[inline(always)]
    fn exp2(self) -> Self {
        // 2^f on [-1/2, 1/2] by interpolation in Chebyshev's points, relative error 5e-9.
        const POWERS: [f32; 7] = [
            1.545_316_3e-4,
            1.339_086_3e-3,
            9.618_083e-3,
            5.550_357e-2,
            2.402_265e-1,
            6.931_472e-1,
            1.0,
        ];
        // Adding this rounds to an integer, which then stands in the low bits.
        let round = Self::splat(12_582_912.0);
        let rounded = self.add(round);
        let f = self.sub(rounded.sub(round));
        let mut power = Self::splat(POWERS[0]);
        for c in &POWERS[1..] {
            power = power.mul_add(f, Self::splat(*c));
        }
        power.mul(rounded.power_of_low_bits()).zero_below(self, -126.0)
    }
}

/// Four numbers for any processor.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 4]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Portable {
    const W: usize = 4;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; 4])
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Portable([from[0], from[1], from[2], from[3]])
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..4].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |x, y| x * y)
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // Where the instruction is missing, `f32::mul_add` is a call.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            Portable(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
        } else {
            self.mul(b).add(c)
        }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |x, y| if y > x { y } else { x })
    }
    #[inline(always)]
    fn zero_below(self, x: Self, bound: f32) -> Self {
        self.zip(x, |y, x| if x < bound { 0.0 } else { y })
    }
    #[inline(always)]
    fn power_of_low_bits(self) -> Self {
        Portable(
            self.0
                .map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(127 << 23))),
        )
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// `Lanes` of an x86 register, given its intrinsics.
    macro_rules! register {
        ($name:ident, $w:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident,
         $fma:ident, $max:ident, |$y:ident, $x:ident, $bound:ident| $zero_below:expr, |$bits:ident| $power:expr) => {
            impl Lanes for $name {
                const W: usize = $w;
                #[inline(always)]
                fn splat(x: f32) -> Self {
                    // SAFETY: only functions compiled for these instructions, which run where the
                    // processor has them, use this type. The same holds for every call below.
                    unsafe { $splat(x) }
                }
                #[inline(always)]
                fn load(from: &[f32]) -> Self {
                    // SAFETY: the slice was cut to `W` numbers; no alignment is asked for.
                    unsafe { $load(from[..$w].as_ptr()) }
                }
                #[inline(always)]
                fn store(self, to: &mut [f32]) {
                    // SAFETY: the slice was cut to `W` numbers; no alignment is asked for.
                    unsafe { $store(to[..$w].as_mut_ptr(), self) }
                }
                #[inline(always)]
                fn add(self, other: Self) -> Self {
                    // SAFETY: see `splat`.
                    unsafe { $add(self, other) }
                }
                #[inline(always)]
                fn sub(self, other: Self) -> Self {
                    // SAFETY: see `splat`.
                    unsafe { $sub(self, other) }
                }
                #[inline(always)]
                fn mul(self, other: Self) -> Self {
                    // SAFETY: see `splat`.
                    unsafe { $mul(self, other) }
                }
                #[inline(always)]
                fn mul_add(self, b: Self, c: Self) -> Self {
                    // SAFETY: see `splat`.
                    unsafe { $fma(self, b, c) }
                }
                #[inline(always)]
                fn max(self, other: Self) -> Self {
                    // The instruction returns its second operand where one is NaN.
                    // SAFETY: see `splat`.
                    unsafe { $max(other, self) }
                }
                #[inline(always)]
                fn zero_below(self, $x: Self, bound: f32) -> Self {
                    let ($y, $bound) = (self, Self::splat(bound));
                    // SAFETY: see `splat`.
                    unsafe { $zero_below }
                }
                #[inline(always)]
                fn power_of_low_bits(self) -> Self {
                    let $bits = self;
                    // SAFETY: see `splat`.
                    unsafe { $power }
                }
            }
        };
    }

    register!(
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps,
        _mm256_max_ps,
        |y, x, bound| _mm256_and_ps(y, _mm256_cmp_ps::<_CMP_NLT_UQ>(x, bound)),
        |bits| {
            let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(bits));
            _mm256_castsi256_ps(_mm256_add_epi32(power, _mm256_set1_epi32(127 << 23)))
        }
    );

    register!(
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_fmadd_ps,
        _mm512_max_ps,
        |y, x, bound| _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound), y),
        |bits| {
            let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(bits));
            _mm512_castsi512_ps(_mm512_add_epi32(power, _mm512_set1_epi32(127 << 23)))
        }
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within_an_ulp<V: Lanes>() {
        let exp2 = |x: f32| {
            let mut y = [0.0; 16];
            V::splat(x).exp2().store(&mut y);
            y[0]
        };
        for i in 0..126_000 {
            let x = -(i as f32) * 1e-3;
            let truth = f64::from(x).exp2();
            let nearest = truth as f32;
            let ulp = f64::from(nearest.next_up()) - f64::from(nearest);
            let error = (f64::from(exp2(x)) - truth).abs() / ulp;
            assert!(error <= 1.5, "2^{x} is {truth}, got {}: {error} ulp", exp2(x));
        }
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(-127.0), 0.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn exp2_within_an_ulp() {
        within_an_ulp::<Portable>();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            within_an_ulp::<std::arch::x86_64::__m256>();
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            within_an_ulp::<std::arch::x86_64::__m512>();
        }
    }
}
