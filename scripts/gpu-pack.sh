#!/usr/bin/env bash
# Packs what a machine with a GPU and without Rust needs to test and to measure: the test programs,
# the program `packforcing`, golden vectors and the peers' bench. Wants Rust, g++ and python3; brings
# nvcc itself.
#
#   scripts/gpu-pack.sh       # target/gpu-pack and target/gpu-pack.tar.xz
#
# There:  tar xf gpu-pack.tar.xz && OUT=results gpu-pack/run.sh
set -euo pipefail
cd "$(dirname "$0")/.."
most=$((64 * 1024 * 1024)) # bytes of the archive

eval "$(scripts/cuda-toolkit.sh)"
# Code for every generation, so that nothing is compiled when it is loaded.
export PACKFORCING_CUDA_ARCHS=${PACKFORCING_CUDA_ARCHS:-80,90,90a,100,120} PACKFORCING_KERNELS=require
target=$(cargo metadata --format-version 1 --no-deps |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
pack=$target/gpu-pack

# `bench` needs no CUDA of candle's, which would be minutes of nvcc: the library's own is always in.
cargo build --release -p packforcing-cli
# With the kernels of single instructions, which no user's build has. The bridge's tests on a GPU want candle's CUDA;
# they stay behind.
cargo test --no-run -p packforcing --lib --tests --message-format=json-render-diagnostics >"$target/gpu-pack.jsonl"

rm -rf "$pack"
mkdir -p "$pack/bin" "$pack/tests"
strip -o "$pack/bin/packforcing" "$target/release/packforcing"
python3 - "$target/gpu-pack.jsonl" <<'PY' | while IFS=$'\t' read -r name file; do
import json, sys
for line in open(sys.argv[1]):
    artifact = json.loads(line)
    if artifact["reason"] == "compiler-artifact" and artifact["profile"]["test"] and artifact["executable"]:
        unit = "lib" in artifact["target"]["kind"]
        print("unit" if unit else artifact["target"]["name"], artifact["executable"], sep="\t")
PY
  strip -o "$pack/tests/$name" "$file"
done
cp -r tests/golden "$pack/golden"
mkdir "$pack/peers"
cp benches/peers/peers.py benches/peers/README.md "$pack/peers/"
cp scripts/gpu-run.sh "$pack/run.sh"
{
  git describe --always --dirty 2>/dev/null || echo "no commit"
  echo "kernels for $PACKFORCING_CUDA_ARCHS"
  rustc --version
  nvcc --version | tail -n 1
} >"$pack/packed.txt"

# The programs have the same kernels in them: a window over several of them makes it a third.
tar -C "$target" -c gpu-pack | xz -T2 --lzma2=preset=6,dict=192MiB >"$target/gpu-pack.tar.xz"
size=$(wc -c <"$target/gpu-pack.tar.xz")
echo "$target/gpu-pack.tar.xz: $((size >> 20)) MiB, $(du -sm "$pack" | cut -f 1) MiB unpacked, $(find "$pack/tests" -type f | wc -l) test programs"
[ "$size" -le "$most" ] || { echo "more than $((most >> 20)) MiB" >&2; exit 1; }
