#!/usr/bin/env bash
# Runs the CUDA path without a card: links the double of the driver (crates/cuda-double) and runs the suite's CUDA tests, or a
# command, on it. Wants Rust, g++ and python3; brings nvcc itself.
#
#   scripts/cuda-double.sh                              # every test program, on a card of 9.0
#   scripts/cuda-double.sh --arch 86 --seeds 3 -- graph # tests/graph.rs, on one of 8.6, under three seeds
#   scripts/cuda-double.sh --driver 12.4                # with the functions of an older driver
#   scripts/cuda-double.sh --build FOLDER               # the library alone, then: LD_LIBRARY_PATH=FOLDER program
#   scripts/cuda-double.sh --alone                      # without the rest of the workspace: fewer crates, all built anew
set -euo pipefail
cd "$(dirname "$0")/.."

arch=90 seeds=1 first=0 driver=13.0 build= filter="cuda (double)" packages=(--workspace)
while [ $# -gt 0 ]; do
  case "$1" in
    --arch) arch=$2; shift ;;
    --seeds) seeds=$2; shift ;;
    --first-seed) first=$2; shift ;;
    --driver) driver=$2; shift ;;
    --build) build=$2; shift ;;
    --filter) filter=$2; shift ;;
    --alone) packages=(-p packforcing -p cuda-double) ;;
    --) shift; break ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done
target=$(cargo metadata --format-version 1 --no-deps |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')

# Only NVCC is set: with the toolkit on PATH, cudarc would be built again.
if [ -z "${NVCC:-}" ]; then
  NVCC=$(eval "$(scripts/cuda-toolkit.sh)" && command -v nvcc)
fi
export NVCC PACKFORCING_KERNELS=require
list=$target/cuda-double.jsonl
# With the whole workspace selected, crates have the features that they have in `cargo test`, and are not built twice.
cargo test --no-run "${packages[@]}" --lib --tests --message-format=json-render-diagnostics >"$list"
# The library as it is linked; with the tests named too, what it stands on has the features that it was built with above.
cargo build --quiet "${packages[@]}" --lib --tests

# A folder of its own: cargo puts target/debug on the loader's path, where a libcuda.so would stand before a real one.
folder=${build:-$target/cuda-double/$driver}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  echo 'static const char kImages[] ='
  cat "$target"/*/build/packforcing-*/out/images.tsv | sort -u | sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/\\t/g; s/.*/  "&\\n"/'
  echo '  "";'
} >"$work/images.h"
number() { echo "$((${1%%.*} * 1000 + ${1#*.} * 10))"; }
toolkit=$("$NVCC" --version | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p')
{
  echo '{ global:'
  nm --defined-only "$target/debug/libcuda_double.a" 2>/dev/null | sed -n 's/.* T \(cu[A-Z][A-Za-z0-9_]*\|cuda_double_[a-z]*\)$/\1/p' | sort -u |
    while read -r name; do
      since=$(sed -n "s/^$name \([0-9.]*\)$/\1/p" crates/cuda-double/since.txt)
      [ -n "$since" ] && [ "$(number "$driver")" -lt "$(number "$since")" ] || echo "  $name;"
    done
  echo 'local: *; };'
} >"$work/exports"
cc -shared -fPIC -O1 -o "$folder/libcuda.so.1" -DDRIVER="$(number "$driver")" -DTOOLKIT="$(number "$toolkit")" -I "$work" \
  crates/cuda-double/front.c -Wl,-soname,libcuda.so.1 -Wl,--version-script="$work/exports" \
  -Wl,--whole-archive "$target/debug/libcuda_double.a" -Wl,--no-whole-archive -lstdc++ -lpthread -ldl -lm
ln -sfn libcuda.so.1 "$folder/libcuda.so"
[ -z "$build" ] || { echo "$folder/libcuda.so.1"; exit 0; }

# One run: a test program under a seed. As many at a time as there are cores.
run() { # run SEED NAME PROGRAM FILTER
  local log=$folder/$2.$arch.$1.log code=0
  LD_LIBRARY_PATH=$folder CUDA_DOUBLE_ARCH=$arch CUDA_DOUBLE_DEVICES=2 CUDA_DOUBLE_SEED=$1 \
    PACKFORCING_REQUIRE="cuda (double)" timeout 900 "$3" ${4:+"$4"} >"$log" 2>&1 || code=$?
  printf '%s, seed %s: %-16s %s\n' "$arch" "$1" "$2" "$(grep -h '^test result' "$log" | tail -n 1)"
  [ "$code" -eq 0 ] || { tail -n 40 "$log"; return 1; }
}
export -f run
export folder arch
for seed in $(seq "$first" $((first + seeds - 1))); do
  while IFS=$'\t' read -r name program of; do
    [ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
    printf '%s\0%s\0%s\0%s\0' "$seed" "$name" "$program" "$of"
  done < <(
    # The suite's programs, by the filter; the double's own tests, of what the manual says, whole.
    python3 - "$list" "$filter" "$PWD" <<'PY'
import json, os, sys
listed, which, root = sys.argv[1:]
for line in open(listed):
    artifact = json.loads(line)
    if artifact["reason"] != "compiler-artifact" or not artifact["profile"]["test"] or not artifact["executable"]:
        continue
    folder = os.path.relpath(os.path.dirname(artifact["manifest_path"]), root)
    unit = {"lib", "staticlib"} & set(artifact["target"]["kind"])
    if folder == ".":
        print("unit" if unit else artifact["target"]["name"], artifact["executable"], which, sep="\t")
    elif folder == "crates/cuda-double":
        print("double", artifact["executable"], "", sep="\t")
PY
  )
done | xargs -0 -r -n 4 -P "$(nproc)" bash -c 'run "$@"' run
