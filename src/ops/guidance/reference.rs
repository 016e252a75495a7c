//! The formulas in f64, with means taken off before anything is squared.

/// The weights of c and u for one sample. Where c and u are constant, rescale does nothing.
pub fn weights(c: &[f64], u: &[f64], scale: f64, zero_star: bool, rescale: f64) -> [f64; 2] {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let star = match (zero_star, dot(u, u)) {
        (false, _) => 1.0,
        (true, 0.0) => 0.0,
        (true, square) => dot(c, u) / square,
    };
    let (a, b) = (scale, (1.0 - scale) * star);
    let guided: Vec<f64> = c.iter().zip(u).map(|(c, u)| a * c + b * u).collect();
    let spread = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (x.len() as f64 - 1.0)).sqrt()
    };
    let constant = guided.iter().all(|g| *g == guided[0]);
    let factor = if rescale == 0.0 || constant {
        1.0
    } else {
        rescale * spread(c) / spread(&guided) + 1.0 - rescale
    };
    [factor * a, factor * b]
}
