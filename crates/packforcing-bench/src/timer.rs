//! The one timer: between two CUDA events on a GPU, by the clock elsewhere.

use std::time::{Duration, Instant};

use packforcing::{Device, DeviceKind, Result};

use crate::case::Case;

/// How long and how often to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Calls go on for this long before anything counts; at least one is made.
    pub warm_up: Duration,
    /// A sample makes as many calls as take this long; at least one.
    pub sample: Duration,
    /// Samples to take.
    pub samples: usize,
    /// No sample is begun after this, once there are [`Plan::LEAST_SAMPLES`].
    pub budget: Duration,
}

impl Plan {
    /// Fewer do not make a median with a spread.
    pub const LEAST_SAMPLES: usize = 3;

    /// What suits a device: 20 samples, of 1 ms and more on a GPU, whose events tell half a
    /// microsecond, of 10 ms and more on the CPU, of one call on the SIMT device.
    pub fn of(device: &Device) -> Plan {
        let ms = Duration::from_millis;
        let (warm_up, sample) = match device.kind() {
            DeviceKind::Cuda => (ms(100), ms(1)),
            DeviceKind::Cpu => (ms(50), ms(10)),
            DeviceKind::Simt | DeviceKind::CudaDouble => (ms(0), ms(0)),
        };
        Plan {
            warm_up,
            sample,
            samples: 20,
            budget: Duration::from_secs(20),
        }
    }
}

/// How long `calls` of [`Case::call`] take, one after the other, without anything else.
///
/// # Errors
///
/// What the op returns, or a device that is lost.
pub fn time(case: &mut Case, calls: u64) -> Result<Duration> {
    let device = case.device().clone();
    device.time(|| (0..calls).try_for_each(|_| case.call()))
}

/// Calls until the case is warm; says how many of [`Case::call`] a sample wants.
///
/// # Errors
///
/// As [`time`].
pub fn warm_up(case: &mut Case, plan: &Plan) -> Result<u64> {
    // More calls in flight than this wait for room in a GPU's queue.
    const MOST: u64 = 1 << 16;
    let start = Instant::now();
    // The first call loads kernels and touches memory: it says nothing.
    time(case, 1)?;
    if plan.sample.is_zero() && plan.warm_up.is_zero() {
        return Ok(1);
    }
    let mut calls = 1;
    loop {
        let took = time(case, calls)?;
        let enough = took >= plan.sample || calls == MOST;
        if enough && start.elapsed() >= plan.warm_up {
            return Ok(calls);
        }
        if !enough {
            // A little more than needed, and never a leap on the word of a slow first call.
            let wanted = 1.1 * plan.sample.as_secs_f64() / took.as_secs_f64().max(1e-9);
            let wanted = (calls as f64 * wanted.min(8.0)).ceil() as u64;
            calls = wanted.clamp(calls + 1, MOST);
        }
    }
}

/// Warms the case up and times samples.
///
/// # Errors
///
/// As [`time`].
pub fn measure(case: &mut Case, plan: &Plan) -> Result<Timing> {
    let calls = warm_up(case, plan)?;
    let start = Instant::now();
    let mut seconds = Vec::with_capacity(plan.samples);
    let each = calls * case.at_once();
    while seconds.len() < plan.samples.max(1) {
        seconds.push(time(case, calls)?.as_secs_f64() / each as f64);
        if start.elapsed() >= plan.budget && seconds.len() >= Plan::LEAST_SAMPLES {
            break;
        }
    }
    Ok(Timing::new(seconds, each))
}

/// Seconds that one call took, sample by sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    sorted: Vec<f64>,
    calls: u64,
}

impl Timing {
    fn new(mut seconds: Vec<f64>, calls: u64) -> Timing {
        seconds.sort_unstable_by(f64::total_cmp);
        Timing { sorted: seconds, calls }
    }

    /// How many samples there are.
    pub fn samples(&self) -> usize {
        self.sorted.len()
    }

    /// How many calls a sample is the mean of.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// The median of the samples, in seconds.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The shortest sample, in seconds.
    pub fn min(&self) -> f64 {
        self.quantile(0.0)
    }

    /// The longest sample, in seconds.
    pub fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    /// The range of the middle half of the samples, as a part of the median.
    pub fn spread(&self) -> f64 {
        (self.quantile(0.75) - self.quantile(0.25)) / self.median().max(f64::MIN_POSITIVE)
    }

    /// Between the two samples nearest to it.
    fn quantile(&self, at: f64) -> f64 {
        let place = at * (self.sorted.len() - 1) as f64;
        let (below, above) = (self.sorted[place.floor() as usize], self.sorted[place.ceil() as usize]);
        below + (above - below) * place.fract()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Work;

    #[test]
    fn quantiles_lie_between_samples() {
        let timing = Timing::new(vec![4.0, 1.0, 2.0, 3.0], 1);
        assert_eq!((timing.min(), timing.median(), timing.max()), (1.0, 2.5, 4.0));
        assert_eq!(timing.spread(), 1.5 / 2.5);
        assert_eq!(Timing::new(vec![7.0], 1).spread(), 0.0);
    }

    #[test]
    fn a_sample_is_as_long_as_the_plan_says() {
        let mut case = Case::new("sleep", &Device::cpu(), Work::bytes(1), usize::MAX, || {
            let call = |_: crate::case::Results<'_>| {
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            };
            Ok::<_, packforcing::Error>(Box::new(call) as crate::case::Call)
        })
        .unwrap();
        assert_eq!(case.copies(), 1);
        let plan = Plan {
            warm_up: Duration::ZERO,
            sample: Duration::from_millis(8),
            samples: 4,
            budget: Duration::from_secs(10),
        };
        let timing = measure(&mut case, &plan).unwrap();
        assert!(timing.samples() == 4 && (2..=8).contains(&timing.calls()), "{timing:?}");
        assert!(timing.min() >= 1e-3, "{timing:?}");
        // Past the budget the fewest samples are enough.
        let plan = Plan {
            budget: Duration::ZERO,
            samples: 1_000,
            ..plan
        };
        assert_eq!(measure(&mut case, &plan).unwrap().samples(), Plan::LEAST_SAMPLES);
    }
}
