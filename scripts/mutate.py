#!/usr/bin/env python3
"""Breaks kernels and launch code in small ways, and sees whether the tests notice.

The changes stand in mutations.toml. Each is made in a copy of the tree (target/mutants), where the
test files that it names are built and run; a failure, a crash or a hang means that it was caught. A
text that is not found, or a change that does not compile, is an error of the table.

    scripts/mutate.py --list
    scripts/mutate.py --name attention-barrier
    scripts/mutate.py --random 5              # another five each time; the seed is printed
    scripts/mutate.py --all --table docs/mutations.md
    scripts/mutate.py --double [--random 2]   # those that only a driver shows, on a double of it
    scripts/mutate.py --double --table docs/mutations.md

Exit status: 0 where all were caught, 1 where one survived, 2 where the table or the tree is broken.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "target/mutants/tree"
# Dependencies are those of the tree itself.
BUILT = ROOT / "target"
# Many times what the slowest test file takes.
RUN_SECONDS = 300
BUILD_SECONDS = 1500


def copy_tree():
    """Brings the copy up to date; files that are the same keep their times, so builds stay warm."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout.decode().split("\0")
    wanted = {name for name in listed if name and (ROOT / name).is_file()}
    for path in TREE.rglob("*"):
        if path.is_file() and str(path.relative_to(TREE)) not in wanted:
            path.unlink()
    for name in wanted:
        to, data = TREE / name, (ROOT / name).read_bytes()
        if not to.is_file() or to.read_bytes() != data:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(data)
            to.chmod((ROOT / name).stat().st_mode)


