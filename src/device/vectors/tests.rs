//! The vectors on the SIMT device, and on a card where there is one.

use std::io::Write;
use std::path::PathBuf;

use super::cases::all_cases;
use super::record::{self, Record};
use super::{Case, MODULES, Values, names, value};
use crate::device::{Device, DeviceKind};

/// Past the test harness, which would keep it to itself.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "instructions: {text}");
}

/// Runs all cases. Every mismatch is a line of the first result; the second is what came out, as far as
/// it did.
fn run_all<'a>(device: &Device, cases: &'a [Case], record: Option<&Record>) -> (Vec<String>, Vec<(&'a Case, Values)>) {
    let (mut wrong, mut results) = (Vec::new(), Vec::new());
    for case in cases {
        let values = match case.run(device) {
            Ok(values) => values,
            Err(e) => {
                wrong.push(format!("{}: {e}", case.name));
                continue;
            }
        };
        if let Some(where_) = case.differs(&values, &case.expected) {
            wrong.push(format!("{}: against the tables: {where_}", case.name));
        }
        match record.map(|r| r.values(case)) {
            Some(Ok(recorded)) => {
                if let Some(where_) = case.differs(&values, &recorded) {
                    wrong.push(format!("{}: against the record: {where_}", case.name));
                }
            }
            Some(Err(e)) => wrong.push(e),
            None => {}
        }
        results.push((case, values));
    }
    (wrong, results)
}

fn told_record(record: Option<&Record>) -> String {
    match record {
        Some(r) => format!("the record of {}", r.card),
        None => "no record, which no card has made yet".into(),
    }
}

fn assert_right(device: &str, wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "{device}: {} mismatches\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// A device that does otherwise than a record is told of, by the case and the element.
#[cfg(packforcing_simt)]
#[test]
fn a_record_that_says_otherwise_is_told_of() {
    let device = Device::simt(crate::device::SimtOptions::default()).expect("it was built");
    for mut cases in all_cases().into_iter().map(|case| vec![case]) {
        let mut altered = cases[0].expected.clone();
        match &mut altered {
            Values::Floats(x) => *x.last_mut().expect("some") = -1234.5,
            Values::Words(x) => *x.last_mut().expect("some") ^= 1,
        }
        let bytes = Record::bytes("nobody", &[(&cases[0], altered.clone())]).expect("a tensor of its shape");
        let record = Record::parse(&bytes).expect("what was just written");
        let (wrong, _) = run_all(&device, &cases, Some(&record));
        assert!(matches!(&wrong[..], [one] if one.contains(&cases[0].name) && one.contains("against the record")));
        cases[0].expected = altered;
        let (wrong, _) = run_all(&device, &cases, None);
        assert!(matches!(&wrong[..], [one] if one.contains(&cases[0].name) && one.contains("against the tables")));
    }
}

#[cfg(packforcing_simt)]
#[test]
fn simt_does_as_the_tables_and_the_record_say() {
    use crate::device::{AsyncCopies, SimtCard, SimtOptions};
    let cases = all_cases();
    let record = Record::open(&Record::path()).expect("a record, or none");
    let mut runs = 0;
    for copies in [AsyncCopies::Late, AsyncCopies::Early, AsyncCopies::Random] {
        for seed in 0..3 {
            let options = SimtOptions {
                card: SimtCard::Sm90,
                seed,
                copies,
                ..SimtOptions::default()
            };
            let device = Device::simt(options).expect("it was built");
            let (wrong, _) = run_all(&device, &cases, record.as_ref());
            assert_right(&format!("{device}, {copies:?}"), &wrong);
            runs += 1;
        }
    }
    say(&format!(
        "simt ran {} cases under {runs} schedules; compared with the tables and {}",
        cases.len(),
        told_record(record.as_ref())
    ));
}

/// The card, or why it does not run here.
fn card() -> Result<Device, String> {
    let device = Device::cuda(0).map_err(|e| e.to_string())?;
    match device.compute_capability() {
        _ if device.kind() == DeviceKind::CudaDouble => Err(format!("{device} is no card")),
        Some((9, 0)) if MODULES.iter().all(|module| device.has_module(module)) => Ok(device),
        Some((9, 0)) => Err("the build has no code of them".into()),
        other => Err(format!("{device} has compute capability {other:?}, not 9.0")),
    }
}

#[test]
fn a_card_does_as_the_tables_and_the_record_say() {
    let to = std::env::var_os("PACKFORCING_RECORD").map(PathBuf::from);
    let device = match card() {
        Ok(device) => device,
        Err(reason) => {
            assert!(to.is_none(), "nothing to record: {reason}");
            return say(&format!("not run on a card: {reason}"));
        }
    };
    let cases = all_cases();
    let record = Record::open(&Record::path()).expect("a record, or none");
    let (wrong, results) = run_all(&device, &cases, record.as_ref());
    // First of all what the card did: where the tables say otherwise it is needed most.
    if let Some(to) = &to
        && results.len() == cases.len()
    {
        let bytes = Record::bytes(&device.to_string(), &results).expect("tensors of their shapes");
        std::fs::write(to, &bytes).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
        say(&format!(
            "recorded {} cases, {} bytes, to {}",
            cases.len(),
            bytes.len(),
            to.display()
        ));
    }
    say(&format!(
        "{device} ran {} of {} cases; compared with the tables and {}: {} mismatches",
        results.len(),
        cases.len(),
        told_record(record.as_ref()),
        wrong.len()
    ));
    assert_right(&device.to_string(), &wrong);
}

#[test]
fn a_record_keeps_every_bit() {
    let cases = all_cases();
    let results: Vec<(&Case, Values)> = cases.iter().map(|c| (c, c.expected.clone())).collect();
    let bytes = Record::bytes("nobody", &results).expect("tensors of their shapes");
    let parsed = Record::parse(&bytes).expect("what was just written");
    for case in &cases {
        assert_eq!(parsed.values(case).as_ref(), Ok(&case.expected), "{}", case.name);
    }
    assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
    say(&format!(
        "a record of these {} cases has {} bytes",
        cases.len(),
        bytes.len()
    ));
    // Numbers that no 16-bit type holds, and other inputs.
    let case = cases.iter().find(|c| c.threads == 128).expect("wgmma");
    let odd = Values::Floats((0..128 * 32).map(|i| 1.0 + i as f32 * 1e-6).collect());
    assert_eq!(record::restored(case, &record::stored(case, &odd)), Ok(odd));
    let mut other = all_cases().swap_remove(0);
    other.a[0] ^= 1;
    assert!(parsed.values(&other).is_err());
}

#[test]
fn every_name_is_another() {
    let mut all = names(1 << 15);
    assert!(
        all.iter()
            .all(|&b| [true, false].iter().all(|&half| value(b, half).is_normal()))
    );
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 1 << 15);
}

#[test]
fn every_case_has_a_name_of_its_own() {
    let cases = all_cases();
    let mut all: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), cases.len());
}
