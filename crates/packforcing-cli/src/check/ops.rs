//! Every op against the CPU path, at small and at real sizes.

use anyhow::{Result, bail, ensure};
use packforcing::ops::match_tokens::Metric;
use packforcing::{DType, Device, Grid};
use packforcing_bench::cases::{
    append_kv, attention, denoise_step, guidance, match_tokens, merge_states, merge_tokens, select_blocks,
};
use packforcing_bench::{Case, Output};

use super::Checks;

type Make = Box<dyn Fn(&Device) -> packforcing_bench::Result<Case>>;

/// A case at one shape.
struct Checked {
    what: String,
    make: Make,
}

fn checked(what: &str, make: impl Fn(&Device) -> packforcing_bench::Result<Case> + 'static) -> Checked {
    Checked {
        what: what.into(),
        make: Box::new(make),
    }
}

pub(super) fn all(device: &Device, small: bool, checks: &mut Checks) -> Result<()> {
    let cpu = Device::cpu();
    let sizes: &[bool] = if small { &[true] } else { &[true, false] };
    for &small in sizes {
        for Checked { what, make } in cases(small) {
            let size = if small { "small" } else { "real" };
            checks.check(format!("{what}, {size}"), || {
                let got = make(device)?.outputs()?;
                let want = make(&cpu)?.outputs()?;
                compare(&got, &want)
            })?;
        }
    }
    Ok(())
}

/// Small shapes go through every path of a kernel; real ones are a block of Wan2.1-1.3B's, with fewer heads where the CPU
/// would take minutes.
fn cases(small: bool) -> Vec<Checked> {
    let grid = match small {
        true => Grid {
            frames: 2,
            rows: 5,
            cols: 8,
        },
        false => append_kv::Shape::default().grid,
    };
    let (heads, page_tokens) = if small { (2, 16) } else { (12, 96) };
    let mut all = Vec::new();
    for (name, dim, dtype) in [
        ("attention, bf16, 128", 128, DType::BF16),
        ("attention, f16, 64", 64, DType::F16),
    ] {
        let (queries, keys, segments) = if small {
            (130, 700, Some(5))
        } else {
            (1_560, 27_872, None)
        };
        all.push(checked(name, move |device| {
            attention::Shape {
                queries,
                keys,
                segments,
                heads: 2,
                kv_heads: 1,
                dim,
                dtype,
                page_tokens,
                ..Default::default()
            }
            .case(device)
        }));
    }
    all.push(checked("attention, one page", move |device| {
        let (queries, keys) = if small { (70, 300) } else { (1_560, 8_192) };
        attention::Shape {
            queries,
            keys,
            heads: 2,
            kv_heads: 2,
            contiguous: true,
            ..Default::default()
        }
        .case(device)
    }));
    all.push(checked("merge_states", move |device| {
        let queries = if small { 100 } else { 6_240 };
        merge_states::Shape {
            queries,
            heads,
            ..Default::default()
        }
        .case(device)
    }));
    all.push(checked("append_kv", move |device| {
        append_kv::Shape {
            grid,
            heads,
            kv_heads: heads,
            page_tokens,
            ..Default::default()
        }
        .case(device)
    }));
    let blocks = move || merge_tokens::Shape {
        grid,
        heads,
        page_tokens,
        ..Default::default()
    };
    all.push(checked("merge_tokens", move |device| blocks().case(device)));
    let matching = move || match_tokens::Shape {
        blocks: blocks(),
        metric: Metric::PerHead,
    };
    all.push(checked("match_tokens", move |device| matching().case(device)));
    all.push(checked("unmerge_tokens", move |device| matching().unmerge_case(device)));
    all.push(checked("select_blocks", move |device| {
        let (queries, candidates) = if small { (80, 30) } else { (6_240, 116) };
        select_blocks::Shape {
            queries,
            candidates,
            heads,
            kv_heads: heads,
            ..Default::default()
        }
        .case(device)
    }));
    all.push(checked("sum_keys", |device| {
        select_blocks::SumShape::default().case(device)
    }));
    for (name, guided) in [("denoise_step", false), ("denoise_step, guided", true)] {
        all.push(checked(name, move |device| {
            denoise_step::Shape {
                latents: latents(small),
                guided,
                ..Default::default()
            }
            .case(device)
        }));
    }
    all.push(checked("guidance", move |device| {
        let shape = denoise_step::Shape {
            latents: latents(small),
            ..Default::default()
        };
        guidance::case(&shape, device)
    }));
    all
}

