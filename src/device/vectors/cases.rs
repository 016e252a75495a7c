//! What is run: inputs, and what the tables make of them.

use super::super::tensor_map::Boxes;
use super::tables::{Major, mma_a, mma_b, mma_d, wgmma_a, wgmma_byte, wgmma_d};
use super::{Case, IMAGE, Numbers, Operand, SMALL_IMAGE, Values, bits, dtype, name, names, value};

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

/// A lane's row of eight elements: its byte.
type Row = fn(lane: usize) -> usize;

/// Rows in order, and chunks of wider rows, swapped by the row, as kernels have them.
const ROWS: [(&str, Row); 2] = [
    ("rows in order", |lane| 16 * lane),
    ("swapped chunks", |lane| {
        128 * (lane % 16) + 16 * ((4 + lane / 16) ^ (lane % 8))
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

/// An operand from `start` on. Its offsets differ from each other and leave gaps; those along k are
/// closed where it is `dense`, to leave room for another.
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
    for n in [64, 80, 96, 128, 192] {
        for (half, major) in [
            (true, Major::K),
            (true, Major::Mn),
            (false, Major::K),
            (false, Major::Mn),
        ] {
            for span in SPANS {
                // A layout is of whole patterns: 80 columns are not, of 32 or 64. Types share their layouts.
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
        (80, true, Some(128), Major::K, 128),
        (80, false, None, Major::K, 128),
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
pub(super) struct Boxed;

impl Boxed {
    const EXTENTS: [usize; 4] = [80, 6, 3, 2];
    /// Bytes; more than a row of 80 elements, six rows, three heads, and none a multiple of the one
    /// before: a card took them.
    const STRIDES: [usize; 3] = [176, 1072, 3232];
    const SIZE: [usize; 4] = [64, 4, 2, 2];

    pub fn boxes(address: u64) -> Boxes {
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

// Boxes begin on 16 bytes of a row: a card refuses columns from -3 or from 17 as an illegal instruction.
fn tma_cases(cases: &mut Vec<Case>) {
    let edges = [
        ("inside", [0, 0, 0, 0]),
        ("inside, the last", [16, 2, 1, 0]),
        ("columns from -24", [-24, 1, 0, 0]),
        ("columns from -8", [-8, 1, 0, 0]),
        ("columns up to the end and 24 more", [40, 1, 1, 0]),
        ("columns from 24, past the end", [24, 0, 0, 0]),
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
                let chunk = (column / 8) ^ (line % 8);
                image[64 * line + 8 * chunk + column % 8] = element;
            }
        }
        case.expected = Values::Words(image);
        cases.push(case);
    }
}

pub(super) fn all_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    mma_cases(&mut cases);
    matrix_cases(&mut cases);
    wgmma_cases(&mut cases);
    tma_cases(&mut cases);
    cases
}
