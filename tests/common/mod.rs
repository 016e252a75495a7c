//! One suite for every device: a test is written once, runs on each device that is here, and the
//! count of what ran where is always printed.
//!
//! `PACKFORCING_REQUIRE=cpu,simt,cuda,golden,ffmpeg` turns what is missing into a failure; a double of the driver is no `cuda`, and
//! `cuda (double)` a name of its own.
//! `PACKFORCING_SEED=n` repeats a run's random inputs. `PACKFORCING_GOLDEN=folder` names other
//! golden vectors.
#![allow(dead_code)]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use libtest_mimic::{Arguments, Failed, Trial};
use packforcing::{DType, Device, DeviceKind, Error, Result, SimtCard, SimtOptions, Tensor, View, ViewMut};

/// A kind of device, how to make one, and how many tests ran on it.
struct Kind {
    name: &'static str,
    make: fn() -> Result<Device>,
    ran: AtomicUsize,
}

static KINDS: [Kind; 5] = [
    Kind {
        name: "cpu",
        make: || Ok(Device::cpu()),
        ran: AtomicUsize::new(0),
    },
    Kind {
        name: "simt",
        make: || simt(SimtCard::Sm80),
        ran: AtomicUsize::new(0),
    },
    Kind {
        name: "simt90",
        make: || simt(SimtCard::Sm90),
        ran: AtomicUsize::new(0),
    },
    Kind {
        name: "cuda",
        make: || cuda(false),
        ran: AtomicUsize::new(0),
    },
    Kind {
        name: DOUBLE,
        make: || cuda(true),
        ran: AtomicUsize::new(0),
    },
];
/// The CUDA path with a double of the driver at its end: what is for CUDA runs there too.
const DOUBLE: &str = "cuda (double)";
static GOLDEN_RAN: AtomicUsize = AtomicUsize::new(0);
static PLAIN_RAN: AtomicUsize = AtomicUsize::new(0);

fn simt(card: SimtCard) -> Result<Device> {
    // Tests run side by side already: one thread of the operating system each.
    Device::simt(SimtOptions {
        card,
        seed: seed(),
        threads: 1,
        ..SimtOptions::default()
    })
}

/// A GPU, or a double of one and nothing else.
fn cuda(double: bool) -> Result<Device> {
    let device = Device::cuda(0)?;
    match (device.kind() == DeviceKind::CudaDouble) == double {
        true => Ok(device),
        false => Err(Error::NoDriver {
            reason: format!("what is here is {}", device.kind().name()),
        }),
    }
}

/// The tests of one file.
#[derive(Default)]
pub struct Suite {
    trials: Vec<Trial>,
}

impl Suite {
    pub fn new() -> Suite {
        Suite::default()
    }

    /// A test that is made for every device.
    pub fn on_devices(&mut self, name: &str, test: impl Fn(&Device) + Send + Sync + 'static) -> &mut Suite {
        self.on(&["cpu", "simt", "cuda"], name, test)
    }

    /// A test of an op that has a kernel of its own for sm_90: the SIMT device stands for both cards.
    pub fn on_cards(&mut self, name: &str, test: impl Fn(&Device) + Send + Sync + 'static) -> &mut Suite {
        self.on(&["cpu", "simt", "simt90", "cuda"], name, test)
    }

    /// A test of kernels: for every device but the CPU.
    pub fn on_kernels(&mut self, name: &str, test: impl Fn(&Device) + Send + Sync + 'static) -> &mut Suite {
        self.on(&["simt", "cuda"], name, test)
    }

    /// A test of what a driver does wrong: for a double of it alone.
    pub fn on_double(&mut self, name: &str, test: impl Fn(&Device) + Send + Sync + 'static) -> &mut Suite {
        self.on(&[DOUBLE], name, test)
    }

    /// A test for these kinds of devices.
    pub fn on(&mut self, kinds: &[&str], name: &str, test: impl Fn(&Device) + Send + Sync + 'static) -> &mut Suite {
        let test = Arc::new(test);
        let taken = |k: &&Kind| kinds.contains(&k.name) || (k.name == DOUBLE && kinds.contains(&"cuda"));
        for kind in KINDS.iter().filter(taken) {
            if absent(kind).is_some() {
                continue;
            }
            let test = test.clone();
            self.trials.push(Trial::test(format!("{}::{name}", kind.name), move || {
                let device = (kind.make)().map_err(|e| Failed::from(e.to_string()))?;
                kind.ran.fetch_add(1, Ordering::Relaxed);
                guarded(|| test(&device))
            }));
        }
        self
    }

    /// A test that no device has a part in.
    pub fn plain(&mut self, name: &str, test: impl Fn() + Send + 'static) -> &mut Suite {
        self.trials.push(Trial::test(name.to_string(), move || {
            PLAIN_RAN.fetch_add(1, Ordering::Relaxed);
            guarded(test)
        }));
        self
    }

