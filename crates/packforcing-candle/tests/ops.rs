//! Every op and every call of the cache on candle tensors, scattered in memory, gives what it gives
//! on packforcing's own, to the bit: on the CPU, and with the kernels' source on candle's memory.
mod common;

use candle_core::{DType, Device, IndexOp, Tensor};
use common::{Rng, bits, devices, numbers, own, refused, scattered, view_bits};
use packforcing::cache::{Compression, Heads, PackConfig, PackConfigBuilder, PackedKvCache, PagePool, Qkv, Stream};
use packforcing::ops::append_kv::{self, AppendKv, Lattice};
use packforcing::ops::attention::Attention;
use packforcing::ops::denoise_step::{Coefficients, DenoiseStep, Noise, NoiseBase};
use packforcing::ops::guidance::{Guidance, GuidanceWeights};
use packforcing::ops::match_tokens::{MatchTokens, Matching, Merges, SoftMatch, UnmergeTokens};
use packforcing::ops::merge_states::State;
use packforcing::ops::merge_tokens::{MeanPool, MergeTokens, Remainder};
use packforcing::ops::select_blocks::{BlockShape, Scores, SelectBlocks, SumKeys};
use packforcing::paging::{Context, KvPages, KvPagesMut, PageLists, Segment};
use packforcing::sampler::Sampler;
use packforcing::schedule::Schedule;
use packforcing::{Blocks, Grid, Rope3d, ops};
use packforcing_candle::{
    Norm, Pages, attend, attend_with, attention, denoise_step, hand_in, merge_states, with_views,
};

const DIM: usize = 64;
const PAGE: usize = 16;

/// Every device with every dtype that it takes.
fn everywhere(test: impl Fn(&packforcing::Device, DType, &mut Rng)) {
    for (device, dtypes) in devices() {
        for &dtype in dtypes {
            test(&device, dtype, &mut Rng(7));
        }
    }
}

#[test]
fn attention_over_pages() {
    everywhere(|device, dtype, rng| {
        let q = scattered(&rng.tensor(dtype, &[2, 21, 4, DIM]), (1, 2));
        let k = scattered(&rng.tensor(dtype, &[5, 2, PAGE, DIM]), (1, 2));
        let v = rng.tensor(dtype, &[5, 2, PAGE, DIM]);
        let bias = rng.tensor(DType::F32, &[5, 2, PAGE]);
        let biased = Segment {
            rotation: 3.0,
            key_bias: 0.5,
            slot_bias: true,
            ..Segment::new(vec![4, 0], 20)
        };
        let streams = [
            vec![biased, Segment::new(vec![2], 7)],
            vec![Segment::new(vec![1, 3], 32)],
        ];
        let context = Context::from_host(device, (5, PAGE), &streams).expect("a context");
        let rope = Rope3d::wan(DIM);

        let (q_own, k_own, v_own, bias_own) = (own(device, &q), own(device, &k), own(device, &v), own(device, &bias));
        // Both streams ask the same, from one memory.
        let pages = Pages {
            k: &k,
            v: &v,
            slot_bias: None,
        };
        let shared = q
            .i(0..1)
            .expect("a stream")
            .broadcast_as(q.shape())
            .expect("two streams");
        let dense = shared.contiguous().expect("a copy");
        let [shared, dense] = [&shared, &dense].map(|q| {
            attention(device, q, &pages, &context, &rope, 0.125)
                .expect("attention")
                .0
        });
        assert_eq!(bits(&shared), bits(&dense), "{device} {dtype:?}");

        for slot_bias in [None, Some(&bias)] {
            let pages = Pages {
                k: &k,
                v: &v,
                slot_bias,
            };
            let (out, lse) = attention(device, &q, &pages, &context, &rope, 0.125).expect("attention");

            let mut expected = own(device, &q);
            let mut expected_lse =
                packforcing::Tensor::zeros(device, packforcing::DType::F32, &[2, 21, 4]).expect("room");
            let args = Attention {
                q: q_own.view(),
                kv: KvPages {
                    k: k_own.view(),
                    v: v_own.view(),
                    slot_bias: slot_bias.map(|_| bias_own.view()),
                },
                context: &context,
                rope: &rope,
                scale: 0.125,
            };
            ops::attention::attention(&args, &mut expected.view_mut(), Some(&mut expected_lse.view_mut()))
                .expect("attention");
            assert_eq!(bits(&out), view_bits(&expected.view()), "{device} {dtype:?}");
            assert_eq!(bits(&lse), view_bits(&expected_lse.view()), "{device} {dtype:?}");
            assert_eq!(
                (out.dtype(), out.dims(), lse.dims()),
                (dtype, q.dims(), &[2, 21, 4][..])
            );
        }
    });
}

