//! Rows of the solvers that remember: DPM-Solver++ 2M and UniPC, both in data prediction.
//!
//! With lambda = ln((1 - sigma) / sigma) and h the growth of lambda over a step, a step from s to t
//! is `(t / s) x + (1 - t / s) (m0 + ...)` for the clean latent `m0 = x - s v`: under flow matching
//! `alpha_t (1 - e^-h)` is `1 - t / s`, so the first order is Euler's step and no logarithm comes
//! in. What stands in brackets for the second order has `q = h / h_before` in it. At sigma 1 lambda
//! is minus infinity: h_before is infinite after such a step, and q its limit, 0.

use crate::ops::denoise_step::rows::Rows;

/// Sigmas around one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around {
    /// Of the step before, where this one is of second order.
    pub before: Option<f64>,
    /// Of this step.
    pub now: f64,
    /// After it.
    pub next: f64,
}

/// ln((1 - sigma) / sigma); infinite at the ends.
fn lambda(sigma: f64) -> f64 {
    (-sigma).ln_1p() - sigma.ln()
}

/// Growth of lambda from one sigma to the next.
pub(super) fn growth(from: f64, to: f64) -> f64 {
    lambda(to) - lambda(from)
}

impl Around {
    /// Growth of lambda over this step.
    fn h(&self) -> f64 {
        growth(self.now, self.next)
    }

    /// Growth over this step in units of the growth over the step before; 0 for the first order.
    fn q(&self) -> f64 {
        self.before.map_or(0.0, |before| self.h() / growth(before, self.now))
    }

    /// The weight of the latent, and of the clean latent.
    fn weights(&self) -> (f64, f64) {
        let ratio = self.next / self.now;
        (ratio, 1.0 - ratio)
    }

    /// The corrector of the step to `next`: its weights of the clean latents before, now and after.
    ///
    /// UniC solves `[[1, 1], [r, 1]] rho = b` with r = -1 / q for the second order, and takes 1/2
    /// for the first; solved by hand, so that q = 0 needs no case.
    fn corrected(&self) -> [f64; 3] {
        let (_, weight) = self.weights();
        if self.before.is_none() {
            return [0.0, weight / 2.0, weight / 2.0];
        }
        let q = self.q();
        let [b, c] = unified(-self.h());
        let after = b + (c - b) * q / (1.0 + q);
        let before = (c - b) * q * q / (1.0 + q);
        [weight * before, weight * (1.0 - before - after), weight * after]
    }
}

/// The right side of UniPC's equations with B = e^x - 1 ("bh2"), x = -h:
/// `phi_2 / phi_1` and `2 phi_3 / phi_1`, where `phi_k = sum of x^j / (j + k)!`.
fn unified(x: f64) -> [f64; 2] {
    if x.abs() < 0.5 {
        // The closed form cancels here; what the series leaves out is below 0.5^16 / 17!.
        let phi = |k: i32| {
            let first: f64 = (1..=k).map(f64::from).product::<f64>().recip();
            let terms = (1..16).scan(first, |term, j| {
                *term *= x / f64::from(j + k);
                Some(*term)
            });
            first + terms.sum::<f64>()
        };
        return [phi(2) / phi(1), 2.0 * phi(3) / phi(1)];
    }
    // Holds at minus infinity too.
    let one = x.exp_m1();
    let two = one / x - 1.0;
    let three = two / x - 0.5;
    [two / one, 2.0 * three / one]
}

/// Terms x, the clean latent of the step before, v; outputs x, the clean latent.
pub(super) fn dpm_solver(at: Around, frames: usize) -> Vec<Rows> {
    let (ratio, weight) = at.weights();
    let half = at.q() / 2.0;
    let (m0, m1) = (weight * (1.0 + half), -weight * half);
    let all = |numbers: [f64; 4]| numbers.map(|c| vec![c; frames]).to_vec();
    vec![all([ratio + m0, m1, -m0 * at.now, 0.0]), all([1.0, 0.0, -at.now, 0.0])]
}

/// Terms x, the clean latent of the step before, the corrector's sum, v; outputs x, the clean
/// latent, the corrector's sum.
///
/// The corrector of a step adds the clean latent that the model sees at its end to numbers that are
/// known at its beginning. Those are summed there, in the same pass as the step: one tensor is kept
/// where the last latent and one more clean latent would be two.
pub(super) fn unipc(at: Around, step_before: Option<Around>, frames: usize) -> Vec<Rows> {
    let (ratio, weight) = at.weights();
    let half = at.q() / 2.0;
    let [before, now, _] = at.corrected();
    // The corrected latent: the kept sum and this much of the clean latent; x at the first step.
    let after = step_before.map(|step| step.corrected()[2]);
    let row = |corrected: f64, m0: f64, m1: f64| {
        let (x, sum, m0) = match after {
            Some(after) => (0.0, corrected, m0 + corrected * after),
            None => (corrected, 0.0, m0),
        };
        [x + m0, m1, sum, -m0 * at.now, 0.0].map(|c| vec![c; frames]).to_vec()
    };
    vec![
        row(ratio, weight * (1.0 + half), -weight * half),
        row(0.0, 1.0, 0.0),
        row(ratio, now, before),
    ]
}
