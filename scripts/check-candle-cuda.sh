#!/usr/bin/env bash
# Type-checks packforcing-candle, packforcing-cli and packforcing-video with their feature `cuda` where there is no CUDA:
# candle's build wants nvcc and spends minutes on kernels that a type check never runs. scripts/stand-in.sh plays nvcc and
# the C++ compiler; nothing that is built here can run, so it has a folder of its own.
#
#   scripts/check-candle-cuda.sh            # cargo check
#   scripts/check-candle-cuda.sh clippy
set -euo pipefail

cd "$(dirname "$0")/.."
home=$PWD/target/candle-cuda/stand-in
mkdir -p "$home/bin" "$home/include"
touch "$home/include/cuda.h"
cp scripts/stand-in.sh "$home/bin/nvcc"

export PATH="$home/bin:$PATH" NVCC="$home/bin/nvcc" CXX="$home/bin/nvcc" CUDA_HOME="$home" CUDA_COMPUTE_CAP=80
packages=(packforcing-candle packforcing-cli packforcing-video)
features=$(printf '%s/cuda,' "${packages[@]}")
cargo "${1:-check}" "${packages[@]/#/-p}" --features "$features" --all-targets --target-dir target/candle-cuda "${@:2}"
