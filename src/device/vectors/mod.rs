//! What single instructions do: mma, ldmatrix, stmatrix, wgmma and the copy engine, run by
//! `kernels/vectors/` on the SIMT device under several schedules, and on a card where there is one.
//!
//! Results are held against two things. The oracle here is written from the tables of the PTX ISA and
//! of the CUDA programming guide (`tables.rs`), and shares no code with the SIMT device. The record,
//! `tests/golden/instructions.safetensors`, is what a card did; only a card writes it:
//!
//! ```sh
//! PACKFORCING_VECTORS=1 cargo test -p packforcing --lib --no-run # wants nvcc
//! PACKFORCING_RECORD=tests/golden/instructions.safetensors TEST_PROGRAM device::vectors --nocapture
//! ```
//!
//! Elements of shared memory are *names*: the number at byte 2 i is the i-th of a list without
//! repetition. A product with a matrix of one 1 a row then gives the names of the elements that were
//! read, and so the place of each, whatever anyone believes of the layout.

mod cases;
mod record;
mod tables;

use std::io::Write;
use std::path::PathBuf;

use half::{bf16, f16};

use cases::{Boxed, all_cases};
use record::Record;

use super::{Device, DeviceKind, KernelParams, Launch, Span};
use crate::ffi::TensorMap;

const MODULE: &str = "instructions_sm90";

/// `VectorOperand` of `kernels/vectors/vectors.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Operand {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: u32,
}

/// `VectorParams` of `kernels/vectors/vectors.h`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct VectorParams {
    map: TensorMap,
    image: u64,
    a: u64,
    b: u64,
    d: u64,
    out: u64,
    a_rows: Operand,
    b_rows: Operand,
    image_bytes: i32,
    add: i32,
    transposed: i32,
    registers: i32,
    at: [i32; 4],
    box_start: i32,
    box_bytes: i32,
    reserved: [i32; 4],
}
impl KernelParams for VectorParams {}

/// `kImage`, `kSmallImage` of `instructions_sm90.cu`: elements of shared memory.
const IMAGE: usize = 30 * 1024;
const SMALL_IMAGE: usize = 2048;

/// The dynamic shared memory of a kernel with so large an image: a barrier behind it, 1024-aligned.
fn shared_bytes(image: usize) -> usize {
    2 * image + 1024
}

/// What a kernel wrote.
#[derive(Debug, Clone, PartialEq)]
enum Values {
    /// Accumulators, of each thread one after the other.
    Floats(Vec<f32>),
    /// Shared memory, or registers in halves.
    Words(Vec<u16>),
}

struct Case {
    name: String,
    kernel: &'static str,
    threads: usize,
    shared: usize,
    /// All but the addresses and the map.
    params: VectorParams,
    image: Vec<u16>,
    a: Vec<u32>,
    b: Vec<u32>,
    d: Vec<f32>,
    /// What the copy engine reads.
    tensor: Vec<u16>,
    /// By the tables.
    expected: Values,
}

impl Case {
    fn new(name: String, kernel: &str, threads: usize, image: usize) -> Case {
        Case {
            name,
            // A launch's name is the program's own; the cases are made once.
            kernel: format!("vectors_{kernel}").leak(),
            threads,
            shared: shared_bytes(image),
            params: bytemuck::Zeroable::zeroed(),
            image: Vec::new(),
            a: Vec::new(),
            b: Vec::new(),
            d: Vec::new(),
            tensor: Vec::new(),
            expected: Values::Words(Vec::new()),
        }
    }

    /// The inputs' bytes, one buffer after the other.
    fn inputs(&self) -> [&[u8]; 5] {
        [
            bytemuck::cast_slice(&self.image),
            bytemuck::cast_slice(&self.a),
            bytemuck::cast_slice(&self.b),
            bytemuck::cast_slice(&self.d),
            bytemuck::cast_slice(&self.tensor),
        ]
    }

