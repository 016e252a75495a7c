//! Self-attention of a model's layers over what the frames may see: three kinds, one interface.

use candle_core::{DType, Device, Result, Tensor};
use packforcing::cache::Pass;
use packforcing::{Grid, Rope3d};

use crate::fused::{Sight, rotate, sighted_attention, softmax_attention};

/// How queries meet keys. The model norms them, whoever attends turns them by their positions.
pub trait SelfAttention {
    /// One layer: `q`, `k`, `v` and the output are `[batch, tokens, heads, dim]`.
    ///
    /// # Errors
    ///
    /// What the tensors or the device do not allow.
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor>;
}

impl<A: SelfAttention + ?Sized> SelfAttention for &mut A {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        (**self).attend(layer, q, k, v)
    }
}

/// Over the packed cache, one pass of a block: bounded, without a backward pass.
pub struct Packed<'p, 'b, 'a>(pub &'p mut Pass<'b, 'a>);

impl SelfAttention for Packed<'_, '_, '_> {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        Ok(packforcing_candle::attend(self.0, layer, q, k, v)?)
    }
}

/// Inside one clip, in candle's own ops, which have a backward pass. All tokens see all, or what a mask says.
pub struct Clip {
    rotation: Rotation,
    /// Added to the logits. `[tokens, tokens]`
    mask: Option<Tensor>,
}

impl Clip {
    /// A clip whose first frame stands at time 0.
    ///
    /// # Errors
    ///
    /// Memory for the angles.
    pub fn new(rope: &Rope3d, grid: Grid, device: &Device) -> Result<Clip> {
        Ok(Clip {
            rotation: Rotation::of_frames(rope, grid, 0, device)?,
            mask: None,
        })
    }

    /// The same, where tokens of a block of `frames` see those of their own block and of earlier ones.
    ///
    /// # Errors
    ///
    /// Memory for the angles and the mask.
    pub fn causal(rope: &Rope3d, grid: Grid, frames: usize, device: &Device) -> Result<Clip> {
        let tokens = grid.tokens().0;
        let block = |token: usize| token / (grid.rows * grid.cols) / frames.max(1);
        let mask: Vec<f32> = (0..tokens * tokens)
            .map(|i| match block(i % tokens) <= block(i / tokens) {
                true => 0.0,
                false => f32::NEG_INFINITY,
            })
            .collect();
        let mut clip = Clip::new(rope, grid, device)?;
        clip.mask = Some(Tensor::from_vec(mask, (tokens, tokens), device)?);
        Ok(clip)
    }
}

impl SelfAttention for Clip {
    fn attend(&mut self, _layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (q, k) = (self.rotation.apply(q)?, self.rotation.apply(k)?);
        softmax_attention(&q, &k, v, self.mask.as_ref())
    }
}

/// How many blocks a history laid out as in sampling has of each kind, and the block that is made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Whole blocks from the beginning of the video.
    pub sink: usize,
    /// Compressed blocks.
    pub mid: usize,
    /// The last blocks, whole.
    pub recent: usize,
    /// Versions of the block that is made, at noise levels of their own; none sees another.
    pub versions: usize,
}

/// A packed history in candle's own ops, which have a backward pass: what training sees is what [`Packed`] sees
/// in sampling. Through the model go the sink, the recent blocks and all versions of the block that is made, one
/// after the other; compressed blocks are there as keys and values alone.
pub struct Window {
    rotation: Rotation,
    layout: Layout,
    /// Tokens of a whole block.
    tokens: usize,
    /// For each layer rotated keys and values, `[batch, mid tokens of all blocks, heads, dim]`.
    mids: Vec<(Tensor, Tensor)>,
}

