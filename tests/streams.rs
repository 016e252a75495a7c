//! Pools and streams through random lives, forks among them, against a model that knows of each
//! stream only its history: what is held follows from it, and so does what attention gives, which
//! is that of the same history alone in a pool of its own.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use common::{Rng, Suite};
use packforcing::cache::{
    Block, Compression, Heads, MeanPool, PackConfig, PagePool, Place, Policy, Remainder, Selection, Stream,
};
use packforcing::{Blocks, DType, Device, DeviceKind, Error, Grid, Tensor};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

const GRID: Grid = Grid {
    frames: 2,
    rows: 2,
    cols: 4,
};
const HANDED_IN: Grid = Grid {
    frames: 1,
    rows: 2,
    cols: 2,
};
const LAYERS: usize = 2;

type Checked<T = ()> = Result<T, TestCaseError>;

/// A configuration, in what can be drawn and shrunk.
#[derive(Debug, Clone)]
struct Setup {
    compression: Compression,
    page: usize,
    sink: usize,
    recent: usize,
    selected: usize,
    archive: usize,
    streams: usize,
    policy: Policy,
    selection: Selection,
}

impl Setup {
    fn config(&self, device: &Device, streams: usize) -> PackConfig {
        let (dtype, dim) = match device.kind() {
            DeviceKind::Cpu => (DType::F32, 16),
            _ => (DType::BF16, 64),
        };
        PackConfig::builder()
            .layers(LAYERS)
            .heads(Heads { query: 2, kv: 1, dim })
            .dtype(dtype)
            .block(GRID)
            .compression(self.compression)
            .page_tokens(self.page)
            .sink(Blocks(self.sink))
            .recent(Blocks(self.recent))
            .selected(Blocks(self.selected))
            .archive(Blocks(self.archive))
            .streams(streams)
            .policy(self.policy)
            .selection(self.selection)
            .build()
            .expect("it fits")
    }

    fn block_pages(&self) -> usize {
        GRID.tokens().0.div_ceil(self.page)
    }

    /// Pages of a compressed block; none where it stays as it is.
    fn mid_pages(&self, config: &PackConfig) -> usize {
        match self.compression {
            Compression::None => 0,
            _ => config.mid_tokens().0.div_ceil(self.page),
        }
    }
}

fn setups() -> impl Strategy<Value = Setup> {
    let keep = Compression::Mean(MeanPool {
        cell: [2, 2, 3],
        remainder: Remainder::Keep,
    });
    let compression = prop_oneof![
        Just(Compression::mean_pool([1, 2, 2])),
        Just(keep),
        Just(Compression::matching([1, 2, 2])),
        Just(Compression::None),
        Just(Compression::External(HANDED_IN)),
    ];
    let policy = prop_oneof![
        Just(Policy::Top),
        Just(Policy::Newest),
        Just(Policy::Random { seed: 5 })
    ];
    // Pages of 8 and 16 tokens end with a block of 16, pages of 12 and 24 do not.
    let page = prop::sample::select(vec![16, 8, 12, 24]);
    (
        compression,
        page,
        (
            policy,
            prop::sample::select(vec![Selection::PerLayer, Selection::Shared]),
        ),
        0..3usize,
        0..3usize,
        0..3usize,
        0..3usize,
        1..4usize,
    )
        .prop_map(
            |(compression, page, (policy, selection), sink, recent, selected, more, streams)| Setup {
                compression,
                page,
                sink,
                recent,
                selected,
                archive: selected + more,
                streams,
                policy,
                selection,
            },
        )
}

/// What happens to the streams that are not of the batch while a block is under way.
#[derive(Debug, Clone)]
enum Meanwhile {
    Nothing,
    Begin,
    Fork,
    Drop,
}

