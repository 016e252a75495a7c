//! `denoise_step` on every device: to the bit against plain f32 loops, its noise against theory, and
//! the weights of guidance that it takes from device memory.
mod common;

use common::{Errors, Golden, Rng, Suite, rounded, widen};
use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, NoiseBase, denoise_step, reference, rows};
use packforcing::ops::guidance::reference::weights as exact_weights;
use packforcing::ops::guidance::{Guidance, GuidanceWeights, guidance};
use packforcing::{DType, Device, Error, Result, SimtOptions, Tensor, View, ViewMut};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn main() -> std::process::ExitCode {
    let mut suite = Suite::new();
    suite
        .on_devices("any shape, stride and dtype equals plain f32 to the bit", random_steps)
        .on_devices("shapes that hurt", shapes_that_hurt)
        .on_devices("the usual steps against f64", usual_steps)
        .on_devices("noise is near the f64 formula", noise_formula)
        .on_devices("noise goes by the element's index alone", noise_by_index)
        .on_devices("what is not a number stays where it is", nan_stays)
        .on_devices("coefficients can be set anew", set_anew)
        .on_devices("refuses what does not fit", refusals)
        .on_devices("a base in memory draws what arguments draw", noise_base)
        .on_devices(
            "guidance is near the f64 formula, and the CPU's to the bit",
            random_guidance,
        )
        .on_devices("guidance of one number, and of more parts than threads", guidance_sizes)
        .on_devices("a mean far above the deviation does not cancel", large_mean)
        .on_devices("guidance of zeros and constants", degenerate_guidance)
        .on_devices("what is not a number stays in its sample", nan_guidance)
        .on_devices("weighted steps equal plain f32 to the bit", weighted_steps)
        .on_devices("refuses guidance that does not fit", guidance_refusals)
        .plain("refuses bad coefficients", bad_coefficients)
        .plain("noise is normal", noise_is_normal)
        .golden("philox4x32_10", golden_philox)
        .golden("denoise_step", golden_steps)
        .golden("guidance", golden_guidance)
        .run()
}

/// The devices of a golden test.
fn devices() -> Vec<Device> {
    let simt = Device::simt(SimtOptions::default());
    [simt, Device::cuda(0)]
        .into_iter()
        .flatten()
        .chain([Device::cpu()])
        .collect()
}

fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|x| x.to_bits()).collect()
}

/// A tensor inside NaN: rows of a longer tensor, from `skip` on.
struct Strided {
    whole: Tensor,
    shape: Vec<usize>,
    /// Dimension, what lies before the view in it, what lies behind.
    margins: Vec<(usize, usize, usize)>,
}

impl Strided {
    fn new(
        device: &Device,
        dtype: DType,
        data: &[f32],
        shape: &[usize],
        margins: Vec<(usize, usize, usize)>,
    ) -> Strided {
        let mut padded = shape.to_vec();
        for &(d, before, behind) in &margins {
            padded[d] += before + behind;
        }
        let mut whole = vec![f32::NAN; padded.iter().product()];
        for (i, &x) in data.iter().enumerate() {
            whole[position(i, shape, &padded, &margins)] = x;
        }
        Strided {
            whole: Tensor::from_f32(device, dtype, &whole, &padded).unwrap(),
            shape: shape.to_vec(),
            margins,
        }
    }

    fn view(&self) -> View<'_> {
        let mut view = self.whole.view();
        for &(d, before, _) in &self.margins {
            view = view.narrow(d, before, self.shape[d]).unwrap();
        }
        view
    }

    fn view_mut(&mut self) -> ViewMut<'_> {
        let mut view = self.whole.view_mut();
        for &(d, before, _) in &self.margins {
            view = view.narrow(d, before, self.shape[d]).unwrap();
        }
        view
    }

    /// What it holds now; what lies around must still be NaN.
    fn read(&self) -> Vec<f32> {
        let mut whole = self.whole.to_f32_vec().unwrap();
        let size: usize = self.shape.iter().product();
        let padded = self.whole.shape();
        let inside: Vec<usize> = (0..size)
            .map(|i| position(i, &self.shape, padded, &self.margins))
            .collect();
        let data = inside.iter().map(|&at| whole[at]).collect();
        inside.iter().for_each(|&at| whole[at] = f32::NAN);
        assert!(whole.iter().all(|x| x.is_nan()), "written outside");
        data
    }
}

/// Where element `i` of the view lies in the whole tensor.
fn position(mut i: usize, shape: &[usize], padded: &[usize], margins: &[(usize, usize, usize)]) -> usize {
    let (mut at, mut stride) = (0, 1);
    for d in (0..shape.len()).rev() {
        let before: usize = margins.iter().filter(|m| m.0 == d).map(|m| m.1).sum();
        at += (i % shape[d] + before) * stride;
        i /= shape[d];
        stride *= padded[d];
    }
    at
}

/// Noise alone, made on the CPU.
fn cpu_noise(noise: Noise, count: usize) -> Vec<f32> {
    pure_noise(&Device::cpu(), noise, &[1, count])
}

fn pure_noise(device: &Device, noise: Noise, shape: &[usize]) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let mut out = Tensor::from_slice(device, &vec![f32::NAN; count], shape).unwrap();
    let args = DenoiseStep {
        terms: vec![],
        in_place: 0,
        frame_axis: 0,
        coefficients: &Coefficients::new(device, &[vec![vec![1.0; shape[0]]]]).unwrap(),
        noise: Some(noise),
        noise_base: None,
        guidance: None,
    };
    denoise_step(&args, &mut [out.view_mut()]).unwrap();
    out.to_vec().unwrap()
}

/// The sum as every device must make it: f32, from 0, term after term.
fn plain(terms: &[Vec<f32>], rows: &rows::Rows, inner: usize) -> Vec<f32> {
    let frames = rows[0].len();
    let element = |e: usize| {
        let mut sum = 0.0f32;
        for (term, row) in terms.iter().zip(rows) {
            sum += row[e / inner % frames] as f32 * term[e];
        }
        sum
    };
    (0..terms[0].len()).map(element).collect()
}

/// One random step: some terms, some outputs, some of them in place.
struct Step {
    shape: Vec<usize>,
    frame_axis: usize,
    terms: usize,
    outputs: usize,
    in_place: usize,
    noise: Option<Noise>,
    /// Whether views are parts of longer tensors.
    strided: bool,
    dtypes: Vec<DType>,
}

