//! Every reader of outside bytes and numbers, against random and hostile ones.
//!
//! On the suite's own harness, so that what runs on a device runs on all that are here and a failure
//! says which seed repeats it. `PACKFORCING_FUZZ=n` sets the inputs of every target; docs/fuzzing.md
//! tells what was found. The reader of clips is fuzzed beside it, in the program.
mod common;

use std::fmt::Debug;

use common::{Rng, Suite, read_tensor};
use half::f16;
use packforcing::cache::{Compression, Heads, PackConfig, PackedKvCache};
use packforcing::ops::append_kv::{AppendKv, Lattice, append_kv};
use packforcing::ops::attention::{Attention, attention};
use packforcing::ops::denoise_step::{Coefficients, rows};
use packforcing::ops::match_tokens::{Destinations, Matching, Merges, Metric, Mode, SoftMatch};
use packforcing::ops::merge_tokens::{MeanPool, MergeTokens, Remainder, merge_tokens};
use packforcing::paging::{Context, KvPages, KvPagesMut, PageLists, Segment};
use packforcing::schedule::{Schedule, Solver};
use packforcing::{Blocks, DType, Device, DeviceKind, Error, Frames, Grid, Result, Rope3d, Tensor, View};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use safetensors::{Dtype, tensor::TensorView};

fn main() -> std::process::ExitCode {
    let mut suite = Suite::new();
    suite
        .plain("safetensors", safetensors_files)
        .plain("page lists", page_lists)
        .plain("views", views)
        .plain("configurations", configurations)
        .plain("schedules", schedules)
        .plain("coefficients", coefficients)
        .plain("ropes, grids and pools", ropes_and_grids)
        .plain("matchings", matchings)
        .plain("strided pages", strided_pages)
        .plain("what was found is mended", found)
        .on_devices("contexts and attention over them", contexts)
        .run()
}

/// Checks that `holds` does, by panicking where not, for `usual` inputs or as many as PACKFORCING_FUZZ
/// says; a failure tells of the smallest input found.
fn fuzz<S: Strategy>(name: &str, usual: u32, inputs: S, holds: impl Fn(S::Value))
where
    S::Value: Debug,
{
    let asked = std::env::var("PACKFORCING_FUZZ").ok();
    let cases = asked.map_or(usual, |n| n.parse().expect("PACKFORCING_FUZZ is a number"));
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let mut rng = Rng::new(name);
    let seed: [u8; 32] = std::array::from_fn(|_| rng.bits() as u8);
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let result = runner.run(&inputs, |input| {
        holds(input);
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// What was refused must be named.
fn refused<T>(result: Result<T>, op: &str, arguments: &[&str]) -> Option<T> {
    match result {
        Ok(accepted) => Some(accepted),
        Err(Error::Argument {
            op: o,
            argument,
            expected,
            got,
        }) => {
            assert!(o == op && arguments.contains(&argument), "{o}: {argument}");
            assert!(
                !expected.is_empty() && !got.is_empty(),
                "{o}: {argument}: {expected}, {got}"
            );
            None
        }
        Err(other) => panic!("{op}: {other}"),
    }
}

// -- hostile numbers --------------------------------------------------------------------------------

/// Mostly small, else around powers of two, or anything.
fn count() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 0usize..12,
        2 => 0usize..2_000_000,
        2 => (0u32..64, 0usize..3).prop_map(|(bit, off)| (1usize << bit).wrapping_add(off).wrapping_sub(1)),
        1 => any::<usize>(),
    ]
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => -2.0..10.0f64,
        2 => any::<f64>(),
        1 => any::<u64>().prop_map(f64::from_bits),
        1 => prop::sample::select(vec![0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE, 5e-324, 1e39, 1e-46]),
    ]
}

fn extents() -> impl Strategy<Value = [usize; 3]> {
    [count(), count(), count()]
}

fn grid() -> impl Strategy<Value = Grid> {
    extents().prop_map(|[frames, rows, cols]| Grid { frames, rows, cols })
}

fn mean_pool() -> impl Strategy<Value = MeanPool> {
    (extents(), any::<bool>()).prop_map(|(cell, keep)| MeanPool {
        cell,
        remainder: if keep { Remainder::Keep } else { Remainder::Drop },
    })
}

// -- files ------------------------------------------------------------------------------------------

