//! A folder of clips to learn from.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use packforcing_video::train::{Clips, ShortClip};
use packforcing_video::world::FPS;

use crate::media::film::{Film, Wish};
use crate::media::tensor::{self, Fingerprint};

/// What the names of clips end with.
const ENDINGS: [&str; 9] = ["avi", "gif", "m4v", "mkv", "mov", "mp4", "mpg", "webm", "y4m"];
/// What all clips may take up as numbers.
const MOST_BYTES: usize = 8 << 30;

/// All clips of a folder, in memory.
#[derive(Debug)]
pub struct Folder {
    clips: Vec<Tensor>,
    frames: usize,
    context_dim: usize,
}

impl Folder {
    /// Reads every clip of the folder, at the world's rate. The first one decides the size: another is made so by ffmpeg or
    /// refused. What is broken, too short or too large is an error that names it; names that begin with a dot are passed over.
    pub fn open(folder: &Path, frames: usize, context_dim: usize, unsaid_fps: Option<f64>) -> Result<Folder> {
        let name = folder.display().to_string();
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| name.clone())? {
            let path = entry.with_context(|| name.clone())?.path();
            let hidden = path
                .file_name()
                .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
            let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
            if !hidden && ending.is_some_and(|ending| ENDINGS.contains(&&*ending)) {
                files.push(path);
            }
        }
        ensure!(
            !files.is_empty(),
            "{name}: no clips ({}) in this folder",
            ENDINGS.join(", ")
        );
        // The order of a folder is the system's.
        files.sort();
        let mut clips = Vec::new();
        let mut wish = Wish {
            fps: FPS,
            size: None,
            pixels: None,
            unsaid_fps,
        };
        let mut left = MOST_BYTES;
        for file in &files {
            let mut film = Film::open(file, &wish)?;
            wish.size = Some(film.size());
            let pictures = film.rest(left)?;
            film.warn();
            let (file, count) = (file.display(), pictures.len());
            ensure!(
                count >= frames,
                "{file}: {count} frames at {FPS} a second are too few, {frames} are learned from"
            );
            let clip = tensor::of_frames(&pictures).with_context(|| file.to_string())?;
            left = left.saturating_sub(4 * clip.elem_count());
            clips.push(clip);
        }
        Ok(Folder {
            clips,
            frames,
            context_dim,
        })
    }

    /// By which the clips, and how many frames are learned from, are known again.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Fingerprint::default();
        self.clips.iter().try_for_each(|clip| hash.add(clip))?;
        Ok(format!("{hash} by {}", self.frames))
    }

    pub fn count(&self) -> usize {
        self.clips.len()
    }

    /// Rows and columns.
    pub fn size(&self) -> (usize, usize) {
        self.clips.first().map_or((0, 0), |c| (c.dims()[2], c.dims()[3]))
    }
}

impl Clips for Folder {
    fn clip(&self, number: u64) -> packforcing_video::Result<ShortClip> {
        // Which clip, then where in it.
        let (count, frames) = (self.clips.len() as u64, self.frames);
        let clip = &self.clips[(number % count) as usize];
        let places = (clip.dim(1)? - frames + 1) as u64;
        Ok(ShortClip {
            frames: clip.narrow(1, (number / count % places) as usize, frames)?,
            context: Tensor::zeros((1, self.context_dim), DType::F32, &Device::Cpu)?,
        })
    }
}
