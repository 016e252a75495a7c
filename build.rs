//! Compiles the kernels: nvcc makes a fatbin of each (feature `cuda`), the host's C++ compiler makes
//! the SIMT device (feature `simt`). Where a compiler is missing the build stays green and the
//! device says at run time what to do.
//!
//! Variables: `NVCC` (a program, or a command line such as `ccache nvcc`), `CUDA_HOME`, `CUDA_PATH`
//! name the toolkit; `PACKFORCING_CUDA_ARCHS` is the list of architectures (default `80,90a`; `80`
//! stands for sm_80 code and compute_80 PTX, a list entry ending in `a` goes to the kernels written for
//! it alone); what these two say is understood or ends the build. `PACKFORCING_KERNELS=require` makes a
//! missing compiler, or one kernel file that does not compile, an error; `PACKFORCING_PTXAS=deny` makes an error of every spill and every
//! remark of ptxas that costs speed. The feature `vectors` makes images of `kernels/vectors/` too.

#[path = "build/archs.rs"]
mod archs;
#[path = "build/images.rs"]
mod images;
#[path = "build/nvcc.rs"]
mod nvcc;

use std::path::{Path, PathBuf};
use std::{env, fs};

use images::{Compiler, Image};
use nvcc::Places;

type Result<T, E = String> = std::result::Result<T, E>;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rustc-check-cfg=cfg(packforcing_simt)");
    for name in [
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "PACKFORCING_CUDA_ARCHS",
        "PACKFORCING_KERNELS",
        "PACKFORCING_PTXAS",
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

/// The images, and each file that there is none of, with the reason.
type Compiled = (Vec<Image>, Vec<(String, String)>);

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

    /// `IMAGES`, a fatbin for each kernel file, or none of them and the reason; and the same as a table, by which others
    /// know an image again.
    fn images(&self) -> Result<()> {
        let compiled = if self.docs {
            Err("this is the documentation".into())
        } else {
            self.compile_images()
        };
        let reason = compiled.as_ref().err().cloned().unwrap_or_default();
        let (images, missing) = compiled.as_ref().map_or((&[][..], &[][..]), |(i, m)| (i, m));
        let mut text = format!(
            "pub(super) const NO_IMAGES: &str = {reason:?};\npub(super) const MISSING: &[(&str, &str)] = &{missing:?};\n"
        );
        text += "pub(super) static IMAGES: &[Image] = &[\n";
        let mut table = String::new();
        for image in images {
            text += &image.source();
            table += &image.row()?;
        }
        self.write("images.rs", &(text + "];\n"))?;
        self.write("images.tsv", &table)?;
        for (file, reason) in missing {
            println!("cargo::warning=packforcing: {file}.cu is not in this build: {reason}");
        }
        match compiled {
            Err(reason) if !self.docs => Err(format!("packforcing: no GPU kernels: {reason}")),
            Ok((_, missing)) if !missing.is_empty() => {
                Err(format!("packforcing: {} kernel files are missing", missing.len()))
            }
            _ => Ok(()),
        }
    }

    /// Compiles every kernel file.
    fn compile_images(&self) -> Result<Compiled> {
        // Whoever names architectures or a compiler means them: what is not understood ends the build.
        let archs = match env::var("PACKFORCING_CUDA_ARCHS") {
            Ok(text) => archs::parse(&text).unwrap_or_else(|reason| panic!("packforcing: {reason}")),
            Err(_) => archs::parse(archs::DEFAULT)?,
        };
        let places = Places::from_env();
        let found = places.find().unwrap_or_else(|reason| panic!("packforcing: {reason}"));
        if found.as_ref().is_none_or(|nvcc| nvcc.by_path) {
            println!("cargo::rerun-if-env-changed=PATH");
        }
        let Some(nvcc) = found else {
            return Err(
            "nvcc was not found (NVCC, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda); scripts/cuda-toolkit.sh fetches it \
             from PyPI"
                    .into(),
            );
        };
        for program in &nvcc.watched {
            println!("cargo::rerun-if-changed={}", program.display());
        }
        let version = match nvcc.version() {
            Err(reason) if places.nvcc.is_some() => panic!("packforcing: {reason}"),
            said => said?,
        };
        let mut files = sources(&self.kernels, "cu")?;
        let shipped = files.len();
        if env::var_os("CARGO_FEATURE_VECTORS").is_some() {
            files.extend(sources(&self.kernels.join("vectors"), "cu")?);
        }
        let jobs = env::var("NUM_JOBS")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(1)
            .max(1);
        let compiler = Compiler {
            nvcc: &nvcc,
            version,
            kernels: &self.kernels,
            out: &self.out,
            deny: env::var("PACKFORCING_PTXAS").as_deref() == Ok("deny"),
        };
        let compiled = in_parallel(&files, jobs, |file| Ok(compiler.image(file, &archs)))?;
        let (mut images, mut missing) = (Vec::new(), Vec::new());
        for (i, (file, compiled)) in files.iter().zip(compiled).enumerate() {
            match compiled {
                Ok(Some(image)) => {
                    if !image.unknown.is_empty() {
                        let unknown = images::list(&image.unknown);
                        println!(
                            "cargo::warning=packforcing: {nvcc} does not know {unknown}: {}.cu has no code for it",
                            image.name
                        );
                    }
                    images.push(image);
                }
                // A list without 90a leaves out what is for it alone, which is no fault.
                Ok(None) if i >= shipped || stem(file).ends_with("_sm90") => {}
                Ok(None) => missing.push((stem(file), images::nothing_for(&archs))),
                Err(reason) => missing.push((stem(file), reason)),
            }
        }
        if !images.is_empty() {
            return Ok((images, missing));
        }
        // A list that no kernel is for asked for kernels all the same.
        let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
        let for_none = missing
            .iter()
            .all(|(_, reason)| reason.contains("PACKFORCING_CUDA_ARCHS"));
        assert!(
            !for_none,
            "packforcing: {}: no code of {}",
            images::nothing_for(&archs),
            names.join(", ")
        );
        let first = missing.into_iter().next();
        let reason = first.map_or("there is no kernel file".into(), |(_, reason)| reason);
        Err(reason)
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
                entries.extend(images::entries(&text));
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
