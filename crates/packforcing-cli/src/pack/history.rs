//! Every block of the video in full, to compare with: keys and values on the CPU in f32, beside
//! each block its merged forms.
//!
//! A video that plays a clip back and forth repeats its blocks, and a page can stand in a context
//! any number of times under its own rotation. So only different blocks are kept, and of those no
//! more than fit into a fixed amount of memory; what is missing is read from the clip again.

use anyhow::{Context as _, Result};
use packforcing::ops::append_kv::{AppendKv, Lattice, append_kv};
use packforcing::ops::attention::{Attention, attention};
use packforcing::ops::match_tokens::{MatchTokens, Matching, Merges, SoftMatch, match_tokens};
use packforcing::ops::merge_states::{State, merge_states};
use packforcing::ops::merge_tokens::{MeanPool, MergeTokens, merge_tokens};
use packforcing::ops::select_blocks::{SumKeys, sum_keys};
use packforcing::paging::{Context, KvPages, KvPagesMut, PageLists, Segment};
use packforcing::{DType, Device, Grid, Rope3d, Tensor, View, ViewMut};

use super::project::{DIM, HEADS, Projector, Tokens, WIDTH};
use crate::media::clip::Clip;

/// Memory for blocks, in bytes.
const BUDGET: usize = 256 << 20;
/// Tokens of a page.
const PAGE: usize = 96;
/// Frames of the clip whose mean is what features are told from.
const EXAMPLES: usize = 16;

/// The endless video, block by block.
pub struct Footage {
    pub clip: Clip,
    projector: Projector,
    frames: usize,
}

impl Footage {
    /// The clip in blocks of `frames` frames. Reads some of its frames, the middles of equal parts:
    /// a clip may begin with black.
    pub fn new(mut clip: Clip, frames: usize) -> Result<Footage> {
        let count = clip.period() / 2;
        let examples = EXAMPLES.min(count);
        let middle = |i: usize| (2 * i + 1) * count / (2 * examples);
        let examples: Result<Vec<_>> = (0..examples).map(|i| clip.play(middle(i))).collect();
        Ok(Footage {
            clip,
            projector: Projector::new(&examples?),
            frames,
        })
    }

    /// The tokens of a block.
    pub fn block(&mut self, block: usize) -> Result<Tokens> {
        let start = block * self.frames;
        let frames: Result<Vec<_>> = (start..start + self.frames).map(|t| self.clip.play(t)).collect();
        Ok(self.projector.tokens(&frames?))
    }

    /// When a block begins.
    pub fn seconds(&self, block: usize) -> f64 {
        (block * self.frames) as f64 / self.clip.frames_per_second()
    }

    /// Blocks after which the video begins again.
    pub fn period(&self) -> usize {
        let period = self.clip.period();
        period / gcd(period, self.frames)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A block as it is, pooled, or merged by likeness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Whole,
    Merged,
    Matched,
}

/// What attention returned.
pub struct Attended {
    /// `[1, queries, HEADS, DIM]`
    pub out: Tensor,
    /// Natural log of the sum of exponentials. `[1, queries, HEADS]`
    pub lse: Tensor,
}

/// How many blocks the memory that is meant for them holds.
pub fn slots(grid: Grid, pool: MeanPool) -> usize {
    BUDGET / (2 * slot_pages(grid, pool) * PAGE * WIDTH * DType::F32.bytes())
}

/// A block in memory.
struct Held {
    block: usize,
    last_used: u64,
    /// Sums of the keys, whole and pooled. `[HEADS, DIM]`
    sums: [Vec<f32>; 2],
}

/// The blocks.
pub struct History {
    footage: Footage,
    device: Device,
    grid: Grid,
    pool: MeanPool,
    rope: Rope3d,
    matching: Matching,
    k: Tensor, // f32 [slots * pages of all forms, HEADS, PAGE, DIM]
    v: Tensor,
    bias: Tensor, // f32 [the same, HEADS, PAGE]
    slots: Vec<Option<Held>>,
    clock: u64,
}

impl History {
    /// Room for `slots` blocks, or all that are different where those are fewer.
    pub fn new(footage: Footage, grid: Grid, pool: MeanPool, slots: usize) -> Result<History> {
        let device = Device::cpu();
        let slots = slots.min(footage.period());
        let pages = slot_pages(grid, pool);
        let shape = [slots * pages, HEADS, PAGE, DIM];
        let rope = Rope3d::wan(DIM);
        Ok(History {
            matching: Matching::new(&device, SoftMatch::strided(pool.cell), grid, &rope, (1, HEADS))?,
            k: Tensor::zeros(&device, DType::F32, &shape)?,
            v: Tensor::zeros(&device, DType::F32, &shape)?,
            bias: Tensor::zeros(&device, DType::F32, &shape[..3])?,
            slots: (0..slots).map(|_| None).collect(),
            clock: 0,
            rope,
            footage,
            device,
            grid,
            pool,
        })
    }