impl Window {
    /// Blocks of `block` tokens, laid out by `layout`; each compressed one has `mid` tokens, spread evenly over
    /// its place. `mids` holds for each layer keys, normed and not rotated, and values of all compressed
    /// blocks in time order, as [`Compressor::keys_and_values`](crate::Compressor::keys_and_values) gives
    /// them for one; it is not looked at where the layout has none.
    ///
    /// # Errors
    ///
    /// Keys and values of another shape, memory.
    pub fn new(
        rope: &Rope3d,
        block: Grid,
        mid: Grid,
        layout: Layout,
        mids: &[(Tensor, Tensor)],
        device: &Device,
    ) -> Result<Window> {
        let whole = block.extents();
        let at = |grid: Grid, number: usize| places(grid, whole, (number * block.frames) as f64);
        let Layout {
            sink,
            mid: count,
            recent,
            versions,
        } = layout;
        // Packed: the compressed blocks stand between the sink and the recent ones, without gaps.
        let now = sink + count + recent;
        let streamed = (0..sink).chain(sink + count..now);
        let streamed = streamed.chain(std::iter::repeat_n(now, versions));
        let rotation = Rotation::new(rope, &streamed.flat_map(|n| at(block, n)).collect::<Vec<_>>(), device)?;
        let mids = match count {
            0 => Vec::new(),
            _ => {
                let turned: Vec<_> = (sink..sink + count).flat_map(|n| at(mid, n)).collect();
                let turned = Rotation::new(rope, &turned, device)?;
                let layers = mids.iter().map(|(k, v)| Ok((turned.apply(k)?, v.clone())));
                layers.collect::<Result<_>>()?
            }
        };
        Ok(Window {
            rotation,
            layout,
            tokens: block.tokens().0,
            mids,
        })
    }

    /// What each streamed block sees: tokens of the streamed blocks, behind which the compressed ones stand.
    fn sights(&self, mids: usize) -> Vec<Sight> {
        let Layout {
            sink, recent, versions, ..
        } = self.layout;
        let block = |number: usize| number * self.tokens..(number + 1) * self.tokens;
        let (past, all) = (sink + recent, sink + recent + versions);
        let compressed = all * self.tokens..all * self.tokens + mids;
        let each = (0..all).map(|number| {
            let mut keys: Vec<_> = (0..past.min(number)).map(block).collect();
            // The sink is older than every compressed block.
            if number >= sink && mids > 0 {
                keys.push(compressed.clone());
            }
            keys.push(block(number));
            Sight {
                queries: block(number),
                keys,
            }
        });
        each.collect()
    }
}

impl SelfAttention for Window {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (q, k) = (self.rotation.apply(q)?, self.rotation.apply(k)?);
        match self.mids.get(layer) {
            Some((mid_k, mid_v)) => {
                let (k, v) = (Tensor::cat(&[&k, mid_k], 1)?, Tensor::cat(&[v, mid_v], 1)?);
                sighted_attention(&q, &k, &v, &self.sights(mid_k.dim(1)?))
            }
            None => sighted_attention(&q, &k, v, &self.sights(0)),
        }
    }
}

/// What stays of a pass over a [`FullHistory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaves {
    Nothing,
    /// Its block, behind what is kept.
    Block,
    /// What takes the place of all that is kept.
    Past,
}

/// Over everything that ever was, kept by candle: what the packed cache is measured against. It grows with the
/// video.
pub struct FullHistory {
    rope: Rope3d,
    grid: Grid,
    /// For each layer the rotated keys and the values so far, `[batch, tokens, heads, dim]`.
    kept: Vec<(Tensor, Tensor)>,
    /// Those of the pass under way, while it is kept.
    now: Vec<(Tensor, Tensor)>,
    blocks: usize,
    rotation: Option<Rotation>,
    leaves: Leaves,
    /// Frames that are kept: from the beginning, and the newest.
    window: Option<(usize, usize)>,
}

impl FullHistory {
    /// Nothing yet. Blocks will have `grid` tokens.
    pub fn new(rope: &Rope3d, grid: Grid) -> FullHistory {
        FullHistory {
            rope: rope.clone(),
            grid,
            kept: Vec::new(),
            now: Vec::new(),
            blocks: 0,
            rotation: None,
            leaves: Leaves::Nothing,
            window: None,
        }
    }

