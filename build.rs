//! Compiles the kernels: nvcc makes a fatbin of each (feature `cuda`), the host's C++ compiler makes
//! the SIMT device (feature `simt`). Where a compiler is missing the build stays green and the
//! device says at run time what to do.
//!
//! Variables: `NVCC`, `CUDA_HOME`, `CUDA_PATH` name the toolkit; `PACKFORCING_CUDA_ARCHS` is the list
//! of architectures (default `80,90a`; `80` stands for sm_80 code and compute_80 PTX, a list entry
//! ending in `a` goes to the kernels written for it alone); `PACKFORCING_KERNELS=require` makes a
//! missing compiler an error; `PACKFORCING_PTXAS=deny` makes an error of every spill and every
//! remark of ptxas that costs speed; `PACKFORCING_VECTORS=1` makes images of `kernels/vectors/` too,
//! which only tests launch.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

type Result<T, E = String> = std::result::Result<T, E>;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rustc-check-cfg=cfg(packforcing_simt)");
    for name in [
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "PACKFORCING_CUDA_ARCHS",
        "PACKFORCING_KERNELS",
        "PACKFORCING_PTXAS",
        "PACKFORCING_VECTORS",
    ] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let build = Build::from_env();
    let required = env::var("PACKFORCING_KERNELS").as_deref() == Ok("require");
    let steps = [
        ("CARGO_FEATURE_CUDA", Build::images as fn(&Build) -> Result<()>),
        ("CARGO_FEATURE_SIMT", Build::simt),
        ("CARGO_FEATURE_BUILDTIME_BINDGEN", Build::bindings),
    ];
    for (feature, step) in steps {
        if env::var_os(feature).is_none() {
            continue;
        }
        if let Err(reason) = step(&build) {
            if feature == "CARGO_FEATURE_SIMT" {
                // Looks again every time, until there is a compiler.
                println!("cargo::rerun-if-changed={}", build.out.join("no-compiler").display());
            }
            assert!(!required, "{reason}");
            println!("cargo::warning={reason}");
        }
    }
}

struct Build {
    kernels: PathBuf,
    out: PathBuf,
    /// docs.rs has no compilers and wants none.
    docs: bool,
}

impl Build {
    fn from_env() -> Build {
        let var = |name| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")));
        Build {
            kernels: var("CARGO_MANIFEST_DIR").join("kernels"),
            out: var("OUT_DIR"),
            docs: env::var_os("DOCS_RS").is_some(),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.out.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }

    /// `IMAGES`, a fatbin for each kernel file, or none of them and the reason.
    fn images(&self) -> Result<()> {
        let images = if self.docs {
            Err("this is the documentation".into())
        } else {
            self.compile_images()
        };
        let reason = images.as_ref().err().cloned().unwrap_or_default();
        let mut table = format!("const NO_IMAGES: &str = {reason:?};\nstatic IMAGES: &[Image] = &[\n");
        for (name, image) in images.iter().flatten() {
            table += &format!("    Image {{ name: {name:?}, bytes: include_bytes!({image:?}) }},\n");
        }
        self.write("images.rs", &(table + "];\n"))?;
        match images {
            Err(reason) if !self.docs => Err(format!("packforcing: no GPU kernels: {reason}")),
            _ => Ok(()),
        }
    }

    fn compile_images(&self) -> Result<Vec<(String, PathBuf)>> {
        let Some(nvcc) = find_nvcc() else {
            // Whoever then puts it on PATH builds again and has it.
            println!("cargo::rerun-if-env-changed=PATH");
            return Err(
            "nvcc was not found (NVCC, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda); scripts/cuda-toolkit.sh fetches it \
             from PyPI"
                    .into(),
            );
        };
        let archs = env::var("PACKFORCING_CUDA_ARCHS").unwrap_or_else(|_| "80,90a".into());
        let mut files = sources(&self.kernels, "cu")?;
        if env::var("PACKFORCING_VECTORS").as_deref() == Ok("1") {
            files.extend(sources(&self.kernels.join("vectors"), "cu")?);
        }
        let jobs = env::var("NUM_JOBS")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(1)
            .max(1);
        let images = in_parallel(&files, jobs, |file| self.fatbin(&nvcc, file, &archs))?;
        let images: Vec<_> = images.into_iter().flatten().collect();
        match images.is_empty() {
            true => Err(format!(
                "PACKFORCING_CUDA_ARCHS={archs} names no architecture that a kernel is for"
            )),
            false => Ok(images),
        }
    }

    /// Compiles one kernel file; `None` where no architecture of the list is for it.
    fn fatbin(&self, nvcc: &Path, file: &Path, archs: &str) -> Result<Option<(String, PathBuf)>> {
        let name = stem(file);
        let mut command = Command::new(nvcc);
        let mut any = false;
        for arch in archs.split(',').map(str::trim).filter(|a| !a.is_empty()) {
            if !is_for(&name, arch) {
                continue;
            }
            any = true;
            command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
            if !arch.ends_with('a') {
                command.arg(format!("-gencode=arch=compute_{arch},code=compute_{arch}"));
            }
        }
        if !any {
            return Ok(None);
        }
        let image = self.out.join(format!("{name}.fatbin"));
        command
            .args(["-fatbin", "-std=c++17", "-O3", "-Xptxas", "-v,-warn-spills"])
            .args(own_flags(file)?)
            .arg("-I")
            .arg(self.kernels.join("device"))
            .arg("-I")
            .arg(&self.kernels)
            .arg("-o")
            .arg(&image)
            .arg(file);
        let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
        let report = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let told = report
                .lines()
                .find(|l| l.contains("error") || l.contains("fatal"))
                .unwrap_or_default();
            return Err(format!("{} failed on {}: {told}", nvcc.display(), file.display()));
        }
        self.write(&format!("{name}.ptxas.txt"), &report)?;
        if env::var("PACKFORCING_PTXAS").as_deref() == Ok("deny") {
            let costly: Vec<&str> = report.lines().filter(|l| costs_speed(l)).collect();
            assert!(costly.is_empty(), "ptxas on {}:\n{}", file.display(), costly.join("\n"));
        }
        Ok(Some((name, image)))
    }