impl Step {
    /// Runs it on random numbers and compares with plain f32 loops to the bit.
    fn check(&self, device: &Device, rng: &mut Rng) {
        let count: usize = self.shape.iter().product();
        let (frames, inner) = (
            self.shape[self.frame_axis],
            self.shape[self.frame_axis + 1..].iter().product(),
        );
        let mut margins = || {
            let mut margins = vec![];
            if self.strided {
                let dims = [0, self.frame_axis, self.frame_axis + 1];
                for (i, &d) in dims.iter().enumerate() {
                    if d < self.shape.len() && !dims[..i].contains(&d) {
                        margins.push((d, rng.below(0..3), rng.below(0..9)));
                    }
                }
            }
            margins
        };
        let places: Vec<_> = (0..self.terms + self.outputs).map(|_| margins()).collect();
        let dtype = |i: usize| self.dtypes[i % self.dtypes.len()];
        let data: Vec<Vec<f32>> = (0..self.terms)
            .map(|k| rounded(dtype(k), &rng.normals(count)))
            .collect();
        let rows: Vec<rows::Rows> = (0..self.outputs)
            .map(|_| {
                let row = |rng: &mut Rng| (0..frames).map(|_| rng.normal()).collect();
                let mut rows: rows::Rows = (0..self.terms + 1).map(|_| row(rng)).collect();
                if self.noise.is_none() {
                    rows[self.terms].fill(0.0);
                }
                rows
            })
            .collect();

        let mut outputs: Vec<Strided> = (0..self.outputs)
            .map(|j| {
                let now = if j < self.in_place {
                    data[j].clone()
                } else {
                    vec![f32::NAN; count]
                };
                Strided::new(device, dtype(j), &now, &self.shape, places[self.terms + j].clone())
            })
            .collect();
        let terms: Vec<Strided> = (self.in_place..self.terms)
            .map(|k| Strided::new(device, dtype(k), &data[k], &self.shape, places[k].clone()))
            .collect();
        let args = DenoiseStep {
            terms: terms.iter().map(Strided::view).collect(),
            in_place: self.in_place,
            frame_axis: self.frame_axis,
            coefficients: &Coefficients::new(device, &rows).unwrap(),
            noise: self.noise,
            noise_base: None,
            guidance: None,
        };
        let mut views: Vec<ViewMut<'_>> = outputs.iter_mut().map(Strided::view_mut).collect();
        denoise_step(&args, &mut views).unwrap();
        drop(views);

        let mut all = data;
        all.extend(self.noise.map(|noise| cpu_noise(noise, count)));
        for (j, (output, rows)) in outputs.iter().zip(&rows).enumerate() {
            let expected = if all.is_empty() {
                vec![0.0; count]
            } else {
                plain(&all, rows, inner)
            };
            assert_eq!(
                bits(&output.read()),
                bits(&rounded(dtype(j), &expected)),
                "output {j} of {:?}, frames {}, {} terms, {} in place, dtypes {:?}, {:?}",
                self.shape,
                self.frame_axis,
                self.terms,
                self.in_place,
                self.dtypes,
                self.noise
            );
        }
        for (term, data) in terms.iter().zip(&all[self.in_place..]) {
            assert_eq!(bits(&term.read()), bits(data), "a term was written");
        }
    }
}

fn random_steps(device: &Device) {
    let mut rng = Rng::new("steps");
    for _ in 0..60 {
        let rank = rng.below(1..5);
        let outputs = rng.below(1..5);
        let in_place = rng.below(0..outputs + 1);
        let mut shape: Vec<usize> = (0..rank).map(|_| rng.below(1..6)).collect();
        // Whole vectors of 8 and of 4, and rows that end anywhere.
        shape[rank - 1] = [1, 3, 4, 8, 12, 16, 31][rng.below(0..7)];
        Step {
            frame_axis: rng.below(0..rank),
            terms: rng.below(in_place..9),
            outputs,
            in_place,
            noise: (rng.below(0..2) == 1).then_some(Noise {
                seed: rng.bits(),
                offset: rng.bits(),
            }),
            strided: rng.below(0..2) == 1,
            dtypes: (0..rng.below(1..4)).map(|_| FLOATS[rng.below(0..3)]).collect(),
            shape,
        }
        .check(device, &mut rng);
    }
}

fn shapes_that_hurt(device: &Device) {
    let mut rng = Rng::new("shapes");
    let shapes: [(&[usize], usize); 9] = [
        (&[1], 0),
        (&[5, 1], 0),
        (&[1, 239], 0),
        (&[3, 799], 0),
        (&[2, 3, 1025], 1),
        (&[2, 3, 2048], 1),
        (&[2, 16, 3, 6, 10], 2),
        (&[257, 4, 1], 1),
        (&[1023, 4], 1),
    ];
    for (i, (shape, frame_axis)) in shapes.into_iter().enumerate() {
        Step {
            shape: shape.to_vec(),
            frame_axis,
            terms: 2,
            outputs: 1,
            in_place: i % 2,
            noise: Some(Noise {
                seed: 7,
                offset: u64::MAX - 1,
            }),
            strided: false,
            dtypes: vec![FLOATS[i % 3], FLOATS[i / 3 % 3]],
        }
        .check(device, &mut rng);
    }
}

/// x, v, v_uncond and noise with sigmas a frame.
struct Latents {
    inner: usize,
    terms: [Vec<f32>; 4],
    sigma: Vec<f64>,
    sigma_next: Vec<f64>,
}

impl Latents {
    /// These rows over x, v and v_uncond where there are so many, the last row over the noise, on
    /// a device and in f64. The noise is a term here, so that any noise can be tried.
    fn run(&self, device: &Device, rows: &rows::Rows) -> (Vec<f32>, Vec<f64>) {
        let frames = self.sigma.len();
        let shape = [frames, self.inner];
        let [x, v, unconditional, noise] = &self.terms;
        let used: Vec<&Vec<f32>> = match rows.len() {
            3 => vec![x, v, noise],
            _ => vec![x, v, unconditional, noise],
        };
        let tensors: Vec<Tensor> = used
            .iter()
            .map(|t| Tensor::from_slice(device, t, &shape).unwrap())
            .collect();
        let mut out = Tensor::from_slice(device, &vec![f32::NAN; frames * self.inner], &shape).unwrap();
        let mut padded = rows.clone();
        padded.push(vec![0.0; frames]);
        let args = DenoiseStep {
            terms: tensors.iter().map(Tensor::view).collect(),
            in_place: 0,
            frame_axis: 0,
            coefficients: &Coefficients::new(device, &[padded]).unwrap(),
            noise: None,
            noise_base: None,
            guidance: None,
        };
        denoise_step(&args, &mut [out.view_mut()]).unwrap();
        let wide: Vec<Vec<f64>> = used.iter().map(|t| widen(t)).collect();
        let wide: Vec<&[f64]> = wide.iter().map(Vec::as_slice).collect();
        (out.to_vec().unwrap(), reference::combine(&wide, rows, self.inner))
    }