/// One step of a life. Streams are named modulo how many there are.
#[derive(Debug, Clone)]
enum Step {
    New,
    Fork(usize),
    Reset(usize),
    Drop(usize),
    /// Blocks of the streams whose bits are set.
    Blocks {
        which: u8,
        times: usize,
        backwards: bool,
        denoise: bool,
        /// Else the block is dropped, after its commit pass.
        commit: bool,
        meanwhile: Meanwhile,
    },
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let meanwhile = prop_oneof![
        3 => Just(Meanwhile::Nothing),
        1 => Just(Meanwhile::Begin),
        1 => Just(Meanwhile::Fork),
        1 => Just(Meanwhile::Drop),
    ];
    let blocks = (
        1..64u8,
        1..7usize,
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.8),
        meanwhile,
    )
        .prop_map(|(which, times, backwards, denoise, commit, meanwhile)| Step::Blocks {
            which,
            times,
            backwards,
            denoise,
            commit,
            meanwhile,
        });
    let step = prop_oneof![
        2 => Just(Step::New),
        3 => (0..6usize).prop_map(Step::Fork),
        1 => (0..6usize).prop_map(Step::Reset),
        1 => (0..6usize).prop_map(Step::Drop),
        8 => blocks,
    ];
    prop::collection::vec(step, 1..most)
}

/// A block of a history: what it attended with first, where that was another, and what it committed.
type Content = (Option<u64>, u64);

/// A stream, and its whole history. A block's last number tells it from every other.
struct Video {
    stream: Stream,
    history: Vec<Content>,
}

/// What a stream with this history holds: the blocks kept whole, and those with a compressed form.
fn held(setup: &Setup, history: &[Content]) -> Vec<(u64, Place)> {
    let sink = history.len().min(setup.sink);
    let recent = history.len().saturating_sub(setup.recent).max(sink);
    let mid = recent.saturating_sub(setup.archive).max(sink);
    let place = |i: usize| match i {
        i if i < sink => Some(Place::Sink),
        i if i < mid => None,
        i if i < recent => Some(Place::Mid),
        _ => Some(Place::Recent),
    };
    let placed = history.iter().enumerate();
    placed.filter_map(|(i, content)| Some((content.1, place(i)?))).collect()
}

/// Everything of one life.
struct Life<'a> {
    setup: &'a Setup,
    device: &'a Device,
    pool: PagePool,
    videos: Vec<Video>,
    drawn: u64,
    /// What the last layers gave after a history: its last block is the one that attended.
    seen: BTreeMap<Vec<Content>, Vec<Vec<f32>>>,
}

/// A layer's input of one block, [tokens, heads, dim]: its values tell one block from every other.
fn input(content: u64, layer: usize, part: &str, n: usize) -> Vec<f32> {
    let mut rng = Rng::new(&format!("{content} {layer} {part}"));
    (0..n).map(|_| rng.uniform() as f32 * 4.0 - 2.0).collect()
}

/// One pass of a batch; what each stream's attention gave, of all layers.
fn pass(
    block: &mut Block<'_>,
    config: &PackConfig,
    device: &Device,
    commits: bool,
    contents: &[u64],
) -> Vec<Vec<Vec<f32>>> {
    let (heads, tokens) = (config.heads(), GRID.tokens().0);
    let batch = |layer, part: &str, tokens: usize, n: usize| {
        let one = tokens * n * heads.dim;
        let data: Vec<f32> = contents.iter().flat_map(|&c| input(c, layer, part, one)).collect();
        Tensor::from_f32(device, config.dtype(), &data, &[contents.len(), tokens, n, heads.dim]).expect("it fits")
    };
    let mut pass = if commits {
        block.commit_pass()
    } else {
        block.denoise_pass()
    }
    .expect("the device is there");
    let mut outs = vec![Vec::new(); contents.len()];
    for layer in 0..LAYERS {
        let [q, k, v] = [("q", heads.query), ("k", heads.kv), ("v", heads.kv)].map(|(p, n)| batch(layer, p, tokens, n));
        let shape = [contents.len(), tokens, heads.query, heads.dim];
        let mut out = Tensor::zeros(device, config.dtype(), &shape).expect("there is memory");
        pass.attend(layer, q.view(), k.view(), v.view(), &mut out.view_mut())
            .expect("it attends");
        if commits && config.mid_grid() == HANDED_IN {
            let [k, v] = ["mid k", "mid v"].map(|part| batch(layer, part, HANDED_IN.tokens().0, heads.kv));
            pass.hand_in(layer, k.view(), v.view()).expect("it is handed in");
        }
        let out = out.to_f32_vec().expect("it is float");
        let each = out.chunks(out.len() / contents.len());
        outs.iter_mut().zip(each).for_each(|(o, out)| o.push(out.to_vec()));
    }
    outs
}

