//! Offsets beyond 32 bits: tensors whose rows lie gigabytes apart, in address space of which few pages are touched,
//! against the same numbers packed together. The results are the same bits.
mod common;

use std::ffi::c_void;

use common::{Rng, Suite};
use half::bf16;
use packforcing::ops::append_kv::{AppendKv, Lattice, append_kv};
use packforcing::ops::attention::{Attention, Kernel, attention_by};
use packforcing::ops::match_tokens::{MatchTokens, Matching, Merges, SoftMatch, match_tokens};
use packforcing::ops::merge_tokens::{MeanPool, MergeTokens, Remainder, merge_tokens};
use packforcing::ops::select_blocks::{SumKeys, sum_keys};
use packforcing::paging::{Context, KvPages, KvPagesMut, PageLists, Segment};
use packforcing::{DType, Device, Error, Grid, Rope3d, Tensor, View, ViewMut};

#[cfg(target_os = "linux")]
unsafe extern "C" {
    fn mmap(address: *mut c_void, bytes: usize, protection: i32, flags: i32, file: i32, offset: i64) -> *mut c_void;
    fn munmap(address: *mut c_void, bytes: usize) -> i32;
}

/// Zeros, of which only what is touched takes memory.
struct Reserved {
    address: *mut c_void,
    bytes: usize,
}

#[cfg(target_os = "linux")]
impl Reserved {
    fn new(bytes: usize) -> Reserved {
        const READ_WRITE: i32 = 1 | 2;
        const PRIVATE_ANONYMOUS_NORESERVE: i32 = 0x2 | 0x20 | 0x4000;
        // SAFETY: a new mapping, wherever the system wants it.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                READ_WRITE,
                PRIVATE_ANONYMOUS_NORESERVE,
                -1,
                0,
            )
        };
        assert!(
            address as isize != -1,
            "{bytes} bytes of address space: {} (vm.overcommit_memory = 2, or a limit?)",
            std::io::Error::last_os_error()
        );
        Reserved { address, bytes }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and views of it have ended.
        unsafe { munmap(self.address, self.bytes) };
    }
}

/// Elsewhere the allocator's, where it gives out what is not there yet.
#[cfg(not(target_os = "linux"))]
impl Reserved {
    fn layout(bytes: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(bytes, 4096).expect("a size")
    }
    fn new(bytes: usize) -> Reserved {
        // SAFETY: there is at least one byte.
        let address = unsafe { std::alloc::alloc_zeroed(Reserved::layout(bytes)) }.cast();
        assert!(
            !std::ptr::addr_eq(address, std::ptr::null::<u8>()),
            "{bytes} bytes of address space"
        );
        Reserved { address, bytes }
    }
}

#[cfg(not(target_os = "linux"))]
impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and views of it have ended.
        unsafe { std::alloc::dealloc(self.address.cast(), Reserved::layout(self.bytes)) };
    }
}

/// A tensor, packed or with these strides.
struct Spread {
    device: Device,
    dtype: DType,
    shape: Vec<usize>,
    strides: Vec<usize>,
    memory: Reserved,
}

/// Strides of pages `[page, head, token, dim]`, of their biases, of tokens `[stream, token, head, dim]`, of their LSE, and
/// of sums `[row, head, dim]`, in elements.
const PAGES: [usize; 4] = [1 << 33, 1 << 32, 1 << 26, 1];
const BIASES: [usize; 3] = [1 << 33, 1 << 32, 1];
const TOKENS: [usize; 4] = [1 << 34, 1 << 27, 64, 1];
const LSE: [usize; 3] = [1 << 33, 1 << 26, 1];
const SUMS: [usize; 3] = [1 << 33, 1 << 32, 1];

impl Spread {
    fn new(device: &Device, dtype: DType, shape: &[usize], wide: Option<&[usize]>) -> Spread {
        let mut strides = vec![1; shape.len()];
        for d in (1..shape.len()).rev() {
            strides[d - 1] = strides[d] * shape[d];
        }
        if let Some(wide) = wide {
            strides = wide.to_vec();
        }
        let reach: usize = shape.iter().zip(&strides).map(|(n, s)| (n - 1) * s).sum();
        Spread {
            device: device.clone(),
            dtype,
            shape: shape.to_vec(),
            strides,
            memory: Reserved::new((reach + 1) * dtype.bytes()),
        }
    }