    /// A test against vectors made by other programs; it gets their folder.
    pub fn golden(&mut self, name: &str, test: impl Fn(&Golden) + Send + 'static) -> &mut Suite {
        if let Ok(golden) = Golden::open() {
            self.trials.push(Trial::test(format!("golden::{name}"), move || {
                GOLDEN_RAN.fetch_add(1, Ordering::Relaxed);
                guarded(|| test(&golden))
            }));
        }
        self
    }

    /// Runs the tests and prints what ran where.
    pub fn run(&mut self) -> ExitCode {
        let arguments = Arguments::from_args();
        let listing = arguments.list;
        let required = std::env::var("PACKFORCING_REQUIRE").unwrap_or_default();
        let mut missing = Vec::new();
        for name in required.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match (KINDS.iter().find(|k| k.name == name), name) {
                (Some(kind), _) => missing.extend(absent(kind).map(|e| format!("{name}: {e}"))),
                (None, "golden") => missing.extend(Golden::open().err()),
                (None, "ffmpeg") => {} // the program's own tests look for it
                (None, _) => missing.push(format!("{name} is no device")),
            }
        }
        std::panic::set_hook(Box::new(|info| PANIC.with_borrow_mut(|text| *text = info.to_string())));
        let conclusion = libtest_mimic::run(&arguments, std::mem::take(&mut self.trials));
        if listing {
            return conclusion.exit_code();
        }
        // Most ops have no kernel of their own for sm_90.
        let mut counts: Vec<String> = KINDS
            .iter()
            .filter(|k| !matches!(k.name, "simt90" | DOUBLE) || k.ran.load(Ordering::Relaxed) > 0)
            .map(|k| match absent(k) {
                Some(e) => format!("{}: {}", k.name, brief(e)),
                None => format!("{} {}", k.name, k.ran.load(Ordering::Relaxed)),
            })
            .collect();
        match Golden::open() {
            Ok(_) => counts.push(format!("golden {}", GOLDEN_RAN.load(Ordering::Relaxed))),
            Err(e) => counts.push(e),
        }
        println!(
            "ran on: {}, no device {}",
            counts.join(", "),
            PLAIN_RAN.load(Ordering::Relaxed)
        );
        if !missing.is_empty() {
            eprintln!("required, but not here: {}", missing.join("; "));
            return ExitCode::FAILURE;
        }
        conclusion.exit_code()
    }
}

fn absent(kind: &'static Kind) -> Option<&'static Error> {
    static ABSENT: [OnceLock<Option<Error>>; KINDS.len()] = [const { OnceLock::new() }; KINDS.len()];
    let index = KINDS.iter().position(|k| std::ptr::eq(k, kind))?;
    ABSENT[index].get_or_init(|| (kind.make)().err()).as_ref()
}

fn brief(error: &Error) -> String {
    match error {
        Error::NoDriver { .. } => "no driver".into(),
        Error::NoGpu => "no GPU".into(),
        Error::KernelsNotBuilt { .. } => "kernels not built".into(),
        other => other.to_string(),
    }
}

thread_local! {
    /// Where this thread panicked last, and how.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Turns a panic into a failure that names the place and the seed.
fn guarded(test: impl FnOnce()) -> std::result::Result<(), Failed> {
    catch_unwind(AssertUnwindSafe(test)).map_err(|_| {
        let what = PANIC.with_borrow_mut(std::mem::take);
        Failed::from(format!("{what}\nrepeat with PACKFORCING_SEED={}", seed()))
    })
}

/// The seed of this run's random inputs.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| match std::env::var("PACKFORCING_SEED") {
        Ok(text) => text.parse().expect("PACKFORCING_SEED is a number"),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |d| d.as_nanos() as u64),
    })
}

/// Random numbers for inputs (SplitMix64), another stream for every name.
pub struct Rng(u64);

impl Rng {
    pub fn new(name: &str) -> Rng {
        let mix = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        Rng(name.bytes().fold(seed() ^ 0xCBF2_9CE4_8422_2325, mix))
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In `range`, evenly enough.
    pub fn below(&mut self, range: std::ops::Range<usize>) -> usize {
        range.start + (self.bits() % (range.end - range.start) as u64) as usize
    }

    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal() as f32).collect()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(0..i + 1));
        }
    }
}

/// Pages whose memory has tokens before heads: other strides than those of a pool.
pub struct TokenMajor {
    memory: Tensor,
    shape: [usize; 4],
    strides: [usize; 4],
}

impl TokenMajor {
    /// The contents of `[pages, heads, tokens, dim]`.
    pub fn of(pages: &Tensor) -> TokenMajor {
        let &[count, heads, tokens, dim] = pages.shape() else {
            panic!("{pages:?} is no pool")
        };
        let data = pages.to_f32_vec().expect("a download");
        let swap = |i: usize| {
            let (d, head) = (i % dim, i / dim % heads);
            let (token, page) = (i / dim / heads % tokens, i / dim / heads / tokens);
            data[((page * heads + head) * tokens + token) * dim + d]
        };
        let data: Vec<f32> = (0..data.len()).map(swap).collect();
        TokenMajor {
            memory: Tensor::from_f32(pages.device(), pages.dtype(), &data, &[count, tokens, heads, dim])
                .expect("a tensor"),
            shape: [count, heads, tokens, dim],
            strides: [tokens * heads * dim, dim, heads * dim, 1],
        }
    }