    /// What it is read from.
    pub fn footage(&mut self) -> &mut Footage {
        &mut self.footage
    }

    /// Queries of a block, rotated, as attention takes them. `[1, tokens, HEADS, DIM]`
    pub fn queries(&mut self, block: usize) -> Result<Vec<f32>> {
        self.hold(&[block])?;
        let tokens = self.footage.block(block)?;
        let pages = self.pages(block, Form::Whole)?;
        let mut rotated = vec![0.0; tokens.qk.len()];
        self.append(&tokens, pages, Some(&mut rotated))?;
        Ok(rotated)
    }

    /// Dot products of a sum of queries, `[HEADS, DIM]`, with the keys' sums of these blocks, whole
    /// and pooled: the scores by which the cache selects. It takes those of whole blocks for matched ones.
    pub fn scores(&mut self, query_sum: &[f64], blocks: &[usize]) -> Result<[Vec<f64>; 2]> {
        let mut scores = [Vec::new(), Vec::new()];
        for some in blocks.chunks(self.slots.len()) {
            self.hold(some)?;
            for &block in some {
                let Some(held) = &self.slots[self.slot(block)?] else {
                    continue; // `slot` names none that is empty
                };
                for (scores, sums) in scores.iter_mut().zip(&held.sums) {
                    scores.push(query_sum.iter().zip(sums).map(|(q, &k)| q * f64::from(k)).sum());
                }
            }
        }
        Ok(scores)
    }

    /// Attention of queries to blocks, each in some form at a distance in frames. Blocks that do not
    /// fit into memory at once are taken in parts, and the results merged.
    pub fn attend(&mut self, queries: &[f32], context: &[(usize, Form, usize)]) -> Result<Attended> {
        let period = self.footage.period();
        let mut different: Vec<usize> = context.iter().map(|&(block, ..)| block % period).collect();
        different.sort_unstable();
        different.dedup();
        let mut all: Option<Attended> = None;
        for part in different.chunks(self.slots.len()) {
            self.hold(part)?;
            let segments = context
                .iter()
                .filter(|(block, ..)| part.binary_search(&(block % period)).is_ok())
                .map(|&(block, form, distance)| self.segment(block, form, distance))
                .collect::<Result<_>>()?;
            let attended = self.attend_held(queries, segments)?;
            all = Some(match all {
                None => attended,
                Some(before) => self.merge(&before, &attended)?,
            });
        }
        match all {
            Some(all) => Ok(all),
            None => self.attend_held(queries, Vec::new()),
        }
    }

    fn attend_held(&self, queries: &[f32], segments: Vec<Segment>) -> Result<Attended> {
        let shape = [1, queries.len() / WIDTH, HEADS, DIM];
        let q = Tensor::from_slice(&self.device, queries, &shape)?;
        let mut attended = self.attended(&shape)?;
        let pool = (self.k.shape()[0], PAGE);
        let args = Attention {
            q: q.view(),
            kv: self.kv(),
            context: &Context::from_host(&self.device, pool, &[segments])?,
            rope: &self.rope,
            scale: 1.0 / (DIM as f32).sqrt(),
        };
        attention(&args, &mut attended.out.view_mut(), Some(&mut attended.lse.view_mut()))?;
        Ok(attended)
    }

