#!/usr/bin/env bash
# The bridge to candle on the double of the driver: candle's CUDA build is linked, its kernels are empty, and cuBLAS and cuRAND are
# libraries that can be opened and no more. What the bridge does with candle's memory and stream runs; a kernel of candle's own
# is refused by name. Minutes of building, so it is not part of CI.
set -euo pipefail
cd "$(dirname "$0")/.."

home=$PWD/target/candle-double/toolkit
mkdir -p "$home/bin" "$home/include" "$home/lib64"
[ -n "${NVCC:-}" ] || NVCC=$(eval "$(scripts/cuda-toolkit.sh)" && command -v nvcc)
: >"$home/include/cuda.h"
cat >"$home/bin/nvcc" <<WRAPPER
#!/usr/bin/env bash
# Our kernels by the real compiler, candle's by none.
[ "\${1:-}" = --version ] && exec "$NVCC" --version
for argument in "\$@"; do case "\$argument" in "$PWD"/kernels/*) exec "$NVCC" "\$@" ;; esac; done
folder= source=
empty() {
  case "\$1" in
    *.a) rm -f "\$1"; ar crs "\$1" ;;
    *.o) echo | cc -x c -c -o "\$1" - ;;
    *) printf '.version 8.0\n.target sm_80\n.address_size 64\n' >"\$1" ;;
  esac
}
while [ \$# -gt 0 ]; do
  case "\$1" in
    -o) empty "\$2"; shift ;;
    --output-directory) folder=\$2; shift ;;
    *.cu) source=\$1 ;;
  esac
  shift
done
[ -z "\$folder" ] || empty "\$folder/\$(basename "\$source" .cu).ptx"
WRAPPER
chmod +x "$home/bin/nvcc"

# Libraries that candle opens with a device. What is not in them is looked for when it is called, and nothing here calls it.
cat >"$home/libraries.c" <<'C'
typedef int Status;
static int one;
Status cublasCreate_v2(void** to) { return *to = &one, 0; }
Status cublasDestroy_v2(void* handle) { return (void)handle, 0; }
Status cublasSetStream_v2(void* handle, void* stream) { return (void)handle, (void)stream, 0; }
Status curandCreateGenerator(void** to, int kind) { return (void)kind, *to = &one, 0; }
Status curandDestroyGenerator(void* handle) { return (void)handle, 0; }
Status curandSetPseudoRandomGeneratorSeed(void* handle, unsigned long long seed) { return (void)handle, (void)seed, 0; }
Status curandSetGeneratorOffset(void* handle, unsigned long long offset) { return (void)handle, (void)offset, 0; }
Status curandSetStream(void* handle, void* stream) { return (void)handle, (void)stream, 0; }
C
for library in cublas cublasLt curand nvrtc cudart; do
  cc -shared -fPIC -o "$home/lib64/lib$library.so" -Wl,-soname,"lib$library.so" "$home/libraries.c"
done
NVCC=$NVCC scripts/cuda-double.sh --build "$home/lib64"

export PATH="$home/bin:$PATH" NVCC="$home/bin/nvcc" CUDA_HOME="$home" CUDA_PATH="$home" CUDA_COMPUTE_CAP=80 PACKFORCING_KERNELS=require
export RUSTFLAGS="-L native=$home/lib64 -C link-arg=-Wl,--unresolved-symbols=ignore-all -C link-arg=-Wl,-z,lazy"
export LD_LIBRARY_PATH="$home/lib64:${LD_LIBRARY_PATH:-}"
cargo test -p packforcing-candle --features cuda --test cuda --target-dir target/candle-double "$@"
