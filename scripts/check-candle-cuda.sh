#!/usr/bin/env bash
# Type-checks the workspace with CUDA where there is none: candle's build wants nvcc and spends minutes on kernels that a
# type check never runs. scripts/stand-in.sh plays nvcc and the C++ compiler; nothing that is built here can run, so it has a
# folder of its own.
#
#   scripts/check-candle-cuda.sh                                  # cargo check
#   scripts/check-candle-cuda.sh clippy --workspace --all-targets
set -euo pipefail

cd "$(dirname "$0")/.."
home=$PWD/target/candle-cuda/stand-in
mkdir -p "$home/bin" "$home/include"
touch "$home/include/cuda.h"
cp scripts/stand-in.sh "$home/bin/nvcc"

export PATH="$home/bin:$PATH" NVCC="$home/bin/nvcc" CXX="$home/bin/nvcc" CUDA_HOME="$home" CUDA_COMPUTE_CAP=80
[ $# -gt 0 ] || set -- check --workspace --all-targets
features=packforcing-candle/cuda,packforcing-cli/cuda,packforcing-video/cuda
cargo "$1" --features "$features" --target-dir target/candle-cuda "${@:2}"