    /// Tells whether a record was made of the same inputs (FNV-1a).
    fn inputs_hash(&self) -> String {
        let inputs = self.inputs();
        let bytes = inputs.iter().copied().chain([bytemuck::bytes_of(&self.params)]);
        let hash = bytes.flatten().fold(0xCBF2_9CE4_8422_2325u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        format!("{hash:016x}")
    }

    fn run(&self, device: &Device) -> Result<Values, String> {
        let text = |e: crate::Error| e.to_string();
        let out_bytes = match &self.expected {
            Values::Floats(x) => 4 * x.len(),
            Values::Words(x) => 2 * x.len(),
        };
        let inputs = self.inputs();
        let aligned = |bytes: usize| bytes.next_multiple_of(256) as u64;
        let all: u64 = inputs.iter().map(|i| aligned(i.len())).sum();
        let memory = device.allocate(all as usize + out_bytes).map_err(text)?;
        let mut at = memory.address();
        let mut spans = Vec::new();
        for input in inputs {
            device.upload(at, input).map_err(text)?;
            spans.push(Span {
                address: at,
                bytes: input.len() as u64,
                writable: false,
            });
            at += aligned(input.len());
        }
        device.upload(at, &vec![0xFF; out_bytes]).map_err(text)?;
        spans.push(Span {
            address: at,
            bytes: out_bytes as u64,
            writable: true,
        });
        let mut params = VectorParams {
            image: spans[0].address,
            a: spans[1].address,
            b: spans[2].address,
            d: spans[3].address,
            out: at,
            ..self.params
        };
        if !self.tensor.is_empty() {
            params.map = device.tensor_map(&Boxed::boxes(spans[4].address).taken()?)?;
        }
        let launch = Launch {
            module: MODULE,
            kernel: self.kernel,
            grid: [1, 1, 1],
            threads: self.threads,
            shared: self.shared,
            params: &params,
            memory: &spans,
        };
        device.launch(&launch).map_err(text)?;
        let mut out = self.expected.clone();
        let bytes = match &mut out {
            Values::Floats(x) => bytemuck::cast_slice_mut(x),
            Values::Words(x) => bytemuck::cast_slice_mut(x),
        };
        device.download(at, bytes).map_err(text)?;
        Ok(out)
    }

    /// The first element in which `got` is not `want`.
    fn differs(&self, got: &Values, want: &Values) -> Option<String> {
        match (got, want) {
            (Values::Floats(got), Values::Floats(want)) => {
                let same = |(x, y): (&f32, &f32)| x == y || x.to_bits() == y.to_bits();
                let i = (0..want.len()).find(|&i| !same((&got[i], &want[i])))?;
                let each = want.len() / self.threads;
                let half = self.kernel.ends_with("_f16");
                let tell = |x: f32| format!("{x:e} ({:#010x}{})", x.to_bits(), told_place(x, half));
                let (got, want) = (tell(got[i]), tell(want[i]));
                Some(format!("thread {}, element {}: {got}, not {want}", i / each, i % each))
            }
            (Values::Words(got), Values::Words(want)) => {
                let i = (0..want.len()).find(|&i| got[i] != want[i])?;
                Some(format!("16-bit element {i}: {:#06x}, not {:#06x}", got[i], want[i]))
            }
            _ => Some("another kind of result".into()),
        }
    }
}

/// Where the element of this name lies in shared memory, to be read by people.
fn told_place(x: f32, half: bool) -> String {
    let bits = if half {
        f16::from_f32(x).to_bits()
    } else {
        bf16::from_f32(x).to_bits()
    };
    let exact = value(bits, half) == x;
    let place = (0..IMAGE).find(|&i| name(i) == bits).filter(|_| exact);
    place
        .map(|i| format!(", the name of byte {}", 2 * i))
        .unwrap_or_default()
}

/// The i-th name: a normal f16 and bf16 of middling size. `i` is below 32768.
fn name(i: usize) -> u16 {
    let sign = (i & 0x4000) << 1;
    (sign | (0x2000 + (i & 0x3FFF))) as u16
}

fn names(n: usize) -> Vec<u16> {
    (0..n).map(name).collect()
}

fn value(bits: u16, half: bool) -> f32 {
    if half {
        f16::from_bits(bits).to_f32()
    } else {
        bf16::from_bits(bits).to_f32()
    }
}

fn bits(x: f32, half: bool) -> u16 {
    if half {
        f16::from_f32(x).to_bits()
    } else {
        bf16::from_f32(x).to_bits()
    }
}

/// Small whole numbers, from -3 to 3; the sums of their products are exact in f32, in any order.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.0 >> 33) % 7) as f32 - 3.0
    }
}

fn dtype(half: bool) -> &'static str {
    if half { "f16" } else { "bf16" }
}

// -- running ----------------------------------------------------------------------------------------

/// Past the test harness, which would keep it to itself.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "instructions: {text}");
}

