//! Which image is which: the table that the build of `packforcing` writes beside its images (`images.tsv`).

use std::ffi::CStr;

use crate::card::Settings;
use crate::codes::{Code, Result};

/// An architecture's code: `90`, or `90a`, which runs on 9.0 alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Arch {
    number: u32,
    exact: bool,
}

#[derive(Debug, Clone)]
pub struct Image {
    /// The kernel file's stem.
    pub name: String,
    bytes: u64,
    hash: u64,
    code: Vec<Arch>,
    ptx: Vec<Arch>,
    pub kernels: Vec<String>,
}

/// A module is an image, or code that the double has no kernels for.
#[derive(Debug, Clone)]
pub enum Loaded {
    Known(Image),
    Foreign,
}

impl Image {
    /// The lines of a table; what is not a line of one is passed over with a message.
    pub fn table(text: &str) -> Vec<Image> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let image = |line: &str| {
            let image = Image::parse(line);
            if image.is_none() {
                eprintln!("cuda double: no line of a table of images: {line:?}");
            }
            image
        };
        lines.filter_map(image).collect()
    }

    fn parse(line: &str) -> Option<Image> {
        let mut fields = line.split('\t').map(str::trim);
        let list = |text: &str| -> Vec<String> {
            let each = text.split(',').map(str::trim).filter(|one| !one.is_empty());
            each.map(str::to_string).collect()
        };
        let archs = |text: &str| {
            list(text)
                .iter()
                .map(|one| Arch::parse(one))
                .collect::<Option<Vec<_>>>()
        };
        Some(Image {
            name: fields.next().filter(|name| !name.is_empty())?.to_string(),
            bytes: fields.next()?.parse().ok()?,
            hash: u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok()?,
            code: archs(fields.next()?)?,
            ptx: archs(fields.next()?)?,
            kernels: list(fields.next()?),
        })
    }

    /// Whether the driver would take it on these cards.
    fn fits(&self, settings: &Settings) -> Result {
        let (major, minor) = settings.capability;
        let code = self.code.iter().any(|arch| match arch.exact {
            true => arch.number == 10 * major + minor,
            false => arch.number / 10 == major && arch.number % 10 <= minor,
        });
        if code {
            return Ok(());
        }
        let ptx = self
            .ptx
            .iter()
            .any(|arch| !arch.exact && arch.number <= 10 * major + minor);
        match ptx {
            false => Err(Code::NO_BINARY_FOR_GPU),
            true if settings.toolkit > settings.driver => Err(Code::UNSUPPORTED_PTX_VERSION),
            true => Ok(()),
        }
    }
}

impl Arch {
    fn parse(text: &str) -> Option<Arch> {
        let digits = text.trim_end_matches('a');
        let number = digits.parse().ok()?;
        (text.len() - digits.len() <= 1).then_some(Arch {
            number,
            exact: digits.len() < text.len(),
        })
    }
}

/// FNV-1a, as the build has it.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What `cuModuleLoadData` is given.
///
/// # Safety
///
/// `image` is a fatbin, or text that ends in a zero.
pub unsafe fn load(table: &[Image], image: *const u8, settings: &Settings) -> Result<Loaded> {
    const FATBIN: u32 = 0xBA55_ED50;
    // SAFETY: a text of three characters and its zero is as long, and a fatbin longer.
    let first = unsafe { std::slice::from_raw_parts(image, 4) };
    if first != FATBIN.to_le_bytes() {
        // Text it may be; an object file says so itself.
        if first == b"\x7fELF" {
            return Ok(Loaded::Foreign);
        }
        // SAFETY: the caller's promise.
        let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
        return match text.trim().is_empty() || text.contains(".version") {
            true => Ok(Loaded::Foreign),
            false => Err(Code::INVALID_IMAGE),
        };
    }
    // The header says how long it is itself, and how much follows.
    // SAFETY: a fatbin begins with sixteen bytes of header, and is as long as they say.
    let bytes = unsafe {
        let header = std::slice::from_raw_parts(image, 16);
        let own = u64::from(u16::from_le_bytes([header[6], header[7]]));
        let rest = header[8..16]
            .iter()
            .rev()
            .fold(0u64, |n, &byte| n << 8 | u64::from(byte));
        std::slice::from_raw_parts(image, (own + rest) as usize)
    };
    let hash = hash(bytes);
    let known = table.iter().find(|i| i.bytes == bytes.len() as u64 && i.hash == hash);
    let Some(known) = known else {
        return Ok(Loaded::Foreign);
    };
    known.fits(settings)?;
    Ok(Loaded::Known(known.clone()))
}
