#!/usr/bin/env bash
# What the host does for a launch: microseconds and allocations an op, over a driver that returns at once. No GPU takes part.
# Wants Rust, a C compiler and python3; brings nvcc itself.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/target/host-time
mkdir -p "$folder"
cc -shared -fPIC -O2 -w -o "$folder/libcuda.so.1" -Wl,-soname,libcuda.so.1 benches/host/null_driver.c
ln -sfn libcuda.so.1 "$folder/libcuda.so"
[ -n "${NVCC:-}" ] || NVCC=$(eval "$(scripts/cuda-toolkit.sh)" && command -v nvcc)
export NVCC PACKFORCING_KERNELS=require
cargo build --quiet --release -p packforcing-bench --example host-time
LD_LIBRARY_PATH=$folder target/release/examples/host-time
