//! What every op checks of its arguments, and how it says so.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::paging::PageLists;
use crate::tensor::{View, ViewMut};

/// The head dim whose pairs fit `RopeParams`.
pub(crate) const MAX_HEAD_DIM: usize = 2 * crate::ffi::PF_MAX_PAIRS as usize;

/// The common side of [`View`] and [`ViewMut`].
pub(crate) trait AnyView {
    fn device(&self) -> &Device;
    fn dtype(&self) -> DType;
    fn shape(&self) -> &[usize];
    fn strides(&self) -> &[usize];
    fn describe(&self) -> String;
}

macro_rules! any_view {
    ($($t:ty),*) => {$(
        impl AnyView for $t {
            fn device(&self) -> &Device { <$t>::device(self) }
            fn dtype(&self) -> DType { <$t>::dtype(self) }
            fn shape(&self) -> &[usize] { <$t>::shape(self) }
            fn strides(&self) -> &[usize] { <$t>::strides(self) }
            fn describe(&self) -> String { format!("{self:?}") }
        }
    )*};
}
any_view!(View<'_>, ViewMut<'_>);

/// The error of a [`Check`] where something does not hold. What it says is made only then: on the good path a launch makes no
/// texts.
macro_rules! ensure {
    ($check:expr, $holds:expr, $argument:expr, $expected:expr, $got:expr $(,)?) => {
        if !$holds {
            return $check.fail($argument, $expected, $got);
        }
    };
}
pub(crate) use ensure;

/// The name of a kernel that there is one of for each float dtype.
macro_rules! kernel_of {
    ($stem:literal, $dtype:expr) => {
        match $dtype {
            $crate::dtype::DType::F16 => concat!($stem, "_f16"),
            $crate::dtype::DType::BF16 => concat!($stem, "_bf16"),
            _ => concat!($stem, "_f32"),
        }
    };
}
pub(crate) use kernel_of;

/// Checks of one op on one device.
#[derive(Clone, Copy)]
pub(crate) struct Check<'a> {
    pub op: &'static str,
    pub device: &'a Device,
}

impl Check<'_> {
    pub fn fail<T>(&self, argument: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Result<T> {
        Err(Error::argument(self.op, argument, expected, got))
    }

    /// The op's device, this dtype and this shape.
    pub fn tensor(&self, argument: &'static str, view: &impl AnyView, dtype: DType, shape: &[usize]) -> Result<()> {
        let holds = view.device() == self.device && view.dtype() == dtype && view.shape() == shape;
        ensure!(
            self,
            holds,
            argument,
            format!("{dtype} {shape:?} on {}", self.device),
            view.describe()
        );
        Ok(())
    }

    /// Something to work on.
    pub fn some(&self, argument: &'static str, holds: bool) -> Result<()> {
        ensure!(self, holds, argument, "at least one element", "an empty one");
        Ok(())
    }

    /// One of these dtypes; `names` lists them.
    pub fn dtype(&self, argument: &'static str, got: DType, taken: &[DType], names: &'static str) -> Result<()> {
        if taken.contains(&got) {
            return Ok(());
        }
        Err(Error::UnsupportedDType {
            op: self.op,
            argument,
            got,
            device: self.device.kind().name(),
            expected: names,
        })
    }

    /// Lists over a pool of `pages` pages, at least `streams` of them, each of at least `used` pages.
    pub fn page_lists(
        &self,
        argument: &'static str,
        lists: &PageLists,
        pages: usize,
        (streams, used): (usize, usize),
    ) -> Result<()> {
        let holds = lists.view().device() == self.device
            && lists.pool_pages() <= pages
            && lists.streams() >= streams
            && (streams == 0 || lists.length() >= used);
        ensure!(
            self,
            holds,
            argument,
            format!(
                "at least {streams} lists of {used} pages below {pages} on {}",
                self.device
            ),
            format!(
                "{} lists of {} pages below {} on {}",
                lists.streams(),
                lists.length(),
                lists.pool_pages(),
                lists.view().device()
            )
        );
        Ok(())
    }

    /// That no page stands twice among the first `used` of the first `streams` lists, nor is `taken`
    /// already; marks them. For host devices, where the lists can be read.
    pub fn distinct_pages(
        &self,
        argument: &'static str,
        lists: &PageLists,
        (streams, used): (usize, usize),
        taken: &mut [bool],
    ) -> Result<()> {
        if streams == 0 || used == 0 {
            return Ok(());
        }
        let entries = lists.view().host::<i32>();
        for list in entries.chunks_exact(lists.length()).take(streams) {
            for &page in &list[..used] {
                let before = std::mem::replace(&mut taken[page as usize], true);
                ensure!(
                    self,
                    !before,
                    argument,
                    "pages that nothing else uses",
                    format!("page {page} again")
                );
            }
        }
        Ok(())
    }

    /// Every outer stride a multiple of what 16 bytes hold, so that rows can be moved as vectors.
    pub fn aligned_rows(&self, argument: &'static str, view: &impl AnyView, address: u64) -> Result<()> {
        let lane = 16 / view.dtype().bytes();
        let outer = view.strides().len().saturating_sub(1);
        let strided = view.strides()[..outer]
            .iter()
            .zip(view.shape())
            .all(|(s, &n)| n <= 1 || s % lane == 0);
        ensure!(
            self,
            strided && address.is_multiple_of(16),
            argument,
            format!("rows on 16-byte boundaries (outer strides in multiples of {lane})"),
            format!("{} at {address:#x}", view.describe())
        );
        Ok(())
    }
}

/// Strides of the leading dimensions as a kernel takes them.
pub(crate) fn strides<const N: usize>(view: &impl AnyView) -> [i64; N] {
    let mut out = [0; N];
    for (o, &s) in out.iter_mut().zip(view.strides()) {
        *o = s as i64;
    }
    out
}