#[test]
fn merged_states() {
    everywhere(|device, dtype, rng| {
        let (a, b) = (rng.tensor(dtype, &[2, 5, 3, DIM]), rng.tensor(dtype, &[2, 5, 3, DIM]));
        let (a_lse, b_lse) = (rng.tensor(DType::F32, &[2, 5, 3]), rng.tensor(DType::F32, &[2, 5, 3]));
        let (out, lse) = merge_states(device, (&a, &a_lse), (&b, &b_lse)).expect("merged");

        let rows = |t: &Tensor| own(device, &t.flatten_to(1).expect("rows"));
        let (a_own, a_lse_own, b_own, b_lse_own) = (rows(&a), rows(&a_lse), rows(&b), rows(&b_lse));
        let (mut expected, mut expected_lse) = (rows(&a), rows(&a_lse));
        let state = |out: &packforcing::Tensor, lse: &packforcing::Tensor| -> Vec<u32> {
            view_bits(&out.view())
                .into_iter()
                .chain(view_bits(&lse.view()))
                .collect()
        };
        ops::merge_states::merge_states(
            &State {
                out: a_own.view(),
                lse: a_lse_own.view(),
            },
            &State {
                out: b_own.view(),
                lse: b_lse_own.view(),
            },
            &mut expected.view_mut(),
            &mut expected_lse.view_mut(),
        )
        .expect("merged");
        assert_eq!(
            [bits(&out), bits(&lse)].concat(),
            state(&expected, &expected_lse),
            "{device} {dtype:?}"
        );
        assert_eq!((out.dims(), lse.dims()), (a.dims(), a_lse.dims()));

        // One leading dimension needs no dense rows.
        let part = |t: &Tensor| scattered(&t.i(1).expect("a stream"), (0, 1));
        let (out, _) = merge_states(
            device,
            (&part(&a), &a_lse.i(1).expect("a stream")),
            (&part(&b), &b_lse.i(1).expect("a stream")),
        )
        .expect("merged");
        assert_eq!(
            bits(&out),
            view_bits(&expected.view().narrow(0, 5, 5).expect("a stream"))
        );
        // Two do, and nothing is copied to have them.
        let loose = scattered(&a, (1, 2));
        assert_eq!(
            refused(merge_states(device, (&a, &a_lse), (&loose, &b_lse))),
            ("merge_states", "b.out")
        );
    });
}

