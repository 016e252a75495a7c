#!/usr/bin/env bash
# A second opinion on what an instruction does: CuTe's. The SIMT device's fragments, the kernels' tiles and
# descriptors, and what a tensor map is made of are held against CuTe's layouts; the machine code of each function
# of device/ptx.cuh against that of CUTLASS' own; plans of shared memory under nvcc against the host's compiler.
#
#   scripts/check-cute.sh                     all of it: under a minute on two cores after the first run
#   scripts/check-cute.sh --planted [NAME]    plants the mistakes of tests/cute/planted.toml, one at a time
#
# CUTLASS' headers come from PyPI into target/cute and are not copied; nvcc from scripts/cuda-toolkit.sh.
# `--tree FOLDER` takes kernels/ and src/ from there, and `--only compare|pairs|plans` a part.
set -euo pipefail
cd "$(dirname "$0")/.."

tree=. only="compare pairs plans"
while [ $# -gt 0 ]; do
  case "$1" in
    --planted) shift; exec tests/cute/planted.py "$@" ;;
    --tree) tree=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
  esac
done

version=4.2.0.0
cute=target/cute
cutlass=$cute/cutlass-$version/cutlass_library/source/include
if [ ! -e "$cutlass/cute/tensor.hpp" ]; then
  mkdir -p "$cute"
  rm -rf "$cute/cutlass-$version"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$cute" "nvidia-cutlass==$version"
  python3 -m zipfile -e "$cute/nvidia_cutlass-$version-"*.whl "$cute/cutlass-$version"
fi
eval "$(scripts/cuda-toolkit.sh --libclang --nvdisasm)"
cxx=${CXX:-g++}
out=$cute/out
rm -rf "$out"
mkdir -p "$out/plans" "$cute/theirs"

jobs=()
job() { jobs+=("$*"); }
run_jobs() {
  printf '%s\0' "${jobs[@]}" | xargs -0 -n 1 -P "$(nproc)" bash -c
  jobs=()
}
wanted() { [[ " $only " = *" $1 "* ]]; }

kernels=$tree/kernels
ours="-I $kernels/simt/shadow -I $kernels/device -I $kernels -I $kernels/simt"
if wanted compare; then
  # CuTe's side knows nothing of the tree, and takes the longest: it is kept.
  for source in tests/cute/theirs*.cpp; do
    object=$cute/theirs/$(basename "$source" .cpp).o
    if [ -n "$(find tests/cute/theirs*.h "$source" "$cutlass/cute/tensor.hpp" -newer "$object" 2>&1)" ]; then
      job "$cxx -std=c++17 -O0 -w -isystem $cutlass -isystem $CUDA_HOME/include -isystem $CUDA_HOME/include/cccl" \
        "-c $source -o $object"
    fi
  done
  sed -nE 's/^const ([A-Z0-9_]+): u32 = ([0-9]+);.*/constexpr unsigned \1 = \2;/p' "$tree/src/device/cuda/tensor_map.rs" \
    >"$out/tensor_map_numbers.h"
  names=$(sed -nE 's/^PF_KERNEL\(([a-z0-9_]+),.*/\1/p' "$kernels"/vectors/*.cu)
  {
    echo '#include <simt.h>'
    sed 's/.*/extern "C" const simt::Kernel simt_kernel_&;/' <<<"$names"
    echo 'const simt::Kernel* const simt_kernels[] = {'
    sed 's/.*/  \&simt_kernel_&,/' <<<"$names"
    echo '  nullptr};'
    echo "const size_t simt_kernel_count = $(wc -l <<<"$names");"
  } >"$out/table.cpp"
  for source in "$kernels"/simt/*.cpp "$kernels"/vectors/*.cu "$out/table.cpp" tests/cute/compare.cpp; do
    job "$cxx -std=c++17 -O1 -fno-strict-aliasing -ffp-contract=off -w $ours -I $out -x c++" \
      "-c $source -o $out/$(basename "$source").o"
  done
fi
if wanted pairs; then
  job "nvcc -std=c++17 -cubin -arch=sm_90a -w -DNDEBUG -I $cutlass -I $kernels/device -I $kernels" \
    "-o $out/pairs.cubin tests/cute/pairs.cu 2>$out/pairs.log || { cat $out/pairs.log; exit 255; }"
fi
if wanted plans; then
  for source in "$kernels"/*.cu; do
    name=$(basename "$source" .cu)
    # An architecture that has what every kernel wants; code that nobody runs.
    job "nvcc -std=c++17 -ptx -arch=sm_90a -Xcicc -O0 -w -include tests/cute/plans.h -I $kernels/device -I $kernels" \
      "-o $out/plans/$name.ptx $source"
    job "$cxx -std=c++17 -O0 -w -include tests/cute/plans.h $ours -x c++ -c $source -o $out/plans/$name.o" \
      "&& nm -S $out/plans/$name.o >$out/plans/$name.nm"
  done
fi
run_jobs

failed=0
if wanted compare; then
  "$cxx" -pthread -o "$out/compare" "$out"/*.o "$cute"/theirs/*.o
  "$out/compare" || failed=1
fi
if wanted pairs; then
  nvdisasm -c "$out/pairs.cubin" | tests/cute/pairs.py "$kernels/device/ptx.cuh" || failed=1
fi
if wanted plans; then
  tests/cute/plans.py "$out/plans" || failed=1
fi
exit $failed
