#!/usr/bin/env bash
# Type-checks packforcing-candle, packforcing-cli and packforcing-video with their feature `cuda` where there is no CUDA: candle's build wants
# nvcc and spends minutes on kernels that a type check never runs. A stand-in for nvcc answers with a
# version and writes empty files; nothing that is built here can run, so it has a folder of its own.
#
#   scripts/check-candle-cuda.sh            # cargo check
#   scripts/check-candle-cuda.sh clippy
set -euo pipefail

cd "$(dirname "$0")/.."
home=$PWD/target/candle-cuda/stand-in
mkdir -p "$home/bin" "$home/include"
touch "$home/include/cuda.h"
cat >"$home/bin/nvcc" <<'NVCC'
#!/usr/bin/env bash
# cudarc reads the version from the fourth line.
[ "${1:-}" = --version ] && printf '%s\n' nvcc - - 'Cuda compilation tools, release 13.0, V13.0.88' && exit
folder= source=
while [ $# -gt 0 ]; do
  case "$1" in
    -o) : >"$2"; shift ;;
    --output-directory) folder=$2; shift ;;
    *.cu) source=$1 ;;
  esac
  shift
done
[ -z "$folder" ] || : >"$folder/$(basename "$source" .cu).ptx"
NVCC
chmod +x "$home/bin/nvcc"

export PATH="$home/bin:$PATH" NVCC="$home/bin/nvcc" CUDA_HOME="$home" CUDA_COMPUTE_CAP=80
cargo "${1:-check}" -p packforcing-candle -p packforcing-cli -p packforcing-video --features packforcing-candle/cuda,packforcing-cli/cuda,packforcing-video/cuda --all-targets --target-dir target/candle-cuda "${@:2}"