    /// Numbers that are the same wherever the rows lie.
    fn filled(mut self, name: &str) -> Spread {
        let mut rng = Rng::new(name);
        self.each_row(|row, dtype| {
            for element in row.chunks_exact_mut(dtype.bytes()) {
                let x = rng.normal() as f32;
                match dtype {
                    DType::BF16 => element.copy_from_slice(&bf16::from_f32(x).to_ne_bytes()),
                    _ => element.copy_from_slice(&x.to_ne_bytes()),
                }
            }
        });
        self
    }

    fn each_row(&mut self, mut f: impl FnMut(&mut [u8], DType)) {
        let (inner, outer) = self.shape.split_last().expect("a dimension");
        for row in 0..outer.iter().product() {
            let (mut rest, mut at) = (row, 0);
            for (n, stride) in outer.iter().zip(&self.strides).rev() {
                at += rest % n * stride;
                rest /= n;
            }
            let bytes = self.dtype.bytes();
            // SAFETY: the row lies inside of the mapping, which is borrowed for as long.
            let row = unsafe {
                std::slice::from_raw_parts_mut(self.memory.address.cast::<u8>().add(at * bytes), inner * bytes)
            };
            f(row, self.dtype);
        }
    }

    /// The rows' bytes, one after the other.
    fn bits(mut self) -> Vec<u8> {
        let mut all = Vec::new();
        self.each_row(|row, _| all.extend_from_slice(row));
        assert!(all.iter().any(|&b| b != 0), "all of it is 0");
        all
    }

    fn view(&self) -> View<'_> {
        // SAFETY: shape and strides are those that the mapping was made for; a host device reads it, and nobody writes.
        unsafe {
            View::from_raw(
                &self.device,
                self.memory.address as u64,
                self.dtype,
                &self.shape,
                &self.strides,
            )
        }
        .expect("a view")
    }

    fn view_mut(&mut self) -> ViewMut<'_> {
        // SAFETY: as in `view`; the mapping is borrowed alone, gaps included, and no two elements share an address.
        unsafe {
            ViewMut::from_raw(
                &self.device,
                self.memory.address as u64,
                self.dtype,
                &self.shape,
                &self.strides,
            )
        }
        .expect("a view")
    }
}

/// Four pages of two heads and 32 tokens.
fn pages(device: &Device, dim: usize, wide: bool) -> Spread {
    Spread::new(device, DType::BF16, &[4, 2, 32, dim], wide.then_some(&PAGES))
}

fn biases(device: &Device, wide: bool) -> Spread {
    Spread::new(device, DType::F32, &[4, 2, 32], wide.then_some(&BIASES))
}

fn tokens(device: &Device, tokens: usize, wide: bool) -> Spread {
    Spread::new(device, DType::BF16, &[2, tokens, 2, 64], wide.then_some(&TOKENS))
}

fn same(what: &str, device: &Device, run: impl Fn(bool) -> Vec<Vec<u8>>) {
    let (packed, wide) = (run(false), run(true));
    for (i, (packed, wide)) in packed.iter().zip(&wide).enumerate() {
        assert!(
            packed == wide,
            "{what} on {device}: output {i} differs where rows lie far apart"
        );
    }
    assert!(!packed.is_empty());
}