/// Runs all cases. Every mismatch is a line of the first result; the second is what came out, as far as
/// it did.
fn run_all<'a>(device: &Device, cases: &'a [Case], record: Option<&Record>) -> (Vec<String>, Vec<(&'a Case, Values)>) {
    let (mut wrong, mut results) = (Vec::new(), Vec::new());
    for case in cases {
        let values = match case.run(device) {
            Ok(values) => values,
            Err(e) => {
                wrong.push(format!("{}: {e}", case.name));
                continue;
            }
        };
        if let Some(where_) = case.differs(&values, &case.expected) {
            wrong.push(format!("{}: against the tables: {where_}", case.name));
        }
        match record.map(|r| r.values(case)) {
            Some(Ok(recorded)) => {
                if let Some(where_) = case.differs(&values, &recorded) {
                    wrong.push(format!("{}: against the record: {where_}", case.name));
                }
            }
            Some(Err(e)) => wrong.push(e),
            None => {}
        }
        results.push((case, values));
    }
    (wrong, results)
}

fn told_record(record: Option<&Record>) -> String {
    match record {
        Some(r) => format!("the record of {}", r.card),
        None => "no record, which no card has made yet".into(),
    }
}

fn assert_right(device: &str, wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "{device}: {} mismatches\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// A device that does otherwise than a record is told of, by the case and the element.
#[cfg(packforcing_simt)]
#[test]
fn a_record_that_says_otherwise_is_told_of() {
    let device = Device::simt(super::SimtOptions::default()).expect("it was built");
    for mut cases in all_cases().into_iter().map(|case| vec![case]) {
        let mut altered = cases[0].expected.clone();
        match &mut altered {
            Values::Floats(x) => *x.last_mut().expect("some") = -1234.5,
            Values::Words(x) => *x.last_mut().expect("some") ^= 1,
        }
        let bytes = Record::bytes("nobody", &[(&cases[0], altered.clone())]).expect("a tensor of its shape");
        let record = Record::parse(&bytes).expect("what was just written");
        let (wrong, _) = run_all(&device, &cases, Some(&record));
        assert!(matches!(&wrong[..], [one] if one.contains(&cases[0].name) && one.contains("against the record")));
        cases[0].expected = altered;
        let (wrong, _) = run_all(&device, &cases, None);
        assert!(matches!(&wrong[..], [one] if one.contains(&cases[0].name) && one.contains("against the tables")));
    }
}

#[cfg(packforcing_simt)]
#[test]
fn simt_does_as_the_tables_and_the_record_say() {
    use super::{AsyncCopies, SimtCard, SimtOptions};
    let cases = all_cases();
    let record = Record::open(&Record::path()).expect("a record, or none");
    let mut runs = 0;
    for copies in [AsyncCopies::Late, AsyncCopies::Early, AsyncCopies::Random] {
        for seed in 0..3 {
            let options = SimtOptions {
                card: SimtCard::Sm90,
                seed,
                copies,
                ..SimtOptions::default()
            };
            let device = Device::simt(options).expect("it was built");
            let (wrong, _) = run_all(&device, &cases, record.as_ref());
            assert_right(&format!("{device}, {copies:?}"), &wrong);
            runs += 1;
        }
    }
    say(&format!(
        "simt ran {} cases under {runs} schedules; compared with the tables and {}",
        cases.len(),
        told_record(record.as_ref())
    ));
}

/// The card, or why it does not run here.
fn card() -> Result<Device, String> {
    let device = Device::cuda(0).map_err(|e| e.to_string())?;
    match device.compute_capability() {
        _ if device.kind() == DeviceKind::CudaDouble => Err(format!("{device} is no card")),
        Some((9, 0)) if device.has_module(MODULE) => Ok(device),
        Some((9, 0)) => Err("the build had no PACKFORCING_VECTORS=1".into()),
        other => Err(format!("{device} has compute capability {other:?}, not 9.0")),
    }
}

#[test]
fn a_card_does_as_the_tables_and_the_record_say() {
    let to = std::env::var_os("PACKFORCING_RECORD").map(PathBuf::from);
    let device = match card() {
        Ok(device) => device,
        Err(reason) => {
            assert!(to.is_none(), "nothing to record: {reason}");
            return say(&format!("not run on a card: {reason}"));
        }
    };
    let cases = all_cases();
    let record = Record::open(&Record::path()).expect("a record, or none");
    let (wrong, results) = run_all(&device, &cases, record.as_ref());
    // First of all what the card did: where the tables say otherwise it is needed most.
    if let Some(to) = &to
        && results.len() == cases.len()
    {
        let bytes = Record::bytes(&device.to_string(), &results).expect("tensors of their shapes");
        std::fs::write(to, &bytes).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
        say(&format!(
            "recorded {} cases, {} bytes, to {}",
            cases.len(),
            bytes.len(),
            to.display()
        ));
    }
    say(&format!(
        "{device} ran {} of {} cases; compared with the tables and {}: {} mismatches",
        results.len(),
        cases.len(),
        told_record(record.as_ref()),
        wrong.len()
    ));
    assert_right(&device.to_string(), &wrong);
}

#[test]
fn a_record_keeps_every_bit() {
    let cases = all_cases();
    let results: Vec<(&Case, Values)> = cases.iter().map(|c| (c, c.expected.clone())).collect();
    let bytes = Record::bytes("nobody", &results).expect("tensors of their shapes");
    let parsed = Record::parse(&bytes).expect("what was just written");
    for case in &cases {
        assert_eq!(parsed.values(case).as_ref(), Ok(&case.expected), "{}", case.name);
    }
    assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
    say(&format!(
        "a record of these {} cases has {} bytes",
        cases.len(),
        bytes.len()
    ));
    // Numbers that no 16-bit type holds, and other inputs.
    let case = cases.iter().find(|c| c.threads == 128).expect("wgmma");
    let odd = Values::Floats((0..128 * 32).map(|i| 1.0 + i as f32 * 1e-6).collect());
    assert_eq!(record::restored(case, &record::stored(case, &odd)), Ok(odd));
    let mut other = all_cases().swap_remove(0);
    other.a[0] ^= 1;
    assert!(parsed.values(&other).is_err());
}

#[test]
fn every_name_is_another() {
    let mut all = names(1 << 15);
    assert!(
        all.iter()
            .all(|&b| [true, false].iter().all(|&half| value(b, half).is_normal()))
    );
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 1 << 15);
}

#[test]
fn every_case_has_a_name_of_its_own() {
    let cases = all_cases();
    let mut all: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), cases.len());
}
