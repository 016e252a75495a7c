#!/usr/bin/env bash
# Rules that no compiler checks.
set -euo pipefail
cd "$(dirname "$0")/.."
fail=0
rule() { # rule NAME FINDINGS
  if [ -n "$2" ]; then
    printf 'broken: %s\n%s\n' "$1" "$2" >&2
    fail=1
  fi
}
kernel_files() { git ls-files 'kernels/*.cu' 'kernels/vectors/*.cu' 'kernels/device/*.cuh' | grep -v '^kernels/simt/'; }

rule "a kernel file branches on the build it is in" \
  "$(kernel_files | xargs grep -nE '^ *# *(if|ifdef|ifndef|elif)\b|__CUDA_ARCH__|__CUDACC__' | grep -v '#pragma once' || true)"
rule "inline PTX outside kernels/device/ptx.cuh" \
  "$(kernel_files | grep -v '^kernels/device/ptx.cuh$' | xargs grep -nE '\basm\b( volatile)? *\(' || true)"
rule "a launch by <<<>>>" "$(kernel_files | xargs grep -n '<<<' || true)"
rule "reference.rs imports more of the crate than dtypes" \
  "$(git ls-files 'src/ops/*/reference.rs' | xargs grep -nE '\b(crate|super)::' | grep -v 'crate::dtype' || true)"
rule "candle's per-thread stream, which belongs to one thread" \
  "$(git ls-files 'crates/*/src/*.rs' 'crates/*/examples/*.rs' | xargs grep -nE 'new_cuda\(' | grep -v '//[/!]' || true)"
rule "something unfinished" \
  "$(git ls-files '*.rs' '*.cu' '*.cuh' '*.h' '*.cpp' | xargs grep -nE 'todo!\(|unimplemented!\(|#\[ignore|dbg!\(|FIXME' || true)"
rule "a placeholder in the docs" "$(git ls-files '*.md' | xargs grep -nE '\b(TODO|TBD|FIXME)\b|^[A-Z]+_[A-Z]+$' || true)"
# The checkpoint has 2.4 million numbers of two bytes.
rule "a large file" "$(git ls-files -z | xargs -0 du -k \
  | awk '$1 > ($2 == "data/gallery.safetensors" ? 5120 : 3072) { print $1 " KB " $2 }')"
# The library's MSRV is a promise about its dependencies too; clippy checks the standard library.
rule "a dependency that wants a newer Rust" "$(cargo metadata --format-version 1 --filter-platform x86_64-unknown-linux-gnu \
  | python3 scripts/check-msrv.py)"
# cargo run asks which one where there are two.
rule "a second program for the README's cargo run" "$(cargo metadata --no-deps --format-version 1 | python3 -c '
import json, sys
data = json.load(sys.stdin)
members = set(data["workspace_default_members"])
names = [t["name"] for p in data["packages"] if p["id"] in members for t in p["targets"] if "bin" in t["kind"]]
print(*names[1:])')"
exit $fail