fn latents(small: bool) -> [usize; 4] {
    if small { [4, 2, 9, 11] } else { [16, 4, 60, 104] }
}

/// How far an output may be from the CPU's, as the root of the mean square over that of the CPU's numbers. 16-bit results
/// and keys round by 2^-9 and 2^-12 each; sums in another order are at most as far. What is counted and not rounded is the
/// same.
fn compare(got: &[Output], want: &[Output]) -> Result<String> {
    ensure!(got.len() == want.len(), "{} outputs, not {}", got.len(), want.len());
    let mut worst = 0.0f64;
    for (got, want) in got.iter().zip(want) {
        let name = got.name;
        ensure!(got.values.len() == want.values.len(), "{name}: another shape");
        // What is infinite on the CPU (the similarity of a token that stays) is infinite here, and nothing else.
        let pairs = || got.values.iter().zip(&want.values);
        if let Some(i) = pairs().position(|(a, b)| a != b && !(a.is_finite() && b.is_finite())) {
            bail!(
                "{name}: number {i} is {}, and {} on the CPU",
                got.values[i],
                want.values[i]
            );
        }
        if want.dtype == DType::I32 {
            let differ = pairs().filter(|(a, b)| a != b).count();
            // Of noise two destinations are often as good as equal, and rounding chooses; how like the chosen one is stands in
            // `similarity`, and is held tightly.
            let most = if name == "map" { want.values.len() / 10 } else { 0 };
            ensure!(
                differ <= most,
                "{name}: {differ} of {} differ from the CPU's",
                want.values.len()
            );
            continue;
        }
        let square = |sum: f64, x: f64| sum + x * x;
        let finite = || pairs().filter(|(_, b)| b.is_finite());
        let size = finite().map(|(_, b)| *b).fold(0.0, square);
        let apart = finite().map(|(a, b)| a - b).fold(0.0, square);
        let relative = (apart / size.max(f64::MIN_POSITIVE)).sqrt();
        let most = match want.dtype {
            // Of keys that were turned and rounded again, to 16 bits.
            _ if name == "similarity" => 1e-2,
            DType::F32 => 1e-4,
            DType::F16 => 2e-3,
            _ => 1e-2,
        };
        ensure!(
            relative <= most,
            "{name}: {relative:.1e} of its size from the CPU's, {most:.0e} at most"
        );
        worst = worst.max(relative);
    }
    Ok(match worst {
        0.0 => "the CPU's numbers, to the bit".into(),
        far => format!("{far:.0e} of their size from the CPU's numbers"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(name: &'static str, dtype: DType, values: &[f64]) -> Vec<Output> {
        let values = values.to_vec();
        vec![Output { name, dtype, values }]
    }

    #[test]
    fn what_differs_is_told_of() {
        let want = output("out", DType::BF16, &[1.0, 2.0, -3.0]);
        assert!(compare(&want, &want).unwrap().contains("to the bit"));
        let near = output("out", DType::BF16, &[1.001, 2.0, -3.0]);
        assert!(compare(&near, &want).is_ok());
        for wrong in [
            [1.0, 2.0, 3.0],
            [1.0, 2.2, -3.0],
            [1.0, f64::NAN, -3.0],
            [1.0, f64::INFINITY, -3.0],
        ] {
            assert!(
                compare(&output("out", DType::BF16, &wrong), &want).is_err(),
                "{wrong:?}"
            );
        }
        let endless = output("similarity", DType::F32, &[f64::INFINITY, 0.5]);
        assert!(compare(&endless, &endless).is_ok());
        assert!(compare(&output("similarity", DType::F32, &[1.0, 0.5]), &endless).is_err());
        let ids = output("chosen", DType::I32, &[1.0, 2.0]);
        assert!(compare(&output("chosen", DType::I32, &[1.0, 3.0]), &ids).is_err());
        assert!(compare(&[], &ids).is_err());
    }

    /// The SIMT device stands for a card here: every case runs, and is right.
    #[test]
    fn small_cases_are_right_on_simt() {
        let simt = Device::simt(Default::default()).expect("it is in this build");
        let mut checks = Checks::default();
        all(&simt, true, &mut checks).unwrap();
        assert!(checks.lines.len() >= 12, "{}", checks.lines.len());
        let failed: Vec<_> = checks.lines.iter().filter(|line| !line.passed).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }
}