fn attends(device: &Device, kernel: Kernel) {
    let segment = |page: u32, tokens, rotation, key_bias, slot_bias| Segment {
        rotation,
        key_bias,
        slot_bias,
        ..Segment::new(vec![page], tokens)
    };
    let streams = [
        vec![segment(3, 32, 1.5, 0.25, true), segment(1, 20, 0.5, 0.0, false)],
        vec![segment(0, 32, 2.5, 0.0, false), segment(2, 27, 0.0, 0.5, true)],
    ];
    let context = Context::from_host(device, (4, 32), &streams).expect("a context");
    same(&format!("attention by {kernel:?}"), device, |wide| {
        let q = tokens(device, 70, wide).filled("q");
        let (k, v) = (pages(device, 64, wide).filled("k"), pages(device, 64, wide).filled("v"));
        let bias = biases(device, wide).filled("bias");
        let mut out = tokens(device, 70, wide);
        let mut lse = Spread::new(device, DType::F32, &[2, 70, 2], wide.then_some(&LSE));
        let args = Attention {
            q: q.view(),
            kv: KvPages {
                k: k.view(),
                v: v.view(),
                slot_bias: Some(bias.view()),
            },
            context: &context,
            rope: &Rope3d::wan(64),
            scale: 0.125,
        };
        attention_by(kernel, &args, &mut out.view_mut(), Some(&mut lse.view_mut())).expect("attention");
        vec![out.bits(), lse.bits()]
    });
}

fn appends(device: &Device) {
    let lists = PageLists::from_host(device, 4, &[vec![3, 1], vec![0, 2]]).expect("lists");
    let grid = Grid {
        frames: 3,
        rows: 4,
        cols: 5,
    };
    same("append_kv", device, |wide| {
        let [q, k, v] = ["q", "k", "v"].map(|name| tokens(device, 60, wide).filled(name));
        let mut q_out = tokens(device, 60, wide);
        let (mut k_pages, mut v_pages) = (pages(device, 64, wide), pages(device, 64, wide));
        let args = AppendKv {
            q: Some(q.view()),
            k: k.view(),
            v: v.view(),
            norm: None,
            rope: &Rope3d::wan(64),
            lattice: Lattice::whole(grid),
            origins: None,
            pages: &lists,
        };
        let mut kv = KvPagesMut {
            k: k_pages.view_mut(),
            v: v_pages.view_mut(),
            slot_bias: None,
        };
        append_kv(&args, Some(&mut q_out.view_mut()), &mut kv).expect("append_kv");
        drop(kv);
        vec![q_out.bits(), k_pages.bits(), v_pages.bits()]
    });
}

/// Blocks of 60 tokens in pages 3 and 1, merged into page 2.
const BLOCK: Grid = Grid {
    frames: 3,
    rows: 4,
    cols: 5,
};

fn merges(device: &Device) {
    let source = PageLists::from_host(device, 4, &[vec![3, 1]]).expect("lists");
    let dest = PageLists::from_host(device, 4, &[vec![2]]).expect("lists");
    same("merge_tokens", device, |wide| {
        let (mut k, mut v) = (pages(device, 64, wide).filled("k"), pages(device, 64, wide).filled("v"));
        let mut bias = biases(device, wide);
        let args = MergeTokens {
            source: &source,
            dest: &dest,
            grid: BLOCK,
            pool: MeanPool {
                cell: [2, 2, 2],
                remainder: Remainder::Keep,
            },
            rope: &Rope3d::wan(64),
        };
        let mut kv = KvPagesMut {
            k: k.view_mut(),
            v: v.view_mut(),
            slot_bias: Some(bias.view_mut()),
        };
        merge_tokens(&args, &mut kv).expect("merge_tokens");
        drop(kv);
        vec![k.bits(), v.bits(), bias.bits()]
    });
}

fn matches(device: &Device) {
    let source = PageLists::from_host(device, 4, &[vec![3, 1]]).expect("lists");
    let dest = PageLists::from_host(device, 4, &[vec![2, 0]]).expect("lists");
    let rope = Rope3d::wan(64);
    same("match_tokens", device, |wide| {
        let mut matching =
            Matching::new(device, SoftMatch::strided([2, 2, 2]), BLOCK, &rope, (1, 2)).expect("a matching");
        let (mut k, mut v) = (pages(device, 64, wide).filled("k"), pages(device, 64, wide).filled("v"));
        let mut bias = biases(device, wide);
        let args = MatchTokens {
            source: &source,
            dest: &dest,
            merges: Merges::Top(20),
            weighted: false,
        };
        let mut kv = KvPagesMut {
            k: k.view_mut(),
            v: v.view_mut(),
            slot_bias: Some(bias.view_mut()),
        };
        match_tokens(&args, &mut matching, &mut kv).expect("match_tokens");
        drop(kv);
        vec![k.bits(), v.bits(), bias.bits()]
    });
}