    /// Largest error that f32 sums may have: each of the few operations rounds once, at the size
    /// of the largest term.
    fn bound(&self, rows: &rows::Rows) -> f64 {
        let largest = |data: &[f32]| data.iter().fold(0.0f64, |a, &x| a.max(f64::from(x).abs()));
        let factor = |row: &Vec<f64>| row.iter().fold(0.0f64, |a, c| a.max(c.abs()));
        let terms: f64 = self.terms.iter().map(|t| largest(t)).sum();
        let rows: f64 = rows.iter().map(factor).sum();
        8.0 * f64::from(f32::EPSILON) * terms * rows
    }
}

fn usual_steps(device: &Device) {
    let mut rng = Rng::new("usual");
    let inner = 96;
    let latents = Latents {
        inner,
        terms: std::array::from_fn(|_| rng.normals(4 * inner)),
        sigma: vec![1.0, 0.9375, 0.5, 0.0],
        sigma_next: vec![0.9, 0.0, 1.0, 0.0],
    };
    let Latents { sigma, sigma_next, .. } = &latents;
    let [x, v, u, noise] = latents.terms.each_ref().map(|t| widen(t));
    type Formula<'a> = &'a dyn Fn(usize, f64, f64) -> f64;
    let cases: [(rows::Rows, Formula<'_>); 4] = [
        (rows::euler(sigma, sigma_next), &|e, s, next| x[e] + (next - s) * v[e]),
        (rows::x0(sigma), &|e, s, _| x[e] - s * v[e]),
        (rows::renoise(sigma, sigma_next), &|e, s, next| {
            (1.0 - next) * (x[e] - s * v[e]) + next * noise[e]
        }),
        (rows::guided(rows::euler(sigma, sigma_next), 5.0), &|e, s, next| {
            x[e] + (next - s) * (u[e] + 5.0 * (v[e] - u[e]))
        }),
    ];
    for (i, (rows, formula)) in cases.into_iter().enumerate() {
        let (got, exact) = latents.run(device, &rows);
        let truth: Vec<f64> = (0..4 * inner)
            .map(|e| formula(e, sigma[e / inner], sigma_next[e / inner]))
            .collect();
        let far = exact.iter().zip(&truth).any(|(a, b)| (a - b).abs() > 1e-13);
        assert!(!far, "the reference of case {i}");
        let error = Errors::of(&got, &truth).max;
        assert!(error <= latents.bound(&rows), "case {i}: {error:e}");
    }
}

fn noise_formula(device: &Device) {
    let mut rng = Rng::new("formula");
    for offset in [0, u64::from(u32::MAX) - 5, u64::MAX - 9, rng.bits()] {
        let seed = rng.bits();
        let got = pure_noise(device, Noise { seed, offset }, &[4, 999]);
        let truth = reference::noise(seed, offset, got.len());
        for (pair, truth) in got.chunks(2).zip(truth.chunks(2)) {
            // The series leave 3e-8 out; five roundings of half a unit do the rest.
            let bound = 4e-7 * truth[0].hypot(truth[1]);
            for (x, t) in pair.iter().zip(truth) {
                assert!(
                    (f64::from(*x) - t).abs() <= bound,
                    "{x} for {t}, seed {seed}, offset {offset}"
                );
            }
        }
    }
}

fn noise_by_index(device: &Device) {
    let noise = Noise { seed: 11, offset: 5 };
    let long = pure_noise(device, noise, &[4, 60]);
    assert_eq!(bits(&long), bits(&cpu_noise(noise, 240)));
    for shape in [vec![240, 1], vec![3, 80], vec![2, 3, 40], vec![1, 239]] {
        let count: usize = shape.iter().product();
        assert_eq!(bits(&pure_noise(device, noise, &shape)), bits(&long[..count]));
    }
    assert_eq!(noise.after(6), Noise { seed: 11, offset: 7 });
    assert_eq!(
        bits(&pure_noise(device, noise.after(6), &[1, 100])),
        bits(&long[8..108])
    );
    let another = pure_noise(device, Noise { seed: 12, offset: 5 }, &[1, 240]);
    let shared = another.iter().filter(|x| long.contains(x)).count();
    assert!(shared < 5, "{shared} numbers of another seed are the same");
}

fn nan_stays(device: &Device) {
    let mut x = vec![1.0f32; 40];
    (x[3], x[17], x[30]) = (f32::NAN, f32::INFINITY, f32::MAX);
    let mut tensor = Tensor::from_slice(device, &x, &[2, 20]).unwrap();
    let args = DenoiseStep {
        terms: vec![],
        in_place: 1,
        frame_axis: 0,
        coefficients: &Coefficients::new(device, &[vec![vec![2.0, 3.0], vec![0.0; 2]]]).unwrap(),
        noise: None,
        noise_base: None,
        guidance: None,
    };
    denoise_step(&args, &mut [tensor.view_mut()]).unwrap();
    for (e, &y) in tensor.to_vec::<f32>().unwrap().iter().enumerate() {
        match e {
            3 => assert!(y.is_nan()),
            17 | 30 => assert_eq!(y, f32::INFINITY),
            _ => assert_eq!(y, if e < 20 { 2.0 } else { 3.0 }),
        }
    }
}

fn set_anew(device: &Device) {
    let mut x = Tensor::from_slice(device, &[1.0f32, 2.0], &[2]).unwrap();
    let mut coefficients = Coefficients::new(device, &[vec![vec![2.0, 3.0], vec![0.0; 2]]]).unwrap();
    assert_eq!(
        (coefficients.outputs(), coefficients.terms(), coefficients.frames()),
        (1, 1, 2)
    );
    let step = |x: &mut Tensor, coefficients: &Coefficients| {
        let args = DenoiseStep {
            terms: vec![],
            in_place: 1,
            frame_axis: 0,
            coefficients,
            noise: None,
            noise_base: None,
            guidance: None,
        };
        denoise_step(&args, &mut [x.view_mut()])
    };
    step(&mut x, &coefficients).unwrap();
    coefficients.set(&[vec![vec![10.0, 100.0], vec![0.0; 2]]]).unwrap();
    step(&mut x, &coefficients).unwrap();
    assert_eq!(x.to_vec::<f32>().unwrap(), [20.0, 600.0]);
    let refused = coefficients.set(&[vec![vec![1.0], vec![0.0]]]);
    assert_eq!(argument(refused, "Coefficients::set"), "rows");
    coefficients.set(&[vec![vec![1.0; 2], vec![0.0, 1.0]]]).unwrap();
    assert_eq!(argument(step(&mut x, &coefficients), "denoise_step"), "noise");
}

/// The argument that an error names.
fn argument<T: std::fmt::Debug>(result: Result<T>, op: &str) -> &'static str {
    match result.unwrap_err() {
        Error::Argument { op: got, argument, .. } | Error::UnsupportedDType { op: got, argument, .. } => {
            assert_eq!(got, op);
            argument
        }
        other => panic!("{other}"),
    }
}

