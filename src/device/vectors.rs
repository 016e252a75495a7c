//! What single instructions do: mma, ldmatrix, stmatrix, wgmma and the copy engine, run by
//! `kernels/vectors/` on the SIMT device under several schedules, and on a card where there is one.
//!
//! Results are held against two things. The oracle here is written from the tables of the PTX ISA and
//! of the CUDA programming guide, and shares nothing with the SIMT device. The record,
//! `tests/golden/instructions.safetensors`, is what a card did; only a card writes it:
//!
//! ```sh
//! PACKFORCING_VECTORS=1 cargo test -p packforcing --lib --no-run   # with nvcc
//! PACKFORCING_RECORD=tests/golden/instructions.safetensors TEST_PROGRAM device::vectors --nocapture
//! ```
//!
//! Elements of shared memory are *names*: the number at byte 2 i is the i-th of a list without
//! repetition. A product with a matrix of one 1 a row then gives the names of the elements that were
//! read, and so the place of each, whatever anyone believes of the layout.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::tensor_map::Boxes;
use super::{Device, KernelParams, Launch, Span};
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

// -- cases ----------------------------------------------------------------------------------------

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
    kernel: String,
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
            kernel: format!("vectors_{kernel}"),
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
            kernel: &self.kernel,
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

// -- the published tables -------------------------------------------------------------------------

/// Row and column of element i of a lane's A (16 x 16) of mma.m16n8k16 with 16-bit elements.
fn mma_a(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
    let column = in_group * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
    (row, column)
}

/// The same of B (16 x 8).
fn mma_b(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    (in_group * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group)
}

/// The same of C and D (16 x 8, f32).
fn mma_d(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, in_group * 2 + (i & 1))
}

/// Row and column of element i of a thread's D (64 x N) of wgmma: a warp has 16 rows, and its columns
/// come in eights.
fn wgmma_d(thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    let row = 16 * warp + lane / 4 + if i % 4 >= 2 { 8 } else { 0 };
    (row, (i / 4) * 8 + (lane % 4) * 2 + i % 2)
}

