//! `PACKFORCING_CUDA_ARCHS`: the architectures that kernels are compiled for.

/// `80`, or `90a`: code with what only that architecture has, which runs there alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arch {
    /// Ten times the major part of the compute capability, and the minor part.
    pub number: u32,
    pub exact: bool,
}

pub const DEFAULT: &str = "80,90a";
const FORM: &str = "the form is 80,90a: numbers of 80 or more, with an a for code that runs on that card alone";
/// What nvcc 13 knows of 8.0 and later.
const KNOWN: [u32; 12] = [80, 86, 87, 88, 89, 90, 100, 101, 103, 110, 120, 121];

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.number, if self.exact { "a" } else { "" })
    }
}

/// A list as people write it: commas, semicolons or spaces between; `8.0`, `sm_80`, `SM80` and `compute_80` are 80.
pub fn parse(text: &str) -> Result<Vec<Arch>, String> {
    let entries = text.split([',', ';']).flat_map(str::split_whitespace);
    let mut archs = Vec::new();
    for entry in entries {
        let arch = one(entry).map_err(|what| format!("PACKFORCING_CUDA_ARCHS={text}: {what}; {FORM}"))?;
        if !archs.contains(&arch) {
            archs.push(arch);
        }
    }
    match archs.is_empty() {
        true => Err(format!(
            "PACKFORCING_CUDA_ARCHS={text}: it names no architecture; {FORM}"
        )),
        false => Ok(archs),
    }
}

fn one(entry: &str) -> Result<Arch, String> {
    let lower = entry.to_ascii_lowercase();
    let bare = ["compute_", "compute", "sm_", "sm"]
        .iter()
        .find_map(|prefix| lower.strip_prefix(prefix))
        .unwrap_or(&lower);
    if matches!(bare, "native" | "all" | "all-major") {
        return Err(format!("no card is probed, so {entry:?} is nothing that a build knows"));
    }
    if bare.strip_suffix("-real").or(bare.strip_suffix("-virtual")).is_some() {
        return Err(format!("{entry:?}: code and PTX come together"));
    }
    if let Some(number) = bare.strip_suffix('f') {
        return Err(format!("no kernel is for a family such as {entry:?}: say {number}"));
    }
    let (digits, exact) = match bare.strip_suffix('a') {
        Some(digits) => (digits, true),
        None => (bare, false),
    };
    // 9.0 is 90, and 12.0 is 120: the minor part is one digit.
    let number = match digits.split_once('.') {
        Some((major, minor)) if minor.len() == 1 => format!("{major}{minor}"),
        Some(_) => return Err(format!("{entry:?} is no compute capability")),
        None => digits.to_string(),
    };
    let number: u32 = match number.bytes().all(|b| b.is_ascii_digit()) {
        true => number.parse().map_err(|_| format!("{entry:?} is no architecture"))?,
        false => return Err(format!("{entry:?} is no architecture")),
    };
    match number {
        0..80 if number > 20 => Err(format!("{entry:?} is older than the kernels, which need 8.0")),
        _ if !KNOWN.contains(&number) => Err(format!("{entry:?} is no architecture that is known ({KNOWN:?})")),
        _ if exact && number < 90 => Err(format!("{entry:?}: there is no such code before 90a")),
        _ => Ok(Arch { number, exact }),
    }
}

/// Whether a kernel file is compiled for an architecture: one whose name ends in `_sm90` for 90a alone, every other,
/// `attention_sm80` too, for all that are not exact.
pub fn is_for(name: &str, arch: Arch) -> bool {
    match name.rsplit_once("_sm") {
        Some((_, own)) if own != "80" => arch.exact && arch.number.to_string() == own,
        _ => !arch.exact,
    }
}
