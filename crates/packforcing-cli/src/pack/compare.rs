//! What packing keeps: on sampled blocks, attention over packed contexts beside attention over the
//! full history.
//!
//! *Full history* of block n: blocks 0 to n whole, each at its true distance in frames. A *variant*
//! is a compression and a policy: sink, chosen blocks, recent and current, packed to the right as
//! the cache packs them, the chosen ones whole (`none`), pooled (`mean`) or merged by
//! likeness (`match`). Two numbers for each:
//!
//! ```text
//! rel_l2_vs_full      = |o_variant - o_full| / |o_full|
//! attention_mass_kept = mean over queries and heads of exp(lse_held - lse_full)
//! ```
//!
//! where `lse_held` is that of the blocks that the variant holds, whole and at their true distance.
//! The variants are put together here from the ops, not taken from the cache under test: the run's
//! own output is a row of its own, and agrees with the variant that the run is.

use std::collections::HashMap;

use anyhow::Result;
use clap::ValueEnum;
use packforcing::Grid;
use packforcing::cache::Place;

use super::history::{Form, History};
use super::project::{self, WIDTH};
use super::random::Random;
use super::report::{Measure, Sample, Variant};
use super::variant::{Compression, Policy};
use crate::media::clip::Picture;

/// Queries of a block that are compared.
const QUERIES: usize = 96;

/// A frame, and what attention to its past alone makes of it.
pub struct Recalled {
    pub seconds: f64,
    pub original: Picture,
    /// Through the full history, then through the packed one, whole and merged.
    pub through: [Picture; 3],
}

/// Compares block by block.
pub struct Comparison {
    pub history: History,
    pub grid: Grid,
    pub selected: usize,
    pub seed: u64,
}

/// The blocks of the past that the cache holds, in time order.
struct Past {
    sink: Vec<usize>,
    archive: Vec<usize>,
    recent: Vec<usize>,
}

impl Past {
    fn new(places: &[(usize, Place)]) -> Past {
        let at = |wanted| places.iter().filter(|p| p.1 == wanted).map(|p| p.0).collect();
        Past {
            sink: at(Place::Sink),
            archive: at(Place::Mid),
            recent: at(Place::Recent),
        }
    }

    /// What a block attends to besides itself: (block, form, distance in frames once packed).
    fn packed(&self, chosen: &[usize], compression: Compression, frames: usize) -> Vec<(usize, Form, usize)> {
        let form = match compression {
            Compression::None => Form::Whole,
            Compression::Mean => Form::Merged,
            Compression::Match => Form::Matched,
        };
        let sink = self.sink.iter().map(|&block| (block, Form::Whole));
        let recent = self.recent.iter().map(|&block| (block, Form::Whole));
        let all: Vec<_> = sink
            .chain(chosen.iter().map(|&block| (block, form)))
            .chain(recent)
            .collect();
        let count = all.len();
        let place = |(i, (block, form))| (block, form, (count - i) * frames);
        all.into_iter().enumerate().map(place).collect()
    }
}

impl Comparison {
    /// Measures all variants at one block. `places` is where the past stands before the block,
    /// `out` what the run's attention made of it, `[tokens, HEADS, DIM]`.
    pub fn sample(&mut self, block: usize, places: &[(usize, Place)], out: &[f32]) -> Result<Sample> {
        let past = Past::new(places);
        let queries = self.history.queries(block)?;
        let rows = Random::new(self.seed ^ (block as u64) << 20).choose(queries.len() / WIDTH, QUERIES);
        let of_rows = |from: &[f32]| -> Vec<f32> {
            rows.iter()
                .flat_map(|&row| &from[row * WIDTH..][..WIDTH])
                .copied()
                .collect()
        };
        let some = of_rows(&queries);
        let full = self.history.attend(&some, &self.true_past(0..=block, block))?;
        let (full_out, full_lse) = (full.out.to_vec::<f32>()?, full.lse.to_vec::<f32>()?);

        let choices = self.choose(block, &past, &queries)?;
        let mut variants = Vec::new();
        for &compression in Compression::value_variants() {
            for &policy in Policy::value_variants() {
                let chosen = &choices[&(compression, policy)];
                let mut context = past.packed(chosen, compression, self.grid.frames);
                context.push((block, Form::Whole, 0));
                let packed = self.history.attend(&some, &context)?;
                let held = self.true_past(context.iter().map(|&(block, ..)| block), block);
                let held = self.history.attend(&some, &held)?.lse.to_vec::<f32>()?;
                variants.push(Variant {
                    compression,
                    policy,
                    measure: Measure {
                        rel_l2_vs_full: rel_l2(&packed.out.to_vec()?, &full_out),
                        attention_mass_kept: mass(&held, &full_lse),
                    },
                });
            }
        }
        Ok(Sample {
            block,
            seconds: self.history.footage().seconds(block),
            run_rel_l2_vs_full: rel_l2(&of_rows(out), &full_out),
            variants,
        })
    }

