//! What packforcing's benches and its program share: [`cases`], one [`timer`], and [`floor`]s.
//!
//! A [`Case`] is an op at one shape on one device. It owns several copies of what the op reads and
//! writes, more than the cache nearest to memory holds together, and every call takes the next one:
//! what is timed comes from memory, as it does between the layers of a model.
//!
//! ```
//! use packforcing::{DType, Device};
//! use packforcing_bench::cases::merge_states::Shape;
//! use packforcing_bench::timer::{Plan, measure};
//! # fn main() -> packforcing_bench::Result<()> {
//! let device = Device::cpu();
//! let shape = Shape { queries: 8, heads: 2, dim: 16, dtype: DType::F32, ..Shape::default() };
//! let mut case = shape.case(&device)?;
//! let timing = measure(&mut case, &Plan { samples: 3, ..Plan::of(&device) })?;
//! assert!(timing.min() <= timing.median());
//! # Ok(())
//! # }
//! ```

pub mod case;
pub mod cases;
pub mod error;
pub mod floor;
mod random;
pub mod timer;

pub use case::{Case, Output, Work};
pub use error::{Error, Result};
