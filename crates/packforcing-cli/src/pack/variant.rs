//! What can be chosen: what becomes of old blocks, and which of them are attended to.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

/// What becomes of a block that is no longer recent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// 2 x 4 x 4 tokens become their mean
    Mean,
    /// As many tokens stay; the others merge into those that are most like them
    Match,
    /// It stays whole
    None,
}

/// Which blocks of the archive are attended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Those whose keys answer the block's queries most
    Top,
    /// The newest
    Newest,
    /// Any
    Random,
}

/// By the name that the command line has for it.
fn show(choice: &impl ValueEnum, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.pad(choice.to_possible_value().as_ref().map_or("", |value| value.get_name()))
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self, f)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self, f)
    }
}