fn sums(device: &Device) {
    let lists = PageLists::from_host(device, 4, &[vec![3, 1], vec![0, 2]]).expect("lists");
    let rows = Tensor::from_slice(device, &[2i32, 0], &[2]).expect("rows");
    same("sum_keys", device, |wide| {
        let k = pages(device, 64, wide).filled("k");
        let mut out = Spread::new(device, DType::F32, &[3, 2, 64], wide.then_some(&SUMS));
        let args = SumKeys {
            kv: KvPages {
                k: k.view(),
                v: k.view(),
                slot_bias: None,
            },
            pages: &lists,
            rows: rows.view(),
            tokens: 50,
        };
        sum_keys(&args, &mut out.view_mut()).expect("sum_keys");
        vec![out.bits()]
    });
}

fn refused(result: packforcing::Result<()>) -> &'static str {
    match result {
        Err(Error::Argument { argument, .. }) => argument,
        other => panic!("{other:?}"),
    }
}

/// Extents that a grid or a counter does not hold, each just past the last that it does.
fn bounds(device: &Device) {
    let context = Context::from_host(device, (1, 8), &[vec![Segment::new(vec![0], 8)]]).expect("a context");
    let kv = Spread::new(device, DType::BF16, &[1, 1, 8, 64], None);
    let many = i32::MAX as usize - 191; // with the rest of a tile of 192 rows, past i32
    let q = Spread::new(device, DType::BF16, &[1, many, 1, 64], None);
    let mut out = Spread::new(device, DType::BF16, &[1, many, 1, 64], None);
    let args = Attention {
        q: q.view(),
        kv: KvPages {
            k: kv.view(),
            v: kv.view(),
            slot_bias: None,
        },
        context: &context,
        rope: &Rope3d::wan(64),
        scale: 1.0,
    };
    assert_eq!(
        refused(attention_by(Kernel::Auto, &args, &mut out.view_mut(), None)),
        "q"
    );

    // Heads of 8 numbers of 32 bits are two vectors of 16 bytes: 128 heads for 256 threads, in keys and in values.
    let source = PageLists::from_host(device, 2, &[vec![0]]).expect("lists");
    let dest = PageLists::from_host(device, 2, &[vec![1]]).expect("lists");
    let shape = [2, 128 * 32_768, 1, 8];
    let (mut k, mut v) = (
        Spread::new(device, DType::F32, &shape, None),
        Spread::new(device, DType::F32, &shape, None),
    );
    let args = MergeTokens {
        source: &source,
        dest: &dest,
        grid: Grid {
            frames: 1,
            rows: 1,
            cols: 1,
        },
        pool: MeanPool {
            cell: [1, 1, 1],
            remainder: Remainder::Keep,
        },
        rope: &Rope3d::wan(8),
    };
    let mut kv = KvPagesMut {
        k: k.view_mut(),
        v: v.view_mut(),
        slot_bias: None,
    };
    assert_eq!(refused(merge_tokens(&args, &mut kv)), "kv.k");
}

fn main() -> std::process::ExitCode {
    const HOST: [&str; 2] = ["cpu", "simt"];
    Suite::new()
        .on(&["cpu"], "attention", |d| attends(d, Kernel::Auto))
        .on(&["simt", "simt90"], "attention_sm80", |d| attends(d, Kernel::Sm80))
        .on(&["simt90"], "attention_sm90", |d| attends(d, Kernel::Sm90))
        .on(&HOST, "append_kv", appends)
        .on(&HOST, "merge_tokens", merges)
        .on(&HOST, "match_tokens", matches)
        .on(&HOST, "sum_keys", sums)
        .on(&["simt", "simt90"], "bounds", bounds)
        .run()
}