    /// The first frame of a block through its past: attention without the block itself.
    pub fn recall(&mut self, block: usize, places: &[(usize, Place)], policy: Policy) -> Result<[Picture; 3]> {
        let past = Past::new(places);
        let queries = self.history.queries(block)?;
        let choices = self.choose(block, &past, &queries)?;
        let frame = &queries[..queries.len() / self.grid.frames];
        let packed = |compression| past.packed(&choices[&(compression, policy)], compression, self.grid.frames);
        let contexts = [
            self.true_past(0..block, block),
            packed(Compression::None),
            packed(Compression::Mean),
        ];
        let full_range = self.history.footage().clip.full_range();
        let mut picture = |context: &_| -> Result<Picture> {
            let out = self.history.attend(frame, context)?.out.to_vec::<f32>()?;
            Ok(project::picture(&out, self.grid, full_range))
        };
        let [kept, whole, merged] = &contexts;
        Ok([picture(kept)?, picture(whole)?, picture(merged)?])
    }

    /// Blocks whole and at their true distance.
    fn true_past(&self, blocks: impl IntoIterator<Item = usize>, current: usize) -> Vec<(usize, Form, usize)> {
        let place = |block| (block, Form::Whole, (current - block) * self.grid.frames);
        blocks.into_iter().map(place).collect()
    }

    /// The blocks of the archive that each variant attends to, in time order.
    fn choose(
        &mut self,
        block: usize,
        past: &Past,
        queries: &[f32],
    ) -> Result<HashMap<(Compression, Policy), Vec<usize>>> {
        let mut sum = vec![0.0; WIDTH];
        for query in queries.chunks_exact(WIDTH) {
            sum.iter_mut().zip(query).for_each(|(sum, &q)| *sum += f64::from(q));
        }
        let archive = &past.archive;
        let [whole, merged] = self.history.scores(&sum, archive)?;
        let count = self.selected.min(archive.len());
        let best = |scores: &[f64]| {
            let mut order: Vec<usize> = (0..archive.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a])); // stable: ties go to the earlier block
            order.truncate(count);
            order.sort_unstable();
            order.into_iter().map(|i| archive[i]).collect::<Vec<_>>()
        };
        let newest = archive[archive.len() - count..].to_vec();
        let mut random = Random::new(self.seed ^ (block as u64) << 40);
        let any: Vec<_> = random
            .choose(archive.len(), count)
            .into_iter()
            .map(|i| archive[i])
            .collect();
        Ok(HashMap::from([
            ((Compression::None, Policy::Top), best(&whole)),
            ((Compression::Mean, Policy::Top), best(&merged)),
            ((Compression::Match, Policy::Top), best(&whole)),
            ((Compression::None, Policy::Newest), newest.clone()),
            ((Compression::Mean, Policy::Newest), newest.clone()),
            ((Compression::Match, Policy::Newest), newest),
            ((Compression::None, Policy::Random), any.clone()),
            ((Compression::Mean, Policy::Random), any.clone()),
            ((Compression::Match, Policy::Random), any),
        ]))
    }
}

/// `|got - expected| / |expected|`
fn rel_l2(got: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = expected.iter().map(|&b| square(b)).sum();
    (error / norm.max(f64::MIN_POSITIVE)).sqrt()
}

/// The part of the full softmax that falls on what is held, over queries and heads.
fn mass(held: &[f32], full: &[f32]) -> f64 {
    let parts = held.iter().zip(full).map(|(h, f)| f64::from(h - f).exp());
    parts.sum::<f64>() / held.len() as f64
}

/// The mean over samples, variant by variant.
pub fn average(samples: &[Sample]) -> Vec<Variant> {
    let Some(first) = samples.first() else {
        return Vec::new();
    };
    let mean = |i: usize, of: fn(&Measure) -> f64| {
        samples.iter().map(|s| of(&s.variants[i].measure)).sum::<f64>() / samples.len() as f64
    };
    let variants = first.variants.iter().enumerate().map(|(i, v)| Variant {
        measure: Measure {
            rel_l2_vs_full: mean(i, |m| m.rel_l2_vs_full),
            attention_mass_kept: mean(i, |m| m.attention_mass_kept),
        },
        ..*v
    });
    variants.collect()
}