fn refusals(device: &Device) {
    let f32s = |shape: &[usize]| Tensor::zeros(device, DType::F32, shape).unwrap();
    let numbers = |terms: usize| {
        let mut rows = vec![vec![1.0; 3]; terms + 1];
        rows[terms].fill(0.0);
        Coefficients::new(device, &[rows]).unwrap()
    };
    let attempt = |terms: &[View<'_>], in_place: usize, frame_axis: usize, coefficients: &Coefficients| {
        let mut out = Tensor::from_slice(device, &[9.0f32; 24], &[2, 3, 4]).unwrap();
        let args = DenoiseStep {
            terms: terms.to_vec(),
            in_place,
            frame_axis,
            coefficients,
            noise: None,
            noise_base: None,
            guidance: None,
        };
        let result = denoise_step(&args, &mut [out.view_mut()]);
        let untouched = out.to_vec::<f32>().unwrap().iter().all(|&x| x == 9.0);
        assert!(result.is_ok() || untouched);
        result
    };
    let (one, two) = (numbers(1), numbers(2));
    let good = f32s(&[2, 3, 4]);
    attempt(&[good.view()], 0, 1, &one).unwrap();
    // Elements after the frames that are one and the same are not contiguous, whatever stands behind them.
    let few = f32s(&[6]);
    let wide = Tensor::zeros(device, DType::F32, &[2, 3, 4, 1]).unwrap();
    let again = few.view().strided(0, &[2, 3, 4, 1], &[3, 1, 0, 1]).unwrap();
    for (terms, taken) in [(wide.view(), true), (again, false)] {
        let mut out = Tensor::zeros(device, DType::F32, &[2, 3, 4, 1]).unwrap();
        let args = DenoiseStep {
            terms: vec![terms],
            in_place: 0,
            frame_axis: 1,
            coefficients: &one,
            noise: None,
            noise_base: None,
            guidance: None,
        };
        assert_eq!(denoise_step(&args, &mut [out.view_mut()]).is_ok(), taken);
    }
    attempt(&[good.view()], 1, 1, &two).unwrap();
    let refused = |result| argument(result, "denoise_step");
    assert_eq!(refused(attempt(&[good.view()], 0, 1, &two)), "terms");
    assert_eq!(refused(attempt(&[good.view()], 1, 1, &one)), "terms");
    assert_eq!(refused(attempt(&[], 2, 1, &two)), "in_place");
    assert_eq!(refused(attempt(&[good.view()], 0, 0, &one)), "frame_axis");
    assert_eq!(refused(attempt(&[good.view()], 0, 3, &one)), "frame_axis");
    assert_eq!(refused(attempt(&[f32s(&[2, 3, 5]).view()], 0, 1, &one)), "terms");
    assert_eq!(refused(attempt(&[f32s(&[6, 4]).view()], 0, 1, &one)), "terms");
    let none = DenoiseStep {
        terms: vec![good.view().narrow(0, 0, 0).unwrap()],
        in_place: 0,
        frame_axis: 1,
        coefficients: &one,
        noise: None,
        noise_base: None,
        guidance: None,
    };
    assert_eq!(
        refused(denoise_step(&none, &mut [f32s(&[0, 3, 4]).view_mut()])),
        "outputs"
    );
    let integers = Tensor::zeros(device, DType::I32, &[2, 3, 4]).unwrap();
    assert_eq!(refused(attempt(&[integers.view()], 0, 1, &one)), "terms");
    let elsewhere = Device::simt(SimtOptions::default()).unwrap_or_else(|_| Device::cpu());
    if elsewhere != *device {
        let foreign = Tensor::zeros(&elsewhere, DType::F32, &[2, 3, 4]).unwrap();
        assert_eq!(refused(attempt(&[foreign.view()], 0, 1, &one)), "terms");
    }
    let noisy = Coefficients::new(device, &[vec![vec![1.0; 3], vec![0.0, 0.0, 0.5]]]).unwrap();
    assert_eq!(refused(attempt(&[good.view()], 0, 1, &noisy)), "noise");
    let pair = Coefficients::new(device, &[vec![vec![0.0; 3]], vec![vec![0.0; 3]]]).unwrap();
    assert_eq!(refused(attempt(&[], 0, 1, &pair)), "outputs");
    // Dimensions after the frames with a gap, dimensions before them that are not one.
    let gap = f32s(&[3, 4, 5]);
    let (gap, mut out) = (gap.view().narrow(2, 0, 4).unwrap(), f32s(&[3, 4, 4]));
    let args = |term, frame_axis, coefficients| DenoiseStep {
        terms: vec![term],
        in_place: 0,
        frame_axis,
        coefficients,
        noise: None,
        noise_base: None,
        guidance: None,
    };
    assert_eq!(
        refused(denoise_step(&args(gap, 0, &one), &mut [out.view_mut()])),
        "terms"
    );
    let apart = f32s(&[2, 3, 3, 4]);
    let (apart, mut out) = (apart.view().narrow(1, 0, 2).unwrap(), f32s(&[2, 2, 3, 4]));
    assert_eq!(
        refused(denoise_step(&args(apart, 2, &one), &mut [out.view_mut()])),
        "terms"
    );
}