    /// Nothing yet, of which no more is ever kept than the first `sink` frames and the newest, `frames` together with the
    /// block that is made. Positions stay those of the whole video, as the code that few-step models come with has it.
    pub fn window(rope: &Rope3d, grid: Grid, sink: usize, frames: usize) -> FullHistory {
        let newest = frames.saturating_sub(sink + grid.frames);
        FullHistory {
            window: Some((sink, newest)),
            ..FullHistory::new(rope, grid)
        }
    }

    /// Begins a pass of the next block that leaves no trace.
    pub fn denoise_pass(&mut self) -> &mut FullHistory {
        self.begin(Leaves::Nothing)
    }

    /// Begins the pass whose keys and values stay, from [`FullHistory::commit`] on.
    pub fn commit_pass(&mut self) -> &mut FullHistory {
        self.begin(Leaves::Block)
    }

    /// Begins a pass over the newest clean frames, [`FullHistory::rewritten`] of them, whose keys and values take the place of
    /// those that are kept, from [`FullHistory::commit`] on: how LongLive (arXiv 2509.22622) goes over to another prompt. All of
    /// them see the sink and the newest. The sink stays as it was, unless the video is so short that it is among them.
    pub fn rewrite_pass(&mut self) -> &mut FullHistory {
        self.begin(Leaves::Past)
    }

    /// Frames that [`FullHistory::rewrite_pass`] takes: as many as a block may see, its own among them, or all that there are.
    pub fn rewritten(&self) -> usize {
        let made = self.blocks * self.grid.frames;
        match self.window {
            Some((sink, newest)) => made.min(sink + newest + self.grid.frames),
            None => made,
        }
    }

    fn begin(&mut self, leaves: Leaves) -> &mut FullHistory {
        if (leaves == Leaves::Past) != (self.leaves == Leaves::Past) {
            self.rotation = None;
        }
        self.leaves = leaves;
        self.now.clear();
        self
    }

    /// Keeps what the last pass left.
    ///
    /// # Errors
    ///
    /// Memory for it.
    pub fn commit(&mut self) -> Result<()> {
        let now = std::mem::take(&mut self.now);
        if self.kept.is_empty() || self.leaves == Leaves::Past {
            self.kept = now;
        } else {
            for (kept, now) in self.kept.iter_mut().zip(now) {
                *kept = (Tensor::cat(&[&kept.0, &now.0], 1)?, Tensor::cat(&[&kept.1, &now.1], 1)?);
                // At once, so that no more than one layer is longer than what stays.
                trim(kept, self.window, self.grid)?;
            }
        }
        for kept in &mut self.kept {
            trim(kept, self.window, self.grid)?;
        }
        self.blocks += usize::from(self.leaves == Leaves::Block);
        self.leaves = Leaves::Nothing;
        self.rotation = None;
        Ok(())
    }

    /// What a pass over the newest frames sees: the sink as it is, where the frames do not reach back to it, and of its own
    /// what stands behind the sink.
    fn rewriting(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let made = self.blocks * self.grid.frames;
        match (self.window, self.kept.get(layer)) {
            (Some((sink, _)), Some((past_k, past_v))) if made > self.rewritten() => {
                let tokens = sink * self.grid.rows * self.grid.cols;
                let joined = |past: &Tensor, own: &Tensor| {
                    let own = own.narrow(1, tokens, own.dim(1)? - tokens)?;
                    Tensor::cat(&[&past.narrow(1, 0, tokens)?, &own], 1)
                };
                Ok((joined(past_k, k)?, joined(past_v, v)?))
            }
            _ => Ok((k.clone(), v.clone())),
        }
    }

    /// Tokens of a block.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Rotated keys and values of a layer, `[batch, tokens, heads, dim]`, of all blocks.
    pub fn layer(&self, layer: usize) -> Option<&(Tensor, Tensor)> {
        self.kept.get(layer)
    }

    /// Bytes of what is kept.
    pub fn bytes(&self) -> usize {
        let tensors = self.kept.iter().flat_map(|(k, v)| [k, v]);
        tensors.map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
    }
}