    pub fn view(&self) -> View<'_> {
        let all = self
            .memory
            .view()
            .reshape(&[self.memory.elements()])
            .expect("contiguous");
        all.strided(0, &self.shape, &self.strides).expect("inside")
    }

    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let elements = self.memory.elements();
        let all = self.memory.view_mut().reshape(&[elements]).expect("contiguous");
        all.strided(0, &self.shape, &self.strides).expect("inside")
    }

    /// The elements in the order of a pool, as bits.
    pub fn bits(&self) -> Vec<u32> {
        let numbers = self.view().to_f32_vec().expect("a download");
        numbers.iter().map(|x| x.to_bits()).collect()
    }
}

/// `data` rounded to `dtype`, as f32: what a tensor of that dtype really holds.
pub fn rounded(dtype: DType, data: &[f32]) -> Vec<f32> {
    let cpu = Device::cpu();
    Tensor::from_f32(&cpu, dtype, data, &[data.len()])
        .and_then(|t| t.to_f32_vec())
        .expect("a float dtype")
}

pub fn widen(data: &[f32]) -> Vec<f64> {
    data.iter().map(|&x| x.into()).collect()
}

/// Golden vectors: `golden.json` and safetensors files beside it.
#[derive(Clone)]
pub struct Golden {
    folder: PathBuf,
    pub json: serde_json::Value,
}

impl Golden {
    pub fn open() -> std::result::Result<Golden, String> {
        let folder = match std::env::var_os("PACKFORCING_GOLDEN") {
            Some(folder) => PathBuf::from(folder),
            None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
        };
        let path = folder.join("golden.json");
        let text = std::fs::read(&path).map_err(|e| format!("golden: {}: {e}", path.display()))?;
        let json = serde_json::from_slice(&text).map_err(|e| format!("golden: {}: {e}", path.display()))?;
        Ok(Golden { folder, json })
    }

    /// The cases of one section.
    pub fn cases(&self, section: &str) -> Vec<serde_json::Value> {
        match &self.json[section] {
            serde_json::Value::Array(cases) => cases.clone(),
            other => panic!("golden.json: {section} is {other}"),
        }
    }

    /// One tensor, widened to f64, with its shape.
    pub fn tensor(&self, file: &str, name: &str) -> (Vec<f64>, Vec<usize>) {
        let path = self.folder.join(file);
        std::fs::read(&path)
            .map_err(|e| e.to_string())
            .and_then(|bytes| read_tensor(&bytes, name))
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }
}

/// One tensor of a safetensors file, widened to f64, with its shape; or what is wrong with the file.
pub fn read_tensor(bytes: &[u8], name: &str) -> std::result::Result<(Vec<f64>, Vec<usize>), String> {
    let tensors = safetensors::SafeTensors::deserialize(bytes).map_err(|e| format!("not a safetensors file: {e}"))?;
    let tensor = tensors.tensor(name).map_err(|e| format!("{name}: {e}"))?;
    let data: Vec<f64> = match tensor.dtype() {
        safetensors::Dtype::F64 => words::<8>(tensor.data()).map(f64::from_le_bytes).collect(),
        safetensors::Dtype::F32 => words::<4>(tensor.data())
            .map(|w| f32::from_le_bytes(w).into())
            .collect(),
        other => return Err(format!("{name}: {other:?} is not taken (F32 and F64 are)")),
    };
    Ok((data, tensor.shape().to_vec()))
}

fn words<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    data.chunks_exact(N).map(|w| std::array::from_fn(|i| w[i]))
}

/// Errors of a result against the truth.
#[derive(Debug, Clone, Copy, Default)]
pub struct Errors {
    pub max: f64,
    pub mean: f64,
    /// L2 of the error over L2 of the truth.
    pub rel_l2: f64,
}

impl Errors {
    pub fn of(got: &[f32], truth: &[f64]) -> Errors {
        assert_eq!(got.len(), truth.len());
        let mut e = Errors::default();
        let (mut square, mut norm) = (0.0, 0.0);
        for (&g, &t) in got.iter().zip(truth) {
            let d = (f64::from(g) - t).abs();
            assert!(!d.is_nan(), "NaN where {t} was expected");
            e.max = e.max.max(d);
            e.mean += d / truth.len() as f64;
            square += d * d;
            norm += t * t;
        }
        e.rel_l2 = (square / norm.max(f64::MIN_POSITIVE)).sqrt();
        e
    }

    /// The house's rule: at most twice the plain implementation's largest error and 1.5 times its
    /// mean and L2 errors, plus a floor for errors of exact plain results.
    pub fn within(self, plain: Errors, floor: f64) {
        let holds = self.max <= 2.0 * plain.max + floor
            && self.mean <= 1.5 * plain.mean + floor
            && self.rel_l2 <= 1.5 * plain.rel_l2 + floor;
        assert!(
            holds,
            "errors {self:?} against the plain implementation's {plain:?}, floor {floor:e}"
        );
    }
}
