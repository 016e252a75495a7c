//! A double of the CUDA driver, for tests where there is no card.
//!
//! What stands between Rust and a card (images, launches, streams, events, captures, copies, tensor maps, errors) is code
//! too, and this runs it: a `libcuda.so.1` whose kernels are the SIMT device's builds. Where the driver's manual leaves
//! something open, the double does what is least kind: work runs as late as it may, in a random order that only streams
//! and events bind; memory is poison until it is written, and nothing that was freed is given out again; what the manual
//! forbids is an error, what a card would do wrong without a word is a lost device with a report on stderr.
//!
//! `scripts/cuda-double.sh` makes the library and runs the suite on it. These variables are read when it is loaded:
//!
//! | variable | |
//! | --- | --- |
//! | `CUDA_DOUBLE_ARCH` | compute capability of the cards: `80`, `86`, `89`, `90` (default), `100`, `120` |
//! | `CUDA_DOUBLE_DEVICES` | how many there are (1) |
//! | `CUDA_DOUBLE_SMS` | multiprocessors of each (132) |
//! | `CUDA_DOUBLE_MEMORY` | bytes of memory of each (4 GiB) |
//! | `CUDA_DOUBLE_SEED` | of every choice that the double makes (0) |
//! | `CUDA_DOUBLE_PAGEABLE` | `1`: the card reads pageable host memory itself, late, through the host's page tables |
//! | `CUDA_DOUBLE_FAIL` | `CALL:N:CODE`: the Nth call (from 1) of this function fails with the code; several with commas |
//! | `CUDA_DOUBLE_TRACE` | `1`: prints every call |
//!
//! # What it does not do
//!
//! It gives no times that mean something, has no textures, no managed memory, no clusters, no graphs other than captured
//! ones, no memory pools but the default one, and of foreign code it loads modules and refuses their kernels by name.
//! A kernel may touch all memory that is there when it runs, whatever its arguments are.

#[allow(missing_docs, reason = "the driver's own functions")]
mod api;
mod capture;
mod card;
mod codes;
mod driver;
mod images;
mod memory;
mod random;
mod simt;
mod tensor_map;
mod work;

use packforcing as _; // its build has the kernels

#[cfg(test)]
mod tests;
