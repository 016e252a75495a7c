#!/usr/bin/env python3
"""Plants the mistakes of planted.toml in a copy of the tree, one at a time: does check-cute.sh see each where it
belongs?

    scripts/check-cute.sh --planted [NAME]...
    scripts/check-cute.sh --planted --table   also prints the table of docs/mutations.md
"""

import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "target/cute/tree"


def check(part):
    """The sections that agree, and those that do not."""
    command = [ROOT / "scripts/check-cute.sh", "--tree", TREE, "--only", part]
    run = subprocess.run(command, capture_output=True, text=True)
    told = re.findall(r"^(agrees|DIFFERS) +(.*?): \d+", run.stdout, re.M)
    if not told or (run.returncode == 0) != all(word == "agrees" for word, _ in told):
        raise SystemExit(f"{part} went wrong, exit code {run.returncode}\n{run.stdout}{run.stderr}")
    return [[name for w, name in told if w == word] for word in ("agrees", "DIFFERS")]


def main():
    table = "--table" in sys.argv
    names = [a for a in sys.argv[1:] if a != "--table"]
    planted = tomllib.loads((ROOT / "tests/cute/planted.toml").read_text())
    for name in set(names) - planted.keys():
        raise SystemExit(f"no such mistake: {name}")
    planted = {name: m for name, m in planted.items() if not names or name in names}
    texts = {m["file"]: (ROOT / m["file"]).read_text() for m in planted.values()}
    for name, m in planted.items():
        if (found := texts[m["file"]].count(m["old"])) != 1:
            raise SystemExit(f"{name}: the old text stands {found} times in {m['file']}, not once")

    shutil.rmtree(TREE, ignore_errors=True)
    for folder in ("kernels", "src"):
        shutil.copytree(ROOT / folder, TREE / folder)
    for part in sorted({m["part"] for m in planted.values()}):
        if wrong := check(part)[1]:
            raise SystemExit(f"the tree itself fails: {wrong}")
    rows, unseen = [], []
    for name, m in planted.items():
        begun = time.monotonic()
        text = texts[m["file"]]
        (TREE / m["file"]).write_text(text.replace(m["old"], m["new"]))
        wrong = check(m["part"])[1]
        (TREE / m["file"]).write_text(text)
        if m["section"] not in wrong:
            unseen.append(name)
        seen = "; ".join(wrong) or "nothing"
        print(f"{name:22} {time.monotonic() - begun:4.0f} s  {'**unseen**, by ' if name in unseen else ''}{seen}", flush=True)
        rows.append(f"| {name} | `{m['file']}` | {m['what']} | {seen} |")
    print(f"{len(rows)} mistakes, {len(unseen)} unseen {unseen or ''}")
    if table:
        print("| mistake | file | what is wrong | sections that disagree |\n| --- | --- | --- | --- |", *rows, sep="\n")
    sys.exit(1 if unseen or not rows else 0)


main()
