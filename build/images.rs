//! One fatbin for each kernel file, and the tables that say what is in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::archs::{Arch, is_for};
use crate::nvcc::Nvcc;

/// A kernel file as a fatbin.
pub struct Image {
    pub name: String,
    pub file: PathBuf,
    pub archs: Vec<Arch>,
    pub kernels: Vec<String>,
    /// Architectures that nvcc does not know, though they were asked for.
    pub unknown: Vec<Arch>,
}

/// How a file is compiled.
pub struct Compiler<'a> {
    pub nvcc: &'a Nvcc,
    /// What nvcc says of itself: another one compiles again.
    pub version: String,
    /// The folder with `kernels/device`.
    pub kernels: &'a Path,
    pub out: &'a Path,
    /// Whether spills and costly remarks are errors.
    pub deny: bool,
}

impl Image {
    /// PTX stands beside all code that is not for one card alone.
    fn ptx(&self) -> impl Iterator<Item = Arch> {
        self.archs.iter().copied().filter(|arch| !arch.exact)
    }

    /// An entry of `IMAGES`.
    pub fn source(&self) -> String {
        let list = |archs: &mut dyn Iterator<Item = Arch>| -> String {
            archs
                .map(|arch| format!("Arch {{ number: {}, exact: {} }}, ", arch.number, arch.exact))
                .collect()
        };
        format!(
            "    Image {{ name: {:?}, bytes: include_bytes!({:?}), code: &[{}], ptx: &[{}] }},\n",
            self.name,
            self.file,
            list(&mut self.archs.iter().copied()),
            list(&mut self.ptx()),
        )
    }

    /// A line of `images.tsv`: name, bytes, FNV-1a of the bytes, code, PTX, kernels.
    pub fn row(&self) -> Result<String, String> {
        let bytes = fs::read(&self.file).map_err(|e| format!("{}: {e}", self.file.display()))?;
        let hash = fnv(&bytes);
        let list = |archs: &mut dyn Iterator<Item = Arch>| archs.map(|a| a.to_string()).collect::<Vec<_>>().join(",");
        Ok(format!(
            "{}\t{}\t{hash:016x}\t{}\t{}\t{}\n",
            self.name,
            bytes.len(),
            list(&mut self.archs.iter().copied()),
            list(&mut self.ptx()),
            self.kernels.join(","),
        ))
    }
}

