//! The formula in f64, one query at a time: what every device is held against.

/// One key with its value.
#[derive(Debug, Clone, Copy)]
pub struct Key<'a> {
    /// The key, rotated at its place inside its segment. `[dim]`
    pub k: &'a [f64],
    /// The value. `[dim]`
    pub v: &'a [f64],
    /// Added to the logit, natural log: that of the segment and that of the slot.
    pub bias: f64,
}

/// Keys that one rotation of the query serves.
#[derive(Debug, Clone)]
pub struct Segment<'a> {
    /// Frames that the query's time origin stands after the segment's.
    pub rotation: f64,
    /// Its keys, in order.
    pub keys: Vec<Key<'a>>,
}

/// `x` with its first `frequencies.len()` interleaved pairs turned ahead: pair p, numbers 2p and
/// 2p + 1, by `position * frequencies[p]` radians.
pub fn rotated(x: &[f64], frequencies: &[f64], position: f64) -> Vec<f64> {
    let mut y = x.to_vec();
    for (pair, frequency) in y.chunks_exact_mut(2).zip(frequencies) {
        let (sin, cos) = (position * frequency).sin_cos();
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
    }
    y
}

/// Attention of one query, `[dim]`; `frequencies` are those of the temporal pairs, in radians a
/// frame. Returns `sum_j p_j v_j / sum_j p_j` and `ln sum_j p_j` with `p_j = e^logit_j`,
/// `logit_j = scale R(rotation) q . k_j + bias_j`; zeros and -inf where no p is above 0.
pub fn attention(q: &[f64], segments: &[Segment<'_>], frequencies: &[f64], scale: f64) -> (Vec<f64>, f64) {
    let mut terms = Vec::new();
    for segment in segments {
        let q = rotated(q, frequencies, segment.rotation);
        for key in &segment.keys {
            let dot: f64 = q.iter().zip(key.k).map(|(q, k)| q * k).sum();
            terms.push((scale * dot + key.bias, key.v));
        }
    }
    let max = terms.iter().fold(f64::NEG_INFINITY, |m, &(logit, _)| m.max(logit));
    // The largest term is taken out so that no power overflows; of no terms there is none.
    let base = if max == f64::NEG_INFINITY { 0.0 } else { max };
    let (mut out, mut sum) = (vec![0.0; q.len()], 0.0);
    for (logit, v) in terms {
        let p = (logit - base).exp();
        sum += p;
        out.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
    }
    match sum {
        0.0 => (vec![0.0; q.len()], f64::NEG_INFINITY),
        _ => (out.iter().map(|o| o / sum).collect(), base + sum.ln()),
    }
}