    fn merge(&self, a: &Attended, b: &Attended) -> Result<Attended> {
        let mut both = self.attended(a.out.shape())?;
        merge_states(
            &State {
                out: a.out.view().select(0, 0)?,
                lse: a.lse.view().select(0, 0)?,
            },
            &State {
                out: b.out.view().select(0, 0)?,
                lse: b.lse.view().select(0, 0)?,
            },
            &mut both.out.view_mut().select(0, 0)?,
            &mut both.lse.view_mut().select(0, 0)?,
        )?;
        Ok(both)
    }

    fn attended(&self, shape: &[usize]) -> Result<Attended> {
        Ok(Attended {
            out: Tensor::zeros(&self.device, DType::F32, shape)?,
            lse: Tensor::zeros(&self.device, DType::F32, &shape[..3])?,
        })
    }

    fn kv(&self) -> KvPages<'_> {
        KvPages {
            k: self.k.view(),
            v: self.v.view(),
            slot_bias: Some(self.bias.view()),
        }
    }

    fn segment(&self, block: usize, form: Form, distance: usize) -> Result<Segment> {
        let tokens = match form {
            Form::Whole => self.grid.tokens().0,
            Form::Merged => self.pool.output(self.grid).tokens().0,
            Form::Matched => matched_tokens(self.grid, self.pool),
        };
        let cell: usize = self.pool.cell.iter().product();
        let (uneven, merged) = (self.pool.uneven(self.grid), form == Form::Merged);
        Ok(Segment {
            rotation: distance as f32,
            key_bias: if merged && !uneven { (cell as f32).ln() } else { 0.0 },
            slot_bias: form == Form::Matched || merged && uneven,
            ..Segment::new(self.pages(block, form)?, tokens)
        })
    }

    /// Where a block that is held lies.
    fn slot(&self, block: usize) -> Result<usize> {
        let block = block % self.footage.period();
        let is_it = |held: &Option<Held>| held.as_ref().is_some_and(|held| held.block == block);
        let slot = self.slots.iter().position(is_it);
        slot.with_context(|| format!("block {block} is not in the comparison's memory"))
    }

    fn pages(&self, block: usize, form: Form) -> Result<Vec<u32>> {
        Ok(self.pages_of_slot(self.slot(block)?, form))
    }

    fn pages_of_slot(&self, slot: usize, form: Form) -> Vec<u32> {
        let [whole, merged, matched] = form_pages(self.grid, self.pool);
        let first = slot * (whole + merged + matched);
        let pages = match form {
            Form::Whole => first..first + whole,
            Form::Merged => first + whole..first + whole + merged,
            Form::Matched => first + whole + merged..first + whole + merged + matched,
        };
        pages.map(|page| page as u32).collect()
    }

    /// Brings these blocks into memory, where they are not yet, in place of those that were used
    /// least lately.
    fn hold(&mut self, blocks: &[usize]) -> Result<()> {
        self.clock += 1;
        let period = self.footage.period();
        for slot in self.slots.iter_mut().flatten() {
            if blocks.iter().any(|block| block % period == slot.block) {
                slot.last_used = self.clock;
            }
        }
        for block in blocks.iter().map(|block| block % period) {
            if self.slots.iter().flatten().any(|held| held.block == block) {
                continue;
            }
            let age = |held: &Option<Held>| held.as_ref().map_or(0, |held| held.last_used);
            let oldest = (0..self.slots.len()).min_by_key(|&slot| age(&self.slots[slot]));
            let slot = oldest
                .filter(|&slot| age(&self.slots[slot]) < self.clock)
                .context("the comparison holds more blocks at once than it has room for")?;
            self.slots[slot] = None;
            let sums = self.load(block, slot)?;
            self.slots[slot] = Some(Held {
                block,
                last_used: self.clock,
                sums,
            });
        }
        Ok(())
    }