impl Compiler<'_> {
    /// Compiles one kernel file, for those of the architectures that it is for; `Ok(None)` where none is.
    pub fn image(&self, file: &Path, archs: &[Arch]) -> Result<Option<Image>, String> {
        let name = file
            .file_stem()
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default();
        let text = read(file)?;
        let mut own: Vec<Arch> = archs.iter().copied().filter(|&arch| is_for(&name, arch)).collect();
        let mut unknown = Vec::new();
        while !own.is_empty() {
            match self.compile(file, &name, &text, &own) {
                Ok(fatbin) => {
                    return Ok(Some(Image {
                        kernels: entries(&text),
                        file: fatbin,
                        archs: own,
                        unknown,
                        name,
                    }));
                }
                Err(told) => match own.iter().position(|arch| told.contains(&unsupported(*arch))) {
                    Some(at) => unknown.push(own.remove(at)),
                    None => return Err(format!("{} failed on {}: {told}", self.nvcc, file.display())),
                },
            }
        }
        match unknown.is_empty() {
            true => Ok(None),
            false => Err(format!("{} does not know {}", self.nvcc, list(&unknown))),
        }
    }

    fn compile(&self, file: &Path, name: &str, text: &str, archs: &[Arch]) -> Result<PathBuf, String> {
        let mut arguments: Vec<String> = Vec::new();
        for arch in archs {
            arguments.push(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
            if !arch.exact {
                arguments.push(format!("-gencode=arch=compute_{arch},code=compute_{arch}"));
            }
        }
        arguments.extend(["-fatbin", "-std=c++17", "-O3", "-Xptxas", "-v,-warn-spills"].map(String::from));
        // A kernel file names flags of its own in a line `// nvcc: ...`.
        let own = text.lines().filter_map(|l| l.strip_prefix("// nvcc: "));
        arguments.extend(own.flat_map(|l| l.split_whitespace().map(String::from)));
        let fatbin = self.out.join(format!("{name}.fatbin"));
        let report = self.out.join(format!("{name}.ptxas.txt"));
        // What was compiled from the same bytes by the same compiler is there: a change of PATH asks for a look, not for work.
        let mark = self.out.join(format!("{name}.mark"));
        let made_of = format!("{:016x}", fnv(self.made_of(&arguments, text)?.as_bytes()));
        let kept = fs::read_to_string(&mark).is_ok_and(|mark| mark == made_of) && fatbin.is_file();
        if !kept {
            let _ = fs::remove_file(&mark);
            let output = self
                .nvcc
                .command()
                .args(&arguments)
                .arg("-I")
                .arg(self.kernels.join("device"))
                .arg("-I")
                .arg(self.kernels)
                .arg("-o")
                .arg(&fatbin)
                .arg(file)
                .output()
                .map_err(|e| e.to_string())?;
            let said = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() {
                let error = |l: &&str| l.contains("error") || l.contains("fatal") || l.contains("nsupported gpu");
                return Err(said
                    .lines()
                    .find(error)
                    .or(said.lines().next())
                    .unwrap_or("without a word")
                    .to_string());
            }
            if !fatbin.is_file() {
                return Err("it wrote no file".into());
            }
            write(&report, &said)?;
            write(&mark, &made_of)?;
        }
        if self.deny {
            let report = read(&report)?;
            let costly: Vec<&str> = report.lines().filter(|l| costs_speed(l)).collect();
            assert!(costly.is_empty(), "ptxas on {}:\n{}", file.display(), costly.join("\n"));
        }
        Ok(fatbin)
    }

    /// Everything that an image depends on, as text.
    fn made_of(&self, arguments: &[String], text: &str) -> Result<String, String> {
        let mut all = format!("{}\n{}\n{}\n{text}", self.version, self.nvcc, arguments.join(" "));
        let mut headers = BTreeMap::new();
        for folder in [
            self.kernels.to_path_buf(),
            self.kernels.join("device"),
            self.kernels.join("vectors"),
        ] {
            for path in files(&folder)? {
                if path.extension().is_some_and(|e| e == "h" || e == "cuh") {
                    headers.insert(path.clone(), read(&path)?);
                }
            }
        }
        headers.values().for_each(|header| all += header);
        Ok(all)
    }
}

/// As nvcc says that it does not know one: `Unsupported gpu architecture 'compute_90a'`.
fn unsupported(arch: Arch) -> String {
    format!("nsupported gpu architecture 'compute_{arch}'")
}

pub fn list(archs: &[Arch]) -> String {
    archs.iter().map(Arch::to_string).collect::<Vec<_>>().join(", ")
}

/// That a list leaves a file out.
pub fn nothing_for(archs: &[Arch]) -> String {
    format!("PACKFORCING_CUDA_ARCHS={} has nothing that it is for", list(archs))
}

/// The names of a file's kernels: its lines `PF_KERNEL(name, ...`.
pub fn entries(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("PF_KERNEL("));
    lines
        .filter_map(|arguments| Some(arguments.split(',').next()?.trim().to_string()))
        .collect()
}

pub fn costs_speed(line: &str) -> bool {
    let spills = line.contains("spill stores") && !line.contains("0 bytes spill stores, 0 bytes spill loads");
    // C75..: what ptxas says of wgmma and setmaxnreg.
    let remarks = ["erializ", "wait injected", "arrive injected", "C75"];
    spills || remarks.iter().any(|r| line.contains(r))
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
}
