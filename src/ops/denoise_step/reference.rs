//! The formulas in f64.

/// `out[e] = sum_k rows[k][frame(e)] terms[k][e]`, elements in the order `[outer, frames, inner]`.
/// The noise, where there is one, is the last term.
pub fn combine(terms: &[&[f64]], rows: &[Vec<f64>], inner: usize) -> Vec<f64> {
    let frames = rows[0].len();
    let element = |e: usize| {
        let frame = e / inner % frames;
        terms.iter().zip(rows).map(|(term, row)| row[frame] * term[e]).sum()
    };
    (0..terms[0].len()).map(element).collect()
}

/// Philox 4x32-10: ten rounds of two 32 x 32 bit products.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k, mut l] = key;
    for _ in 0..10 {
        let (x, y) = (u64::from(a) * 0xD251_1F53, u64::from(c) * 0xCD9E_8D57);
        (a, b, c, d) = ((y >> 32) as u32 ^ b ^ k, y as u32, (x >> 32) as u32 ^ d ^ l, x as u32);
        (k, l) = (k.wrapping_add(0x9E37_79B9), l.wrapping_add(0xBB67_AE85));
    }
    [a, b, c, d]
}

/// The noise of elements `0..count`: Box-Muller on pairs of words, `u = word / 2^32 + 2^-33` rounded
/// to f32, the angle `word / 2^32` turns.
pub fn noise(seed: u64, offset: u64, count: usize) -> Vec<f64> {
    let element = |e: usize| {
        let counter = offset.wrapping_add(e as u64 / 4);
        let words = philox(
            [counter as u32, (counter >> 32) as u32, 0, 0],
            [seed as u32, (seed >> 32) as u32],
        );
        let pair = e % 4 / 2 * 2;
        let u = words[pair] as f32 * 2f32.powi(-32) + 2f32.powi(-33);
        let radius = (-2.0 * f64::from(u).ln()).sqrt();
        let turns = f64::from(words[pair + 1]) / 2f64.powi(32);
        let (sin, cos) = (std::f64::consts::TAU * turns).sin_cos();
        radius * if e.is_multiple_of(2) { cos } else { sin }
    };
    (0..count).map(element).collect()
}