/// The same of A (64 x 16) in registers.
fn wgmma_a(thread: usize, i: usize) -> (usize, usize) {
    let (row, column) = mma_a(thread % 32, i);
    (16 * (thread / 32) + row, column)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Major {
    /// Eight elements of 16 bytes follow each other along k.
    K,
    /// Along m or n: the transposed operand.
    Mn,
}

/// Extents and strides, in elements, the fastest first: a CuTe mode.
type Mode = [(usize, usize)];

fn along(mode: &Mode, mut i: usize) -> usize {
    let mut offset = 0;
    for &(extent, stride) in mode {
        offset += i % extent * stride;
        i /= extent;
    }
    offset
}

/// Of a mode that goes on for as long as the operand does.
const ANY: usize = usize::MAX;

/// The canonical layouts of wgmma's operands ("Asynchronous warpgroup level canonical layouts"): the
/// byte of element (mn, k).
fn wgmma_byte(operand: &Operand, major: Major, mn: usize, k: usize) -> usize {
    const T: usize = 8; // 16-bit elements in 128 bits
    let (lbo, sbo) = (operand.leading as usize / 2, operand.stride as usize / 2);
    // The swizzle Swizzle<B, 4, 3>, by the descriptor's bits 62 and 63.
    let b = [0, 3, 2, 1][operand.swizzle as usize];
    let offset = match (major, b) {
        (Major::Mn, 0) => along(&[(T, 1), (ANY, sbo)], mn) + along(&[(8, T), (ANY, lbo)], k),
        (Major::Mn, 1) => along(&[(T, 1), (2, T), (ANY, lbo)], mn) + along(&[(8, 2 * T), (ANY, sbo)], k),
        (Major::Mn, 2) => along(&[(T, 1), (4, T), (ANY, lbo)], mn) + along(&[(8, 4 * T), (ANY, sbo)], k),
        (Major::Mn, _) => along(&[(T, 1), (8, T), (ANY, lbo)], mn) + along(&[(8, 8 * T), (ANY, sbo)], k),
        (Major::K, 0) => along(&[(8, T), (ANY, sbo)], mn) + along(&[(T, 1), (ANY, lbo)], k),
        (Major::K, 1) => along(&[(8, 2 * T), (ANY, sbo)], mn) + along(&[(T, 1), (ANY, T)], k),
        (Major::K, 2) => along(&[(8, 4 * T), (ANY, sbo)], mn) + along(&[(T, 1), (ANY, T)], k),
        (Major::K, _) => along(&[(8, 8 * T), (ANY, sbo)], mn) + along(&[(T, 1), (ANY, T)], k),
    };
    let address = operand.start as usize + 2 * offset;
    let yyy = address & (((1 << b) - 1) << 7);
    address ^ (yyy >> 3)
}

// -- mma, ldmatrix, stmatrix ----------------------------------------------------------------------

/// A warp's registers from a matrix, `N` of them a lane.
fn fragment<const N: usize>(threads: usize, place: impl Fn(usize, usize) -> u16) -> Vec<u32> {
    let register = |t: usize, r: usize| u32::from(place(t, 2 * r)) | u32::from(place(t, 2 * r + 1)) << 16;
    (0..threads)
        .flat_map(|t| (0..N).map(move |r| (t, r)))
        .map(|(t, r)| register(t, r))
        .collect()
}

fn mma(what: &str, half: bool, a: impl Fn(usize, usize) -> u16, b: impl Fn(usize, usize) -> u16, c: &[f32]) -> Case {
    let mut case = Case::new(
        format!("mma/{}/{what}", dtype(half)),
        &format!("mma_{}", dtype(half)),
        32,
        0,
    );
    case.shared = 0;
    case.a = fragment::<4>(32, |lane, i| {
        let (row, k) = mma_a(lane, i);
        a(row, k)
    });
    case.b = fragment::<2>(32, |lane, i| {
        let (k, column) = mma_b(lane, i);
        b(k, column)
    });
    case.d = c.to_vec();
    let mut d = c.to_vec();
    for (i, d) in d.iter_mut().enumerate() {
        let (row, column) = mma_d(i / 4, i % 4);
        let products = (0..16).map(|k| f64::from(value(a(row, k), half)) * f64::from(value(b(k, column), half)));
        *d = (f64::from(*d) + products.sum::<f64>()) as f32;
    }
    case.expected = Values::Floats(d);
    case
}

fn mma_cases(cases: &mut Vec<Case>) {
    for half in [true, false] {
        let one = |yes: bool| bits(if yes { 1.0 } else { 0.0 }, half);
        let zeros = [0.0; 128];
        let a_name = |m: usize, k: usize| name(16 * m + k);
        cases.push(mma("a, left half", half, a_name, |k, n| one(k == n), &zeros));
        cases.push(mma("a, right half", half, a_name, |k, n| one(k == n + 8), &zeros));
        let b_name = |k: usize, n: usize| name(256 + 8 * k + n);
        cases.push(mma("b, top", half, |m, k| one(m == k), b_name, &zeros));
        let mut numbers = Numbers(1);
        let a: Vec<u16> = (0..256).map(|_| bits(numbers.next(), half)).collect();
        let b: Vec<u16> = (0..128).map(|_| bits(numbers.next(), half)).collect();
        let c: Vec<f32> = (0..128).map(|i| i as f32).collect();
        cases.push(mma("product", half, |m, k| a[16 * m + k], |k, n| b[8 * k + n], &c));
    }
}

/// Where a lane's row of eight elements stands: rows in order, and chunks of wider rows, swapped by the
/// row, as kernels have them.
const ROWS: [(&str, fn(usize) -> usize); 2] = [
    ("rows in order", |lane| 16 * lane),
    ("swapped chunks", |lane| {
        128 * (lane % 16) + 16 * ((4 + lane / 16) ^ lane % 8)
    }),
];

fn matrix_cases(cases: &mut Vec<Case>) {
    // Lanes 8 j to 8 j + 7 name the rows of matrix j, which is register j; a lane has of each the
    // elements 2 (lane % 4) and the next of row lane / 4.
    for (what, row) in ROWS {
        let rows: Vec<u32> = (0..32).map(|lane| row(lane) as u32).collect();
        let place = |matrix: usize, r: usize, c: usize| row(8 * matrix + r) / 2 + c;
        let element = |lane: usize, e: usize| (lane / 4, 2 * (lane % 4) + e);
        for (instruction, transposed) in [("ldmatrix", false), ("ldmatrix_trans", true)] {
            let mut case = Case::new(format!("{instruction}/{what}"), instruction, 32, SMALL_IMAGE);
            case.image = names(SMALL_IMAGE);
            case.params.image_bytes = 2 * SMALL_IMAGE as i32;
            case.b = rows.clone();
            let mut registers = Vec::new();
            for lane in 0..32 {
                for i in 0..8 {
                    let (r, c) = element(lane, i % 2);
                    let (r, c) = if transposed { (c, r) } else { (r, c) };
                    registers.push(case.image[place(i / 2, r, c)]);
                }
            }
            case.expected = Values::Words(registers);
            cases.push(case);
        }
        let mut case = Case::new(format!("stmatrix/{what}"), "stmatrix", 32, SMALL_IMAGE);
        case.image = names(SMALL_IMAGE);
        case.params.image_bytes = 2 * SMALL_IMAGE as i32;
        case.b = rows;
        let stored = |lane: usize, i: usize| name(SMALL_IMAGE + 8 * lane + i);
        case.a = fragment::<4>(32, stored);
        let mut image = case.image.clone();
        for lane in 0..32 {
            for i in 0..8 {
                let (r, c) = element(lane, i % 2);
                image[place(i / 2, r, c)] = stored(lane, i);
            }
        }
        case.expected = Values::Words(image);
        cases.push(case);
    }
}

// -- wgmma ----------------------------------------------------------------------------------------

/// An operand in shared memory.
#[derive(Clone, Copy)]
struct Placed {
    operand: Operand,
    major: Major,
}

impl Placed {
    fn byte(&self, mn: usize, k: usize) -> usize {
        wgmma_byte(&self.operand, self.major, mn, k)
    }
}

/// Swizzles by their span in bytes.
const SPANS: [u32; 4] = [0, 32, 64, 128];

/// An operand from `start` on. Its offsets differ from each other, and leave gaps unless it is `dense`.
fn placed(start: u32, major: Major, span: u32, dense: bool) -> Placed {
    let pattern = 8 * span;
    let (leading, stride) = match (major, span) {
        (Major::K, 0) if dense => (128, 256),
        (Major::K, 0) => (192, 400),
        (Major::Mn, 0) => (144, 272),
        // The leading offset is not used.
        (Major::K, _) => (16, if dense { pattern } else { 2 * pattern }),
        (Major::Mn, _) => (3 * pattern, pattern),
    };
    let swizzle = [0, 3, 2, 1][SPANS.iter().position(|&s| s == span).expect("a span")];
    let operand = Operand {
        start,
        leading,
        stride,
        swizzle,
    };
    Placed { operand, major }
}

/// Of a, where it stands in shared memory, and of b.
const A_START: u32 = 1024;
const B_START: u32 = 20 * 1024;

enum LeftOperand {
    Registers(fn(usize, usize) -> f32),
    Placed(Placed),
}

/// A product of what `image` and the registers hold. Without `c` the accumulators are NaN, and not to
/// be added to.
fn wgmma(what: String, n: usize, half: bool, a: LeftOperand, b: Placed, image: Vec<u16>, c: Option<&[f32]>) -> Case {
    let name = format!("wgmma/n{n}/{}/{what}", dtype(half));
    let mut case = Case::new(name, &format!("wgmma_{n}_{}", dtype(half)), 128, IMAGE);
    let read = |byte: usize| value(image[byte / 2], half);
    let left = |m: usize, k: usize| match &a {
        LeftOperand::Registers(f) => f(m, k),
        LeftOperand::Placed(placed) => read(placed.byte(m, k)),
    };
    let (a_matrix, b_matrix): (Vec<f32>, Vec<f32>) = (
        (0..64 * 16).map(|i| left(i / 16, i % 16)).collect(),
        (0..16 * n).map(|i| read(b.byte(i % n, i / n))).collect(),
    );
    let each = n / 2;
    let sums = (0..128 * each).map(|i| {
        let (row, column) = wgmma_d(i / each, i % each);
        let products = (0..16).map(|k| f64::from(a_matrix[16 * row + k]) * f64::from(b_matrix[n * k + column]));
        (products.sum::<f64>() + c.map_or(0.0, |c| f64::from(c[i]))) as f32
    });
    case.expected = Values::Floats(sums.collect());
    match &a {
        LeftOperand::Registers(f) => {
            case.params.registers = 1;
            case.a = fragment::<4>(128, |thread, i| {
                let (m, k) = wgmma_a(thread, i);
                bits(f(m, k), half)
            });
        }
        LeftOperand::Placed(placed) => case.params.a_rows = placed.operand,
    }
    case.params.b_rows = b.operand;
    case.params.transposed = (b.major == Major::Mn).into();
    case.params.add = c.is_some().into();
    case.params.image_bytes = 2 * IMAGE as i32;
    case.d = c.map_or_else(|| vec![f32::NAN; 128 * each], <[f32]>::to_vec);
    case.image = image;
    case
}

/// A 1 in every row, the next row's in the next column.
fn identity(m: usize, k: usize) -> f32 {
    if m % 16 == k { 1.0 } else { 0.0 }
}

/// Which elements of shared memory are b: a in registers picks each row of it in turn.
fn b_places(n: usize, half: bool, b: Placed, what: String) -> Case {
    wgmma(what, n, half, LeftOperand::Registers(identity), b, names(IMAGE), None)
}

/// Which elements are a: b picks each column of it in turn.
fn a_places(half: bool, a: Placed, what: String) -> Case {
    let n = 64;
    let b = placed(B_START, Major::K, 0, true);
    let mut image = names(IMAGE);
    for (column, k) in (0..n).flat_map(|c| (0..16).map(move |k| (c, k))) {
        image[b.byte(column, k) / 2] = bits(identity(column, k), half);
    }
    wgmma(what, n, half, LeftOperand::Placed(a), b, image, None)
}

fn swizzle_name(span: u32) -> String {
    if span == 0 {
        "no swizzle".into()
    } else {
        format!("swizzle {span}")
    }
}

fn wgmma_cases(cases: &mut Vec<Case>) {
    for n in [64, 96, 128, 192] {
        for (half, major) in [
            (true, Major::K),
            (true, Major::Mn),
            (false, Major::K),
            (false, Major::Mn),
        ] {
            for span in SPANS {
                // A layout is of whole patterns: 96 columns are not, of 64. Types share their layouts.
                let whole = major == Major::K || span == 0 || n * 2 % span as usize == 0;
                if whole && (half || span == 128) {
                    let b = placed(A_START, major, span, false);
                    let what = format!("b by {major:?}, {}", swizzle_name(span));
                    cases.push(b_places(n, half, b, what));
                }
            }
        }
    }
    // Steps along k inside of a pattern move the start.
    for (span, step) in [(128, 32), (128, 64), (128, 96), (64, 32)] {
        let moved = placed(A_START + step, Major::K, span, false);
        let what = |x: &str| format!("{x} by K, {}, {step} bytes on", swizzle_name(span));
        cases.push(b_places(96, true, moved, what("b")));
        cases.push(a_places(true, moved, what("a")));
    }
    for span in SPANS {
        for half in [true, false] {
            if half || span == 128 {
                let what = format!("a, {}", swizzle_name(span));
                cases.push(a_places(half, placed(A_START, Major::K, span, false), what));
            }
        }
    }
    product_cases(cases);
}

/// Products of whole matrices, added to what was there.
fn product_cases(cases: &mut Vec<Case>) {
    // Columns, f16, the swizzle of a in shared memory, b.
    let products = [
        (64, true, Some(128), Major::K, 128),
        (64, false, None, Major::Mn, 128),
        (96, true, Some(64), Major::K, 64),
        (96, false, Some(128), Major::K, 128),
        (128, true, None, Major::Mn, 128),
        (128, false, Some(32), Major::Mn, 64),
        (192, true, Some(128), Major::K, 128),
        (192, false, None, Major::Mn, 128),
        (192, false, Some(0), Major::Mn, 0),
    ];
    for (i, (n, half, a_span, major, span)) in products.into_iter().enumerate() {
        let mut numbers = Numbers(100 + i as u64);
        let b = placed(B_START, major, span, true);
        let mut image = names(IMAGE);
        for (column, k) in (0..n).flat_map(|c| (0..16).map(move |k| (c, k))) {
            image[b.byte(column, k) / 2] = bits(numbers.next(), half);
        }
        let (a, where_a) = match a_span {
            None => {
                let a: fn(usize, usize) -> f32 = |m, k| ((5 * m + 3 * k + m * k) % 7) as f32 - 3.0;
                (LeftOperand::Registers(a), "registers".into())
            }
            Some(span) => {
                let a = placed(A_START, Major::K, span, false);
                for (m, k) in (0..64).flat_map(|m| (0..16).map(move |k| (m, k))) {
                    image[a.byte(m, k) / 2] = bits(numbers.next(), half);
                }
                (LeftOperand::Placed(a), swizzle_name(span))
            }
        };
        let c: Vec<f32> = (0..64 * n).map(|i| (i * 7 % 1024) as f32).collect();
        let what = format!("product, a: {where_a}, b by {major:?}, {}", swizzle_name(span));
        cases.push(wgmma(what, n, half, a, b, image, Some(&c)));
    }
}

// -- the copy engine ------------------------------------------------------------------------------

/// The tensor that boxes are fetched from: elements are 1, 2, ... in memory order, gaps between rows
/// and at the end of heads and pages included.
struct Boxed;

impl Boxed {
    const EXTENTS: [usize; 4] = [80, 6, 3, 2];
    /// Bytes; more than a row of 80 elements, six rows, three heads.
    const STRIDES: [usize; 3] = [176, 1072, 3232];
    const SIZE: [usize; 4] = [64, 4, 2, 2];

    fn boxes(address: u64) -> Boxes {
        Boxes {
            address,
            extents: Self::EXTENTS,
            strides: Self::STRIDES,
            size: Self::SIZE,
        }
    }

    /// 0 outside.
    fn element(at: [i64; 4]) -> u16 {
        let inside = (0..4).all(|d| at[d] >= 0 && at[d] < Self::EXTENTS[d] as i64);
        let offset = 2 * at[0] + (1..4).map(|d| at[d] * Self::STRIDES[d - 1] as i64).sum::<i64>();
        if inside { 1 + (offset / 2) as u16 } else { 0 }
    }
}

fn tma_cases(cases: &mut Vec<Case>) {
    let edges = [
        ("inside", [0, 0, 0, 0]),
        ("inside, the last", [16, 2, 1, 0]),
        ("columns from -24", [-24, 1, 0, 0]),
        ("columns from -3", [-3, 1, 0, 0]),
        ("columns up to the end and 24 more", [40, 1, 1, 0]),
        ("columns from an odd one, past the end", [17, 0, 0, 0]),
        ("columns all before", [-64, 0, 0, 0]),
        ("columns all behind", [80, 0, 0, 0]),
        ("tokens from -1", [8, -1, 0, 0]),
        ("tokens past the end", [8, 4, 0, 0]),
        ("tokens all behind", [8, 6, 0, 0]),
        ("heads from -1", [8, 1, -1, 0]),
        ("heads past the end", [8, 1, 2, 0]),
        ("pages from -1", [8, 1, 0, -1]),
        ("pages past the end", [8, 1, 0, 1]),
        ("pages far behind", [8, 1, 0, 1000]),
        ("four edges at once", [-24, 4, -1, 1]),
    ];
    let places = [1024, 128, 384, 896];
    let at_zero = edges.iter().map(|&(what, at)| (what, at, 0));
    let elsewhere = places
        .iter()
        .flat_map(|&place| edges[1..3].iter().map(move |&(what, at)| (what, at, place)));
    for (what, at, start) in at_zero.chain(elsewhere) {
        let mut case = Case::new(format!("tma/{what}, to byte {start}"), "tma", 128, SMALL_IMAGE);
        let tensor_bytes = Boxed::STRIDES[2] * Boxed::EXTENTS[3];
        case.tensor = (0..tensor_bytes / 2).map(|i| 1 + i as u16).collect();
        case.image = (0..SMALL_IMAGE).map(|i| 0x8000 | i as u16).collect();
        let [columns, tokens, heads, pages] = Boxed::SIZE;
        case.params.image_bytes = 2 * SMALL_IMAGE as i32;
        case.params.at = at;
        case.params.box_start = start as i32;
        case.params.box_bytes = (2 * columns * tokens * heads * pages) as i32;
        let mut image = case.image.clone();
        for row in 0..tokens * heads * pages {
            let (token, head, page) = (row % tokens, row / tokens % heads, row / tokens / heads);
            for column in 0..columns {
                let index = [column, token, head, page];
                let element = Boxed::element(std::array::from_fn(|d| i64::from(at[d]) + index[d] as i64));
                // CU_TENSOR_MAP_SWIZZLE_128B, by the programming guide: a chunk of 16 bytes in a line of
                // 128 goes to its number xor the line's, lines counted from a 1024-byte boundary.
                let line = start / 128 + row;
                let chunk = column / 8 ^ line % 8;
                image[64 * line + 8 * chunk + column % 8] = element;
            }
        }
        case.expected = Values::Words(image);
        cases.push(case);
    }
}

fn all_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    mma_cases(&mut cases);
    matrix_cases(&mut cases);
    wgmma_cases(&mut cases);
    tma_cases(&mut cases);
    cases
}