#[test]
fn append_and_merge_in_pages() {
    everywhere(|device, dtype, rng| {
        let grid = Grid {
            frames: 2,
            rows: 4,
            cols: 4,
        };
        let (q, k) = (
            rng.tensor(dtype, &[2, 32, 4, DIM]),
            scattered(&rng.tensor(dtype, &[2, 32, 2, DIM]), (1, 2)),
        );
        let v = rng
            .tensor(dtype, &[2, 2, 32, DIM])
            .transpose(1, 2)
            .expect("tokens before heads");
        let (q_weight, k_weight) = (rng.tensor(dtype, &[4 * DIM]), rng.tensor(dtype, &[2 * DIM]));
        let origins = rng.tensor(DType::F32, &[2]);
        let pages: [Tensor; 2] = std::array::from_fn(|_| rng.tensor(dtype, &[7, 2, PAGE, DIM]));
        let slot_bias = rng.tensor(DType::F32, &[7, 2, PAGE]);
        let source = PageLists::from_host(device, 7, &[vec![5, 0], vec![2, 6]]).expect("lists");
        let dest = PageLists::from_host(device, 7, &[vec![1], vec![4]]).expect("lists");
        let rope = Rope3d::wan(DIM);
        let merge = MergeTokens {
            source: &source,
            dest: &dest,
            grid,
            pool: MeanPool {
                cell: [2, 2, 2],
                remainder: Remainder::Drop,
            },
            rope: &rope,
        };

        let owned: Vec<packforcing::Tensor> = [&q, &k, &v, &q_weight, &k_weight, &origins]
            .map(|t| own(device, t))
            .into();
        let [mut own_k, mut own_v, mut own_bias] = [&pages[0], &pages[1], &slot_bias].map(|t| own(device, t));
        let mut own_q = own(device, &q);
        let mut own_pages = KvPagesMut {
            k: own_k.view_mut(),
            v: own_v.view_mut(),
            slot_bias: Some(own_bias.view_mut()),
        };
        let args =
            |views: [packforcing::View<'_>; 6], kv: &mut KvPagesMut<'_>, q_out: &mut packforcing::ViewMut<'_>| {
                let [q, k, v, q_weight, k_weight, origins] = views;
                let args = AppendKv {
                    q: Some(q),
                    k,
                    v,
                    norm: Some(append_kv::Norm {
                        q_weight,
                        k_weight,
                        eps: 1e-6,
                    }),
                    rope: &rope,
                    lattice: Lattice::whole(grid),
                    origins: Some(origins),
                    pages: &source,
                };
                append_kv::append_kv(&args, Some(q_out), kv)?;
                ops::merge_tokens::merge_tokens(&merge, kv)
            };
        args(
            std::array::from_fn(|i| owned[i].view()),
            &mut own_pages,
            &mut own_q.view_mut(),
        )
        .expect("the ops");
        drop(own_pages);

        let q_out = Tensor::zeros(q.shape(), dtype, &Device::Cpu).expect("room");
        with_views(
            device,
            "append",
            [
                ("q", &q),
                ("k", &k),
                ("v", &v),
                ("q_weight", &q_weight),
                ("k_weight", &k_weight),
                ("origins", &origins),
            ],
            [
                ("q_out", &q_out),
                ("kv.k", &pages[0]),
                ("kv.v", &pages[1]),
                ("kv.slot_bias", &slot_bias),
            ],
            |read, [mut q_out, k, v, bias]| {
                args(
                    read,
                    &mut KvPagesMut {
                        k,
                        v,
                        slot_bias: Some(bias),
                    },
                    &mut q_out,
                )
            },
        )
        .expect("the ops");
        let pairs = [
            (&q_out, &own_q),
            (&pages[0], &own_k),
            (&pages[1], &own_v),
            (&slot_bias, &own_bias),
        ];
        for (i, (candle, own)) in pairs.into_iter().enumerate() {
            assert_eq!(bits(candle), view_bits(&own.view()), "{device} {dtype:?}, output {i}");
        }
    });
}

#[test]
fn sums_and_selection() {
    everywhere(|device, dtype, rng| {
        let int = |x: &[i32], shape: &[usize]| Tensor::from_slice(x, shape, &Device::Cpu).expect("a tensor");
        let k = rng.tensor(dtype, &[8, 2, PAGE, DIM]);
        let q = scattered(&rng.tensor(dtype, &[1, 9, 4, DIM]), (1, 2));
        let sums = rng.tensor(DType::F32, &[3, 2, DIM]);
        let (rows, candidates, counts, prefix) = (
            int(&[2, 0, 1], &[3]),
            int(&[0, 1, 2], &[1, 3]),
            int(&[3], &[1]),
            int(&[1], &[1]),
        );
        let lists = PageLists::from_host(device, 8, &[vec![5], vec![2], vec![7]]).expect("lists");
        let sink = Segment {
            rotation: 4.0,
            ..Segment::new(vec![0], PAGE)
        };
        let draft = Context::from_host(device, (8, PAGE), &[vec![sink, Segment::new(vec![1], PAGE)]]).expect("a draft");
        let new = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("room");
        let (query_sums, scores, chosen) = (new(&[1, 1, 4, DIM]), new(&[1, 3]), int(&[-7, -7], &[1, 2]));

        let run = |views: [packforcing::View<'_>; 6], targets: [packforcing::ViewMut<'_>; 4]| {
            let ([k, q, rows, candidates, counts, draft_prefix], [mut sums, query_sums, scores, mut chosen]) =
                (views, targets);
            let kv = KvPages {
                k: k.clone(),
                v: k,
                slot_bias: None,
            };
            ops::select_blocks::sum_keys(
                &SumKeys {
                    kv,
                    pages: &lists,
                    rows,
                    tokens: 11,
                },
                &mut sums,
            )?;
            let mut context = Context::new(device, (8, PAGE), 1, 4, 4)?;
            let mut select = SelectBlocks {
                scores: Scores::Dot {
                    q,
                    key_sums: sums.view(),
                    query_sums,
                    scores,
                },
                candidates,
                counts,
                slot_pages: &lists,
                shape: BlockShape {
                    tokens: 11,
                    frames: 2.0,
                    key_bias: 0.0,
                    slot_bias: false,
                },
                selected: 2,
                draft: &draft,
                draft_prefix,
            };
            ops::select_blocks::select_blocks(&mut select, &mut chosen, &mut context)?;
            Ok((context.to_host()?, chosen.to_vec::<i32>()?))
        };
        let owned: Vec<packforcing::Tensor> = [&k, &q, &rows, &candidates, &counts, &prefix]
            .map(|t| own(device, t))
            .into();
        let mut targets: Vec<packforcing::Tensor> =
            [&sums, &query_sums, &scores, &chosen].map(|t| own(device, t)).into();
        let [a, b, c, d] = &mut targets[..] else {
            panic!("four targets")
        };
        let expected = run(
            std::array::from_fn(|i| owned[i].view()),
            [a, b, c, d].map(|t| t.view_mut()),
        )
        .expect("the ops");
        let got = with_views(
            device,
            "select",
            [
                ("k", &k),
                ("q", &q),
                ("rows", &rows),
                ("candidates", &candidates),
                ("counts", &counts),
                ("prefix", &prefix),
            ],
            [
                ("sums", &sums),
                ("query_sums", &query_sums),
                ("scores", &scores),
                ("chosen", &chosen),
            ],
            run,
        )
        .expect("the ops");
        assert_eq!(got, expected, "{device} {dtype:?}");
        for (candle, own) in [&sums, &query_sums, &scores].into_iter().zip(&targets) {
            assert_eq!(bits(candle), view_bits(&own.view()), "{device} {dtype:?}");
        }
        assert!(got.1[0] >= 0, "nothing was chosen");
    });
}

