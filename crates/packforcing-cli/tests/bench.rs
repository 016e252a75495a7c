//! `packforcing bench`, run as a user runs it, at sizes that take no time.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn bench(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_packforcing"));
    command.arg("bench").args(arguments.split_whitespace());
    command
}

fn run(arguments: &str) -> Output {
    bench(arguments).output().unwrap()
}

/// What `--json` prints; it must be one object and nothing else.
fn record(arguments: &str) -> Value {
    let output = run(&format!("{arguments} --json --samples 3 --sample-ms 0"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{arguments}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments}: {e}"))
}

/// The message of a run that must fail.
fn refusal(arguments: &str) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{arguments}");
    assert!(!stderr.contains("panicked"), "{arguments}: {stderr}");
    stderr
}

fn number(record: &Value, field: &str) -> f64 {
    record[field].as_f64().unwrap_or_else(|| panic!("{field} of {record}"))
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// Every op at a small shape in bf16, with the operations and the bytes of one call.
fn small() -> Vec<(String, f64, f64)> {
    const BLOCK: &str = "--frames 2 --rows 5 --cols 8 --heads 2 --dim 64";
    const LATENTS: &str = "--channels 2 --frames 3 --rows 4 --cols 8";
    let case = |arguments: String, flops: usize, bytes: usize| (arguments, flops as f64, bytes as f64);
    // Tokens of the block, full cells of 2 x 4 x 4 and of 1 x 4 x 4, numbers of a token and of the latents.
    let (tokens, cells, flat_cells, width, latents) = (80, 2, 4, 2 * 64, 2 * 3 * 4 * 8);
    vec![
        case(
            "attention --queries 20 --keys 200 --heads 4 --kv-heads 2 --dim 64 --page-tokens 32 --segments 5".into(),
            4 * 20 * 200 * 4 * 64,
            0,
        ),
        case(
            "attention --queries 9 --keys 64 --heads 2 --dim 64 --contiguous".into(),
            4 * 9 * 64 * 2 * 64,
            0,
        ),
        case(
            format!("append_kv {BLOCK} --page-tokens 32"),
            0,
            2 * 3 * tokens * width * 2,
        ),
        case(
            format!("merge_tokens {BLOCK} --page-tokens 32"),
            0,
            2 * (cells * 32 + cells) * width * 2,
        ),
        case(
            format!("match_tokens {BLOCK} --page-tokens 32 --cell 1,4,4"),
            2 * tokens * flat_cells * width,
            2 * (tokens + flat_cells) * width * 2,
        ),
        case(
            format!("unmerge_tokens {BLOCK} --cell 1,4,4 --metric mean"),
            0,
            (tokens + flat_cells) * width * 2 + tokens * 4,
        ),
        case(
            "merge_states --queries 10 --heads 2 --dim 64".into(),
            0,
            3 * 10 * 2 * (64 * 2 + 4),
        ),
        case(
            "select_blocks --queries 40 --heads 2 --dim 64 --page-tokens 16 --candidates 9 --selected 4 \
             --mid-tokens 20"
                .into(),
            0,
            40 * width * 2 + 9 * width * 4,
        ),
        case(
            "sum_keys --blocks 3 --mid-tokens 20 --heads 2 --dim 64".into(),
            0,
            3 * width * (20 * 2 + 4),
        ),
        case(format!("denoise_step {LATENTS}"), 0, latents * (2 * 4 + 2)),
        case(
            format!("denoise_step {LATENTS} --guided --solver renoise"),
            0,
            latents * (2 * 4 + 2 * 2),
        ),
        case(format!("guidance {LATENTS}"), 0, 2 * latents * 2),
    ]
}

/// What holds of every record, whatever the device.
fn consistent(arguments: &str, record: &Value, flops: f64, bytes: f64) {
    let op = arguments.split_whitespace().next().unwrap();
    assert_eq!((&record["op"], &record["dtype"]), (&op.into(), &"bf16".into()));
    assert!(record["shape"].is_object() && record["samples"] == 3, "{record}");
    let [median, min, max] = ["median_ms", "min_ms", "max_ms"].map(|field| number(record, field));
    assert!(0.0 < min && min <= median && median <= max, "{record}");
    let spread = number(record, "spread");
    assert!(spread >= 0.0 && spread <= (max - min) / median + 1e-9, "{record}");
    for (work, count, rate, unit) in [(flops, "flops", "tflops", 1e-9), (bytes, "bytes", "gbps", 1e-6)] {
        if work > 0.0 {
            assert_eq!(number(record, count), work, "{arguments}");
            assert!(close(number(record, rate), unit * work / median), "{record}");
        } else {
            assert!(record[count].is_null() && record[rate].is_null(), "{record}");
        }
    }
}

#[test]
fn every_op_on_the_cpu() {
    for (arguments, flops, bytes) in small() {
        let record = record(&format!("{arguments} --device cpu"));
        consistent(&arguments, &record, flops, bytes);
        assert!(record["device"] == "cpu" && number(&record, "copies") > 1.0, "{record}");
        let floor = &record["floor"];
        assert!(
            floor["what"]
                .as_str()
                .is_some_and(|what| what.contains("measured in this run"))
        );
        let (work, unit) = match floor["unit"].as_str() {
            Some("TFLOP/s") => (flops, 1e-9),
            Some("GB/s") => (bytes, 1e-6),
            other => panic!("{other:?}"),
        };
        assert!(
            work > 0.0 && close(number(floor, "ms"), unit * work / number(floor, "value")),
            "{record}"
        );
        let share = number(floor, "ms") / number(&record, "median_ms");
        assert!(close(number(&record, "share"), share), "{record}");
    }
}

#[test]
fn every_op_on_the_simt_device() {
    for (arguments, flops, bytes) in small() {
        let record = record(&format!("{arguments} --device simt"));
        consistent(&arguments, &record, flops, bytes);
        assert!(record["device"].as_str().is_some_and(|name| name.starts_with("simt")));
        assert!(record["floor"].is_null() && record["share"].is_null(), "{record}");
    }
}

#[test]
fn every_kernel_of_attention() {
    let shape = "attention --device simt --queries 70 --keys 200 --heads 1";
    for (kernel, layout) in [
        ("auto", "--segments 4"),
        ("sm80", "--segments 4"),
        ("sm90", "--segments 4"),
        ("sm90", "--contiguous"),
        ("sm90-free", "--segments 4"),
        ("sm90-overlapped", "--segments 4"),
        ("sm90-plain", "--contiguous"),
        ("sm90-overlapped-plain", "--contiguous"),
    ] {
        let record = record(&format!("{shape} {layout} --kernel {kernel}"));
        assert_eq!(record["shape"]["kernel"], kernel);
        assert!(number(&record, "tflops") > 0.0);
    }
}

#[test]
fn a_graph_of_every_op() {
    for (arguments, flops, bytes) in small() {
        let record = record(&format!("{arguments} --device simt --graph"));
        consistent(&arguments, &record, flops, bytes);
        assert_eq!(record["graph"], true);
    }
    assert!(refusal("merge_states --device cpu --queries 4 --graph").contains("--graph"));
}

#[test]
fn shapes_are_told_as_they_became() {
    let shape =
        record("attention --device cpu --queries 1 --keys 9000 --heads 1 --dim 16 --dtype bf16")["shape"].clone();
    assert_eq!((&shape["segments"], &shape["kv_heads"]), (&19.into(), &1.into()));
    let shape =
        record("attention --device cpu --queries 1 --keys 9000 --heads 1 --dim 16 --contiguous")["shape"].clone();
    assert_eq!((&shape["segments"], &shape["page_tokens"]), (&1.into(), &9_000.into()));
    // Names with hyphens are as good.
    assert_eq!(
        record("merge-states --device cpu --queries 1 --heads 1 --dim 8")["op"],
        "merge_states"
    );
}

#[test]
fn a_table_for_people() {
    let output = run("merge_states --device cpu --queries 4 --heads 2 --dim 16 --dtype f16 --samples 3");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for part in ["merge_states f16 on cpu", "queries 4", " ms (from ", "GB/s", "share "] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn what_makes_no_bench_is_an_error_that_names_the_option() {
    for (arguments, option) in [
        ("attention --queries 0", "--queries"),
        ("attention --keys=-3", "--keys"),
        ("attention --keys many", "--keys"),
        ("attention --heads 12 --kv-heads 5", "--kv-heads"),
        ("attention --keys 4 --segments 5", "--segments"),
        ("attention --contiguous --segments 2", "--segments"),
        ("attention --contiguous --page-tokens 16", "--page-tokens"),
        ("attention --queries 4000000000", "--queries"),
        (
            "attention --keys 4000000000 --dim 4000000000 --heads 4000000000",
            "--keys",
        ),
        ("attention --dtype f8", "--dtype"),
        ("attention --device tpu", "--device"),
        ("attention --kernel sm70", "--kernel"),
        ("attention --queries 4 --keys 8 --kernel sm90", "kernel"),
        ("attention --samples 0", "--samples"),
        ("attention --sample-ms=-1", "--sample-ms"),
        ("attention --sample-ms NaN", "--sample-ms"),
        ("attention --json --turns", "--turns"),
        ("append_kv --rows 0", "--rows"),
        ("append_kv --frames 4000000000", "--frames"),
        ("append_kv --streams 4000000000", "--heads"),
        ("merge_tokens --cell 2,4", "--cell"),
        ("merge_tokens --cell 5,4,4", "--cell"),
        ("match_tokens --blocks 4000000000", "--blocks"),
        ("unmerge_tokens --metric any", "--metric"),
        ("merge_states --dim 4000000000", "--queries"),
        ("select_blocks --candidates 4000000000", "--candidates"),
        ("sum_keys --mid-tokens 4000000000", "--blocks"),
        ("denoise_step --channels 4000000000", "--channels"),
        ("guidance --frames 4000000000", "--channels"),
    ] {
        let message =
            refusal(&format!("{arguments} --device cpu").replace("--device tpu --device cpu", "--device tpu"));
        assert!(message.contains(option), "{arguments}: {message}");
    }
    assert!(refusal("softmax").contains("softmax"));
}

#[test]
fn what_a_device_does_not_take_is_the_ops_own_error() {
    for (arguments, word) in [
        (
            "attention --device simt --queries 4 --keys 8 --heads 1 --dim 64 --dtype f32",
            "f16",
        ),
        (
            "attention --device simt --queries 4 --keys 8 --heads 1 --dim 80",
            "head dim",
        ),
        (
            "attention --device cpu --queries 4 --keys 8 --heads 1 --dim 7",
            "head dim",
        ),
        (
            "attention --device simt --queries 4 --keys 80 --heads 1 --kernel sm90 --page-tokens 12 --segments 2",
            "pages of a multiple of 8",
        ),
        (
            "attention --device simt --queries 4 --keys 200 --heads 1 --kernel sm90-plain",
            "one page",
        ),
        (
            "append_kv --device simt --frames 1 --rows 1 --cols 4 --heads 1 --dim 256",
            "dim",
        ),
    ] {
        let message = refusal(arguments);
        assert!(message.contains(word), "{arguments}: {message}");
    }
}

#[test]
fn a_turn_for_each_line() {
    let arguments = "attention --queries 4 --keys 50 --heads 1 --dim 64 --turns --sample-ms 0";
    for device in ["cpu", "simt"] {
        let mut child = bench(&format!("{arguments} --device {device}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        for _ in 0..3 {
            // Each answer comes before the next line is sent.
            stdin.write_all(b"go\n").unwrap();
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            assert!(number(&serde_json::from_str(&line).unwrap(), "ms") > 0.0, "{line}");
        }
        drop(stdin);
        assert!(child.wait().unwrap().success());
        assert_eq!(stdout.lines().count(), 0);
    }
}
