//! Which block stands where: the host's side of a stream, without any memory behind it.

use std::collections::VecDeque;

use crate::paging::Segment;

use super::config::PackConfig;

/// A block that is kept whole.
#[derive(Debug, Clone)]
pub(crate) struct Whole {
    /// Its number in the video, from 0.
    pub index: usize,
    pub pages: Vec<u32>,
    /// Its compressed form, made when the block was; sink blocks have none.
    pub slot: Option<Slot>,
}

/// A compressed block: a row of the pool's slot tables, and its pages.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub row: u32,
    /// Empty where blocks are not compressed: the whole block's pages are the slot's then.
    pub pages: Vec<u32>,
}

/// A block of which only the compressed form is left.
#[derive(Debug, Clone)]
pub(crate) struct Mid {
    pub index: usize,
    pub slot: Slot,
}

/// Pages and slot rows that nobody uses any more.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Freed {
    pub pages: Vec<u32>,
    pub rows: Vec<u32>,
}

impl Freed {
    pub fn slot(&mut self, slot: Slot) {
        self.rows.push(slot.row);
        self.pages.extend(slot.pages);
    }

    pub fn whole(&mut self, block: Whole) {
        self.pages.extend(block.pages);
        if let Some(slot) = block.slot {
            self.slot(slot);
        }
    }
}

/// Where a block of the past stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Whole, for ever.
    Sink,
    /// Compressed, to be chosen or not.
    Mid,
    /// Whole, among the newest.
    Recent,
}

/// The blocks of one stream. It names a page or a slot row once at most, however its blocks move;
/// a clone names the same ones and is to be counted with [`Timeline::held`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Timeline {
    /// Blocks committed so far; the number of the next one.
    pub committed: usize,
    pub sink: Vec<Whole>,
    pub mid: VecDeque<Mid>,
    pub recent: VecDeque<Whole>,
}

impl Timeline {
    /// Whether the next block goes to the sink.
    pub fn filling_sink(&self, config: &PackConfig) -> bool {
        self.committed < config.sink.0
    }

    /// Time of the next block's first frame inside its segment.
    pub fn origin(&self, config: &PackConfig) -> usize {
        if self.filling_sink(config) {
            self.committed * config.block.frames
        } else {
            0
        }
    }

    /// The context of the next block without chosen blocks, packed to the right, and how many of
    /// its segments stand before the chosen ones.
    pub fn draft(&self, current: &[u32], config: &PackConfig) -> (Vec<Segment>, usize) {
        let frames = config.block.frames;
        let tokens = config.block_tokens().0;
        let filling = self.filling_sink(config);
        let sink_end = if filling {
            0
        } else {
            (self.recent.len() + self.sink.len()) * frames
        };

        // Time inside the sink runs on from block to block, so that all of it has one rotation;
        // it is one segment where no page is left partly filled between two blocks.
        let in_sink = self.sink.iter().map(|b| &b.pages[..]).chain(filling.then_some(current));
        let mut segments: Vec<Segment> = Vec::new();
        for pages in in_sink {
            match segments.last_mut() {
                Some(sink) if config.whole_pages() => {
                    sink.pages.extend_from_slice(pages);
                    sink.tokens += tokens;
                }
                _ => segments.push(Segment {
                    rotation: sink_end as f32,
                    ..Segment::new(pages.to_vec(), tokens)
                }),
            }
        }
        let prefix = segments.len();
        if !filling {
            let newest = self.recent.len();
            segments.extend(self.recent.iter().enumerate().map(|(i, block)| Segment {
                rotation: ((newest - i) * frames) as f32,
                ..Segment::new(block.pages.clone(), tokens)
            }));
            segments.push(Segment::new(current.to_vec(), tokens));
        }
        (segments, prefix)
    }

    /// The new block takes its place, others move on; gives back what has become free.
    pub fn commit(&mut self, pages: Vec<u32>, slot: Slot, config: &PackConfig) -> Freed {
        let mut freed = Freed::default();
        let index = self.committed;
        let filling = self.filling_sink(config);
        self.committed += 1;
        if filling {
            freed.slot(slot);
            self.sink.push(Whole {
                index,
                pages,
                slot: None,
            });
            return freed;
        }
        self.recent.push_back(Whole {
            index,
            pages,
            slot: Some(slot),
        });
        while self.recent.len() > config.recent.0 {
            let Some(Whole {
                index,
                pages,
                slot: Some(mut slot),
            }) = self.recent.pop_front()
            else {
                break;
            };
            if config.compresses() {
                freed.pages.extend(pages);
            } else {
                slot.pages = pages;
            }
            self.mid.push_back(Mid { index, slot });
        }
        while self.mid.len() > config.archive.0 {
            let Some(oldest) = self.mid.pop_front() else { break };
            freed.slot(oldest.slot);
        }
        freed
    }

