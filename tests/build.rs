//! What the build makes of its variables: `NVCC`, `PACKFORCING_CUDA_ARCHS`, and who runs what.
#![allow(dead_code, reason = "the build's own modules, of which a test uses a part")]

#[path = "../build/archs.rs"]
mod archs;
#[path = "../build/images.rs"]
mod images;
#[path = "../build/nvcc.rs"]
mod nvcc;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use archs::{Arch, is_for, parse};
use images::{Compiler, costs_speed, entries};
use nvcc::{Nvcc, Places};

fn list(text: &str) -> Vec<String> {
    parse(text)
        .unwrap_or_else(|e| panic!("{e}"))
        .iter()
        .map(Arch::to_string)
        .collect()
}

#[test]
fn lists_are_understood_as_people_write_them() {
    for (text, expected) in [
        ("80,90a", &["80", "90a"][..]),
        ("80;90a", &["80", "90a"]),
        (" 80 , 90a ", &["80", "90a"]),
        ("80 90a 80", &["80", "90a"]),
        ("8.0", &["80"]),
        ("9.0a", &["90a"]),
        ("12.0", &["120"]),
        ("sm_90a", &["90a"]),
        ("SM_86;compute_80", &["86", "80"]),
        ("sm80", &["80"]),
        ("100,120,", &["100", "120"]),
    ] {
        assert_eq!(list(text), expected, "{text}");
    }
}

#[test]
fn other_lists_are_refused_with_the_form_that_is_meant() {
    for text in [
        "",
        " ",
        ",",
        "native",
        "all",
        "all-major",
        "75",
        "70,80",
        "999",
        "8",
        "80a",
        "100f",
        "80-real",
        "90-virtual",
        "sm_",
        "a",
        "9.0.0",
        "ninety",
        "80,9O",
        "-80",
        "0x50",
    ] {
        let refused = parse(text).expect_err(text);
        assert!(
            refused.contains("PACKFORCING_CUDA_ARCHS") && refused.contains("80,90a"),
            "{text}: {refused}"
        );
    }
}

#[test]
fn a_file_is_for_all_that_are_not_exact_or_for_its_own() {
    let arch = |text: &str| parse(text).unwrap()[0];
    for (file, text, expected) in [
        ("append_kv", "80", true),
        ("append_kv", "90a", false),
        ("attention_sm80", "86", true),
        ("attention_sm80", "120", true),
        ("attention_sm90", "90a", true),
        ("attention_sm90", "90", false),
        ("attention_sm90", "100a", false),
        ("instructions_sm80", "89", true),
    ] {
        assert_eq!(is_for(file, arch(text)), expected, "{file} for {text}");
    }
}

/// A folder of its own that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("packforcing-build-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn program(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Answers as an nvcc that knows no 90a, and fails on a file whose name says so.
const STAND_IN: &str = "#!/bin/sh
if [ \"$1\" = --version ]; then echo 'Cuda compilation tools, release 12.4, V12.4.1'; exit; fi
for argument in \"$@\"; do
  case \"$argument\" in
    *compute_90a*) echo \"nvcc fatal   : Unsupported gpu architecture 'compute_90a'\" >&2; exit 1 ;;
    *broken.cu) echo 'broken.cu(7): error: expected a ;' >&2; exit 2 ;;
  esac