    /// Writes a block's keys and values, in every form, into a slot; returns the keys' sums.
    fn load(&mut self, block: usize, slot: usize) -> Result<[Vec<f32>; 2]> {
        let tokens = self.footage.block(block)?;
        let [whole, merged, matched] =
            [Form::Whole, Form::Merged, Form::Matched].map(|form| self.pages_of_slot(slot, form));
        self.append(&tokens, whole.clone(), None)?;

        let pool_pages = self.k.shape()[0];
        let source = PageLists::from_host(&self.device, pool_pages, &[whole])?;
        let dest = PageLists::from_host(&self.device, pool_pages, &[merged])?;
        let args = MergeTokens {
            source: &source,
            dest: &dest,
            grid: self.grid,
            pool: self.pool,
            rope: &self.rope,
        };
        merge_tokens(
            &args,
            &mut KvPagesMut {
                slot_bias: Some(self.bias.view_mut()),
                ..pages_mut(&mut self.k, &mut self.v)
            },
        )?;
        let by_likeness = PageLists::from_host(&self.device, pool_pages, &[matched])?;
        let args = MatchTokens {
            source: &source,
            dest: &by_likeness,
            merges: Merges::Top(usize::MAX),
            weighted: false,
        };
        match_tokens(
            &args,
            &mut self.matching,
            &mut KvPagesMut {
                slot_bias: Some(self.bias.view_mut()),
                ..pages_mut(&mut self.k, &mut self.v)
            },
        )?;

        let sum = |pages: &PageLists, tokens: usize| -> Result<Vec<f32>> {
            let mut sums = Tensor::zeros(&self.device, DType::F32, &[1, HEADS, DIM])?;
            let row = Tensor::from_slice(&self.device, &[0i32], &[1])?;
            let args = SumKeys {
                kv: self.kv(),
                pages,
                rows: row.view(),
                tokens,
            };
            sum_keys(&args, &mut sums.view_mut())?;
            Ok(sums.to_vec()?)
        };
        Ok([
            sum(&source, self.grid.tokens().0)?,
            sum(&dest, self.pool.output(self.grid).tokens().0)?,
        ])
    }

    fn append(&mut self, tokens: &Tokens, pages: Vec<u32>, rotated: Option<&mut [f32]>) -> Result<()> {
        let shape = [1, self.grid.tokens().0, HEADS, DIM];
        let qk = View::from_slice(&self.device, &tokens.qk, &shape)?;
        let args = AppendKv {
            q: rotated.is_some().then(|| qk.clone()),
            k: qk,
            v: View::from_slice(&self.device, &tokens.v, &shape)?,
            norm: None,
            rope: &self.rope,
            lattice: Lattice::whole(self.grid),
            origins: None,
            pages: &PageLists::from_host(&self.device, self.k.shape()[0], &[pages])?,
        };
        let mut rotated = rotated
            .map(|rotated| ViewMut::from_slice(&self.device, rotated, &shape))
            .transpose()?;
        let kv = &mut pages_mut(&mut self.k, &mut self.v);
        Ok(append_kv(&args, rotated.as_mut(), kv)?)
    }
}

fn pages_mut<'a>(k: &'a mut Tensor, v: &'a mut Tensor) -> KvPagesMut<'a> {
    KvPagesMut {
        k: k.view_mut(),
        v: v.view_mut(),
        slot_bias: None,
    }
}

/// Pages of a block in all forms.
fn slot_pages(grid: Grid, pool: MeanPool) -> usize {
    form_pages(grid, pool).iter().sum()
}

/// Pages of a block that is whole, pooled, merged by likeness.
fn form_pages(grid: Grid, pool: MeanPool) -> [usize; 3] {
    [
        grid.tokens().0,
        pool.output(grid).tokens().0,
        matched_tokens(grid, pool),
    ]
    .map(|tokens| tokens.div_ceil(PAGE))
}