#[test]
fn denoising_into_new_tensors_and_in_place() {
    everywhere(|device, dtype, rng| {
        // [channels, frames, height, width]; the step changes with the frame.
        let shape = [3, 2, 4, 8];
        let (x, v) = (rng.tensor(dtype, &shape), rng.tensor(DType::F32, &shape));
        let rows = ops::denoise_step::rows::renoise(&[0.9, 0.4], &[0.5, 0.1]);
        let other = ops::denoise_step::rows::x0(&[0.9, 0.4]);
        let numbers = Coefficients::new(device, &[rows.clone(), other]).expect("coefficients");
        let one = Coefficients::new(device, &[rows]).expect("coefficients");
        let noise = Some(Noise { seed: 3, offset: 5 });

        let (x_own, v_own) = (own(device, &x), own(device, &v));
        let (mut next, mut clean) = (own(device, &x), own(device, &x));
        let step = DenoiseStep {
            terms: vec![x_own.view(), v_own.view()],
            in_place: 0,
            frame_axis: 1,
            coefficients: &numbers,
            noise,
            noise_base: None,
            guidance: None,
        };
        ops::denoise_step::denoise_step(&step, &mut [next.view_mut(), clean.view_mut()]).expect("a step");

        let made = denoise_step(device, &[&x, &v], 1, &numbers, noise).expect("a step");
        assert_eq!(made.len(), 2);
        assert_eq!(bits(&made[0]), view_bits(&next.view()), "{device} {dtype:?}");
        assert_eq!(bits(&made[1]), view_bits(&clean.view()), "{device} {dtype:?}");

        with_views(device, "denoise_step", [("v", &v)], [("x", &x)], |[v], [x]| {
            let step = DenoiseStep {
                terms: vec![v],
                in_place: 1,
                frame_axis: 1,
                coefficients: &one,
                noise,
                noise_base: None,
                guidance: None,
            };
            ops::denoise_step::denoise_step(&step, &mut [x])
        })
        .expect("a step");
        assert_eq!(bits(&x), view_bits(&next.view()), "{device} {dtype:?}");
        assert_eq!(
            refused(denoise_step(device, &[], 1, &numbers, noise)),
            ("denoise_step", "terms")
        );
    });
}