    /// Forgets everything; gives back all of it.
    pub fn clear(&mut self) -> Freed {
        let mut freed = Freed::default();
        let Timeline { sink, mid, recent, .. } = std::mem::take(self);
        sink.into_iter().chain(recent).for_each(|block| freed.whole(block));
        mid.into_iter().for_each(|block| freed.slot(block.slot));
        freed
    }

    /// Every page and slot row that it names: what [`Timeline::clear`] would give back.
    pub fn held(&self) -> Freed {
        self.clone().clear()
    }

    /// Tokens that the next block attends to, itself included.
    pub fn context_tokens(&self, config: &PackConfig) -> usize {
        let whole = self.sink.len() + self.recent.len() + 1;
        whole * config.block_tokens().0 + self.mid.len().min(config.selected.0) * config.mid_tokens().0
    }

    /// Every block of the past that is still there, in time order.
    pub fn places(&self) -> Vec<(usize, Place)> {
        let sink = self.sink.iter().map(|b| (b.index, Place::Sink));
        let mid = self.mid.iter().map(|b| (b.index, Place::Mid));
        let recent = self.recent.iter().map(|b| (b.index, Place::Recent));
        sink.chain(mid).chain(recent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Blocks, Grid};

    fn config(page: usize) -> PackConfig {
        PackConfig::builder()
            .block(Grid {
                frames: 2,
                rows: 4,
                cols: 4,
            })
            .sink(Blocks(2))
            .recent(Blocks(2))
            .selected(Blocks(2))
            .archive(Blocks(3))
            .page_tokens(page)
            .build()
            .expect("it fits")
    }

    fn committed(n: usize, config: &PackConfig) -> (Timeline, Vec<Freed>) {
        let mut timeline = Timeline::default();
        let freed = (0..n as u32).map(|i| {
            timeline.commit(
                vec![i],
                Slot {
                    row: i,
                    pages: vec![100 + i],
                },
                config,
            )
        });
        let freed = freed.collect();
        (timeline, freed)
    }

    #[test]
    fn blocks_move_from_recent_to_mid_and_leave() {
        use Place::{Mid, Recent, Sink};
        let config = config(16);
        let (timeline, freed) = committed(8, &config);
        let places = [
            (0, Sink),
            (1, Sink),
            (3, Mid),
            (4, Mid),
            (5, Mid),
            (6, Recent),
            (7, Recent),
        ];
        assert_eq!(timeline.places(), places);
        // A sink block frees its compressed form at once, a block that leaves recent its pages, and
        // the oldest of a full archive the rest.
        assert_eq!(
            freed[0],
            Freed {
                pages: vec![100],
                rows: vec![0]
            }
        );
        assert_eq!(freed[3], Freed::default());
        assert_eq!(
            freed[4],
            Freed {
                pages: vec![2],
                rows: vec![]
            }
        );
        assert_eq!(
            freed[7],
            Freed {
                pages: vec![5, 102],
                rows: vec![2]
            }
        );
    }

    #[test]
    fn nothing_is_lost_on_clear() {
        let config = config(16);
        let (mut timeline, freed) = committed(9, &config);
        let mut pages: Vec<u32> = freed
            .into_iter()
            .chain([timeline.clear()])
            .flat_map(|f| f.pages)
            .collect();
        pages.sort_unstable();
        assert_eq!(pages, (0..9).chain(100..109).collect::<Vec<u32>>());
        assert_eq!(timeline.committed, 0);
    }

    #[test]
    fn the_sink_is_one_segment_where_pages_are_full() {
        let (timeline, _) = committed(1, &config(16));
        let (draft, prefix) = timeline.draft(&[9], &config(16));
        assert_eq!((draft.len(), prefix, draft[0].tokens), (1, 1, 64));
        assert_eq!(draft[0].pages, [0, 9]);
        let (timeline, _) = committed(1, &config(24));
        let (draft, prefix) = timeline.draft(&[8, 9], &config(24));
        assert_eq!((draft.len(), prefix), (2, 2));
        assert_eq!(timeline.origin(&config(24)), 2);
    }

    #[test]
    fn the_draft_is_packed_to_the_right() {
        let config = config(16);
        let (timeline, _) = committed(6, &config);
        let (draft, prefix) = timeline.draft(&[9], &config);
        let rotations: Vec<f32> = draft.iter().map(|s| s.rotation).collect();
        assert_eq!((prefix, rotations), (1, vec![8.0, 4.0, 2.0, 0.0]));
        assert_eq!(timeline.context_tokens(&config), 5 * 32 + 2 * config.mid_tokens().0);
    }
}