// -- the record -----------------------------------------------------------------------------------

const ABOUT: &str = "What a card's instructions did with the inputs of src/device/vectors.rs, whose hashes are \
                     beside this. A tensor is a case's output: accumulators thread by thread in the narrowest \
                     float type that holds them, a quarter of them where all four warps have the same; or the \
                     16-bit elements of shared memory or of registers.";

/// A record's tensor: element type, shape, bytes.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

fn stored(case: &Case, values: &Values) -> Stored {
    let x = match values {
        Values::Words(x) => return (Dtype::U16, vec![x.len()], bytemuck::cast_slice(x).to_vec()),
        Values::Floats(x) => x,
    };
    let quarter = x.len() / 4;
    let same = |i: usize, j: usize| x[i].to_bits() == x[j].to_bits();
    let folds = case.threads == 128 && (quarter..x.len()).all(|i| same(i, i - quarter));
    let (x, rows) = if folds {
        (&x[..quarter], 32)
    } else {
        (&x[..], case.threads)
    };
    let shape = vec![rows, x.len() / rows];
    let narrow = |half| -> Option<Vec<u8>> {
        let exact = |&x: &f32| value(bits(x, half), half).to_bits() == x.to_bits();
        let all = x.iter().all(exact);
        all.then(|| x.iter().flat_map(|&x| bits(x, half).to_le_bytes()).collect())
    };
    if let Some(bytes) = narrow(true) {
        return (Dtype::F16, shape, bytes);
    }
    if let Some(bytes) = narrow(false) {
        return (Dtype::BF16, shape, bytes);
    }
    (Dtype::F32, shape, bytemuck::cast_slice(x).to_vec())
}

