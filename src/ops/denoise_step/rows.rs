//! Coefficients of the usual steps, in f64, for flow prediction: x = (1 - sigma) x0 + sigma noise,
//! v = noise - x0.
//!
//! The terms are x and v, then the noise; with guidance x, v, v_uncond, then the noise. Solvers that
//! remember have their states between x and v ([`Schedule::rows`](crate::schedule::Schedule::rows)). Each list
//! of sigmas has a number a frame. Lists of different lengths give rows of different lengths, which
//! [`Coefficients::new`](super::Coefficients::new) refuses.

/// The coefficients of one output: for each term, then for the noise, a number a frame.
pub type Rows = Vec<Vec<f64>>;

/// Euler's step from `sigma` to `sigma_next`: `x + (sigma_next - sigma) v`.
pub fn euler(sigma: &[f64], sigma_next: &[f64]) -> Rows {
    vec![
        vec![1.0; sigma.len()],
        sigma.iter().zip(sigma_next).map(|(s, next)| next - s).collect(),
        vec![0.0; sigma_next.len()],
    ]
}

/// The clean latent that v points at: `x - sigma v`.
pub fn x0(sigma: &[f64]) -> Rows {
    renoise(sigma, &vec![0.0; sigma.len()])
}

/// The clean latent with fresh noise: `(1 - sigma_next) (x - sigma v) + sigma_next noise`.
pub fn renoise(sigma: &[f64], sigma_next: &[f64]) -> Rows {
    vec![
        sigma_next.iter().map(|next| 1.0 - next).collect(),
        sigma.iter().zip(sigma_next).map(|(s, next)| (next - 1.0) * s).collect(),
        sigma_next.to_vec(),
    ]
}

/// Any step whose last term is v with classifier-free guidance: v becomes
/// `v_uncond + scale (v - v_uncond)`, and `v_uncond` a term behind it.
///
/// ```
/// use packforcing::ops::denoise_step::rows;
/// let rows = rows::guided(rows::x0(&[0.5]), 5.0);
/// assert_eq!(rows, [[1.0], [-2.5], [2.0], [0.0]]);
/// ```
pub fn guided(mut rows: Rows, scale: f64) -> Rows {
    if let Some(at) = rows.len().checked_sub(2) {
        let unconditional = rows[at].iter().map(|c| (1.0 - scale) * c).collect();
        rows[at].iter_mut().for_each(|c| *c *= scale);
        rows.insert(at + 1, unconditional);
    }
    rows
}

/// Any step whose last term is v for the weights of
/// [`guidance`](crate::ops::guidance::guidance), which come from device memory: v becomes the
/// conditional velocity, and the unconditional one a term behind it with the same row.
pub fn weighted(mut rows: Rows) -> Rows {
    if let Some(at) = rows.len().checked_sub(2) {
        rows.insert(at, rows[at].clone());
    }
    rows
}
