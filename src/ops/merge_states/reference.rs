//! The formula in f64.

/// Merges the outputs of one row, `[dim]` each, and their natural-log LSEs. `out = (a e^lse_a + b
/// e^lse_b) / (e^lse_a + e^lse_b)`, `lse = ln(e^lse_a + e^lse_b)`; a side whose LSE is infinite has no
/// part in it, and of two such sides comes 0 and -inf.
pub fn merge_states((a, lse_a): (&[f64], f64), (b, lse_b): (&[f64], f64)) -> (Vec<f64>, f64) {
    match (lse_a.is_infinite(), lse_b.is_infinite()) {
        (true, true) => return (vec![0.0; a.len()], f64::NEG_INFINITY),
        (true, false) => return (b.to_vec(), lse_b),
        (false, true) => return (a.to_vec(), lse_a),
        (false, false) => {}
    }
    let max = lse_a.max(lse_b);
    let (w_a, w_b) = ((lse_a - max).exp(), (lse_b - max).exp());
    let sum = w_a + w_b;
    let out = a.iter().zip(b).map(|(a, b)| (w_a * a + w_b * b) / sum);
    (out.collect(), max + sum.ln())
}
