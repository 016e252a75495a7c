//! The formulas in f64, to be read beside the paper's.

use crate::dtype::Float;

/// Sums of `x` over its tokens. `x` is `[tokens, heads, dim]`, the result `[heads, dim]`.
pub fn sum_tokens<T: Float>(x: &[T], width: usize) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    for token in x.chunks_exact(width) {
        for (sum, &x) in sums.iter_mut().zip(token) {
            *sum += f64::from(x.to_f32());
        }
    }
    sums
}

/// `sum_i sum_j sum_h q_i[h] . k_j[h / group]`, the long way: every query with every key, as the
/// paper has it (without `1 / sqrt(d)`, which changes no choice). `q` is `[tokens, q_heads, dim]`,
/// `k` is `[keys, kv_heads, dim]`.
pub fn score<T: Float>(q: &[T], k: &[T], q_heads: usize, kv_heads: usize, dim: usize) -> f64 {
    let group = q_heads / kv_heads;
    let mut score = 0.0;
    for q in q.chunks_exact(q_heads * dim) {
        for k in k.chunks_exact(kv_heads * dim) {
            for (h, q) in q.chunks_exact(dim).enumerate() {
                let k = &k[h / group * dim..][..dim];
                for (q, k) in q.iter().zip(k) {
                    score += f64::from(q.to_f32()) * f64::from(k.to_f32());
                }
            }
        }
    }
    score
}

/// Indices of the `k` best scores, ascending. Of equal ones the lower index is better, and NaN is
/// worse than every number.
pub fn choose(scores: &[f32], k: usize) -> Vec<usize> {
    let better = |a: usize, b: usize| {
        let (x, y) = (scores[a], scores[b]);
        x > y || (!x.is_nan() && y.is_nan()) || ((x == y || (x.is_nan() && y.is_nan())) && a < b)
    };
    let rank = |m: usize| (0..scores.len()).filter(|&other| better(other, m)).count();
    (0..scores.len()).filter(|&m| rank(m) < k).collect()
}

/// Rotations of a whole context: the draft's first `prefix` segments, `chosen` blocks of `frames`
/// each, the draft's other segments. `draft` is what they are without chosen blocks.
pub fn rotations(draft: &[f64], prefix: usize, chosen: usize, frames: f64) -> Vec<f64> {
    let (before, behind) = draft.split_at(prefix);
    let first = behind.first().copied().unwrap_or(0.0);
    let before = before.iter().map(|r| r + chosen as f64 * frames);
    let blocks = (0..chosen).map(|j| first + (chosen - j) as f64 * frames);
    before.chain(blocks).chain(behind.iter().copied()).collect()
}