fn noise_base(device: &Device) {
    let mut rng = Rng::new("base");
    let mut base = NoiseBase::new(device, Noise { seed: 1, offset: 2 }).unwrap();
    let draw = |base: &NoiseBase, noise: Noise, shape: &[usize]| {
        let mut out = Tensor::from_slice(device, &vec![f32::NAN; shape.iter().product()], shape).unwrap();
        let args = DenoiseStep {
            terms: vec![],
            in_place: 0,
            frame_axis: 0,
            coefficients: &Coefficients::new(device, &[vec![vec![1.0; shape[0]]]]).unwrap(),
            noise: Some(noise),
            noise_base: Some(base),
            guidance: None,
        };
        denoise_step(&args, &mut [out.view_mut()]).unwrap();
        out.to_vec::<f32>().unwrap()
    };
    let fresh = draw(&base, Noise { seed: 0, offset: 0 }, &[2, 40]);
    assert_eq!(bits(&fresh), bits(&cpu_noise(Noise { seed: 1, offset: 2 }, 80)));
    for shape in [&[1, 239][..], &[3, 4, 5], &[4, 96]] {
        // Halves of both words, and sums past the end.
        for (seed, offset) in [(rng.bits(), rng.bits()), (u64::MAX, u64::MAX), (1 << 32, 3 << 32)] {
            base.set(Noise { seed, offset }).unwrap();
            let noise = Noise {
                seed: rng.bits(),
                offset: rng.bits(),
            };
            let sum = Noise {
                seed: seed.wrapping_add(noise.seed),
                offset: offset.wrapping_add(noise.offset),
            };
            let (based, given) = (draw(&base, noise, shape), pure_noise(device, sum, shape));
            assert_eq!(bits(&based), bits(&given), "base {seed}, {offset} and {noise:?}");
            assert_ne!(bits(&based), bits(&pure_noise(device, noise, shape)));
        }
    }
    // Of no use without noise, and then not in the way.
    let elsewhere = Device::simt(SimtOptions::default()).unwrap_or_else(|_| Device::cpu());
    let mut x = Tensor::from_slice(device, &[1.0f32], &[1]).unwrap();
    let coefficients = Coefficients::new(device, &[vec![vec![2.0], vec![0.0]]]).unwrap();
    let mut step = |base: &NoiseBase| {
        let args = DenoiseStep {
            terms: vec![],
            in_place: 1,
            frame_axis: 0,
            coefficients: &coefficients,
            noise: None,
            noise_base: Some(base),
            guidance: None,
        };
        denoise_step(&args, &mut [x.view_mut()])
    };
    step(&base).unwrap();
    if elsewhere != *device {
        let foreign = NoiseBase::new(&elsewhere, Noise { seed: 1, offset: 2 }).unwrap();
        assert_eq!(argument(step(&foreign), "denoise_step"), "noise_base");
    }
    assert_eq!(x.to_vec::<f32>().unwrap(), [2.0]);
}

/// How c and u become one velocity.
#[derive(Debug, Clone, Copy)]
struct How {
    scale: f64,
    zero_star: bool,
    rescale: f64,
}

const HOWS: [How; 5] = [
    How {
        scale: 5.0,
        zero_star: false,
        rescale: 0.0,
    },
    How {
        scale: 5.0,
        zero_star: true,
        rescale: 0.0,
    },
    How {
        scale: 5.0,
        zero_star: false,
        rescale: 0.7,
    },
    How {
        scale: 7.5,
        zero_star: true,
        rescale: 1.0,
    },
    How {
        scale: 1.0,
        zero_star: true,
        rescale: 0.3,
    },
];

fn run_guidance(
    device: &Device,
    c: View<'_>,
    u: View<'_>,
    frame_axis: usize,
    samples: usize,
    how: How,
) -> GuidanceWeights {
    let mut weights = GuidanceWeights::new(device, c.shape(), samples).unwrap();
    let args = Guidance {
        cond: c,
        uncond: u,
        frame_axis,
        scale: how.scale,
        zero_star: how.zero_star,
        rescale: how.rescale,
    };
    guidance(&args, &mut weights).unwrap();
    weights
}

/// The weights of dense f32 velocities of one sample each.
fn weights_of(device: &Device, c: &[f32], u: &[f32], samples: usize, how: How) -> Vec<f32> {
    let shape = [samples, 1, c.len() / samples];
    let [c, u] = [c, u].map(|x| Tensor::from_slice(device, x, &shape).unwrap());
    let weights = run_guidance(device, c.view(), u.view(), 1, samples, how);
    weights.view().to_vec().unwrap()
}

/// Each weight rounds once to f32; what f64 sums leave is far below, of the largest weight.
fn near_weights(got: &[f32], exact: [f64; 2], what: &str) {
    for (got, exact_one) in got.iter().zip(exact) {
        let bound = f64::from(f32::EPSILON) / 2.0 * exact_one.abs() + 1e-11 * exact[0].abs().max(exact[1].abs());
        let error = (f64::from(*got) - exact_one).abs();
        assert!(error <= bound, "{got} for {exact_one}: {error:e} > {bound:e}, {what}");
    }
}

/// Weights of strided velocities against f64, and against the CPU's from dense ones.
fn check_guidance(device: &Device, rng: &mut Rng, shape: &[usize], frame_axis: usize, strided: bool) {
    let count: usize = shape.iter().product();
    let dtypes = [0, 1].map(|_| FLOATS[rng.below(0..3)]);
    // A mean of its own, and some of c in u.
    let c: Vec<f32> = rng.normals(count).iter().map(|x| x + 0.5).collect();
    let u: Vec<f32> = rng
        .normals(count)
        .iter()
        .zip(&c)
        .map(|(x, c)| x + 0.7 * c - 1.0)
        .collect();
    let (c, u) = (rounded(dtypes[0], &c), rounded(dtypes[1], &u));
    let mut margins = || {
        let mut dims = vec![0, frame_axis, frame_axis + 1];
        dims.dedup();
        dims.retain(|&d| strided && d < shape.len());
        dims.iter()
            .map(|&d| (d, rng.below(0..3), rng.below(0..9)))
            .collect::<Vec<_>>()
    };
    let places = [margins(), margins()];
    let [on_c, on_u] = [(0, &c), (1, &u)].map(|(i, x)| Strided::new(device, dtypes[i], x, shape, places[i].clone()));
    let samples = if rng.below(0..2) == 0 { 1 } else { shape[0] };
    let how = HOWS[rng.below(0..HOWS.len())];
    let what = format!("{shape:?}, frames {frame_axis}, {samples} samples, {dtypes:?}, {how:?}");
    let weights = run_guidance(device, on_c.view(), on_u.view(), frame_axis, samples, how);
    let got = weights.view().to_vec::<f32>().unwrap();
    let (wide_c, wide_u) = (widen(&c), widen(&u));
    let parts = wide_c.chunks(count / samples).zip(wide_u.chunks(count / samples));
    for (got, (c, u)) in got.chunks(2).zip(parts) {
        near_weights(got, exact_weights(c, u, how.scale, how.zero_star, how.rescale), &what);
    }
    assert_eq!(
        bits(&got),
        bits(&weights_of(&Device::cpu(), &c, &u, samples, how)),
        "{what}"
    );
}

fn random_guidance(device: &Device) {
    let mut rng = Rng::new("guidance");
    for _ in 0..60 {
        let rank = rng.below(1..5);
        let mut shape: Vec<usize> = (0..rank).map(|_| rng.below(1..6)).collect();
        shape[rank - 1] = [2, 3, 4, 8, 12, 31, 257, 2000][rng.below(0..8)];
        let (frame_axis, strided) = (rng.below(0..rank), rng.below(0..2) == 1);
        check_guidance(device, &mut rng, &shape, frame_axis, strided);
    }
}