done
while [ $# -gt 0 ]; do [ \"$1\" = -o ] && echo made >\"$2\"; shift; done
";

#[test]
fn nvcc_is_what_was_named_or_an_error() {
    let folder = Folder::new("named");
    let own = folder.program("a folder/my nvcc", STAND_IN);
    let bin = folder.program("bin/nvcc", STAND_IN);
    let wrapper = folder.program("bin/ccache", "#!/bin/sh\nexec \"$@\"\n");
    let path = vec![folder.0.join("bin")];
    let find = |named: &str| {
        let nvcc = Some(OsString::from(named));
        let path = path.clone();
        Places {
            nvcc,
            path,
            ..Places::default()
        }
        .find()
    };
    let found = |named: &str| find(named).unwrap().unwrap();

    assert_eq!(
        found(own.to_str().unwrap()).program,
        own,
        "a file with spaces in its name"
    );
    assert_eq!(found("nvcc").program, bin, "a bare name");
    let wrapped = found("ccache nvcc");
    assert_eq!(
        (wrapped.program, wrapped.before),
        (wrapper, vec![OsString::from("nvcc")])
    );
    assert_eq!(wrapped.watched.len(), 2, "a change of either asks for another build");
    let with_flag = found(&format!("{} -ccbin g++-12", bin.display()));
    assert_eq!(with_flag.before.len(), 2);

    for (named, says) in [
        ("nvc", "there is no program nvc"),
        ("/nowhere/nvcc", "there is no program /nowhere/nvcc"),
        (folder.0.to_str().unwrap(), "is a folder"),
        (" ", "names nothing"),
    ] {
        let refused = find(named).expect_err(named);
        assert!(refused.starts_with("NVCC=") && refused.contains(says), "{refused}");
    }
}

#[test]
fn without_a_name_homes_come_before_path_and_path_before_the_usual() {
    let folder = Folder::new("places");
    let [home, path, usual] = ["home/bin/nvcc", "path/nvcc", "usual/nvcc"].map(|at| folder.program(at, STAND_IN));
    let mut places = Places {
        nvcc: None,
        homes: vec![folder.0.join("empty"), folder.0.join("home")],
        path: vec![folder.0.join("path")],
        usual: vec![folder.0.join("usual")],
    };
    let program = |places: &Places| places.find().unwrap().map(|nvcc| (nvcc.program, nvcc.by_path));
    assert_eq!(program(&places), Some((home, false)));
    places.homes.clear();
    assert_eq!(program(&places), Some((path, true)));
    places.path.clear();
    assert_eq!(program(&places), Some((usual, true)), "somebody may put one on PATH");
    places.usual.clear();
    assert_eq!(program(&places), None);
}

fn nvcc_at(program: PathBuf) -> Nvcc {
    Nvcc {
        watched: vec![program.clone()],
        program,
        before: Vec::new(),
        by_path: false,
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_nvcc_is_told_of() {
    let folder = Folder::new("version");
    let good = nvcc_at(folder.program("nvcc", STAND_IN));
    assert!(good.version().unwrap().contains("12.4"));
    for (name, text) in [
        ("silent", "#!/bin/sh\n"),
        ("failing", "#!/bin/sh\nexit 3\n"),
        ("clang", "#!/bin/sh\necho clang 17\n"),
    ] {
        let refused = nvcc_at(folder.program(name, text)).version().expect_err(name);
        assert!(refused.contains(name) && refused.contains("is no nvcc"), "{refused}");
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_fails_is_lost_alone_and_an_unknown_architecture_too() {
    let folder = Folder::new("compile");
    let nvcc = nvcc_at(folder.program("nvcc", STAND_IN));
    let kernels = folder.0.join("kernels");
    fs::create_dir_all(kernels.join("device")).unwrap();
    fs::create_dir_all(kernels.join("vectors")).unwrap();
    let file = |name: &str| {
        let path = kernels.join(name);
        fs::write(
            &path,
            "PF_KERNEL(a_kernel, Params, 32) {}\nPF_KERNEL(another, Params, 64, 1) {}\n",
        )
        .unwrap();
        path
    };
    let archs = parse("80,90a").unwrap();
    let compile = |path: &Path, archs: &[Arch]| {
        let compiler = Compiler {
            nvcc: &nvcc,
            version: nvcc.version().unwrap(),
            kernels: &kernels,
            out: &folder.0,
            deny: false,
        };
        compiler.image(path, archs)
    };

    let image = compile(&file("append_kv.cu"), &archs).unwrap().unwrap();
    assert_eq!(
        (images::list(&image.archs), image.kernels.clone()),
        ("80".into(), vec!["a_kernel".into(), "another".into()])
    );
    assert!(
        image.source().contains("ptx: &[Arch { number: 80, exact: false }, ]"),
        "{}",
        image.source()
    );
    let row = image.row().unwrap();
    assert_eq!(row.split('\t').count(), 6);
    assert!(
        row.starts_with("append_kv\t5\t") && row.ends_with("80\t80\ta_kernel,another\n"),
        "{row}"
    );

    let refused = compile(&file("broken.cu"), &archs).err().unwrap();
    assert!(
        refused.contains("broken.cu") && refused.contains("expected a ;"),
        "{refused}"
    );
    let refused = compile(&file("attention_sm90.cu"), &archs).err().unwrap();
    assert!(refused.contains("does not know 90a"), "{refused}");
    assert!(
        compile(&file("attention_sm90.cu"), &parse("80").unwrap())
            .unwrap()
            .is_none()
    );
}

#[cfg(unix)]
#[test]
fn what_did_not_change_is_not_compiled_again() {
    let folder = Folder::new("kept");
    let counting = STAND_IN.replace(
        "while [",
        &format!("echo x >>{}\nwhile [", folder.0.join("runs").display()),
    );
    let nvcc = nvcc_at(folder.program("nvcc", &counting));
    let kernels = folder.0.join("kernels");
    fs::create_dir_all(kernels.join("device")).unwrap();
    fs::create_dir_all(kernels.join("vectors")).unwrap();
    let file = kernels.join("a.cu");
    fs::write(&file, "one").unwrap();
    let compile = |version: &str| {
        let compiler = Compiler {
            nvcc: &nvcc,
            version: version.into(),
            kernels: &kernels,
            out: &folder.0,
            deny: false,
        };
        compiler.image(&file, &parse("80").unwrap()).unwrap().unwrap();
        fs::read_to_string(folder.0.join("runs")).unwrap().lines().count()
    };
    assert_eq!([compile("12.4"), compile("12.4")], [1, 1]);
    assert_eq!(compile("13.0"), 2, "another compiler");
    fs::write(&file, "two").unwrap();
    assert_eq!(compile("13.0"), 3, "another source");
    fs::write(kernels.join("device/b.cuh"), "header").unwrap();
    assert_eq!(compile("13.0"), 4, "another header");
    fs::remove_file(folder.0.join("a.fatbin")).unwrap();
    assert_eq!(compile("13.0"), 5, "a file that is gone");
}

#[test]
fn remarks_that_cost_speed_are_known() {
    for line in [
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry",
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized",
        "    0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads",
    ] {
        assert!(costs_speed(line), "{line}");
    }
    assert!(!costs_speed(
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    ));
    assert_eq!(entries("// PF_KERNEL(no, P, 1)\nPF_KERNEL(yes, P, 1) {}\n"), ["yes"]);
}

/// The table of docs/linking.md is what the rules make of each list.
#[test]
fn the_table_of_cards_is_what_runs() {
    let text = include_str!("../docs/linking.md");
    let header = "| `PACKFORCING_CUDA_ARCHS` | 8.0 | 8.6, 8.9 | 9.0 | 10.0, 12.0 |";
    let rows: Vec<&str> = text
        .lines()
        .skip_while(|line| *line != header)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert!(rows.len() >= 4, "the table is not there");
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let archs = parse(cells[0].split_whitespace().next().unwrap().trim_matches('`')).unwrap();
        for (cell, cards) in cells[1..].iter().zip([&[80u32][..], &[86, 89], &[90], &[100, 120]]) {
            for &card in cards {
                assert_eq!(*cell, told(&archs, card), "{row}, on {card}");
            }
        }
    }
}

/// How a card runs the kernels, and attention.
fn told(archs: &[Arch], card: u32) -> &'static str {
    let of = |file: &str| {
        let own = archs.iter().filter(|&&arch| is_for(file, arch));
        let code = own.clone().any(|arch| match arch.exact {
            true => arch.number == card,
            false => arch.number / 10 == card / 10 && arch.number <= card,
        });
        let ptx = own.clone().any(|arch| !arch.exact && arch.number <= card);
        (code, ptx)
    };
    let hopper = of("attention_sm90").0;
    match (of("append_kv"), hopper) {
        ((true, _), true) => "code, attention_sm90",
        ((true, _), false) => "code",
        ((false, true), true) => "PTX, attention_sm90",
        ((false, true), false) => "PTX",
        ((false, false), true) => "attention_sm90 alone",
        ((false, false), false) => "nothing",
    }
}