#[test]
fn guided_steps_with_noise_from_device_memory() {
    everywhere(|device, dtype, rng| {
        // Two samples of three frames.
        let shape = [2, 3, 40];
        let (x, c, u) = (
            rng.tensor(DType::F32, &shape),
            rng.tensor(dtype, &shape),
            rng.tensor(dtype, &shape),
        );
        let rows = ops::denoise_step::rows::weighted(ops::denoise_step::rows::renoise(&[0.9; 3], &[0.5; 3]));
        let numbers = Coefficients::new(device, &[rows]).expect("coefficients");
        let base = NoiseBase::new(device, Noise { seed: 3, offset: 70 }).expect("a base");
        let run = |[c, u]: [packforcing::View<'_>; 2], x: packforcing::ViewMut<'_>| {
            let mut weights = GuidanceWeights::new(device, &shape, 2)?;
            let how = Guidance {
                cond: c.clone(),
                uncond: u.clone(),
                frame_axis: 1,
                scale: 5.0,
                zero_star: true,
                rescale: 0.7,
            };
            ops::guidance::guidance(&how, &mut weights)?;
            let step = DenoiseStep {
                terms: vec![c, u],
                in_place: 1,
                frame_axis: 1,
                coefficients: &numbers,
                noise: Some(Noise { seed: 0, offset: 0 }),
                noise_base: Some(&base),
                guidance: Some(&weights),
            };
            ops::denoise_step::denoise_step(&step, &mut [x])
        };
        let (mut x_own, c_own, u_own) = (own(device, &x), own(device, &c), own(device, &u));
        run([c_own.view(), u_own.view()], x_own.view_mut()).expect("a step");
        let before = bits(&x);
        with_views(device, "guided", [("c", &c), ("u", &u)], [("x", &x)], |read, [x]| {
            run(read, x)
        })
        .expect("a step");
        assert_eq!(bits(&x), view_bits(&x_own.view()), "{device} {dtype:?}");
        assert_ne!(bits(&x), before, "nothing was written");
    });
}

#[test]
fn matching_there_and_back() {
    everywhere(|device, dtype, rng| {
        let grid = Grid {
            frames: 2,
            rows: 4,
            cols: 5,
        };
        let pages = [0, 1].map(|_| scattered(&rng.tensor(dtype, &[8, 2, PAGE, DIM]), (1, 2)));
        let slot_bias = rng.tensor(DType::F32, &[8, 2, PAGE]);
        let source = PageLists::from_host(device, 8, &[vec![5, 0, 2]]).expect("lists");
        let dest = PageLists::from_host(device, 8, &[vec![7]]).expect("lists");
        let x = rng.tensor(dtype, &[1, 8, 2, DIM]);
        let back = rng.tensor(dtype, &[1, 40, 2, DIM]);
        let run = |x: packforcing::View<'_>, targets: [packforcing::ViewMut<'_>; 4]| {
            let [k, v, bias, mut back] = targets;
            let how = SoftMatch::strided([1, 2, 2]);
            let mut matching = Matching::new(device, how, grid, &Rope3d::wan(DIM), (1, 2))?;
            let args = MatchTokens {
                source: &source,
                dest: &dest,
                merges: Merges::Top(32), // all that are no destination: 8 of 40 stay
                weighted: false,
            };
            let mut kv = KvPagesMut {
                k,
                v,
                slot_bias: Some(bias),
            };
            ops::match_tokens::match_tokens(&args, &mut matching, &mut kv)?;
            let map = matching.map();
            ops::match_tokens::unmerge_tokens(&UnmergeTokens { x, map }, &mut back)
        };
        let x_own = own(device, &x);
        let mut targets: Vec<packforcing::Tensor> =
            [&pages[0], &pages[1], &slot_bias, &back].map(|t| own(device, t)).into();
        let [a, b, c, d] = &mut targets[..] else {
            panic!("four targets")
        };
        run(x_own.view(), [a, b, c, d].map(|t| t.view_mut())).expect("the ops");
        let before = [&pages[0], &pages[1], &slot_bias, &back].map(bits);
        with_views(
            device,
            "match",
            [("x", &x)],
            [
                ("kv.k", &pages[0]),
                ("kv.v", &pages[1]),
                ("kv.slot_bias", &slot_bias),
                ("back", &back),
            ],
            |[x], targets| run(x, targets),
        )
        .expect("the ops");
        let after = [&pages[0], &pages[1], &slot_bias, &back];
        for ((candle, own), before) in after.into_iter().zip(&targets).zip(before) {
            assert_eq!(bits(candle), view_bits(&own.view()), "{device} {dtype:?}");
            assert_ne!(bits(candle), before, "nothing was written");
        }
    });
}