fn guidance_sizes(device: &Device) {
    let mut rng = Rng::new("guidance sizes");
    // One element, one past and one short of a part, and 257 parts of one sample.
    for shape in [
        &[1][..],
        &[5, 1],
        &[1, 4095],
        &[1, 4097],
        &[3, 4096],
        &[1, 4, 4096 * 64 + 4],
    ] {
        check_guidance(device, &mut rng, shape, shape.len().min(2) - 1, false);
    }
}

/// 1000 deviations: a sum of squares in f32 would keep 2^-24 of 10^6 variances, 6% of one.
fn large_mean(device: &Device) {
    let mut rng = Rng::new("mean");
    let c: Vec<f32> = rng.normals(9000).iter().map(|x| x + 1000.0).collect();
    let u: Vec<f32> = rng.normals(9000).iter().map(|x| 3.0 * x - 2000.0).collect();
    for how in HOWS {
        let got = weights_of(device, &c, &u, 1, how);
        let exact = exact_weights(&widen(&c), &widen(&u), how.scale, how.zero_star, how.rescale);
        // (mean / deviation)^2 of 2^-53, some hundred roundings: 1e-8 at most.
        for (got, exact) in got.iter().zip(exact) {
            assert!(
                (f64::from(*got) - exact).abs() <= 1e-7 * exact.abs(),
                "{got} for {exact}, {how:?}"
            );
        }
    }
    // At 10^6 deviations so much cancels that f32 shows the last bits of the sums: they are the CPU's.
    let how = How {
        scale: 5.0,
        zero_star: false,
        rescale: 1.0,
    };
    for _ in 0..20 {
        let c: Vec<f32> = rng.normals(4000).iter().map(|x| x + 1e6).collect();
        let u = &u[..c.len()];
        let got = weights_of(device, &c, u, 1, how);
        assert_eq!(bits(&got), bits(&weights_of(&Device::cpu(), &c, u, 1, how)));
    }
}

fn degenerate_guidance(device: &Device) {
    let some = Rng::new("some").normals(5000);
    let (zeros, constant) = (vec![0.0f32; 5000], vec![1000.3f32; 5000]);
    let how = |scale, zero_star, rescale| How {
        scale,
        zero_star,
        rescale,
    };
    // <c, u> / <u, u> of u = 0: u has no part.
    assert_eq!(weights_of(device, &some, &zeros, 1, how(5.0, true, 0.0)), [5.0, 0.0]);
    assert_eq!(weights_of(device, &zeros, &zeros, 1, how(5.0, true, 0.7)), [5.0, 0.0]);
    assert_eq!(weights_of(device, &zeros, &some, 1, how(5.0, true, 0.0)), [5.0, 0.0]);
    // Sums of a constant round up or down as their length has it.
    for (i, number) in [1000.3f32, 0.1, -7.77e8, 3.3e-5, 1.0 / 3.0]
        .repeat(8)
        .into_iter()
        .enumerate()
    {
        let constant = vec![number; 4961 + i];
        let varied: Vec<f32> = some[..constant.len()].iter().map(|x| x * number).collect();
        // Guided and c are constant: nothing to bring back.
        assert_eq!(
            weights_of(device, &constant, &constant, 1, how(5.0, false, 0.7)),
            [5.0, -4.0]
        );
        // c is constant and the guided velocity is not: its deviation goes to 1 - 0.75 of it.
        assert_eq!(
            weights_of(device, &constant, &varied, 1, how(5.0, false, 0.75)),
            [1.25, -1.0],
            "{number}"
        );
    }
    // Scale 1 is c, whatever else; c guided by itself is c.
    assert_eq!(weights_of(device, &some, &constant, 1, how(1.0, true, 0.7)), [1.0, 0.0]);
    assert_eq!(weights_of(device, &some, &some, 1, how(5.0, true, 0.0)), [5.0, -4.0]);
    assert_eq!(weights_of(device, &some, &zeros, 1, how(0.0, true, 0.0)), [0.0, 0.0]);
    // Before any guidance: c.
    let weights = GuidanceWeights::new(device, &[2, 3], 2).unwrap();
    assert_eq!(weights.view().to_vec::<f32>().unwrap(), [1.0, 0.0, 1.0, 0.0]);
}

fn nan_guidance(device: &Device) {
    let mut rng = Rng::new("nan");
    let (c, u) = (rng.normals(3 * 500), rng.normals(3 * 500));
    let how = How {
        scale: 5.0,
        zero_star: true,
        rescale: 0.7,
    };
    let whole = weights_of(device, &c, &u, 3, how);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for in_u in [false, true] {
            let (mut c, mut u) = (c.clone(), u.clone());
            let broken = if in_u { &mut u } else { &mut c };
            broken[700] = bad;
            let got = weights_of(device, &c, &u, 3, how);
            assert!(got[2..4].iter().all(|w| w.is_nan()), "{bad}: {got:?}");
            assert_eq!((&got[..2], &got[4..]), (&whole[..2], &whole[4..]));
        }
    }
    // The largest f32 squared is nothing to f64.
    let large: Vec<f32> = c.iter().map(|x| x.signum() * f32::MAX).collect();
    assert!(weights_of(device, &large, &u, 3, how).iter().all(|w| w.is_finite()));
}