/// What happens to a file on its way.
#[derive(Debug, Clone)]
enum Damage {
    Set(usize, u8),
    Cut(usize),
    Repeat(usize, usize),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let one = prop_oneof![
        4 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => any::<usize>().prop_map(Damage::Cut),
        1 => (any::<usize>(), 1usize..64).prop_map(|(at, n)| Damage::Repeat(at, n)),
    ];
    vec(one, 0..4)
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for d in damage {
        let len = bytes.len().max(1);
        match *d {
            Damage::Set(at, byte) => {
                if let Some(b) = bytes.get_mut(at % len) {
                    *b = byte;
                }
            }
            Damage::Cut(at) => bytes.truncate(at % len),
            Damage::Repeat(at, n) => {
                let at = at % len;
                let piece: Vec<u8> = bytes.iter().skip(at).take(n).copied().collect();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

fn safetensors_files() {
    let shape = vec(0usize..4, 0..4);
    let valid = (
        shape,
        prop::sample::select(vec![Dtype::F32, Dtype::F64, Dtype::I32]),
        vec(any::<u8>(), 512),
    );
    fuzz(
        "safetensors",
        2000,
        (valid, damage()),
        |((shape, dtype, data), damage)| {
            let wide = if dtype == Dtype::F64 { 8 } else { 4 };
            let elements: usize = shape.iter().product();
            let tensor = TensorView::new(dtype, shape.clone(), &data[..elements * wide]).expect("its size");
            let file = safetensors::serialize([("x", tensor)], None).expect("it can be written");
            let intact = read_tensor(&file, "x");
            if dtype == Dtype::I32 {
                assert!(intact.expect_err("integers").contains("x: I32 is not taken"));
            } else {
                let (read, read_shape) = intact.expect("it is valid");
                assert_eq!((read.len(), read_shape), (elements, shape));
                for (i, &x) in read.iter().enumerate() {
                    let bytes = &data[i * wide..][..wide];
                    let expected = match bytes.try_into() {
                        Ok(word) => f64::from_le_bytes(word),
                        Err(_) => f32::from_le_bytes(bytes.try_into().expect("four")).into(),
                    };
                    assert!(
                        x == expected || (x.is_nan() && expected.is_nan()),
                        "{x} is not {expected}"
                    );
                }
            }
            assert!(read_tensor(&file, "y").expect_err("no such tensor").starts_with("y: "));
            match read_tensor(&damaged(file, &damage), "x") {
                Ok((read, shape)) => assert_eq!(read.len(), shape.iter().product::<usize>()),
                Err(message) => assert!(message.starts_with("not a safetensors file: ") || message.starts_with("x: ")),
            }
        },
    );
    fuzz(
        "safetensors of noise",
        2000,
        (count(), vec(any::<u8>(), 0..200)),
        |(length, noise)| {
            let file = [&(length as u64).to_le_bytes()[..], &noise].concat();
            assert!(read_tensor(&file, "x").is_err());
        },
    );
}

// -- pages ------------------------------------------------------------------------------------------

fn page() -> impl Strategy<Value = u32> {
    prop_oneof![20 => 0u32..6, 1 => any::<u32>()]
}

fn page_lists() {
    let lists = || vec(vec(page(), 0..5), 0..4);
    let inputs = (0usize..7, lists(), lists(), count(), vec(page(), 0..6));
    fuzz("page lists", 2000, inputs, |(pool, first, second, row, list)| {
        let arguments = ["lists", "pages", "list"];
        let made = PageLists::from_host(&Device::cpu(), pool, &first);
        let Some(mut pages) = refused(made, "PageLists::set", &arguments) else {
            return;
        };
        let same = |pages: &PageLists, lists: &[Vec<u32>]| {
            let read = pages.view().to_vec::<i32>().expect("host memory");
            assert_eq!(pages.streams(), lists.len());
            assert!(read.iter().all(|&p| p == 0 || (p as usize) < pool));
            for (row, list) in read.chunks(pages.length().max(1)).zip(lists) {
                let padded = list.iter().copied().chain(std::iter::repeat(0));
                assert!(
                    row.iter().zip(padded).all(|(&a, b)| a as u32 == b),
                    "{row:?} is not {list:?}"
                );
            }
        };
        same(&pages, &first);
        let mut now = first;
        if refused(pages.set(&second), "PageLists::set", &arguments).is_some() {
            now = second;
        }
        same(&pages, &now);
        if refused(pages.set_row(row, &list), "PageLists::set_row", &arguments).is_some() {
            now[row] = list;
        }
        same(&pages, &now);
    });
}

/// A segment that makes sense two times of three.
fn segment(page_tokens: usize) -> impl Strategy<Value = Segment> {
    let tame = |x: std::ops::Range<f32>| prop_oneof![30 => x, 1 => any::<u32>().prop_map(f32::from_bits)];
    (
        vec(page(), 0..4),
        prop_oneof![20 => 0..=1000usize, 1 => count()],
        tame(-9.0..9.0),
        tame(-3.0..3.0),
        any::<bool>(),
    )
        .prop_map(move |(pages, tokens, rotation, key_bias, slot_bias)| Segment {
            // Per mille of what the pages hold, or anything.
            tokens: if tokens <= 1000 {
                tokens * pages.len() * page_tokens / 1000
            } else {
                tokens
            },
            pages,
            rotation,
            key_bias,
            slot_bias,
        })
}

/// Pages of NaN but for the slots that a context names: reading anything else shows in the result.
fn contexts(device: &Device) {
    const DIM: usize = 64;
    let inputs = (1usize..7, 1usize..6).prop_flat_map(|(pool, page_tokens)| {
        let streams = vec(vec(segment(page_tokens), 0..4), 0..4);
        (
            Just(pool),
            Just(page_tokens),
            streams,
            1usize..3,
            1usize..3,
            1usize..3,
            any::<bool>(),
        )
    });
    let usual = if device.kind() == DeviceKind::Cpu { 1000 } else { 200 };
    let name = format!("contexts on {device}");
    fuzz(
        &name,
        usual,
        inputs,
        |(pool, page_tokens, streams, tokens, kv_heads, group, biased)| {
            let arguments = ["streams", "segments", "tokens", "rotation, key_bias", "pages"];
            let made = Context::from_host(device, (pool, page_tokens), &streams);
            let Some(context) = refused(made, "Context::set", &arguments) else {
                return;
            };
            let mut named = streams.clone();
            named
                .iter_mut()
                .flatten()
                .for_each(|s| s.pages.truncate(s.tokens.div_ceil(page_tokens)));
            assert_eq!(context.to_host().expect("it can be read"), named);

            let mut keys = vec![f16::NAN; pool * kv_heads * page_tokens * DIM];
            let mut biases = vec![f32::NAN; pool * kv_heads * page_tokens];
            for s in named.iter().flatten() {
                for token in 0..s.tokens {
                    for head in 0..kv_heads {
                        let page = s.pages[token / page_tokens] as usize;
                        let slot = (page * kv_heads + head) * page_tokens + token % page_tokens;
                        keys[slot * DIM..][..DIM].fill(f16::from_f32(0.25));
                        biases[slot] = 0.5;
                    }
                }
            }
            let shape = [pool, kv_heads, page_tokens, DIM];
            let run = || -> Result<(Vec<f32>, Vec<f32>)> {
                let kv = Tensor::from_slice(device, &keys, &shape)?;
                let slot_bias = Tensor::from_slice(device, &biases, &shape[..3])?;
                let queries = [streams.len(), tokens, kv_heads * group, DIM];
                let ones = vec![1.0; queries.iter().product()];
                let q = Tensor::from_f32(device, DType::F16, &ones, &queries)?;
                let mut out = Tensor::from_f32(device, DType::F16, &vec![f32::NAN; ones.len()], &queries)?;
                let mut lse = Tensor::from_slice(device, &vec![f32::NAN; ones.len() / DIM], &queries[..3])?;
                let args = Attention {
                    q: q.view(),
                    kv: KvPages {
                        k: kv.view(),
                        v: kv.view(),
                        slot_bias: biased.then(|| slot_bias.view()),
                    },
                    context: &context,
                    rope: &Rope3d::wan(DIM),
                    scale: 0.125,
                };
                attention(&args, &mut out.view_mut(), Some(&mut lse.view_mut()))?;
                Ok((out.to_f32_vec()?, lse.to_vec()?))
            };
            let Some((out, lse)) = refused(run(), "attention", &["q"]) else {
                assert!(streams.is_empty(), "only the lack of a query is refused");
                return;
            };
            // All keys and values are the same: so is every mean of them.
            let rows = tokens * kv_heads * group;
            for (stream, segments) in named.iter().enumerate() {
                let seen = segments.iter().any(|s| s.tokens > 0 && s.key_bias > -1e3);
                let wild = segments.iter().any(|s| s.key_bias.abs() > 1e3);
                if wild {
                    continue; // such biases may swallow every digit of a logit
                }
                let expected = if seen { 0.25 } else { 0.0 };
                let outs = &out[stream * rows * DIM..][..rows * DIM];
                assert!(outs.iter().all(|&x| (x - expected).abs() < 1e-3), "{outs:?}");
                let lses = &lse[stream * rows..][..rows];
                assert!(
                    lses.iter()
                        .all(|&x| if seen { x.is_finite() } else { x == f32::NEG_INFINITY }),
                    "{lses:?}"
                );
            }
        },
    );
}

/// Pages with any strides, where all that they reach is memory.
fn strided_pages() {
    const ROOM: usize = 1 << 12;
    let strides = [count(), count(), count()];
    let shape = [0usize..4, 0usize..4, 0usize..5, 0usize..9];
    let inputs = (
        shape,
        strides,
        prop_oneof![9 => Just(1usize), 1 => count()],
        vec(segment(2), 1..3),
    );
    fuzz("strided pages", 4000, inputs, |(shape, [a, b, c], inner, segments)| {
        let memory = vec![0.5f32; ROOM];
        let strides = [a, b, c, inner];
        let reach = shape.iter().zip(strides).try_fold(1usize, |n, (&d, s)| {
            d.saturating_sub(1).checked_mul(s).and_then(|x| n.checked_add(x))
        });
        let cpu = Device::cpu();
        // SAFETY: the view is used only where everything that it reaches lies in `memory`, which
        // outlives it and is not written.
        let made = unsafe { View::from_raw(&cpu, memory.as_ptr() as u64, DType::F32, &shape, &strides) };
        let Some(k) = refused(made, "View::from_raw", &["shape", "strides", "address"]) else {
            return;
        };
        if reach.is_none_or(|n| n > ROOM) {
            return;
        }
        let [pages, heads, page_tokens, dim] = shape;
        let context = Context::from_host(&cpu, (pages, page_tokens), &[segments]);
        let Some(context) = context.ok() else { return };
        let rope = Rope3d::new([dim / 2, 0, 0], 100.0).or_else(|_| Rope3d::new([1, 0, 0], 100.0));
        let rope = rope.expect("a pair");
        let q = Tensor::zeros(&cpu, DType::F32, &[1, 1, heads.max(1), dim.max(1)]).expect("a few bytes");
        let mut out = Tensor::zeros(&cpu, DType::F32, q.shape()).expect("a few bytes");
        let kv = KvPages {
            k: k.clone(),
            v: k,
            slot_bias: None,
        };
        let args = Attention {
            q: q.view(),
            kv,
            context: &context,
            rope: &rope,
            scale: 1.0,
        };
        let arguments = ["q", "kv.k", "kv.v", "rope", "context"];
        if refused(attention(&args, &mut out.view_mut(), None), "attention", &arguments).is_some() {
            let out = out.to_vec::<f32>().expect("host memory");
            assert!(
                out.iter().all(|&x| (x - 0.5).abs() < 1e-6 || x == 0.0 || x.is_nan()),
                "{out:?}"
            );
        }
    });
}

fn views() {
    let inputs = (vec(count(), 0..4), vec(count(), 0..4), count(), count(), count());
    fuzz("views", 4000, inputs, |(shape, other, dim, start, len)| {
        let data = [7i32; 60];
        let cpu = Device::cpu();
        let size = shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .filter(|&n| n <= 60);
        let data = &data[..size.unwrap_or(60)];
        let Some(view) = refused(
            View::from_slice(&cpu, data, &shape),
            "View::from_slice",
            &["shape", "strides", "address"],
        ) else {
            return;
        };
        assert_eq!((view.shape(), view.elements()), (&shape[..], data.len()));
        let narrow = refused(view.narrow(dim, start, len), "narrow", &["range"]);
        let select = refused(view.select(dim, start), "select", &["dim", "index"]).into_iter();
        let reshape = refused(view.reshape(&other), "reshape", &["shape"]).into_iter();
        for piece in narrow.into_iter().chain(select).chain(reshape) {
            let read = piece.to_vec::<i32>().expect("host memory");
            assert_eq!(read.len(), piece.elements());
            assert!(read.iter().all(|&x| x == 7));
        }
    });
}

// -- configurations ---------------------------------------------------------------------------------

fn configurations() {
    let heads = (count(), count(), count()).prop_map(|(query, kv, dim)| Heads { query, kv, dim });
    let heads = prop_oneof![
        heads,
        (1usize..4, 1usize..4, 1usize..5).prop_map(|(kv, group, pairs)| Heads {
            query: kv * group,
            kv,
            dim: 8 * pairs
        }),
        (1usize..1_000_000, 1usize..1_000_000).prop_map(|(query, pairs)| Heads {
            query,
            kv: 1,
            dim: 2 * (pairs / 2).max(1)
        }),
    ];
    let compression = prop_oneof![
        Just(Compression::None),
        mean_pool().prop_map(Compression::Mean),
        grid().prop_map(Compression::External),
        (soft_match(), prop::option::of(count())).prop_map(|(how, merged)| Compression::Match { how, merged }),
    ];
    let block = prop_oneof![
        grid(),
        [1usize..6, 1usize..6, 1usize..6].prop_map(|[frames, rows, cols]| Grid { frames, rows, cols })
    ];
    let counts = [count(), count(), count(), count(), count(), count()];
    let options = (
        prop::option::of(count()),
        prop::option::of(count()),
        prop::option::of(any::<f32>()),
        prop::sample::select(vec![DType::F32, DType::F16, DType::BF16, DType::I32]),
    );
    fuzz(
        "configurations",
        4000,
        (heads, compression, block, counts, options),
        |input| {
            let (heads, compression, block, counts, (page_tokens, mid_frames, key_bias, dtype)) = input;
            let [layers, sink, recent, selected, archive, streams] = counts;
            let mut builder = PackConfig::builder()
                .layers(layers)
                .heads(heads)
                .dtype(dtype)
                .block(block)
                .sink(Blocks(sink))
                .recent(Blocks(recent))
                .selected(Blocks(selected))
                .archive(Blocks(archive))
                .streams(streams)
                .compression(compression);
            if let Some(n) = page_tokens {
                builder = builder.page_tokens(n);
            }
            if let Some(n) = mid_frames {
                builder = builder.mid_frames(Frames(n));
            }
            if let Some(x) = key_bias {
                builder = builder.key_bias(x);
            }
            let arguments = [
                "layers",
                "heads",
                "sink",
                "recent",
                "archive",
                "selected",
                "streams",
                "dtype",
                "block",
                "rope",
                "compression",
                "key_bias",
                "page_tokens",
                "mid_frames",
            ];
            let Some(config) = refused(builder.build(), "PackConfig::build", &arguments) else {
                return;
            };
            let bytes = config.bytes();
            let parts = [bytes.whole, bytes.current, bytes.archive, bytes.tables];
            assert_eq!(bytes.total() as u128, parts.iter().map(|&n| n as u128).sum::<u128>());
            assert!(bytes.total() <= isize::MAX as usize);
            assert!(config.mid_tokens() <= config.block_tokens() && config.mid_tokens().0 > 0);
            assert!(config.history_bytes() <= bytes.total() && config.context_tokens() > config.history_tokens());
            assert!(config.page_tokens().0 > 0 && config.rope().dim() == config.heads().dim);
            assert!(config.heads().query.is_multiple_of(config.heads().kv));
            // A small one can be had, and takes what it said. (The device may not take its dim or dtype.)
            if bytes.total() < 1 << 16 {
                match PackedKvCache::new(&Device::cpu(), &config) {
                    Ok(mut cache) => {
                        assert_eq!(cache.bytes(), bytes.total());
                        drop(cache.begin().expect("a block"));
                    }
                    Err(Error::Argument { argument, expected, .. }) => {
                        assert!(!argument.is_empty() && !expected.is_empty())
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        },
    );
}

fn soft_match() -> impl Strategy<Value = SoftMatch> {
    let cell = || prop_oneof![extents(), [0usize..4, 0usize..4, 0usize..4]];
    let destinations = prop_oneof![
        cell().prop_map(Destinations::Strided),
        (cell(), any::<u64>()).prop_map(|(cell, seed)| Destinations::Random { cell, seed }),
        any::<u64>().prop_map(Destinations::Frames),
    ];
    let metric = prop::sample::select(vec![Metric::PerHead, Metric::MeanOverHeads]);
    let mode = prop::sample::select(vec![Mode::Mean, Mode::Replace]);
    (destinations, metric, mode).prop_map(|(destinations, metric, mode)| SoftMatch {
        destinations,
        metric,
        mode,
    })
}

fn matchings() {
    let block = prop_oneof![
        grid(),
        [1usize..6, 1usize..6, 1usize..6].prop_map(|[frames, rows, cols]| Grid { frames, rows, cols })
    ];
    fuzz(
        "matchings",
        4000,
        (soft_match(), block, count(), 0usize..4, 0usize..4),
        |(how, grid, top, batch, heads)| {
            let count = how.destinations.count(grid);
            assert!(count <= grid.tokens().0);
            let left = how.merged_tokens(grid, Merges::Top(top));
            assert!((count..=grid.tokens().0).contains(&left));
            if grid.tokens().0 > 1 << 10 {
                return;
            }
            let tokens = how.destinations.tokens(grid);
            assert!(tokens.len() == count && tokens.is_sorted() && tokens.iter().all(|&t| t < grid.tokens().0));
            let room = (batch, heads);
            let arguments = ["grid", "how", "batch", "kv_heads", "rope", "how.destinations"];
            let made = Matching::new(&Device::cpu(), how, grid, &Rope3d::wan(16), room);
            if let Some(matching) = refused(made, "Matching::new", &arguments) {
                assert!(count > 0);
                assert_eq!(matching.bytes(), Matching::bytes_of(how, grid, &Rope3d::wan(16), room));
            }
        },
    );
}

fn ropes_and_grids() {
    fuzz("ropes", 4000, (extents(), number()), |(pairs, theta)| {
        let Some(rope) = refused(Rope3d::new(pairs, theta), "Rope3d::new", &["pairs", "theta"]) else {
            return;
        };
        assert!(rope.pairs() == pairs && rope.theta() == theta && rope.dim() <= 128);
        for pair in 0..rope.dim() / 2 {
            assert!(rope.axis(pair) < 3);
            assert!(
                rope.frequency(pair).is_finite(),
                "pair {pair} turns by {}",
                rope.frequency(pair)
            );
        }
    });
    fuzz("grids", 4000, (grid(), mean_pool()), |(grid, pool)| {
        let exact: u128 = grid.extents().iter().map(|&n| n as u128).fold(1, u128::saturating_mul);
        assert_eq!(grid.tokens().0 as u128, exact.min(usize::MAX as u128));
        let out = pool.output(grid).extents();
        for ((o, n), cell) in out.into_iter().zip(grid.extents()).zip(pool.cell) {
            assert!(o <= n && (pool.remainder == Remainder::Drop || (o > 0) == (n > 0)));
            let (o, cell, n) = (o as u128, cell.max(1) as u128, n as u128);
            assert!(if pool.remainder == Remainder::Drop {
                o * cell <= n
            } else {
                o * cell >= n
            });
        }
    });
}

// -- steps ------------------------------------------------------------------------------------------

fn schedules() {
    let steps = prop_oneof![30 => 0usize..60, 1 => count()];
    let sigmas = prop_oneof![
        vec(number(), 0..6),
        vec(0.0..1.0f64, 0..6).prop_map(|mut s| {
            s.sort_by(|a, b| b.total_cmp(a));
            s
        }),
    ];
    fuzz(
        "schedules",
        2000,
        (steps, number(), sigmas, count(), count()),
        |(steps, shift, sigmas, step, frames)| {
            let timesteps: Vec<f64> = sigmas.iter().map(|s| 1000.0 * s).collect();
            let made = [
                refused(Schedule::euler(steps, shift), "Schedule::euler", &["steps", "shift"]),
                refused(
                    Schedule::diffusers_euler(steps, shift),
                    "Schedule::diffusers_euler",
                    &["steps", "shift"],
                ),
                refused(
                    Schedule::few_step(&timesteps, shift),
                    "Schedule::few_step",
                    &["base_timesteps", "shift"],
                ),
                refused(
                    Schedule::from_sigmas(&sigmas, Solver::Euler),
                    "Schedule::from_sigmas",
                    &["sigmas"],
                ),
            ];
            // What remembers is checked for its rows alone: tables of diffusers round as they like.
            let remember = [
                refused(Schedule::unipc(steps, shift), "Schedule::unipc", &["steps", "shift"]),
                refused(
                    Schedule::dpm_solver(steps, shift),
                    "Schedule::dpm_solver",
                    &["steps", "shift"],
                ),
                refused(Schedule::lcm(steps, shift), "Schedule::lcm", &["steps", "shift"]),
                refused(
                    Schedule::diffusers_unipc(steps, shift),
                    "Schedule::diffusers_unipc",
                    &["steps", "shift"],
                ),
                refused(
                    Schedule::diffusers_dpm_solver(steps, shift),
                    "Schedule::diffusers_dpm_solver",
                    &["steps", "shift"],
                ),
                refused(
                    Schedule::from_sigmas(&sigmas, Solver::UniPc),
                    "Schedule::from_sigmas",
                    &["sigmas"],
                ),
                refused(
                    Schedule::from_sigmas(&sigmas, Solver::DpmSolver),
                    "Schedule::from_sigmas",
                    &["sigmas"],
                ),
            ];
            for schedule in remember.into_iter().flatten() {
                let step = step % (schedule.steps().len() + 1);
                if let Some(rows) = refused(schedule.rows(step, frames % 5), "Schedule::rows", &["step", "frames"]) {
                    assert_eq!(rows.len(), 1 + schedule.states());
                    let coefficients = Coefficients::new(&Device::cpu(), &rows);
                    assert_eq!(coefficients.is_ok(), frames % 5 > 0, "{schedule:?}, step {step}");
                }
            }
            for (kind, schedule) in made.into_iter().enumerate().filter_map(|(kind, s)| Some((kind, s?))) {
                // diffusers shifts twice and rounds to f32 on the way; a shift's slope at 1 is 1 / shift.
                let slack = if kind == 1 {
                    2f64.powi(-22) / shift.min(1.0).powi(2)
                } else {
                    0.0
                };
                let steps = schedule.steps();
                assert!(!steps.is_empty());
                for s in steps {
                    assert!(
                        (0.0..=1.0 + slack).contains(&s.sigma) && s.sigma_next <= s.sigma,
                        "{s:?}"
                    );
                    assert!((s.timestep - 1000.0 * s.sigma).abs() < 0.1, "{s:?}");
                }
                assert!(steps.windows(2).all(|pair| pair[0].sigma_next == pair[1].sigma));
                if let Some(rows) = refused(schedule.rows(step, frames), "Schedule::rows", &["step", "frames"]) {
                    assert!(rows.iter().flatten().all(|row| row.len() == frames));
                    let coefficients = Coefficients::new(&Device::cpu(), &rows);
                    assert_eq!(coefficients.is_ok(), frames > 0);
                }
            }
        },
    );
}

fn coefficients() {
    let row = |n: usize| prop_oneof![6 => vec(number(), n), 1 => vec(number(), 0..3)];
    let rows = (0usize..3, 0usize..10, 0usize..5)
        .prop_flat_map(move |(frames, terms, outputs)| vec(vec(row(frames), terms), outputs));
    fuzz(
        "coefficients",
        4000,
        (rows.clone(), rows, number()),
        |(first, second, scale)| {
            let small = |rows: &[rows::Rows]| rows.iter().flatten().flatten().all(|&x| (x as f32).is_finite());
            let cpu = Device::cpu();
            let Some(mut made) = refused(Coefficients::new(&cpu, &first), "Coefficients::new", &["rows"]) else {
                return;
            };
            let shape = |rows: &[rows::Rows]| (rows.len(), rows[0].len() - 1, rows[0][0].len());
            let is = |made: &Coefficients| (made.outputs(), made.terms(), made.frames());
            assert!(small(&first) && is(&made) == shape(&first));
            if refused(made.set(&second), "Coefficients::set", &["rows"]).is_some() {
                assert!(small(&second) && is(&made) == shape(&second));
            }
            let guided: Vec<rows::Rows> = first.iter().map(|r| rows::guided(r.clone(), scale)).collect();
            refused(Coefficients::new(&cpu, &guided), "Coefficients::new", &["rows"]);
        },
    );
}

// -- found ------------------------------------------------------------------------------------------

/// Inputs that once made a panic, an overflow or a number that is none.
fn found() {
    let cpu = Device::cpu();
    let grid = |frames, rows, cols| Grid { frames, rows, cols };
    let many = PackConfig::builder()
        .block(grid(1000, 1000, 1000))
        .page_tokens(1)
        .archive(Blocks(1_000_000))
        .streams(1_000_000);
    assert!(refused(many.build(), "PackConfig::build", &["archive"]).is_none());
    let wide = PackConfig::builder()
        .layers(1)
        .heads(Heads {
            query: 1_000_000,
            kv: 1,
            dim: 1_000_000,
        })
        .block(grid(1000, 1000, 1))
        .compression(Compression::None)
        .sink(Blocks(0))
        .recent(Blocks(0))
        .selected(Blocks(0))
        .archive(Blocks(0))
        .streams(1000);
    assert!(refused(wide.build(), "PackConfig::build", &["archive"]).is_none());
    assert_eq!(grid(usize::MAX, 2, 1).tokens().0, usize::MAX);
    let none = Destinations::Random {
        cell: [1, 1, 0],
        seed: 0,
    };
    assert!(none.tokens(grid(7, usize::MAX / 2, 3)).is_empty());
    assert!(Destinations::Frames(4).tokens(grid(3, usize::MAX, 0)).is_empty());

    assert!(refused(Schedule::euler(usize::MAX, 3.0), "Schedule::euler", &["steps"]).is_none());
    assert!(refused(Schedule::few_step(&[1000.0], 1e-20), "Schedule::few_step", &["shift"]).is_none());
    assert!(
        refused(
            Schedule::diffusers_euler(2, 1e39),
            "Schedule::diffusers_euler",
            &["shift"]
        )
        .is_none()
    );
    for tenths in 1..100 {
        let schedule = Schedule::euler(4, 0.1 * f64::from(tenths)).expect("an ordinary shift");
        assert_eq!(schedule.steps()[0].sigma, 1.0);
        assert!(refused(schedule.rows(0, usize::MAX), "Schedule::rows", &["frames"]).is_none());
    }

    let theta = Rope3d::new([0, 31, 0], 5e-324);
    assert!(refused(theta, "Rope3d::new", &["theta"]).is_none());

    // Nothing is kept but the newest block: no archive to choose from.
    let recent = PackConfig::builder()
        .layers(1)
        .heads(Heads {
            query: 1,
            kv: 1,
            dim: 8,
        })
        .block(grid(1, 1, 2))
        .dtype(DType::F32)
        .compression(Compression::None)
        .sink(Blocks(0))
        .selected(Blocks(0))
        .archive(Blocks(0))
        .build()
        .expect("it makes sense");
    let mut cache = PackedKvCache::new(&cpu, &recent).expect("a few bytes");
    for number in 0..4 {
        let x = Tensor::from_slice(&cpu, &[number as f32; 16], &[1, 2, 1, 8]).expect("16 numbers");
        let mut out = Tensor::zeros(&cpu, DType::F32, x.shape()).expect("16 numbers");
        let mut block = cache.begin().expect("a block");
        let mut pass = block.commit_pass().expect("a pass");
        pass.attend(0, x.view(), x.view(), x.view(), &mut out.view_mut())
            .expect("it attends");
        block.commit().expect("it is kept");
        let out = out.to_vec::<f32>().expect("16 numbers");
        assert!(out.iter().all(|x| x.is_finite() && *x <= number as f32), "{out:?}");
    }
    assert_eq!(cache.blocks(), 4);

    let pages = PageLists::from_host(&cpu, 1 << 32, &[vec![1 << 31]]);
    assert!(refused(pages, "PageLists::set", &["pages"]).is_none());
    let empty = || Tensor::zeros(&cpu, DType::F32, &[0, 1, 1 << 40, 8]).expect("nothing");
    let (mut k, mut v) = (empty(), empty());
    let lists = || PageLists::new(&cpu, 0, 1, 1).expect("a page");
    let args = MergeTokens {
        source: &lists(),
        dest: &lists(),
        grid: grid(2, 1, 1),
        pool: MeanPool {
            cell: [2, 1, 1],
            remainder: Remainder::Drop,
        },
        rope: &Rope3d::wan(8),
    };
    let kv = &mut KvPagesMut {
        k: k.view_mut(),
        v: v.view_mut(),
        slot_bias: None,
    };
    assert!(refused(merge_tokens(&args, kv), "merge_tokens", &["grid"]).is_none());
    let rope = Rope3d::wan(8);
    let tokens = Tensor::zeros(&cpu, DType::F32, &[1, 2, 1, 8]).expect("a few bytes");
    let args = AppendKv {
        q: None,
        k: tokens.view(),
        v: tokens.view(),
        norm: None,
        rope: &rope,
        lattice: Lattice::whole(grid(2, 1, 1)),
        origins: None,
        pages: &lists(),
    };
    assert!(refused(append_kv(&args, None, kv), "append_kv", &["lattice.grid"]).is_none());
}
