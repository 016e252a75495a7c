#!/usr/bin/env bash
# Fetches the CUDA compiler from PyPI into a folder of its own and prints the variables to set.
# Needs python3 with venv; takes seconds, 300 MB, and touches nothing outside the folder.
#
#   eval "$(scripts/cuda-toolkit.sh)"              # target/cuda-toolkit
#   eval "$(scripts/cuda-toolkit.sh FOLDER)"
#
# With --libclang it also brings the libclang that `buildtime-bindgen` wants, with --nvdisasm the disassembler.
set -euo pipefail

folder=
packages=(
  nvidia-cuda-nvcc==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85
)
libclang=
for argument in "$@"; do
  case "$argument" in
    --libclang) libclang=1 packages+=(libclang==18.1.1) ;;
    # 13.0 has none on PyPI.
    --nvdisasm) packages+=(nvidia-cuda-nvdisasm==13.2.86) ;;
    -*) echo "usage: $0 [--libclang] [--nvdisasm] [FOLDER]" >&2; exit 2 ;;
    *) folder=$argument ;;
  esac
done
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${folder:-$root/target/cuda-toolkit}

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
wanted="${packages[*]}"
if [ "$(cat "$folder/installed" 2>/dev/null)" != "$wanted" ]; then
  rm -f "$folder/installed"
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-compile --upgrade \
    --target "$folder/site" "${packages[@]}" >&2
  printf '%s' "$wanted" >"$folder/installed"
fi

home=$folder/site/nvidia/cu13
chmod +x "$home"/bin/* "$home"/nvvm/bin/* 2>/dev/null || true
[ -x "$home/bin/nvcc" ] || { echo "$0: no nvcc under $home" >&2; exit 1; }
echo "export CUDA_HOME='$home'"
# cudarc asks the nvcc on PATH for the version that it binds to.
echo "export PATH='$home/bin':\"\$PATH\""
if [ -n "$libclang" ]; then
  echo "export LIBCLANG_PATH='$folder/site/clang/native'"
fi