    /// The SIMT device as a static library, with a table of every kernel in it.
    fn simt(&self) -> Result<()> {
        #[cfg(feature = "simt")]
        if !self.docs {
            let simt = self.kernels.join("simt");
            let mut files = sources(&self.kernels, "cu")?;
            files.extend(sources(&simt.join("planted"), "cu")?);
            files.extend(sources(&self.kernels.join("vectors"), "cu")?);
            let mut entries = Vec::new();
            for file in &files {
                let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
                entries.extend(text.lines().filter_map(|line| {
                    let arguments = line.strip_prefix("PF_KERNEL(")?;
                    Some(arguments.split(',').next()?.trim().to_string())
                }));
            }
            let table = self.write("simt_table.cpp", &simt_table(&entries))?;
            let mut library = cc::Build::new();
            library
                .cpp(true)
                .std("c++17")
                .opt_level(2)
                .flags(["-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas"])
                .include(simt.join("shadow"))
                .include(self.kernels.join("device"))
                .include(&self.kernels)
                .include(&simt)
                .files(sources(&simt, "cpp")?)
                .file(table)
                .flag("-xc++")
                .files(&files);
            library
                .try_compile("packforcing_simt")
                .map_err(|e| format!("packforcing: no SIMT device, the C++ compiler failed: {e}"))?;
            println!("cargo::rustc-cfg=packforcing_simt");
        }
        Ok(())
    }

    /// `ffi.rs` from `params.h`, to be compared with the committed one.
    fn bindings(&self) -> Result<()> {
        #[cfg(feature = "buildtime-bindgen")]
        {
            use bindgen::callbacks::{DeriveInfo, ParseCallbacks};
            #[derive(Debug)]
            struct Plain;
            impl ParseCallbacks for Plain {
                fn add_derives(&self, _: &DeriveInfo<'_>) -> Vec<String> {
                    vec!["bytemuck::Pod".into(), "bytemuck::Zeroable".into()]
                }
            }
            let header = self.kernels.join("params.h");
            let style = self.kernels.with_file_name("rustfmt.toml");
            bindgen::Builder::default()
                .header(header.to_string_lossy())
                .allowlist_file(".*params\\.h")
                .parse_callbacks(Box::new(Plain))
                .layout_tests(true)
                .use_core()
                .rustfmt_configuration_file(style.is_file().then_some(style))
                .disable_header_comment()
                .raw_line("// Generated from kernels/params.h by bindgen (feature `buildtime-bindgen`); do not edit.")
                .generate()
                .map_err(|e| e.to_string())?
                .write_to_file(self.out.join("ffi.rs"))
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// What `kernels/simt/simt.h` asks of the build: every kernel's descriptor, in a table.
#[cfg(feature = "simt")]
fn simt_table(entries: &[String]) -> String {
    let mut text = String::from("#include <simt.h>\n");
    for name in entries {
        text += &format!("extern \"C\" const simt::Kernel simt_kernel_{name};\n");
    }
    text += "const simt::Kernel* const simt_kernels[] = {\n";
    for name in entries {
        text += &format!("  &simt_kernel_{name},\n");
    }
    text + &format!("  nullptr}};\nconst size_t simt_kernel_count = {};\n", entries.len())
}

/// A name that ends in `_sm90` is for 90a alone; every other file, `attention_sm80` too, runs from 8.0 on.
fn is_for(name: &str, arch: &str) -> bool {
    match name.rsplit_once("_sm") {
        Some((_, own)) if own != "80" => arch.strip_suffix('a') == Some(own),
        _ => !arch.ends_with('a'),
    }
}

/// A kernel file names flags of its own in a line `// nvcc: ...`.
fn own_flags(file: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(text
        .lines()
        .filter_map(|l| l.strip_prefix("// nvcc: "))
        .flat_map(|l| l.split_whitespace().map(str::to_string))
        .collect())
}

fn costs_speed(line: &str) -> bool {
    let spills = line.contains("spill stores") && !line.contains("0 bytes spill stores, 0 bytes spill loads");
    let remarks = ["erializ", "wait injected", "arrive injected", "C7510", "C7514", "C7519"];
    spills || remarks.iter().any(|r| line.contains(r))
}

fn find_nvcc() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::var_os("NVCC")
        .map(PathBuf::from)
        .into_iter()
        .chain(
            ["CUDA_HOME", "CUDA_PATH"]
                .iter()
                .filter_map(env::var_os)
                .map(|home| Path::new(&home).join("bin/nvcc")),
        )
        .chain(env::split_paths(&path).map(|dir| dir.join("nvcc")))
        .chain([PathBuf::from("/usr/local/cuda/bin/nvcc")])
        .find(|nvcc| nvcc.is_file())
}

fn sources(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    Ok(files)
}

fn stem(file: &Path) -> String {
    file.file_stem()
        .map(|s| s.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// `job` for every item on `jobs` threads, results in the items' order.
fn in_parallel<T: Sync, R: Send>(items: &[T], jobs: usize, job: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<R>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { break };
                    let result = job(item);
                    if let Ok(mut slot) = results[i].lock() {
                        *slot = Some(result);
                    }
                }
            });
        }
    });
    results
        .into_iter()
        .map(|slot| {
            slot.into_inner()
                .ok()
                .flatten()
                .unwrap_or_else(|| Err("a compile job died".into()))
        })
        .collect()
}