fn weighted_steps(device: &Device) {
    let mut rng = Rng::new("weighted");
    // Rows of vectors of 8, of 4 and of anything; frames before and behind the samples.
    for (i, (shape, frame_axis)) in [
        (vec![2, 3, 4, 16], 2),
        (vec![3, 2, 12], 1),
        (vec![4, 5], 0),
        (vec![2, 3, 1], 1),
        (vec![5, 7], 1),
        (vec![1, 2, 31], 1),
    ]
    .into_iter()
    .enumerate()
    {
        let count: usize = shape.iter().product();
        let (frames, inner): (usize, usize) = (shape[frame_axis], shape[frame_axis + 1..].iter().product());
        let dtypes = [FLOATS[i % 3], FLOATS[i / 3]];
        // x in place, another term, c and u.
        let data: Vec<Vec<f32>> = (0..4).map(|k| rounded(dtypes[k % 2], &rng.normals(count))).collect();
        let tensors: Vec<Tensor> = (0..4)
            .map(|k| Tensor::from_f32(device, dtypes[k % 2], &data[k], &shape).unwrap())
            .collect();
        let row = |rng: &mut Rng| -> Vec<f64> { (0..frames).map(|_| rng.normal()).collect() };
        let rows: Vec<rows::Rows> = (0..2)
            .map(|_| rows::weighted((0..4).map(|_| row(&mut rng)).collect()))
            .collect();
        let noise = Noise { seed: 3, offset: 9 };
        for samples in [1, shape[0]] {
            let how = HOWS[3]; // other weights for every sample
            let weights = run_guidance(device, tensors[2].view(), tensors[3].view(), frame_axis, samples, how);
            let factors = weights.view().to_vec::<f32>().unwrap();
            let mut x = Tensor::from_f32(device, dtypes[0], &data[0], &shape).unwrap();
            let mut out = Tensor::from_f32(device, DType::F32, &vec![f32::NAN; count], &shape).unwrap();
            let args = DenoiseStep {
                terms: tensors[1..].iter().map(Tensor::view).collect(),
                in_place: 1,
                frame_axis,
                coefficients: &Coefficients::new(device, &rows).unwrap(),
                noise: Some(noise),
                noise_base: None,
                guidance: Some(&weights),
            };
            denoise_step(&args, &mut [x.view_mut(), out.view_mut()]).unwrap();
            let drawn = cpu_noise(noise, count);
            for (rows, got) in rows.iter().zip([&x, &out]) {
                let expected: Vec<f32> = (0..count)
                    .map(|e| {
                        let factor = |k: usize| {
                            if k < 2 {
                                1.0
                            } else {
                                factors[e / (count / samples) * 2 + k - 2]
                            }
                        };
                        let mut sum = 0.0f32;
                        for (k, term) in data.iter().enumerate() {
                            sum += rows[k][e / inner % frames] as f32 * factor(k) * term[e];
                        }
                        sum + rows[4][e / inner % frames] as f32 * drawn[e]
                    })
                    .collect();
                let expected = rounded(got.dtype(), &expected);
                assert_eq!(
                    bits(&got.to_f32_vec().unwrap()),
                    bits(&expected),
                    "{shape:?}, {samples} samples"
                );
            }
        }
    }
}

fn guidance_refusals(device: &Device) {
    let new = |shape: &[usize], samples| GuidanceWeights::new(device, shape, samples);
    for samples in [0, 3, 6] {
        assert_eq!(argument(new(&[2, 3], samples), "GuidanceWeights::new"), "samples");
    }
    for shape in [&[0, 3][..], &[1 << 16, 1 << 15], &[usize::MAX, 2]] {
        assert_eq!(argument(new(shape, 1), "GuidanceWeights::new"), "shape");
    }
    let mut weights = new(&[2, 3, 4], 2).unwrap();
    assert_eq!((weights.samples(), weights.shape()), (2, &[2, 3, 4][..]));
    let f32s = |shape: &[usize]| Tensor::zeros(device, DType::F32, shape).unwrap();
    let (good, other, whole) = (
        f32s(&[2, 3, 4]),
        f32s(&[2, 12]),
        Tensor::zeros(device, DType::I32, &[2, 3, 4]).unwrap(),
    );
    let gap = f32s(&[2, 3, 5]);
    let gap = gap.view().narrow(2, 0, 4).unwrap();
    let mut attempt = |cond: &View<'_>, uncond: &View<'_>, frame_axis, scale, rescale| {
        let args = Guidance {
            cond: cond.clone(),
            uncond: uncond.clone(),
            frame_axis,
            scale,
            zero_star: true,
            rescale,
        };
        let result = guidance(&args, &mut weights);
        let untouched = weights.view().to_vec::<f32>().unwrap() == [1.0, 0.0, 1.0, 0.0];
        assert!(result.is_ok() || untouched);
        result.map_err(|e| argument::<()>(Err(e), "guidance"))
    };
    let good = &good.view();
    assert_eq!(attempt(&other.view(), good, 1, 5.0, 0.0), Err("cond"));
    assert_eq!(attempt(good, &other.view(), 1, 5.0, 0.0), Err("uncond"));
    assert_eq!(attempt(&whole.view(), good, 1, 5.0, 0.0), Err("cond"));
    assert_eq!(attempt(good, &gap, 0, 5.0, 0.0), Err("uncond"));
    assert_eq!(attempt(good, good, 3, 5.0, 0.0), Err("frame_axis"));
    assert_eq!(attempt(good, good, 1, f64::NAN, 0.0), Err("scale"));
    assert_eq!(attempt(good, good, 1, 1e39, 0.0), Err("scale"));
    assert_eq!(attempt(good, good, 1, 5.0, f64::INFINITY), Err("rescale"));
    let elsewhere = Device::simt(SimtOptions::default()).unwrap_or_else(|_| Device::cpu());
    if elsewhere != *device {
        let foreign = Tensor::zeros(&elsewhere, DType::F32, &[2, 3, 4]).unwrap();
        assert_eq!(attempt(&foreign.view(), good, 1, 5.0, 0.0), Err("cond"));
    }
    attempt(good, &gap, 1, 5.0, 0.0).unwrap();

    // In the step: another shape, too few terms, another device.
    let step = |weights: &GuidanceWeights, terms: usize| {
        let mut out = f32s(&[2, 3, 4]);
        let mut rows = vec![vec![1.0; 3]; 3];
        rows[2].fill(0.0);
        let args = DenoiseStep {
            terms: vec![good.clone(); terms],
            in_place: 2 - terms,
            frame_axis: 1,
            coefficients: &Coefficients::new(device, &[rows]).unwrap(),
            noise: None,
            noise_base: None,
            guidance: Some(weights),
        };
        denoise_step(&args, &mut [out.view_mut()]).map_err(|e| argument::<()>(Err(e), "denoise_step"))
    };
    step(&new(&[2, 3, 4], 1).unwrap(), 2).unwrap();
    assert_eq!(step(&new(&[2, 3, 4], 1).unwrap(), 1), Err("guidance"));
    assert_eq!(step(&new(&[2, 12], 1).unwrap(), 2), Err("guidance"));
    if elsewhere != *device {
        let foreign = GuidanceWeights::new(&elsewhere, &[2, 3, 4], 1).unwrap();
        assert_eq!(step(&foreign, 2), Err("guidance"));
    }
}

fn bad_coefficients() {
    let cpu = Device::cpu();
    let make = |rows: &[rows::Rows]| Coefficients::new(&cpu, rows);
    make(&vec![vec![vec![1.0; 3]; 9]; 4]).unwrap();
    let bad: [Vec<rows::Rows>; 10] = [
        vec![],
        vec![vec![]],
        vec![vec![vec![]]],
        vec![vec![vec![1.0]]; 5],
        vec![vec![vec![1.0]; 10]],
        vec![vec![vec![1.0], vec![1.0, 2.0]]],
        vec![vec![vec![1.0]; 2], vec![vec![1.0]]],
        vec![vec![vec![f64::NAN]]],
        vec![vec![vec![1e39]]],
        vec![rows::euler(&[1.0, 0.5], &[0.5])],
    ];
    for rows in bad {
        assert_eq!(argument(make(&rows), "Coefficients::new"), "rows", "{rows:?}");
    }
}

