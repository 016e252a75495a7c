//! The kernels that the build has embedded, and which card runs which.

/// One kernel file as a fatbin.
#[derive(Debug)]
pub(crate) struct Image {
    /// The file's stem.
    pub name: &'static str,
    pub bytes: &'static [u8],
    /// What it has machine code for.
    pub code: &'static [Arch],
    /// What it has PTX for, which the driver compiles.
    pub ptx: &'static [Arch],
}

/// An architecture as `PACKFORCING_CUDA_ARCHS` names it: `90`, or `90a`, whose code runs on 9.0 and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arch {
    /// Ten times the major part of the compute capability, and the minor part.
    pub number: u32,
    pub exact: bool,
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.number, if self.exact { "a" } else { "" })
    }
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

impl Image {
    /// Whether a card of this compute capability has something in it to run.
    pub fn runs_on(&self, (major, minor): (i32, i32)) -> bool {
        let own = (10 * major + minor) as u32;
        let code = |arch: &Arch| match arch.exact {
            true => arch.number == own,
            false => arch.number / 10 == own / 10 && arch.number <= own,
        };
        self.code.iter().any(code) || self.ptx.iter().any(|arch| !arch.exact && arch.number <= own)
    }

    /// What there is code and PTX for, for people.
    pub fn holds(&self) -> String {
        let list = |archs: &[Arch]| -> String {
            let each: Vec<String> = archs.iter().map(Arch::to_string).collect();
            each.join(", ")
        };
        match self.ptx {
            [] => format!("code for {}", list(self.code)),
            ptx => format!("code for {}, PTX for {} and later", list(self.code), list(ptx)),
        }
    }

    /// The image of this file, or why there is none.
    pub fn find(name: &str) -> Result<&'static Image, String> {
        let missing = || match MISSING.iter().find(|(file, _)| *file == name) {
            Some((_, reason)) => (*reason).to_string(),
            None if !NO_IMAGES.is_empty() => NO_IMAGES.to_string(),
            None => format!("{name}.cu was not compiled"),
        };
        IMAGES.iter().find(|image| image.name == name).ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_within_its_generation_and_ptx_on_all_that_come_after() {
        let arch = |number, exact| Arch { number, exact };
        const BYTES: &[u8] = &[];
        let image = |code: &'static [Arch], ptx: &'static [Arch]| Image {
            name: "a",
            bytes: BYTES,
            code,
            ptx,
        };
        let runs = |image: &Image, on: &[(i32, i32)]| on.iter().map(|&c| image.runs_on(c)).collect::<Vec<_>>();
        const CARDS: [(i32, i32); 7] = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)];
        assert_eq!(
            arch(90, true),
            Arch {
                number: 90,
                exact: true
            }
        );
        const AMPERE: &[Arch] = &[Arch {
            number: 80,
            exact: false,
        }];
        const HOPPER: &[Arch] = &[Arch {
            number: 90,
            exact: true,
        }];
        let code = image(AMPERE, &[]);
        assert_eq!(runs(&code, &CARDS), [false, true, true, true, false, false, false]);
        let with_ptx = image(AMPERE, AMPERE);
        assert_eq!(runs(&with_ptx, &CARDS), [false, true, true, true, true, true, true]);
        let exact = image(HOPPER, HOPPER);
        assert_eq!(runs(&exact, &CARDS), [false, false, false, false, true, false, false]);
        const ADA: &[Arch] = &[Arch {
            number: 89,
            exact: false,
        }];
        assert_eq!(
            runs(&image(ADA, &[]), &CARDS),
            [false, false, false, true, false, false, false]
        );
    }
}