/// One token of every full cell.
fn matched_tokens(grid: Grid, pool: MeanPool) -> usize {
    SoftMatch::strided(pool.cell).destinations.count(grid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid {
        frames: 4,
        rows: 12,
        cols: 20,
    };

    fn history_of(cell: [usize; 3], slots: usize) -> History {
        let footage = Footage::new(Clip::open(None, None).unwrap(), GRID.frames).unwrap();
        let remainder = packforcing::cache::Remainder::Keep;
        History::new(footage, GRID, MeanPool { cell, remainder }, slots).unwrap()
    }

    fn history(slots: usize) -> History {
        history_of([2, 4, 4], slots)
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        let (a, b) = (a.to_vec::<f32>().unwrap(), b.to_vec::<f32>().unwrap());
        assert_eq!(a.len(), b.len());
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn little_memory_gives_what_much_gives() {
        for cell in [[2, 4, 4], [3, 5, 8]] {
            little_gives_what_much_gives(cell);
        }
    }

    fn little_gives_what_much_gives(cell: [usize; 3]) {
        let (mut little, mut much) = (history_of(cell, 3), history_of(cell, 100));
        let queries = little.queries(70).unwrap();
        assert_eq!(queries, much.queries(70).unwrap());
        let queries = &queries[..8 * WIDTH];
        // Block 64 is block 0 again; blocks 5 and 69 are one, once merged and once whole.
        let context: Vec<_> = [0, 1, 2, 3, 4, 64, 70].map(|b| (b, Form::Whole, 4 * (70 - b))).into();
        let merged = [
            (5, Form::Merged, 20),
            (69, Form::Whole, 4),
            (6, Form::Merged, 8),
            (7, Form::Matched, 12),
        ];
        let context = [context, merged.into()].concat();
        let a = little.attend(queries, &context).unwrap();
        let b = much.attend(queries, &context).unwrap();
        assert!(difference(&a.out, &b.out) < 1e-5);
        assert!(difference(&a.lse, &b.lse) < 1e-4);
        let ones = vec![1.0; WIDTH];
        let blocks: Vec<usize> = (0..9).collect();
        assert_eq!(
            little.scores(&ones, &blocks).unwrap(),
            much.scores(&ones, &blocks).unwrap()
        );
    }

    #[test]
    fn like_blocks_score_most() {
        let mut history = history(100);
        let blocks: Vec<usize> = (0..64).collect(); // there and back: block 63 - b shows what b does
        for block in [4, 12, 20, 28] {
            let mut sum = vec![0.0; WIDTH];
            for query in history.queries(block).unwrap().chunks_exact(WIDTH) {
                sum.iter_mut().zip(query).for_each(|(sum, &q)| *sum += f64::from(q));
            }
            for scores in history.scores(&sum, &blocks).unwrap() {
                let mut order = blocks.clone();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                let apart = |b: usize| b.min(63 - b).abs_diff(block) as f64;
                let mean = |blocks: &[usize]| blocks.iter().map(|&b| apart(b)).sum::<f64>() / blocks.len() as f64;
                let (best, any) = (mean(&order[..8]), mean(&order));
                assert!(best < 0.5 * any, "block {block}: {best} of {any}");
            }
        }
    }

    #[test]
    fn a_context_of_nothing_is_nothing() {
        let mut history = history(1);
        let queries = history.queries(0).unwrap();
        let nothing = history.attend(&queries[..WIDTH], &[]).unwrap();
        assert_eq!(nothing.out.to_vec::<f32>().unwrap(), vec![0.0; WIDTH]);
        assert_eq!(nothing.lse.to_vec::<f32>().unwrap(), vec![f32::NEG_INFINITY; HEADS]);
    }

    #[test]
    fn periods() {
        let clip = || Clip::open(None, None).unwrap(); // 128 frames, 256 there and back
        assert_eq!(Footage::new(clip(), 4).unwrap().period(), 64);
        assert_eq!(Footage::new(clip(), 3).unwrap().period(), 256);
    }
}
