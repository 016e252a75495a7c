//! A folder of clips to learn from.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use packforcing_video::train::{Clips, ShortClip};

use crate::media::movie::Movie;
use crate::media::tensor;

/// All clips of a folder, in memory.
#[derive(Debug)]
pub struct Folder {
    clips: Vec<Tensor>,
    frames: usize,
    context_dim: usize,
}

impl Folder {
    /// Reads every y4m, gif and mp4 file; what is broken, too short or of another size is an error that names it.
    pub fn open(folder: &Path, frames: usize, context_dim: usize) -> Result<Folder> {
        let name = folder.display().to_string();
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| name.clone())? {
            let path = entry.with_context(|| name.clone())?.path();
            let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
            if matches!(ending.as_deref(), Some("y4m" | "gif" | "mp4")) {
                files.push(path);
            }
        }
        ensure!(!files.is_empty(), "{name}: no clips (.y4m, .gif, .mp4) in this folder");
        // The order of a folder is the system's.
        files.sort();
        let mut clips = Vec::new();
        let mut first = None;
        for file in &files {
            let movie = Movie::open(file)?;
            let (file, size, count) = (file.display(), movie.size(), movie.frames.len());
            let (of, expected) = first.get_or_insert_with(|| (file.to_string(), size));
            ensure!(
                size == *expected,
                "{file}: {} x {} pixels, and {of} has {} x {}: all clips must have one size",
                size.0,
                size.1,
                expected.0,
                expected.1
            );
            ensure!(
                count >= frames,
                "{file}: {count} frames are too few, {frames} are learned from"
            );
            clips.push(tensor::of_frames(&movie.frames).with_context(|| file.to_string())?);
        }
        Ok(Folder {
            clips,
            frames,
            context_dim,
        })
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