fn config(dtype: DType) -> PackConfigBuilder {
    PackConfig::builder()
        .layers(2)
        .heads(Heads {
            query: 4,
            kv: 2,
            dim: DIM,
        })
        .dtype(packforcing_candle::dtype(dtype).expect("a dtype of both sides"))
        .block(Grid {
            frames: 2,
            rows: 4,
            cols: 4,
        })
        .compression(Compression::mean_pool([2, 2, 2]))
        .sink(Blocks(1))
        .selected(Blocks(2))
        .archive(Blocks(3))
}

#[test]
fn a_video_through_the_cache() {
    for compression in [
        Compression::mean_pool([2, 2, 2]),
        Compression::matching([2, 2, 2]),
        Compression::None,
    ] {
        a_video_through(compression);
    }
}

fn a_video_through(compression: Compression) {
    everywhere(|device, dtype, rng| {
        let config = config(dtype).compression(compression).build().expect("a configuration");
        let mut caches: [PackedKvCache; 2] =
            std::array::from_fn(|_| PackedKvCache::new(device, &config).expect("a cache"));
        let (q_weight, k_weight) = (rng.tensor(dtype, &[4 * DIM]), rng.tensor(dtype, &[2 * DIM]));
        let weights = (own(device, &q_weight), own(device, &k_weight));
        for number in 0..6 {
            // Parts of one tensor, as a fused projection makes them.
            let qkv = rng.tensor(dtype, &[1, 32, 8, DIM]);
            let part = |start, heads| qkv.narrow(2, start, heads).expect("heads");
            let (q, k, v) = (part(0, 4), part(4, 2), part(6, 2));
            let [own_q, own_k, own_v] = [&q, &k, &v].map(|t| own(device, t));
            let [mut expected, mut expected_normed] = [&q, &q].map(|t| own(device, t));
            let mut expected_lse =
                packforcing::Tensor::zeros(device, packforcing::DType::F32, &[1, 32, 4]).expect("room");

            let [theirs, ours] = &mut caches;
            let mut block = theirs.begin().expect("a block");
            let mut pass = block.commit_pass().expect("a pass");
            pass.attend(0, own_q.view(), own_k.view(), own_v.view(), &mut expected.view_mut())
                .expect("layer 0");
            let norm = append_kv::Norm {
                q_weight: weights.0.view(),
                k_weight: weights.1.view(),
                eps: 1e-6,
            };
            let normed = Qkv {
                q: own_q.view(),
                k: own_k.view(),
                v: own_v.view(),
                norm: Some(norm),
            };
            pass.attend_with(
                1,
                &normed,
                &mut expected_normed.view_mut(),
                Some(&mut expected_lse.view_mut()),
            )
            .expect("layer 1");
            block.commit().expect("a commit");

            let mut block = ours.begin().expect("a block");
            let mut pass = block.commit_pass().expect("a pass");
            let out = attend(&mut pass, 0, &q, &k, &v).expect("layer 0");
            let norm = Norm {
                q_weight: &q_weight,
                k_weight: &k_weight,
                eps: 1e-6,
            };
            let (normed, lse) = attend_with(&mut pass, 1, &q, &k, &v, Some(norm)).expect("layer 1");
            let (unnormed, _) = attend_with(&mut pass, 0, &q, &k, &v, None).expect("layer 0 again");
            block.commit().expect("a commit");

            let place = format!("{device} {dtype:?}, {compression:?}, block {number}");
            assert_eq!(bits(&out), view_bits(&expected.view()), "{place}");
            assert_eq!(bits(&unnormed), bits(&out), "{place}");
            assert_eq!(bits(&normed), view_bits(&expected_normed.view()), "{place}");
            assert_eq!(bits(&lse), view_bits(&expected_lse.view()), "{place}");
            assert_eq!(
                (out.dims(), out.dtype(), lse.dims()),
                (q.dims(), dtype, &[1, 32, 4][..])
            );
        }
    });
}