/// A million numbers; every bound is five standard deviations of what it bounds.
fn noise_is_normal() {
    let n = 1_000_000;
    let noise = Noise {
        seed: common::seed(),
        offset: 0,
    };
    let mut x = widen(&cpu_noise(noise, n));
    let count = n as f64;
    let mean = |f: &dyn Fn(f64) -> f64| x.iter().map(|&x| f(x)).sum::<f64>() / count;
    let near = |what: &str, got: f64, expected: f64, variance: f64| {
        let bound = 5.0 * (variance / count).sqrt();
        assert!(
            (got - expected).abs() < bound,
            "{what}: {got}, not {expected} +- {bound:e}"
        );
    };
    near("mean", mean(&|x| x), 0.0, 1.0);
    near("variance", mean(&|x| x * x), 1.0, 2.0);
    near("third moment", mean(&|x| x.powi(3)), 0.0, 15.0);
    near("fourth moment", mean(&|x| x.powi(4)), 3.0, 96.0);
    for (edge, beyond) in [(1.0, 0.317_310_5), (3.0, 0.002_699_8), (4.0, 6.334_2e-5)] {
        let outside = mean(&|x: f64| f64::from(x.abs() > edge));
        near("tail", outside, beyond, beyond);
    }
    for lag in 1..=5 {
        let products = x.iter().zip(&x[lag..]).map(|(a, b)| a * b).sum::<f64>() / count;
        near("correlation of neighbours", products, 0.0, 1.0);
        let squares = x.iter().zip(&x[lag..]).map(|(a, b)| (a * a - 1.0) * (b * b - 1.0));
        near("correlation of squares", squares.sum::<f64>() / count, 0.0, 4.0);
    }
    // Kolmogorov and Smirnov: 2.7 / sqrt n is passed once in a million times.
    x.sort_by(f64::total_cmp);
    let distance = x.iter().enumerate().map(|(i, &x)| {
        let below = normal_below(x);
        (below - i as f64 / count)
            .abs()
            .max((below - (i + 1) as f64 / count).abs())
    });
    let distance = distance.fold(0.0, f64::max);
    assert!(
        distance < 2.7 / count.sqrt(),
        "Kolmogorov-Smirnov distance {distance:e}"
    );
}

/// The normal distribution function, to 1e-7 (Abramowitz and Stegun 7.1.26).
fn normal_below(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let series =
        ((((1.061_405_429 * t - 1.453_152_027) * t + 1.421_413_741) * t - 0.284_496_736) * t + 0.254_829_592) * t;
    let beyond = 0.5 * series * (-z * z).exp();
    if x > 0.0 { 1.0 - beyond } else { beyond }
}

fn golden_philox(golden: &Golden) {
    for case in golden.cases("philox4x32_10") {
        let words = |name: &str| -> Vec<u32> {
            let words = case[name].as_array().unwrap().iter();
            words
                .map(|w| u32::from_str_radix(w.as_str().unwrap(), 16).unwrap())
                .collect()
        };
        let counter: [u32; 4] = words("counter").try_into().unwrap();
        let key: [u32; 2] = words("key").try_into().unwrap();
        assert_eq!(reference::philox(counter, key).to_vec(), words("out"));
    }
}

fn golden_steps(golden: &Golden) {
    let load = |name: &str| golden.tensor("denoise_step.safetensors", name).0;
    let narrow = |name: &str| load(name).iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let (sigma, sigma_next) = (load("sigma"), load("sigma_next"));
    let latents = Latents {
        inner: load("x").len() / sigma.len(),
        terms: ["x", "v", "v_uncond", "noise"].map(narrow),
        sigma: sigma.clone(),
        sigma_next: sigma_next.clone(),
    };
    // Guidance alone: no x, v guided, no noise.
    let velocity = vec![vec![0.0; 4], vec![1.0; 4], vec![0.0; 4]];
    let cases = [
        ("euler", rows::euler(&sigma, &sigma_next)),
        ("x0", rows::x0(&sigma)),
        ("renoise", rows::renoise(&sigma, &sigma_next)),
        ("cfg5", rows::guided(velocity, 5.0)),
    ];
    for device in devices() {
        for (name, rows) in &cases {
            let (got, exact) = latents.run(&device, rows);
            let truth = load(name);
            let far = exact.iter().zip(&truth).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(far < 1e-12, "the reference of {name}: {far:e}");
            let error = Errors::of(&got, &truth).max;
            assert!(error <= latents.bound(rows), "{name} on {device}: {error:e}");
        }
    }
}

fn golden_guidance(golden: &Golden) {
    let load = |name: &str| golden.tensor("denoise_step.safetensors", name);
    let ((c, shape), (u, _)) = (load("v"), load("v_uncond"));
    let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let plain = How {
        scale: 5.0,
        zero_star: false,
        rescale: 0.0,
    };
    let cases = [
        ("cfg5", plain),
        (
            "cfg_zero_star5",
            How {
                zero_star: true,
                ..plain
            },
        ),
        ("cfg5_rescale_0.7", How { rescale: 0.7, ..plain }),
    ];
    for (name, how) in cases {
        let (truth, _) = load(name);
        let [a, b] = exact_weights(&c, &u, how.scale, how.zero_star, how.rescale);
        let far = (0..c.len())
            .map(|e| (a * c[e] + b * u[e] - truth[e]).abs())
            .fold(0.0, f64::max);
        assert!(far < 1e-11, "the reference of {name}: {far:e}");
        for device in devices() {
            let [c, u] = [&c, &u].map(|x| Tensor::from_slice(&device, &narrow(x), &shape).unwrap());
            let mut out = Tensor::zeros(&device, DType::F32, &shape).unwrap();
            let velocity = rows::weighted(vec![vec![1.0; shape[0]], vec![0.0; shape[0]]]);
            let args = DenoiseStep {
                terms: vec![c.view(), u.view()],
                in_place: 0,
                frame_axis: 0,
                coefficients: &Coefficients::new(&device, &[velocity]).unwrap(),
                noise: None,
                noise_base: None,
                guidance: Some(&run_guidance(&device, c.view(), u.view(), 0, 1, how)),
            };
            denoise_step(&args, &mut [out.view_mut()]).unwrap();
            // Weights, products and the sum round once each: at most 5 times 5.
            let error = Errors::of(&out.to_vec::<f32>().unwrap(), &truth).max;
            let bound = 3.0 / 2.0 * f64::from(f32::EPSILON) * 2.0 * 5.0 * 5.0;
            assert!(error <= bound, "{name} on {device}: {error:e}");
        }
    }
}
