//! The folder of a video: what is written while it grows, and what another run needs to go on.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use packforcing_video::sample::{Generator, SampleConfig};
use packforcing_video::train::{Description, differences};
use packforcing_video::world::{FPS, Frame, Identity, Measure, Scene, Score};
use serde::{Deserialize, Serialize};

use crate::media::gif::GifWriter;
use crate::media::tensor;
use crate::media::y4m::Y4mWriter;
use crate::output;

/// The gif's longer side in pixels, about.
const GIF_EXTENT: usize = 192;
const STATE: &str = "state.json";
const LATENTS: &str = "blocks.f32";
/// Made of the whole video when it is done.
pub const FILM: &str = "film.mp4";

/// What must be the same for a video to go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub config: SampleConfig,
    pub checkpoint: Description,
    pub start: String,
    /// By which a start clip is known again.
    #[serde(default)]
    pub start_clip: Option<String>,
}

/// Of one block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Row {
    pub ms: f64,
    pub cache_bytes: usize,
    pub context_tokens: usize,
    /// Most memory the process ever held, where the system tells.
    pub resident_bytes: Option<u64>,
}

/// A video that is being written.
pub struct Session {
    folder: PathBuf,
    /// f32 numbers of a block, and its shape.
    shape: [usize; 4],
    /// Blocks of an earlier run, as they were made.
    earlier: Option<File>,
    latents: File,
    y4m: Y4mWriter,
    gif: GifWriter,
    /// How large a pixel is in films.
    zoom: usize,
    png: bool,
    pub rows: Vec<Row>,
    /// With motion and by look, where the scene is known.
    judges: Option<[Measure; 2]>,
    /// Of every frame.
    pub scores: Vec<[Score; 2]>,
}

impl Session {
    /// Begins a video in the folder, or goes on with the one that is there.
    ///
    /// Where the scene is given, frames are held against it as they come.
    pub fn open(folder: &Path, state: &State, scene: Option<&Scene>, resume: bool, png: bool) -> Result<Session> {
        let (config, file) = (&state.config, folder.join(STATE));
        if resume {
            let text = fs::read_to_string(&file)
                .with_context(|| format!("--resume: {}: there is no video to go on with", file.display()))?;
            let there: State = serde_json::from_str(&text)
                .with_context(|| format!("--resume: {}: not a video of this program", file.display()))?;
            ensure!(
                there == *state,
                "--resume: {}: the video there was begun with other options or another checkpoint: {}",
                file.display(),
                differences(&there, state)
            );
        }
        let [rows, cols] = config.size;
        let path = folder.join(LATENTS);
        let opened = |e| format!("{}: {e}", path.display());
        // Blocks that are there stay until the video goes on behind them.
        let latents = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(!resume)
            .open(&path);
        let latents = latents.map_err(|e| anyhow::anyhow!(opened(e)))?;
        let earlier = if resume { Some(File::open(&path)?) } else { None };
        if !resume {
            let mut json = serde_json::to_vec_pretty(state)?;
            json.push(b'\n');
            output::write(folder, STATE, &json)?;
        }
        let zoom = (GIF_EXTENT / rows.max(cols)).max(1);
        match fs::remove_file(folder.join(FILM)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).with_context(|| FILM),
            _ => {}
        }
        let named = |name: &str| folder.join(name);
        let (y4m, gif) = (named("video.y4m"), named("video.gif"));
        Ok(Session {
            shape: [state.checkpoint.model.channels, config.block_frames, rows, cols],
            earlier,
            latents,
            y4m: Y4mWriter::create(&y4m, (cols, rows), FPS).with_context(|| y4m.display().to_string())?,
            gif: GifWriter::create(&gif, (cols, rows), zoom, FPS).with_context(|| gif.display().to_string())?,
            zoom,
            png,
            folder: folder.into(),
            rows: Vec::new(),
            judges: scene.map(|scene| [Identity::Motion, Identity::Look].map(|identity| Measure::new(scene, identity))),
            scores: Vec::new(),
        })
    }

    /// The next block as an earlier run made it, to the bit; none once they are all there.
    pub fn kept(&mut self, block: usize) -> Result<Option<Tensor>> {
        let Some(file) = &mut self.earlier else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let whole = 4 * self.shape.iter().product::<usize>();
        file.take(whole as u64).read_to_end(&mut bytes)?;
        if bytes.len() < whole {
            // Half a block that was cut off is made again.
            self.earlier = None;
            self.latents.set_len((block * whole) as u64)?;
            return Ok(None);
        }
        self.tensor(block, &bytes).map(Some)
    }

    /// A block of those that were added.
    pub fn block(&mut self, block: usize) -> Result<Tensor> {
        let mut bytes = vec![0; 4 * self.shape.iter().product::<usize>()];
        let read = self
            .latents
            .seek(SeekFrom::Start((block * bytes.len()) as u64))
            .and_then(|_| self.latents.read_exact(&mut bytes));
        read.with_context(|| self.folder.join(LATENTS).display().to_string())?;
        self.tensor(block, &bytes)
    }

    fn tensor(&self, block: usize, bytes: &[u8]) -> Result<Tensor> {
        let numbers: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        ensure!(
            numbers.iter().all(|n| n.is_finite()),
            "{}: block {block} is damaged",
            self.folder.join(LATENTS).display()
        );
        Ok(Tensor::from_vec(numbers, &self.shape[..], &Device::Cpu)?)
    }

    /// A block that was made, or replayed where it is not new.
    pub fn add(&mut self, block: &Tensor, new: bool, generator: &Generator<'_>, took: Duration) -> Result<()> {
        let block = block.to_device(&Device::Cpu)?;
        if new {
            let numbers = block.flatten_all()?.to_vec1::<f32>()?;
            ensure!(
                numbers.iter().all(|n| n.is_finite()),
                "the model gave numbers that are not finite: nothing of it was written"
            );
            let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            self.latents
                .seek(SeekFrom::End(0))
                .and_then(|_| self.latents.write_all(&bytes))
                .with_context(|| self.folder.join(LATENTS).display().to_string())?;
        }
        let frames = tensor::to_frames(&block)?;
        let named = |name: &str| self.folder.join(name).display().to_string();
        self.y4m.write(&frames).with_context(|| named("video.y4m"))?;
        self.gif.write(&frames).with_context(|| named("video.gif"))?;
        if self.png {
            for (i, frame) in frames.iter().enumerate() {
                let name = format!("frame-{:06}.png", self.frames() + i);
                output::write(&self.folder, &name, &frame.png()?)?;
            }
        }
        if let Some(judges) = &mut self.judges {
            for i in 0..self.shape[1] {
                let frame = Frame::from_tensor(&block.narrow(1, i, 1)?.squeeze(1)?)?;
                self.scores.push(judges.each_mut().map(|judge| judge.frame(&frame)));
            }
        }
        self.rows.push(Row {
            ms: took.as_secs_f64() * 1e3,
            cache_bytes: generator.cache_bytes(),
            context_tokens: generator.context_tokens(),
            resident_bytes: crate::process::peak_rss_bytes(),
        });
        Ok(())
    }

    /// How large a pixel is in films.
    pub fn zoom(&self) -> usize {
        self.zoom
    }

    /// Frames so far.
    pub fn frames(&self) -> usize {
        self.rows.len() * self.block_frames()
    }

    /// Frames of a block.
    pub fn block_frames(&self) -> usize {
        self.shape[1]
    }
}
