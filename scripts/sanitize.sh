#!/usr/bin/env bash
# The kernels as C++ programs under g++'s sanitizers: every shipped kernel must pass, every planted bug
# must be told of by whom kernels/simt/sanitize/planted.cpp names, and its correct twin by nobody.
# Some four minutes on two cores. `scripts/sanitize.sh address` or `race` runs one half.
set -euo pipefail
cd "$(dirname "$0")/.."

halves=${*:-address race}
cxx=${CXX:-g++}
simt=kernels/simt
flags=(-std=c++17 -O1 -g -ffp-contract=off -fno-strict-aliasing -fno-omit-frame-pointer
  -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-tsan
  -I "$simt/shadow" -I kernels/device -I kernels -I "$simt")
export ASAN_OPTIONS=detect_stack_use_after_return=0:exitcode=66
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=exitcode=66:halt_on_error=1:history_size=0

# write_table OUT FILE...: what simt.h asks of a build, from the PF_KERNEL lines of the files.
write_table() {
  local out=$1 names
  shift
  names=$(sed -nE 's/^PF_KERNEL\(([a-z0-9_]+),.*/\1/p' "$@")
  {
    echo '#include <simt.h>'
    sed 's/.*/extern "C" const simt::Kernel simt_kernel_&;/' <<<"$names"
    echo 'const simt::Kernel* const simt_kernels[] = {'
    sed 's/.*/  \&simt_kernel_&,/' <<<"$names"
    echo '  nullptr};'
    echo "const size_t simt_kernel_count = $(wc -l <<<"$names");"
  } >"$out"
}

# build HALF: the programs `shipped` and `planted` under target/sanitize/HALF.
build() {
  local half=$1 out=target/sanitize/$1 kernel_flags=() device_flags=() link file
  rm -rf "$out"
  mkdir -p "$out"
  if [ "$half" = address ]; then
    link=-fsanitize=address,undefined
    kernel_flags=($link -fno-sanitize-recover=all)
    device_flags=("${kernel_flags[@]}")
  else
    # The device tells ThreadSanitizer itself what it does: see race.h.
    link=-fsanitize=thread
    kernel_flags=($link -DSIMT_RACES)
    device_flags=(-DSIMT_RACES)
  fi
  write_table "$out/shipped_table.cpp" kernels/*.cu
  write_table "$out/planted_table.cpp" "$simt"/planted/*.cu
  {
    for file in kernels/*.cu "$simt"/planted/*.cu "$simt"/sanitize/*.cpp "$out"/*_table.cpp; do
      printf '%s\0' "$cxx ${flags[*]} ${kernel_flags[*]} -x c++ -c $file -o $out/$(basename "$file").o"
    done
    for file in "$simt"/*.cpp; do
      printf '%s\0' "$cxx ${flags[*]} ${device_flags[*]} -c $file -o $out/device-$(basename "$file").o"
    done
  } | xargs -0 -n 1 -P "$(nproc)" bash -c
  local shipped=() planted=()
  for file in kernels/*.cu; do shipped+=("$out/$(basename "$file").o"); done
  for file in "$simt"/planted/*.cu; do planted+=("$out/$(basename "$file").o"); done
  "$cxx" $link -pthread -o "$out/shipped" "$out"/shipped*.cpp.o "${shipped[@]}" "$out"/device-*.o
  "$cxx" $link -pthread -o "$out/planted" "$out"/planted*.cpp.o "${planted[@]}" "$out"/device-*.o
}

# outcome REPORT PROGRAM ARGUMENT: -, device, address, undefined or race; what it printed goes to REPORT.
outcome() {
  local report=$1 code=0
  shift
  "$@" >"$report" 2>&1 || code=$?
  if grep -q 'ThreadSanitizer: data race' "$report"; then
    echo race
  elif grep -q 'ERROR: AddressSanitizer' "$report"; then
    echo address
  elif grep -q 'runtime error:' "$report"; then
    echo undefined
  elif [ $code = 0 ]; then
    echo -
  elif [ $code = 3 ]; then
    echo device
  else
    echo "exit code $code"
  fi
}

expect() { # expect WHO[,WHO] PROGRAM ARGUMENT
  local want=$1 got report=target/sanitize/$half/report
  shift
  got=$(outcome "$report" "$@")
  checked=$((checked + 1))
  if [[ ",$want," != *",$got,"* ]]; then
    cat "$report"
    echo "$* was told of by '$got', not by '$want' ($half)" >&2
    exit 1
  fi
}

planted() { # planted HALF: every planted bug is told of, and its twin is not
  local half=$1 checked=0 name address race
  while read -r name address race; do
    expect "${!half}" "target/sanitize/$half/planted" "planted_$name"
    expect - "target/sanitize/$half/planted" "planted_${name}_fixed"
    if [ "${!half}" = race ]; then
      # The schedule under which a barrier with one mark for all generations hides `reused_tile`. A wrong
      # phase may get stuck first.
      expect race,device "target/sanitize/$half/planted" "planted_$name" in-order
      expect - "target/sanitize/$half/planted" "planted_${name}_fixed" in-order
    fi
  done < <("target/sanitize/$half/planted")
  test $checked -gt 0
  echo "$half: $checked runs of planted kernels as expected"
}

shipped() { "target/sanitize/$1/shipped"; }

# Programs of one thread each: the halves are built in turns, their runs go side by side.
runs=()
for half in $halves; do
  build "$half"
  shipped "$half" & runs+=($!)
  planted "$half" & runs+=($!)
done
for run in "${runs[@]}"; do wait "$run"; done
