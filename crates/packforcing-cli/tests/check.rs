//! `packforcing check`, run as a user runs it.

use std::process::{Command, Output};

use serde_json::Value;

/// A place for a report that goes with the test.
struct Report(std::path::PathBuf);

impl Report {
    fn new(name: &str) -> Report {
        Report(std::env::temp_dir().join(format!("packforcing-check-{name}-{}.json", std::process::id())))
    }

    fn read(&self) -> Value {
        serde_json::from_slice(&std::fs::read(&self.0).unwrap()).unwrap()
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn check(report: &Report, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_packforcing"))
        .arg("check")
        .args(arguments)
        .arg("--report")
        .arg(&report.0)
        .output()
        .unwrap()
}

#[test]
fn on_the_simt_device_all_is_right() {
    let report = Report::new("simt");
    let output = check(&report, &["--device", "simt"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report = report.read();
    let checks = report["checks"].as_array().unwrap();
    assert!(report["passed"] == true && checks.iter().all(|line| line["passed"] == true));
    for what in [
        "single instructions",
        "attention, bf16, 128, small",
        "captured and replayed",
    ] {
        assert!(checks.iter().any(|line| line["what"] == what), "no {what}");
        assert!(said.contains(what), "{said}");
    }
}

/// A report is written where there is nothing to check, too: it is what a person would send.
#[test]
fn without_a_device_it_says_why_and_fails() {
    let report = Report::new("none");
    let output = check(&report, &["--device", "cuda"]);
    let read = report.read();
    if read["device"].is_null() {
        assert!(!output.status.success());
        assert_eq!(read["passed"], false);
        assert!(read["checks"][0]["found"].as_str().is_some_and(|why| !why.is_empty()));
    } else {
        assert_eq!(output.status.success(), read["passed"] == true);
    }
}
