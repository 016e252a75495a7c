//! AdamW (arXiv 1711.05101) and an average of the weights. Candle's own keeps its moments to itself, and a run
//! that resumes to the bit has to have them.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use super::TrainConfig;
use crate::error::Result;

/// How much of the mean gradient, and of its square, a step keeps.
const KEEP: [f64; 2] = [0.9, 0.99];
const EPS: f64 = 1e-8;

/// A weight and what the optimizer knows of it, all f32.
pub(super) struct Parameter {
    pub name: String,
    pub weight: Var,
    /// Mean gradient.
    pub mean: Tensor,
    /// Mean squared gradient.
    pub square: Tensor,
    /// Mean of the weight over the last steps: what samples.
    pub average: Tensor,
}

impl Parameter {
    pub fn new(name: &str, weight: Var) -> Result<Parameter> {
        Ok(Parameter {
            name: name.into(),
            mean: weight.zeros_like()?,
            square: weight.zeros_like()?,
            average: weight.as_detached_tensor().copy()?,
            weight,
        })
    }
}

/// One for each parameter that took part, in their order.
#[derive(Default)]
pub(super) struct Gradients(Vec<Option<Tensor>>);

impl Gradients {
    pub fn of(parameters: &[Parameter], store: &GradStore) -> Gradients {
        let each = parameters.iter().map(|p| store.get(&p.weight).map(Tensor::detach));
        Gradients(each.collect())
    }

    /// Adds a share of others.
    pub fn add(&mut self, others: Gradients, share: f64) -> Result<()> {
        self.0.resize(others.0.len(), None);
        for (sum, other) in self.0.iter_mut().zip(others.0) {
            if let Some(other) = other {
                let other = (other * share)?;
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + other)?,
                    None => other,
                });
            }
        }
        Ok(())
    }

    /// L2 norm of all together.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for gradient in self.0.iter().flatten() {
            sum += gradient.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        }
        Ok(sum.sqrt())
    }
}

/// A step of every weight that has a gradient, and of every average.
pub(super) fn update(
    parameters: &mut [Parameter],
    gradients: &Gradients,
    config: &TrainConfig,
    step: u64,
    norm: f64,
) -> Result<()> {
    let rate = config.rate(step);
    let scale = (config.clip_norm / norm.max(config.clip_norm)).min(1.0);
    let [mean_left, square_left] = KEEP.map(|keep| 1.0 - keep.powf((step + 1) as f64));
    // The first weights are far from good: the average forgets them fast.
    let keep = config.ema.min((step + 1) as f64 / (step + 10) as f64);
    for (p, gradient) in parameters.iter_mut().zip(&gradients.0) {
        let weight = p.weight.as_detached_tensor();
        if let Some(gradient) = gradient {
            let gradient = (gradient * scale)?;
            p.mean = ((&p.mean * KEEP[0])? + (&gradient * (1.0 - KEEP[0]))?)?;
            p.square = ((&p.square * KEEP[1])? + (gradient.sqr()? * (1.0 - KEEP[1]))?)?;
            let way = ((&p.mean / mean_left)? / ((&p.square / square_left)?.sqrt()? + EPS)?)?;
            // Biases, norms and tables of modulation are not drawn to 0.
            let linear = p.name.ends_with(".weight") && weight.rank() > 1;
            let decay = if linear { config.weight_decay } else { 0.0 };
            let next = ((&weight * (1.0 - rate * decay))? - (way * rate)?)?;
            p.weight.set(&next)?;
        }
        p.average = ((&p.average * keep)? + (p.weight.as_detached_tensor() * (1.0 - keep))?)?;
    }
    Ok(())
}
