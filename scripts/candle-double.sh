#!/usr/bin/env bash
# The bridge to candle on a double of the driver (crates/cuda-double): candle's CUDA build is linked with its kernels left out,
# and without cuBLAS, cuRAND and nvrtc. It opens devices, allocates, copies, captures, and runs packforcing's kernels; what
# asks for a kernel of candle's own is refused by name. Wants Rust, g++ and python3; brings nvcc itself. Minutes the first time.
#
#   scripts/candle-double.sh [--arch 86] [--seeds N]
set -euo pipefail
cd "$(dirname "$0")/.."

arch=90 seeds=3 cold=()
while [ $# -gt 0 ]; do
  case "$1" in
    --arch) arch=$2 ;;
    --seeds) seeds=$2 ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
[ -n "${NVCC:-}" ] || NVCC=$(eval "$(scripts/cuda-toolkit.sh)" && command -v nvcc)
export NVCC PACKFORCING_KERNELS=require
target=$PWD/target/candle-double
home=$target/stand-in
mkdir -p "$home/bin" "$home/include" "$home/lib"
touch "$home/include/cuda.h"

# nvcc for the kernels that stand in kernels/; of any other file it makes one without code.
cat >"$home/bin/nvcc" <<WRAPPER
#!/usr/bin/env bash
real=$NVCC kernels=$PWD/kernels
for argument in "\$@"; do
  case "\$argument" in --version | "\$kernels"/*) exec "\$real" "\$@" ;; esac
done
out= folder= source=
while [ \$# -gt 0 ]; do
  case "\$1" in
    -o) out=\$2; shift ;;
    --output-directory) folder=\$2; shift ;;
    *.cu) source=\$1 ;;
  esac
  shift
done
[ -z "\$folder" ] || printf '.version 8.0\n.target sm_80\n.address_size 64\n' >"\$folder/\$(basename "\$source" .cu).ptx"
case "\$out" in
  *.a) rm -f "\$out" && ar rcs "\$out" ;;
  ?*) echo | cc -c -x c -o "\$out" - ;;
esac
WRAPPER
chmod +x "$home/bin/nvcc"

# Libraries of names alone: opening a device makes handles of cuBLAS and cuRAND, anything else ends the program by name.
cudarc=$(cargo metadata --format-version 1 |
  python3 -c 'import json, os, sys; print(*(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')
library() { # library NAME NAMES...
  local name=$1
  shift
  {
    echo '#include <stdio.h>'
    echo '#include <stdlib.h>'
    printf '%s\n' "$@" | sort -u | while read -r function; do
      case "$function" in
        cublasCreate_v2 | cublasDestroy_v2 | cublasSetStream_v2 | cublasSetWorkspace_v2 | curandCreateGenerator | curandDestroyGenerator | \
          curandSetPseudoRandomGeneratorSeed | curandSetStream | cudaGetErrorString)
          echo "int $function(void) { return 0; }" ;;
        ?*) echo "int $function(void) { fputs(\"$function is not here\\n\", stderr); abort(); }" ;;
      esac
    done
  } >"$home/$name.c"
  cc -shared -fPIC -w -o "$home/lib/lib$name.so" "$home/$name.c"
}
names() { grep -rhoE "fn $1[A-Za-z0-9_]+" "$cudarc/src/$2/sys" | sed 's/^fn //'; }
library cublas $(names cublas cublas)
library cublasLt $(names cublasLt cublaslt)
library curand $(names curand curand)
library nvrtc $(names nvrtc nvrtc)
library cudart

scripts/cuda-double.sh --build "$target/driver" >/dev/null # to link against
export PATH="$home/bin:$PATH" NVCC="$home/bin/nvcc" CUDA_HOME="$home" CUDA_COMPUTE_CAP=80
# Candle's functions in C++ are as little there as its kernels.
export RUSTFLAGS="-L native=$home/lib -L native=$target/driver -C relro-level=partial -C link-arg=-Wl,-z,lazy,--unresolved-symbols=ignore-all"
# Little is computed here, and much is compiled.
for crate in candle-core gemm gemm-common gemm-f16 gemm-f32 gemm-f64 pulp; do
  cold+=(--config "profile.dev.package.$crate.opt-level=0")
done
export CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=0
program=$(cargo test "${cold[@]}" --no-run -p packforcing-candle --features cuda --test cuda --target-dir "$target" \
  --message-format=json-render-diagnostics |
  python3 -c 'import json, sys; print(*(a["executable"] for a in map(json.loads, sys.stdin) if a.get("executable") and a["profile"]["test"]))')
for seed in $(seq 0 $((seeds - 1))); do
  LD_LIBRARY_PATH=$target/driver:$home/lib CUDA_DOUBLE_ARCH=$arch CUDA_DOUBLE_SEED=$seed "$program" --test-threads 1
done
