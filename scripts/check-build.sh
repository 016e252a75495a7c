#!/usr/bin/env bash
# Builds the library as people's machines make it: other compilers, lists of architectures and toolkits. A stand-in for nvcc
# takes the real one's place, so that a build takes seconds. What the build makes of single values is in tests/build.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
stand_in() { # stand_in PLACE VERSION
  mkdir -p "$(dirname "$1")"
  cat >"$1" <<NVCC
#!/usr/bin/env bash
[ "\${1:-}" = --version ] && printf '%s\n' nvcc - - 'Cuda compilation tools, release $2, V$2.1' && exit
while [ \$# -gt 0 ]; do [ "\$1" = -o ] && echo made >"\$2"; shift; done
NVCC
  chmod +x "$1"
}
unset NVCC CUDA_HOME CUDA_PATH PACKFORCING_CUDA_ARCHS PACKFORCING_KERNELS PACKFORCING_PTXAS

status=0
build() { # build NAME pass|fail TEXT [VARIABLE=VALUE...]: what the build must do, and say
  local name=$1 wanted=$2 text=$3 got=pass
  shift 3
  env "$@" cargo check --lib -p packforcing --features cuda --target-dir target/check-build >"$folder/said" 2>&1 || got=fail
  if [ "$got" != "$wanted" ] || ! grep -qF -- "$text" "$folder/said" || grep -q '^.*panicked.*cudarc' "$folder/said"; then
    echo "$name: it did $got where $wanted was wanted, with \"$text\":"
    tail -n 15 "$folder/said"
    status=1
  else
    echo "$name: $got"
  fi
}
built() { grep -qE '(Checking|Compiling) packforcing ' "$folder/said"; }

stand_in "$folder/one/nvcc" 13.0
stand_in "$folder/future/nvcc" 14.0
stand_in "$folder/old/nvcc" 11.0
build "no nvcc" pass "no GPU kernels: nvcc was not found" PATH="$HOME/.cargo/bin:/usr/bin:/bin"
build "an nvcc that cudarc does not know" pass "Finished" PATH="$folder/future:$PATH"
build "an old one" pass "Finished" PATH="$folder/old:$PATH"
build "a bare name" pass "Finished" NVCC=nvcc PATH="$folder/one:$PATH"
build "a command line" pass "Finished" NVCC="env nvcc" PATH="$folder/one:$PATH"
build "a wrong name" fail "NVCC=nvc: there is no program nvc" NVCC=nvc
build "no nvcc under the name" fail "is no nvcc" NVCC=/bin/true
build "a list of another form" pass "Finished" NVCC="$folder/one/nvcc" PACKFORCING_CUDA_ARCHS="8.0;sm_90a"
build "no list" fail "the form is 80,90a" NVCC="$folder/one/nvcc" PACKFORCING_CUDA_ARCHS=native
build "a list without most kernels" pass "append_kv.cu is not in this build" NVCC="$folder/one/nvcc" PACKFORCING_CUDA_ARCHS=90a
build "the same where kernels are required" fail "kernel files are missing" NVCC="$folder/one/nvcc" PACKFORCING_CUDA_ARCHS=90a PACKFORCING_KERNELS=require
build "a list that no kernel is for" fail "no code of append_kv, attention_sm80" NVCC="$folder/one/nvcc" PACKFORCING_CUDA_ARCHS=100a

build "once more" pass "Finished" NVCC="$folder/one/nvcc"
build "without a change" pass "Finished" NVCC="$folder/one/nvcc"
! built || { echo "without a change: it was built again"; status=1; }
sleep 1
stand_in "$folder/one/nvcc" 12.9
build "another nvcc in its place" pass "Finished" NVCC="$folder/one/nvcc"
built || { echo "another nvcc in its place: it was not built again"; status=1; }
exit $status