impl Life<'_> {
    fn new<'a>(device: &'a Device, setup: &'a Setup) -> Life<'a> {
        let pool = PagePool::new(device, &setup.config(device, setup.streams)).expect("there is memory");
        Life {
            setup,
            device,
            pool,
            videos: Vec::new(),
            drawn: 0,
            seen: BTreeMap::new(),
        }
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    /// Pages and slot rows that are free by the model: every block once, whoever holds it.
    fn free<'v>(&self, videos: impl IntoIterator<Item = &'v Video>) -> (usize, usize) {
        let (setup, config) = (self.setup, self.pool.config());
        let (mut whole, mut slots) = (BTreeSet::new(), BTreeSet::new());
        for video in videos {
            for (block, place) in held(setup, &video.history) {
                if place != Place::Mid || setup.compression == Compression::None {
                    whole.insert(block);
                }
                if place != Place::Sink {
                    slots.insert(block);
                }
            }
        }
        let (block, mid) = (setup.block_pages(), setup.mid_pages(config));
        let slots_all = setup.archive + setup.recent + 1;
        let whole_all = match setup.compression {
            Compression::None => setup.sink + slots_all,
            _ => setup.sink + setup.recent + 1,
        };
        let all = setup.streams * (whole_all * block + slots_all * mid);
        (
            all.checked_sub(whole.len() * block + slots.len() * mid)
                .expect("the model holds more than there is"),
            (setup.streams * slots_all)
                .checked_sub(slots.len())
                .expect("the model holds more than there is"),
        )
    }

    /// The pool against the model, between two steps.
    fn audit(&self) -> Checked {
        prop_assert_eq!(self.pool.free_pages().0, self.free(&self.videos).0);
        prop_assert_eq!(self.pool.bytes(), self.pool.config().bytes().total());
        for video in &self.videos {
            prop_assert_eq!(video.stream.blocks(), video.history.len());
            let number = |block| video.history.iter().position(|content| content.1 == block);
            let places: Vec<_> = held(self.setup, &video.history)
                .into_iter()
                .filter_map(|(block, place)| Some((number(block)?, place)))
                .collect();
            prop_assert_eq!(video.stream.timeline(), places);
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Checked {
        let at = |i: usize, videos: &[Video]| (!videos.is_empty()).then(|| i % videos.len());
        match *step {
            Step::New => self.videos.push(Video {
                stream: self.pool.stream().expect("the device is there"),
                history: Vec::new(),
            }),
            Step::Fork(i) => {
                if let Some(i) = at(i, &self.videos) {
                    self.videos.push(fork(&self.videos[i]));
                }
            }
            Step::Reset(i) => {
                if let Some(i) = at(i, &self.videos) {
                    self.videos[i].stream.reset();
                    self.videos[i].history.clear();
                }
            }
            Step::Drop(i) => {
                if let Some(i) = at(i, &self.videos) {
                    self.videos.remove(i);
                }
            }
            Step::Blocks { times, .. } => {
                for _ in 0..times {
                    self.block(step)?;
                    self.audit()?;
                }
            }
        }
        self.audit()
    }

    fn block(&mut self, step: &Step) -> Checked {
        let Step::Blocks {
            which,
            backwards,
            denoise,
            commit,
            ref meanwhile,
            ..
        } = *step
        else {
            return Ok(());
        };
        let free = self.free(&self.videos);
        let all = std::mem::take(&mut self.videos);
        let (mut batch, mut others) = (Vec::new(), Vec::new());
        for (i, video) in all.into_iter().enumerate() {
            let to = if which >> i.min(7) & 1 == 1 {
                &mut batch
            } else {
                &mut others
            };
            to.push(video);
        }
        if backwards {
            batch.reverse();
        }
        let first: Vec<u64> = batch.iter().map(|_| self.draw()).collect();
        let last: Vec<u64> = batch.iter().map(|_| self.draw()).collect();
        let (setup, pool) = (self.setup, self.pool.clone());
        let config = pool.config();
        let needed = batch.len() * (setup.block_pages() + setup.mid_pages(config));
        let size = batch.len();
        let done = match pool.begin(batch.iter_mut().map(|v| &mut v.stream)) {
            Err(error) => Err(error),
            Ok(mut block) => {
                prop_assert!((1..=setup.streams).contains(&size));
                prop_assert!(needed <= free.0 && size <= free.1, "begun without room");
                prop_assert_eq!(pool.free_pages().0, free.0 - needed);
                if denoise {
                    pass(&mut block, config, self.device, false, &first);
                }
                match meanwhile {
                    Meanwhile::Nothing => {}
                    Meanwhile::Begin => {
                        let refused = others.first_mut().map(|v| pool.begin([&mut v.stream]).map(drop));
                        let in_order = matches!(refused, None | Some(Err(Error::Order { .. })));
                        prop_assert!(in_order, "two blocks of one pool at once");
                    }
                    Meanwhile::Fork => others.extend(others.first().map(fork)),
                    Meanwhile::Drop => {
                        let gone = others.pop();
                        std::thread::spawn(move || drop(gone)).join().expect("it drops");
                    }
                }
                let outs = pass(&mut block, config, self.device, true, &last);
                if commit {
                    block.commit().expect("every layer has attended");
                } else {
                    drop(block);
                }
                Ok(outs)
            }
        };
        // Where it was refused the model has not changed, and the audit sees whether the pool has.
        match done {
            Ok(outs) => {
                for (i, (video, out)) in batch.iter_mut().zip(outs).enumerate() {
                    let mut history = video.history.clone();
                    history.push((denoise.then_some(first[i]), last[i]));
                    if commit {
                        video.history = history.clone();
                    }
                    self.seen.insert(history, out);
                }
            }
            Err(Error::Argument {
                argument: "streams", ..
            }) => prop_assert!(size == 0 || size > setup.streams),
            Err(Error::PoolFull {
                of, needed: n, free: f, ..
            }) => {
                let expected = match of {
                    "pages" => (needed, free.0),
                    _ => (size, free.1),
                };
                prop_assert_eq!((n, f), expected);
                prop_assert!(n > f, "full with room for {} of {}", f, n);
                prop_assert!(
                    size + others.len() > setup.streams,
                    "full with no more streams than it is for"
                );
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        }
        self.videos = others;
        self.videos.extend(batch);
        Ok(())
    }

    /// Every history again, alone in a pool for one: attention gave the same.
    fn replay(mut self) -> Checked {
        let pool = self.pool.clone();
        let all = self.free([]).0;
        self.videos.clear();
        prop_assert_eq!(pool.free_pages().0, all, "not everything came back");
        let alone = PagePool::new(self.device, &self.setup.config(self.device, 1)).expect("there is memory");
        let mut seen = self.seen;
        // The longest first: it passes through the shorter ones that it begins with.
        let mut histories: Vec<_> = seen.keys().cloned().collect();
        histories.sort_by_key(|h| std::cmp::Reverse(h.len()));
        for history in histories {
            if !seen.contains_key(&history) {
                continue;
            }
            let mut stream = alone.stream().expect("the device is there");
            for (i, &(first, last)) in history.iter().enumerate() {
                let mut block = alone.begin([&mut stream]).expect("there is room for one");
                if let Some(first) = first {
                    pass(&mut block, alone.config(), self.device, false, &[first]);
                }
                let out = pass(&mut block, alone.config(), self.device, true, &[last]);
                block.commit().expect("every layer has attended");
                if let Some(then) = seen.remove(&history[..=i]) {
                    prop_assert!(then == out[0], "block {} of {:?} is another alone", i, history);
                }
            }
        }
        Ok(())
    }
}

fn fork(video: &Video) -> Video {
    Video {
        stream: video.stream.fork().expect("the device is there"),
        history: video.history.clone(),
    }
}

fn lives(device: &Device, cases: u32, most: usize) {
    let cases = match std::env::var("PROPTEST_CASES") {
        Ok(text) => text.parse().expect("PROPTEST_CASES is a number"),
        Err(_) => cases,
    };
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..Config::default()
    };
    let mut rng = Rng::new("lives");
    let seed: Vec<u8> = (0..4).flat_map(|_| rng.bits().to_le_bytes()).collect();
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let ran = runner.run(&(setups(), steps(most)), |(setup, steps)| {
        let mut life = Life::new(device, &setup);
        steps.iter().try_for_each(|step| life.step(step))?;
        life.replay()
    });
    if let Err(failure) = ran {
        panic!("{failure}");
    }
}

fn main() -> ExitCode {
    let mut suite = Suite::new();

    suite.on(&["cpu"], "lives_are_the_models", |device| lives(device, 128, 14));
    suite.on_kernels("a_few_lives_are_the_models", |device| lives(device, 4, 6));

    suite.on_devices("forks_share_the_past_and_part_without_a_copy", |device| {
        let setup = Setup {
            compression: Compression::mean_pool([1, 2, 2]),
            page: 16,
            sink: 1,
            recent: 1,
            selected: 1,
            archive: 2,
            streams: 2,
            policy: Policy::Top,
            selection: Selection::PerLayer,
        };
        let mut life = Life::new(device, &setup);
        let both = |times| Step::Blocks {
            which: 0b11,
            times,
            backwards: false,
            denoise: true,
            commit: true,
            meanwhile: Meanwhile::Nothing,
        };
        let steps = [Step::New, both(4), Step::Fork(0), both(1), Step::Drop(0), both(3)];
        for step in &steps {
            let before = life.pool.free_pages();
            life.step(step).unwrap_or_else(|e| panic!("{step:?}: {e}"));
            if matches!(step, Step::Fork(_)) {
                assert_eq!(life.pool.free_pages(), before, "a fork takes no pages");
            }
        }
        life.replay().unwrap_or_else(|e| panic!("{e}"));
    });

    suite.on_devices("compressed_blocks_run_out_before_pages", |device| {
        let setup = Setup {
            compression: Compression::mean_pool([1, 2, 2]),
            page: 16,
            sink: 3,
            recent: 0,
            selected: 1,
            archive: 1,
            streams: 2,
            policy: Policy::Top,
            selection: Selection::PerLayer,
        };
        let mut life = Life::new(device, &setup);
        let first = |times| Step::Blocks {
            which: 0b1,
            times,
            backwards: false,
            denoise: false,
            commit: true,
            meanwhile: Meanwhile::Nothing,
        };
        // A shared sink leaves pages over, and a block of its own in each of four futures takes every row.
        // The batch goes to the end of the list.
        let fork = || Step::Fork(0);
        let steps = [Step::New, first(4), fork(), fork(), fork(), first(3)];
        for step in &steps {
            life.step(step).unwrap_or_else(|e| panic!("{step:?}: {e}"));
        }
        let (pages, rows) = life.free(&life.videos);
        let needed = setup.block_pages() + setup.mid_pages(life.pool.config());
        assert!(rows == 0 && pages >= needed, "{rows} rows, {pages} pages");
        let full = life.pool.begin([&mut life.videos[0].stream]).map(drop);
        let Err(Error::PoolFull { of, needed, free, .. }) = full else {
            panic!("{full:?}");
        };
        assert_eq!((of, needed, free), ("compressed blocks", 1, 0));
        life.step(&Step::Drop(3)).unwrap_or_else(|e| panic!("{e}"));
        life.step(&first(1)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(life.videos[2].history.len(), 5, "room came back");
        life.replay().unwrap_or_else(|e| panic!("{e}"));
    });

    suite.on_devices("a_cache_for_one_video_forks_into_the_same_pool", |device| {
        let setup = Setup {
            compression: Compression::None,
            page: 8,
            sink: 1,
            recent: 1,
            selected: 1,
            archive: 1,
            streams: 2,
            policy: Policy::Newest,
            selection: Selection::PerLayer,
        };
        let config = setup.config(device, 2);
        let mut cache = packforcing::cache::PackedKvCache::new(device, &config).expect("there is memory");
        let commit = |cache: &mut packforcing::cache::PackedKvCache, content| {
            let mut block = cache.begin().expect("there is room");
            let out = pass(&mut block, &config, device, true, &[content]);
            block.commit().expect("every layer has attended");
            out
        };
        (0..5).for_each(|i| drop(commit(&mut cache, i)));
        let mut fork = cache.fork().expect("the device is there");
        let ending = commit(&mut cache, 7);
        (8..12).for_each(|i| drop(commit(&mut cache, i)));
        drop(cache);
        assert_eq!((fork.blocks(), commit(&mut fork, 7)), (5, ending));
    });

    suite.run()
}