/// Two futures of one past, in one batch of candle tensors, are each what the whole video alone is.
#[test]
fn a_fork_goes_on_by_itself() {
    everywhere(|device, dtype, rng| {
        let config = config(dtype).layers(1).streams(2).build().expect("a configuration");
        let pool = PagePool::new(device, &config).expect("a pool");
        let one = |q: &Tensor, videos: &mut [Stream]| {
            let mut block = pool.begin(videos).expect("a block");
            let k = q.narrow(2, 0, 2).expect("heads");
            let out = attend(&mut block.commit_pass().expect("a pass"), 0, q, &k, &k).expect("attention");
            block.commit().expect("a commit");
            out
        };
        let mut draw = |streams| rng.tensor(dtype, &[streams, 32, 4, DIM]);
        let (past, futures): (Vec<Tensor>, Vec<Tensor>) =
            ((0..4).map(|_| draw(1)).collect(), (0..3).map(|_| draw(2)).collect());

        let mut videos = vec![pool.stream().expect("a stream")];
        past.iter().for_each(|q| drop(one(q, &mut videos)));
        videos.push(videos[0].fork().expect("a fork"));
        let together: Vec<Tensor> = futures.iter().map(|q| one(q, &mut videos)).collect();
        drop(videos);
        for stream in 0..2 {
            let mut alone = [pool.stream().expect("a stream")];
            past.iter().for_each(|q| drop(one(q, &mut alone)));
            for (q, both) in futures.iter().zip(&together) {
                let q = q.narrow(0, stream, 1).expect("a stream");
                let both = both.narrow(0, stream, 1).expect("a stream");
                assert_eq!(
                    bits(&one(&q, &mut alone)),
                    bits(&both),
                    "{device} {dtype:?}, stream {stream}"
                );
            }
        }
        let [a, b] = [0, 1].map(|i| bits(&together[2].i(i).expect("a stream")));
        assert_ne!(a, b);
    });
}

/// The loop of the crate's docs: latent and states are candle's, in place.
#[test]
fn solvers_that_remember_step_candles_latents() {
    everywhere(|device, dtype, rng| {
        for schedule in [Schedule::unipc(6, 5.0), Schedule::dpm_solver(6, 3.0)] {
            let schedule = schedule.expect("a schedule");
            let (frames, shape) = (3, [2, 3, 24]);
            let zeros = |dtype| Tensor::zeros(&shape, dtype, &Device::Cpu).expect("room");
            let latent = zeros(dtype);
            let states: Vec<Tensor> = (0..schedule.states()).map(|_| zeros(DType::F32)).collect();
            let mut sampler = Sampler::new(&own(device, &latent), 1, schedule.clone()).expect("a sampler");
            let noise = Noise { seed: 3, offset: 8 };
            sampler.start(noise).expect("a start");
            let step = |rows: &[_], v: Option<&Tensor>, noise| {
                let coefficients = &Coefficients::new(device, rows).expect("finite");
                let run = |terms: Vec<packforcing::View<'_>>, mut outputs: Vec<packforcing::ViewMut<'_>>| {
                    let step = DenoiseStep {
                        in_place: terms.len() * outputs.len(),
                        terms,
                        frame_axis: 1,
                        coefficients,
                        noise,
                        noise_base: None,
                        guidance: None,
                    };
                    ops::denoise_step::denoise_step(&step, &mut outputs)
                };
                let (v, read) = (v.unwrap_or(&latent), v.is_some());
                match (&states[..], read) {
                    ([a], true) => with_views(device, "step", [("v", v)], [("x", &latent), ("a", a)], |[v], w| {
                        run(vec![v], w.into())
                    }),
                    ([a], false) => with_views(device, "start", [], [("x", &latent), ("a", a)], |[], w| {
                        run(vec![], w.into())
                    }),
                    ([a, b], true) => with_views(
                        device,
                        "step",
                        [("v", v)],
                        [("x", &latent), ("a", a), ("b", b)],
                        |[v], w| run(vec![v], w.into()),
                    ),
                    ([a, b], false) => {
                        with_views(device, "start", [], [("x", &latent), ("a", a), ("b", b)], |[], w| {
                            run(vec![], w.into())
                        })
                    }
                    _ => panic!("one state or two"),
                }
                .expect("a step");
            };
            step(&schedule.start_rows(frames), None, Some(noise));
            assert_eq!(bits(&latent), view_bits(&sampler.latent().view()), "{device} {dtype:?}");
            for number in 0..schedule.steps().len() {
                let v = rng.tensor(dtype, &shape);
                step(&schedule.rows(number, frames).expect("rows"), Some(&v), None);
                sampler.step(number, own(device, &v).view(), noise).expect("a step");
                assert_eq!(
                    bits(&latent),
                    view_bits(&sampler.latent().view()),
                    "{device} {dtype:?}, {schedule:?}, step {number}"
                );
            }
            assert!(numbers(&latent).iter().all(|x| x.is_finite()));
        }
    });
}

