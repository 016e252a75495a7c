//! What the cache held of the video at each moment, and what of it a block attended to.

use anyhow::Result;
use packforcing::cache::{Block, Place};
use plotters::style::RGBColor;

use crate::chart::{self, BLUE, GREEN, INK, ORANGE, Rectangle};
use crate::media::png::Image;

/// Moments in the picture, at most.
const MOMENTS: usize = 400;
const KEPT: RGBColor = RGBColor(205, 220, 235);
const WIDTH: usize = 1200;
const HEIGHT: usize = 860;

/// The past of a video as its cache had it, seen from some of its blocks.
pub struct Past {
    blocks: usize,
    /// Every so many blocks are looked from.
    stride: usize,
    moments: Vec<Moment>,
}

struct Moment {
    block: usize,
    places: Vec<(usize, Place)>,
    chosen: Vec<usize>,
}

impl Past {
    pub fn of(blocks: usize) -> Past {
        Past {
            blocks,
            stride: blocks.div_ceil(MOMENTS).max(1),
            moments: Vec::new(),
        }
    }

    /// Looks from a block that has attended, if it is one of the picture's.
    pub fn look(&mut self, block: &Block<'_>, places: &[(usize, Place)]) -> Result<()> {
        let number = block.number();
        if number.is_multiple_of(self.stride) {
            self.moments.push(Moment {
                block: number,
                places: places.to_vec(),
                chosen: block.chosen(0)?.into_iter().flatten().collect(),
            });
        }
        Ok(())
    }

    /// The picture: time from left to right, the past from bottom to top.
    pub fn draw(&self, seconds_of_block: f64) -> Result<Image> {
        let seconds = |block: usize| block as f64 * seconds_of_block;
        // What is chosen stands out, however thin a block is in the picture.
        let thick = self.blocks as f64 * 3.0 / HEIGHT as f64;
        let mut cells = Vec::new();
        for moment in &self.moments {
            let mut cell = |block: usize, color, grow: f64| {
                let (from, to) = (block as f64 - grow, block as f64 + 1.0 + grow);
                cells.push(Rectangle {
                    x: (seconds(moment.block), seconds(moment.block + self.stride)),
                    y: (from.max(0.0) * seconds_of_block, to * seconds_of_block),
                    color,
                });
            };
            for &(block, place) in &moment.places {
                match place {
                    Place::Mid => cell(block, KEPT, 0.0),
                    Place::Sink | Place::Recent => {}
                }
            }
            for &block in &moment.chosen {
                cell(block, ORANGE, ((thick - 1.0) / 2.0).max(0.0));
            }
            for &(block, place) in &moment.places {
                match place {
                    Place::Sink => cell(block, BLUE, (thick - 1.0).max(0.0)),
                    Place::Recent => cell(block, GREEN, (thick - 1.0).max(0.0)),
                    Place::Mid => {}
                }
            }
            cell(moment.block, INK, ((thick - 1.0) / 2.0).max(0.0));
        }
        let legend = [
            (INK, "the block itself"),
            (GREEN, "recent: the newest, whole"),
            (ORANGE, "mid: compressed, attended to"),
            (KEPT, "mid: compressed, kept to choose from"),
            (BLUE, "sink: the first, whole for ever"),
        ];
        let title = "What each block attends to";
        let axes = ["time in the video (s)", "the past (s)"];
        chart::map(title, axes, seconds(self.blocks), &cells, &legend, (WIDTH, HEIGHT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_its_color() {
        let mut past = Past::of(10);
        past.moments.push(Moment {
            block: 9,
            places: vec![(0, Place::Sink), (3, Place::Mid), (5, Place::Mid), (8, Place::Recent)],
            chosen: vec![5],
        });
        let image = past.draw(0.5).unwrap();
        // The rightmost tenth of the picture, from the past's end to its beginning.
        let at = |block: f64| {
            let (left, right, top, bottom) = (92.0, WIDTH as f64 - 24.0, 44.0, HEIGHT as f64 - 48.0);
            let x = left + (right - left) * 0.95;
            let y = bottom - (bottom - top) * (block + 0.5) / 10.0;
            let i = 3 * (y as usize * WIDTH + x as usize);
            [image.rgb[i], image.rgb[i + 1], image.rgb[i + 2]]
        };
        let rgb = |c: RGBColor| [c.0, c.1, c.2];
        let expected = [(0.0, BLUE), (3.0, KEPT), (5.0, ORANGE), (8.0, GREEN), (9.0, INK)];
        for (block, color) in expected {
            assert_eq!(at(block), rgb(color), "block {block}");
        }
        assert_eq!(at(4.0), [255; 3]);
    }
}
