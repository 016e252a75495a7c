//! What single instructions do: mma, ldmatrix, stmatrix, wgmma and the copy engine, run by
//! `kernels/vectors/` on the SIMT device under several schedules, and on a card where there is one.
//!
//! Results are held against two things. The oracle here is written from the tables of the PTX ISA and
//! of the CUDA programming guide (`tables.rs`), and shares no code with the SIMT device. The record,
//! `tests/golden/instructions.safetensors`, is what a card did; only a card writes it:
//!
//! ```sh
//! cargo test -p packforcing --lib --no-run # wants nvcc
//! PACKFORCING_RECORD=tests/golden/instructions.safetensors TEST_PROGRAM device::vectors --nocapture
//! ```
//!
//! Elements of shared memory are *names*: the number at byte 2 i is the i-th of a list without
//! repetition. A product with a matrix of one 1 a row then gives the names of the elements that were
//! read, and so the place of each, whatever anyone believes of the layout.

mod cases;
#[cfg(test)]
mod record;
mod tables;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

use cases::{Boxed, all_cases};

use super::{Device, KernelParams, Launch, Span};
use crate::error::Error;
use crate::ffi::TensorMap;

/// The kernel files: of instructions from sm_80 on, and of those that only sm_90 has.
const MODULES: [&str; 2] = ["instructions_sm80", "instructions_sm90"];

/// What single instructions did on a device, by [`instructions`].
#[derive(Debug, Clone, Default)]
pub struct Instructions {
    /// Cases whose result is what the tables say, to the bit.
    pub agreed: usize,
    /// Cases that gave something else, or an error: what, and where.
    pub wrong: Vec<String>,
    /// Cases of instructions that this card does not have, or that this build has no code of.
    pub left_out: usize,
}

/// Executes single instructions (products, matrix loads and stores, the copy engine) on given registers and shared memory,
/// and compares with the tables of the PTX ISA and of the CUDA programming guide. On the SIMT device too.
///
/// # Errors
///
/// The CPU, which has no such instructions; [`Error::DeviceLost`].
pub fn instructions(device: &Device) -> Result<Instructions, Error> {
    if device.compute_capability().is_none() {
        return Err(Error::argument(
            "instructions",
            "device",
            "cuda or simt",
            device.to_string(),
        ));
    }
    let mut told = Instructions::default();
    for case in all_cases() {
        if !case.is_for(device) {
            told.left_out += 1;
            continue;
        }
        match case.run(device) {
            Ok(values) => match case.differs(&values, &case.expected) {
                None => told.agreed += 1,
                Some(place) => told.wrong.push(format!("{}: {place}", case.name)),
            },
            Err(what) => told.wrong.push(format!("{}: {what}", case.name)),
        }
        device.alive()?;
    }
    Ok(told)
}

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

/// `kImage`, `kSmallImage` of `image.cuh`: elements of shared memory.
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

    fn module(&self) -> &'static str {
        let old = ["vectors_mma", "vectors_ldmatrix"];
        MODULES[usize::from(!old.iter().any(|stem| self.kernel.starts_with(stem)))]
    }

    /// Whether the device has the instruction, and this build its code.
    fn is_for(&self, device: &Device) -> bool {
        let has = match device.compute_capability() {
            Some((9, 0)) => true,
            Some((8.., _)) => self.module() == MODULES[0],
            _ => false,
        };
        has && device.has_module(self.module())
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

    #[cfg(test)]
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
            module: self.module(),
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