#[test]
fn compressed_tokens_of_the_models_own() {
    everywhere(|device, dtype, rng| {
        let grid = Grid {
            frames: 1,
            rows: 2,
            cols: 2,
        };
        let config = config(dtype).layers(1).compression(Compression::External(grid));
        let config = config.build().expect("a configuration");
        let mut caches: [PackedKvCache; 2] =
            std::array::from_fn(|_| PackedKvCache::new(device, &config).expect("a cache"));
        for number in 0..5 {
            let (q, kv) = (rng.tensor(dtype, &[1, 32, 4, DIM]), rng.tensor(dtype, &[1, 32, 2, DIM]));
            let mid = scattered(&rng.tensor(dtype, &[1, 4, 2, DIM]), (1, 2));
            let [own_q, own_kv, own_mid] = [&q, &kv, &mid].map(|t| own(device, t));
            let mut expected = own(device, &q);

            let [theirs, ours] = &mut caches;
            let mut block = theirs.begin().expect("a block");
            let mut pass = block.commit_pass().expect("a pass");
            pass.attend(0, own_q.view(), own_kv.view(), own_kv.view(), &mut expected.view_mut())
                .expect("attention");
            pass.hand_in(0, own_mid.view(), own_mid.view())
                .expect("compressed tokens");
            block.commit().expect("a commit");

            let mut block = ours.begin().expect("a block");
            let mut pass = block.commit_pass().expect("a pass");
            let out = attend(&mut pass, 0, &q, &kv, &kv).expect("attention");
            hand_in(&mut pass, 0, &mid, &mid).expect("compressed tokens");
            block.commit().expect("a commit");
            assert_eq!(
                bits(&out),
                view_bits(&expected.view()),
                "{device} {dtype:?}, block {number}"
            );
        }
    });
}

#[test]
fn what_the_cache_does_not_take_is_refused_by_name() {
    let mut rng = Rng(2);
    let cpu = packforcing::Device::cpu();
    let mut cache = PackedKvCache::new(&cpu, &config(DType::F32).build().expect("a configuration")).expect("a cache");
    let (q, kv) = (
        rng.tensor(DType::F32, &[1, 32, 4, DIM]),
        rng.tensor(DType::F32, &[1, 32, 2, DIM]),
    );
    let half = kv.to_dtype(DType::F16).expect("a cast");
    let columns = rng
        .tensor(DType::F32, &[1, 32, DIM, 2])
        .transpose(2, 3)
        .expect("dim before heads");
    let short = kv.narrow(1, 0, 31).expect("a part");
    let mut block = cache.begin().expect("a block");
    let mut pass = block.commit_pass().expect("a pass");
    for wrong in [&half, &columns, &short] {
        assert_eq!(refused(attend(&mut pass, 0, &q, wrong, &kv)), ("attend", "k"));
        assert_eq!(refused(attend(&mut pass, 0, &q, &kv, wrong)), ("attend", "v"));
    }
    assert_eq!(refused(attend(&mut pass, 2, &q, &kv, &kv)), ("attend", "layer"));
    assert_eq!(
        refused(attend_with(&mut pass, 0, &q, &kv, &columns, None)),
        ("attend_with", "v")
    );
    let norm = Norm {
        q_weight: &half,
        k_weight: &kv,
        eps: 1e-6,
    };
    assert_eq!(
        refused(attend_with(&mut pass, 0, &q, &kv, &kv, Some(norm))).1,
        "norm.q_weight"
    );

    // Pages of another device than the tensors are opened on.
    let simt = packforcing::Device::simt(packforcing::SimtOptions::default()).expect("the SIMT device");
    let pool = rng.tensor(DType::F16, &[2, 2, PAGE, DIM]);
    let context = Context::from_host(&cpu, (2, PAGE), &[vec![Segment::new(vec![0], 3)]]).expect("a context");
    let pages = Pages {
        k: &pool,
        v: &pool,
        slot_bias: None,
    };
    let q = q.to_dtype(DType::F16).expect("a cast");
    let strange = attention(&simt, &q, &pages, &context, &Rope3d::wan(DIM), 0.125);
    assert_eq!(refused(strange), ("attention", "context"));
}