fn restored(case: &Case, (dtype, shape, bytes): &Stored) -> Result<Values, String> {
    let words = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let mut x: Vec<f32> = match dtype {
        Dtype::U16 => return Ok(Values::Words(words().collect())),
        Dtype::F16 => words().map(|b| value(b, true)).collect(),
        Dtype::BF16 => words().map(|b| value(b, false)).collect(),
        Dtype::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        other => return Err(format!("{}: recorded as {other:?}", case.name)),
    };
    if case.threads == 128 && shape.first() == Some(&32) {
        x = x.repeat(4);
    }
    Ok(Values::Floats(x))
}

/// What a card did.
struct Record {
    card: String,
    cases: HashMap<String, Stored>,
    hashes: HashMap<String, String>,
}

impl Record {
    fn path() -> PathBuf {
        let folder = match std::env::var_os("PACKFORCING_GOLDEN") {
            Some(folder) => PathBuf::from(folder),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
        };
        folder.join("instructions.safetensors")
    }

    /// None where there is no file.
    fn open(path: &Path) -> Result<Option<Record>, String> {
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| format!("{}: {e}", path.display()))?,
        };
        Record::parse(&bytes)
            .map(Some)
            .map_err(|e| format!("{}: {e}", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Record, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let mut hashes = header.metadata().clone().unwrap_or_default();
        let card = hashes.remove("card").ok_or("it names no card")?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?.tensors();
        let cases = tensors
            .into_iter()
            .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())));
        Ok(Record {
            card,
            cases: cases.collect(),
            hashes,
        })
    }

    fn bytes(card: &str, results: &[(&Case, Values)]) -> Result<Vec<u8>, String> {
        let stored: Vec<Stored> = results.iter().map(|(case, values)| stored(case, values)).collect();
        let mut views = Vec::new();
        for ((case, _), (dtype, shape, bytes)) in results.iter().zip(&stored) {
            let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| e.to_string())?;
            views.push((case.name.clone(), view));
        }
        let about = [
            ("about".to_string(), ABOUT.to_string()),
            ("card".to_string(), card.to_string()),
        ];
        let hashes = results.iter().map(|(case, _)| (case.name.clone(), case.inputs_hash()));
        safetensors::serialize(views, Some(hashes.chain(about).collect())).map_err(|e| e.to_string())
    }

    /// What this case's result is by the record, or that it holds none of these inputs.
    fn values(&self, case: &Case) -> Result<Values, String> {
        match self.cases.get(&case.name) {
            Some(stored) if self.hashes.get(&case.name) == Some(&case.inputs_hash()) => restored(case, stored),
            Some(_) => Err(format!(
                "{}: recorded of other inputs; record again on a card",
                case.name
            )),
            None => Err(format!("{}: not in the record; record again on a card", case.name)),
        }
    }
}

// -- running --------------------------------------------------------------------------------------

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
    let record = Record::parse(&bytes).expect("what was just written");
    for case in &cases {
        assert_eq!(record.values(case).as_ref(), Ok(&case.expected), "{}", case.name);
    }
    assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
    // Numbers that no 16-bit type holds, and other inputs.
    let case = cases.iter().find(|c| c.threads == 128).expect("wgmma");
    let odd = Values::Floats((0..128 * 32).map(|i| 1.0 + i as f32 * 1e-6).collect());
    assert_eq!(restored(case, &stored(case, &odd)), Ok(odd));
    let mut other = all_cases().swap_remove(0);
    other.a[0] ^= 1;
    assert!(record.values(&other).is_err());
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
