//! AdamW (arXiv 1711.05101) and an average of the weights. Candle's own keeps its moments to itself, and a run
//! that resumes to the bit has to have them.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use super::TrainConfig;
use crate::error::Result;
use crate::fused::{in_place, takes};

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
            match (other, &sum) {
                (Some(other), Some(sum)) if takes(sum) => {
                    in_place::join(sum, &other, |sum, other| sum + share as f32 * other)?;
                }
                (Some(other), Some(old)) => *sum = Some((old + (other * share)?)?),
                (Some(other), None) => *sum = Some((other * share)?),
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// L2 norm of all together.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for gradient in self.0.iter().flatten() {
            sum += match takes(gradient) {
                true => in_place::square_sum(gradient)?,
                false => gradient.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?,
            };
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
    let numbers = Step {
        rate: config.rate(step),
        scale: (config.clip_norm / norm.max(config.clip_norm)).min(1.0),
        left: KEEP.map(|keep| 1.0 - keep.powf((step + 1) as f64)),
        // The first weights are far from good: the average forgets them fast.
        keep: config.ema.min((step + 1) as f64 / (step + 10) as f64),
        decay: config.weight_decay,
    };
    for (p, gradient) in parameters.iter_mut().zip(&gradients.0) {
        match takes(&p.weight) {
            true => numbers.in_place(p, gradient.as_ref())?,
            false => numbers.by_candle(p, gradient.as_ref())?,
        }
    }
    Ok(())
}

/// The numbers of one step.
struct Step {
    rate: f64,
    /// Of the gradients.
    scale: f64,
    /// Parts of the moments that are not their beginning.
    left: [f64; 2],
    /// How much of the average stays.
    keep: f64,
    decay: f64,
}

impl Step {
    /// What is left of a weight before the gradient moves it. Biases, norms and tables of modulation are not drawn
    /// to 0.
    fn kept(&self, p: &Parameter) -> f64 {
        let linear = p.name.ends_with(".weight") && p.weight.rank() > 1;
        if linear { 1.0 - self.rate * self.decay } else { 1.0 }
    }

    /// Four passes over memory, where candle's ops would take about twenty.
    fn in_place(&self, p: &Parameter, gradient: Option<&Tensor>) -> Result<()> {
        let weight = p.weight.as_detached_tensor();
        if let Some(gradient) = gradient {
            let [rate, scale, kept] = [self.rate, self.scale, self.kept(p)].map(|n| n as f32);
            let [mean_keep, square_keep] = KEEP.map(|keep| keep as f32);
            let [mean_left, square_left] = self.left.map(|left| 1.0 / left as f32);
            in_place::join(&p.mean, gradient, |mean, g| {
                mean_keep * mean + (1.0 - mean_keep) * (scale * g)
            })?;
            in_place::join(&p.square, gradient, |square, g| {
                square_keep * square + (1.0 - square_keep) * (scale * g) * (scale * g)
            })?;
            in_place::join_two(&weight, &p.mean, &p.square, |weight, mean, square| {
                let way = mean_left * mean / ((square_left * square).sqrt() + EPS as f32);
                kept * weight - rate * way
            })?;
        }
        let keep = self.keep as f32;
        in_place::join(&p.average, &weight, |average, w| keep * average + (1.0 - keep) * w)?;
        Ok(())
    }

    fn by_candle(&self, p: &mut Parameter, gradient: Option<&Tensor>) -> Result<()> {
        let weight = p.weight.as_detached_tensor();
        if let Some(gradient) = gradient {
            let gradient = (gradient * self.scale)?;
            p.mean = ((&p.mean * KEEP[0])? + (&gradient * (1.0 - KEEP[0]))?)?;
            p.square = ((&p.square * KEEP[1])? + (gradient.sqr()? * (1.0 - KEEP[1]))?)?;
            let way = ((&p.mean / self.left[0])? / ((&p.square / self.left[1])?.sqrt()? + EPS)?)?;
            p.weight.set(&((&weight * self.kept(p))? - (way * self.rate)?)?)?;
        }
        p.average = ((&p.average * self.keep)? + (p.weight.as_detached_tensor() * (1.0 - self.keep))?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn both_ways_make_the_same_steps() {
        let normal = |seed| {
            let mut random = crate::RandomWeights::new(seed, DType::F32, &Device::Cpu).expect("the CPU");
            random.normal(&[30, 7], 1.0).expect("numbers")
        };
        let parameter =
            || Parameter::new("a.weight", Var::from_tensor(&normal(1)).expect("a weight")).expect("moments");
        let (a, mut b) = (parameter(), parameter());
        for step in 0..5 {
            let numbers = Step {
                rate: 0.1,
                scale: 0.7,
                left: KEEP.map(|keep| 1.0 - keep.powf((step + 1) as f64)),
                keep: 0.8,
                decay: 0.1,
            };
            // Now and then a weight takes no part.
            let gradient = normal(10 + step);
            let gradient = (step != 3).then_some(&gradient);
            numbers.in_place(&a, gradient).expect("a step");
            numbers.by_candle(&mut b, gradient).expect("a step");
        }
        let pairs = [
            (a.weight.as_tensor(), b.weight.as_tensor()),
            (&a.mean, &b.mean),
            (&a.square, &b.square),
            (&a.average, &b.average),
        ];
        for (a, b) in pairs {
            let off = (a - b).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
            assert!(off.expect("a number") < 1e-6);
        }
        assert!(
            (a.weight.as_tensor() - normal(1))
                .and_then(|d| d.abs()?.min_all()?.to_scalar::<f32>())
                .expect("a number")
                > 0.0
        );
    }

    #[test]
    fn parts_are_averaged_and_their_norm_is_that_of_all() {
        let tensor = |numbers: &[f32]| Tensor::new(numbers, &Device::Cpu).expect("numbers");
        let mut sum = Gradients::default();
        for other in [
            vec![Some(tensor(&[2.0, 4.0])), None],
            vec![Some(tensor(&[4.0, 4.0])), Some(tensor(&[8.0]))],
        ] {
            sum.add(Gradients(other), 0.5).expect("a sum");
        }
        let numbers = |t: &Option<Tensor>| t.as_ref().and_then(|t| t.to_vec1::<f32>().ok());
        assert_eq!(numbers(&sum.0[0]), Some(vec![3.0, 4.0]));
        assert_eq!(numbers(&sum.0[1]), Some(vec![4.0]));
        assert_eq!(sum.norm().expect("a norm"), 41f64.sqrt());
    }
}
