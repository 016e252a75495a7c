//! The program of packforcing.
#![allow(dead_code)]
mod media;
mod output;
mod pack { pub mod project; pub mod random; }
fn main() {}