impl SelfAttention for FullHistory {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let rotation = match self.rotation.take() {
            Some(rotation) => rotation,
            None => {
                let made = self.blocks * self.grid.frames;
                let (first, frames) = match self.leaves {
                    Leaves::Past => (made - self.rewritten(), self.rewritten()),
                    _ => (made, self.grid.frames),
                };
                let grid = Grid { frames, ..self.grid };
                Rotation::of_frames(&self.rope, grid, first, q.device())?
            }
        };
        let (q, k) = (rotation.apply(q)?, rotation.apply(k)?);
        self.rotation = Some(rotation);
        if self.leaves == Leaves::Past {
            let (k, v) = self.rewriting(layer, &k, v)?;
            self.now.truncate(layer);
            self.now.push((k.clone(), v.clone()));
            return softmax_attention(&q, &k, &v, None);
        }
        if self.leaves == Leaves::Block {
            self.now.truncate(layer);
            self.now.push((k.clone(), v.clone()));
        }
        match self.kept.get(layer) {
            Some((past_k, past_v)) => {
                let (k, v) = (Tensor::cat(&[past_k, &k], 1)?, Tensor::cat(&[past_v, v], 1)?);
                softmax_attention(&q, &k, &v, None)
            }
            None => softmax_attention(&q, &k, v, None),
        }
    }
}

/// Leaves of a layer's keys and values what a window keeps.
fn trim(kept: &mut (Tensor, Tensor), window: Option<(usize, usize)>, grid: Grid) -> Result<()> {
    if let Some((sink, newest)) = window {
        let frame = grid.rows * grid.cols;
        let (sink, newest) = (sink * frame, newest * frame);
        *kept = (ends(&kept.0, sink, newest)?, ends(&kept.1, sink, newest)?);
    }
    Ok(())
}

/// The first and the last tokens; all where they are no more than these.
fn ends(x: &Tensor, first: usize, last: usize) -> Result<Tensor> {
    let tokens = x.dim(1)?;
    if tokens <= first + last {
        return Ok(x.clone());
    }
    let newest = x.narrow(1, tokens - last, last)?;
    match first {
        // A view would keep what was dropped.
        0 => newest.force_contiguous(),
        _ => Tensor::cat(&[&x.narrow(1, 0, first)?, &newest], 1),
    }
}

/// Times, rows and columns of the tokens of `grid`, spread evenly over `whole` frames, rows and columns from the
/// frame `first` on.
fn places(grid: Grid, whole: [usize; 3], first: f64) -> Vec<[f64; 3]> {
    let extents = grid.extents();
    let along = |axis: usize, i: usize| {
        let step = whole[axis] as f64 / extents[axis] as f64;
        0.5 * (step - 1.0) + i as f64 * step
    };
    let [frames, rows, cols] = extents;
    (0..frames * rows * cols)
        .map(|i| {
            let (frame, row, col) = (i / (rows * cols), i / cols % rows, i % cols);
            [first + along(0, frame), along(1, row), along(2, col)]
        })
        .collect()
}

/// Pairs of neighbours turned by time, row and column.
struct Rotation {
    cos: Tensor, // [tokens, dim / 2]
    sin: Tensor, // [tokens, dim / 2]
}

impl Rotation {
    /// Tokens of whole frames from `first` on.
    fn of_frames(rope: &Rope3d, grid: Grid, first: usize, device: &Device) -> Result<Rotation> {
        Rotation::new(rope, &places(grid, grid.extents(), first as f64), device)
    }

    /// Tokens at these times, rows and columns.
    fn new(rope: &Rope3d, places: &[[f64; 3]], device: &Device) -> Result<Rotation> {
        let pairs = rope.dim() / 2;
        let angles = |f: fn(f64) -> f64| {
            let turns = places
                .iter()
                .flat_map(|at| (0..pairs).map(move |i| f(at[rope.axis(i)] * rope.frequency(i)) as f32));
            Tensor::from_vec(turns.collect::<Vec<f32>>(), (places.len(), pairs), device)
        };
        Ok(Rotation {
            cos: angles(f64::cos)?,
            sin: angles(f64::sin)?,
        })
    }

    /// `x` is `[batch, tokens, heads, dim]`.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        rotate(&x.to_dtype(DType::F32)?, &self.cos, &self.sin)?.to_dtype(x.dtype())
    }
}
