//! What `report.json` holds. docs/pack.md tells what each field means.

use serde::Serialize;

use super::variant::{Compression, Policy};

/// One run of `pack`.
#[derive(Debug, Serialize)]
pub struct Report {
    pub clip: String,
    pub scale: usize,
    pub seconds: f64,
    pub frames_per_second: f64,
    pub frames: usize,
    pub blocks: usize,
    pub tokens_per_block: usize,
    pub tokens_per_old_block: usize,
    pub device: String,
    pub dtype: &'static str,
    pub compression: Compression,
    pub policy: Policy,
    pub selected: usize,
    pub seed: u64,
    pub context_tokens_max: usize,
    pub cache_bytes: usize,
    pub full_cache_bytes: usize,
    pub ms_per_block_early: Option<f64>,
    pub ms_per_block_late: Option<f64>,
    pub run_rel_l2_vs_full: Option<f64>,
    pub variants: Vec<Variant>,
    pub samples: Vec<Sample>,
    pub elapsed_seconds: f64,
    pub peak_rss_bytes: Option<u64>,
}

/// What one compression and policy keep.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Variant {
    pub compression: Compression,
    pub policy: Policy,
    #[serde(flatten)]
    pub measure: Measure,
}

/// Against the full history.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measure {
    pub rel_l2_vs_full: f64,
    pub attention_mass_kept: f64,
}

/// All variants at one block.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    pub block: usize,
    pub seconds: f64,
    pub run_rel_l2_vs_full: f64,
    pub variants: Vec<Variant>,
}