def cargo(tests, *arguments, seconds, seeds=None, arch=90, variables=()):
    """Exit status (None after a timeout) and output of `cargo test` on these test files; with seeds, of the CUDA tests on a
    double of the driver instead."""
    # Without a package named, crates have the features that they have in `cargo test`, and are not built twice.
    command = ["cargo", "test", "--quiet"]
    for test in tests:
        command += ["--test", test]
    command += arguments
    environment = dict(
        os.environ,
        CARGO_TARGET_DIR=str(BUILT),
        CARGO_TERM_COLOR="never",
        PACKFORCING_REQUIRE="cpu,simt,golden",
    )
    environment.update(variables)
    if seeds is not None:
        command = ["scripts/cuda-double.sh", "--alone", "--arch", str(arch), "--seeds", str(seeds), "--", *tests]
    process = subprocess.Popen(
        command, cwd=TREE, env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        return None, process.communicate()[0]


def verdict_on_double(tests, arch=90, variables=()):
    """The same on a double of the driver, under as many seeds as it takes to be sure of an order of streams."""
    status, output = cargo(tests, seconds=BUILD_SECONDS, seeds=6, arch=arch, variables=variables)
    if status == 0:
        return None
    if "error: could not compile" in output or "error[E" in output:
        raise ValueError("does not build:\n" + output[-3000:])
    failed = re.findall(r"^    cuda \(double\)::(\w+)$", output, re.M)
    found = re.findall(r"^cuda double \(seed \d+\): (.*)$", output, re.M)
    if status is None:
        return "the suite on the double hangs"
    if not failed:
        return f"the double: {found[0]}" if found else "the suite on the double crashes"
    more = f" and {len(set(failed)) - 1} more" if len(set(failed)) > 1 else ""
    return f"the double: {failed[0]}{more}"


def verdict(tests):
    """What caught the change in the copy: text, or None for nothing. Raises where it does not build."""
    status, output = cargo(tests, "--no-run", seconds=BUILD_SECONDS)
    if status != 0:
        raise ValueError("does not build:\n" + output[-3000:])
    for test in tests:
        status, output = cargo([test], seconds=RUN_SECONDS)
        if status is None:
            return f"`{test}` hangs"
        lists = re.findall(r"^failures:\n((?:    \S.*\n)+)", output, re.M)
        failed = [name.strip() for name in lists[-1].splitlines()] if lists else []
        if status != 0:
            if not failed:
                return f"`{test}` crashes"
            more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
            return f"`{test}`: {failed[0]}{more}"
    return None


def try_out(mutation):
    path = TREE / mutation["file"]
    text = path.read_text()
    if text.count(mutation["old"]) != 1:
        raise ValueError(f"the old text stands {text.count(mutation['old'])} times in {mutation['file']}, not once")
    path.write_text(text.replace(mutation["old"], mutation["new"]))
    try:
        if mutation.get("double"):
            return verdict_on_double(mutation["tests"], mutation.get("arch", 90), mutation.get("variables", {}))
        return verdict(mutation["tests"])
    finally:
        path.write_text(text)


ROWS = ["| change | file | what it breaks | caught by |", "| --- | --- | --- | --- |"]
HEADING = "On a double of the driver"


def write_table(path, results):
    """Brings the document's part up to date: the suite's, the double's, or both. Other sections stay."""
    text = Path(path).read_text() if Path(path).is_file() else ""
    first, *sections = text.split("\n## ")
    rows = {
        double: [
            f"| {m['name']} | `{m['file']}` | {m['what']} | {caught} |"
            for m, caught in results
            if m.get("double", False) == double
        ]
        for double in (False, True)
    }
    today = time.strftime("%Y-%m-%d")
    if rows[False]:
        first = "\n".join([
            "# Mutations",
            "",
            "Small mistakes, made on purpose in the kernels and the code that launches them: does the suite notice?",
            "`scripts/mutations.toml` has the changes, CI tries another in every run, and this table is one run of all:",
            "",
            "```sh",
            "scripts/mutate.py --all --table docs/mutations.md",
            "```",
            "",
            f"{today}, SIMT device and CPU, no GPU. A caught change shows one of the tests that failed.",
            "",
            *ROWS,
            *rows[False],
        ]) + "\n"
    if rows[True]:
        section = "\n".join([
            HEADING,
            "",
            "What stands between Rust and the card (images, launches, streams, staging, captures, tensor maps, errors) runs on a",
            "double of the driver that does its worst within the manual ([crates/cuda-double](../crates/cuda-double)). These",
            "mistakes are of that kind, each tried under six orders of its streams:",
            "",
            "```sh",
            "scripts/mutate.py --double --table docs/mutations.md",
            "```",
            "",
            f"{today}, double of a 9.0 card (8.6 where a change wants one that sm_90a code is not for).",
            "",
            *ROWS,
            *rows[True],
        ]) + "\n"
        sections = [section] + [s for s in sections if not s.startswith(HEADING)]
    Path(path).write_text("\n## ".join([first, *sections]))


def main():
    parser = argparse.ArgumentParser(description="mutation tests of the kernels and launches")
    parser.add_argument("--double", action="store_true", help="those that want a double of the driver")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true")
    which.add_argument("--random", type=int, metavar="N")
    which.add_argument("--name", action="append")
    which.add_argument("--list", action="store_true")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--table", metavar="FILE", help="writes a markdown table (with --all or --double)")
    options = parser.parse_args()
    if not (options.double or options.all or options.random or options.name or options.list):
        parser.error("--all, --random, --name, --list or --double")

    table = tomllib.loads((ROOT / "scripts/mutations.toml").read_text())
    mutations = [dict(entry, name=name) for name, entry in table.items()]
    # A table that is out of date is told of whichever mutations are run.
    for m in mutations:
        found = (ROOT / m["file"]).read_text().count(m["old"])
        if found != 1:
            print(f"{m['name']}: the old text stands {found} times in {m['file']}, not once")
            return 2
    runs = [m for m in mutations if "argued" not in m]
    if options.list:
        for m in mutations:
            print(f"{m['name']:28} {m['file']:34} {m['what']}")
        return 0
    if options.name:
        unknown = set(options.name) - {m["name"] for m in mutations}
        if unknown:
            print("no such mutation:", ", ".join(sorted(unknown)))
            return 2
        runs = [m for m in mutations if m["name"] in options.name]
    if options.double or options.random:
        # Those on a double want nvcc: CI runs some of each.
        runs = [m for m in runs if m.get("double", False) == options.double]
    if options.random:
        print(f"--seed {options.seed}")
        runs = random.Random(options.seed).sample(runs, min(options.random, len(runs)))

    TREE.mkdir(parents=True, exist_ok=True)
    copy_tree()
    # Nothing counts if the tests fail without a change.
    begun = time.monotonic()
    try:
        plain = sorted({test for m in runs if not m.get("double") for test in m["tests"]})
        double = sorted({test for m in runs if m.get("double") for test in m["tests"]})
        broken = (verdict(plain) if plain else None) or (verdict_on_double(double) if double else None)
    except ValueError as error:
        broken = error
    if broken:
        print(f"the tree itself fails: {broken}")
        return 2
    print(f"the tree itself passes ({time.monotonic() - begun:.0f} s)", flush=True)

    results, survivors, errors = [], [], []
    for m in runs:
        begun = time.monotonic()
        try:
            caught = try_out(m)
        except ValueError as error:
            errors.append(m["name"])
            caught = f"ERROR: {error}"
        else:
            if caught is None:
                survivors.append(m["name"])
                caught = "**nothing: it survived**"
        results.append((m, caught))
        print(f"{m['name']:28} {time.monotonic() - begun:4.0f} s  {caught}", flush=True)
    if options.table and (options.all or options.double) and not options.random:
        argued = [(m, f"not run: {m['argued']}") for m in mutations if "argued" in m and not options.double]
        write_table(options.table, results + argued)
    print(f"{len(results)} changes, {len(survivors)} survived {survivors or ''}, {len(errors)} errors {errors or ''}")
    return 2 if errors else 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
