//! Which nvcc compiles the kernels.

use std::env::consts::EXE_SUFFIX;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A compiler: a program, and what stands before the arguments (`ccache nvcc`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvcc {
    pub program: PathBuf,
    pub before: Vec<OsString>,
    /// Programs whose change asks for another build.
    pub watched: Vec<PathBuf>,
    /// PATH had a say.
    pub by_path: bool,
}

/// Where nvcc may be, read from the environment once.
#[derive(Debug, Default, Clone)]
pub struct Places {
    pub nvcc: Option<OsString>,
    /// `CUDA_HOME`, `CUDA_PATH`.
    pub homes: Vec<PathBuf>,
    pub path: Vec<PathBuf>,
    /// Where installers put it.
    pub usual: Vec<PathBuf>,
}

impl Places {
    pub fn from_env() -> Places {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Places {
            nvcc: var("NVCC"),
            homes: ["CUDA_HOME", "CUDA_PATH"]
                .iter()
                .filter_map(|name| var(name))
                .map(PathBuf::from)
                .collect(),
            path: std::env::split_paths(&var("PATH").unwrap_or_default()).collect(),
            usual: vec![PathBuf::from("/usr/local/cuda/bin")],
        }
    }

    /// The compiler, none where there is none, and an error where `NVCC` names something else: whoever sets it means it.
    pub fn find(&self) -> Result<Option<Nvcc>, String> {
        if let Some(named) = &self.nvcc {
            return self.named(named).map(Some);
        }
        let name = format!("nvcc{EXE_SUFFIX}");
        let plain = |program: PathBuf, by_path| Nvcc {
            watched: vec![program.clone()],
            program,
            before: Vec::new(),
            by_path,
        };
        let homes = self.homes.iter().map(|home| home.join("bin").join(&name));
        if let Some(program) = homes.into_iter().find(|p| p.is_file()) {
            return Ok(Some(plain(program, false)));
        }
        if let Some(program) = on_path(&self.path, OsStr::new(&name)) {
            return Ok(Some(plain(program, true)));
        }
        let usual = self.usual.iter().map(|folder| folder.join(&name)).find(|p| p.is_file());
        Ok(usual.map(|program| plain(program, true)))
    }

    /// What `NVCC` names: a file, spaces in its name and all, or a command line.
    fn named(&self, named: &OsStr) -> Result<Nvcc, String> {
        let whole = Path::new(named);
        let shown = named.to_string_lossy();
        if whole.is_file() {
            return Ok(Nvcc {
                program: whole.to_path_buf(),
                before: Vec::new(),
                watched: vec![whole.to_path_buf()],
                by_path: false,
            });
        }
        if whole.is_dir() {
            return Err(format!("NVCC={shown} is a folder: name the compiler in it"));
        }
        let mut words = shown.split_whitespace();
        let first = words.next().ok_or_else(|| format!("NVCC={shown} names nothing"))?;
        let program = self
            .program(first)
            .ok_or_else(|| format!("NVCC={shown}: there is no program {first}"))?;
        let before: Vec<&str> = words.collect();
        // Of `ccache nvcc` the second word is a program too.
        let others = before
            .iter()
            .filter(|word| !word.starts_with('-'))
            .filter_map(|word| self.program(word));
        Ok(Nvcc {
            watched: std::iter::once(program.clone()).chain(others).collect(),
            by_path: !Path::new(first).is_absolute() || !before.is_empty(),
            program,
            before: before.into_iter().map(OsString::from).collect(),
        })
    }

    fn program(&self, word: &str) -> Option<PathBuf> {
        let path = Path::new(word);
        if path.components().count() > 1 {
            return path.is_file().then(|| path.to_path_buf());
        }
        let with_suffix = format!("{word}{EXE_SUFFIX}");
        on_path(&self.path, OsStr::new(word)).or_else(|| on_path(&self.path, OsStr::new(&with_suffix)))
    }
}

fn on_path(path: &[PathBuf], name: &OsStr) -> Option<PathBuf> {
    path.iter().map(|folder| folder.join(name)).find(|p| p.is_file())
}

impl Nvcc {
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.before);
        command
    }

    /// What it says of itself; an error where it is no nvcc.
    pub fn version(&self) -> Result<String, String> {
        let output = self
            .command()
            .arg("--version")
            .output()
            .map_err(|e| format!("{self}: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() && text.contains("release ") {
            true => Ok(text),
            false => Err(format!("{self} is no nvcc: it does not answer --version as one")),
        }
    }
}

impl std::fmt::Display for Nvcc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.program.display())?;
        self.before
            .iter()
            .try_for_each(|word| write!(f, " {}", word.to_string_lossy()))
    }
}
