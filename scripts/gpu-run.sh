#!/usr/bin/env bash
# Tests and measures from a pack of scripts/gpu-pack.sh, where it is run.sh: the suite on every device
# that is here, vectors of the instructions, every op's bench, and the peers. Ten minutes at most.
#
#   OUT=folder run.sh          # results go there (default: out)
#   OUT=folder run.sh --dry    # without a GPU: cpu and simt alone, with few samples
#
# Fails if a test failed, or if there is no GPU and nobody said --dry.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-out}
mkdir -p "$out/suite" "$out/bench" || exit 2
out=$(cd "$out" && pwd)
rm -f "$out"/suite.txt "$out"/suite/*.log "$out"/bench/*.json "$out"/bench/*.log # of an earlier run
total=${TOTAL:-570} # seconds for everything
packforcing=$here/bin/packforcing
dry=
case "${1:-}" in
  "") ;;
  --dry) dry=1 ;;
  *) echo "usage: [OUT=folder] $0 [--dry]" >&2; exit 2 ;;
esac
[ -x "$packforcing" ] || { echo "$0: no $packforcing: this runs from a pack of scripts/gpu-pack.sh" >&2; exit 2; }

# Runs a command for at most so many seconds, and no longer than there is time at all.
within() { # within SECONDS COMMAND...
  local left=$((total - SECONDS)) limit=$1
  shift
  [ "$left" -gt 0 ] || return 124
  timeout -k 5 "$((limit < left ? limit : left))" "$@"
}
say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

failed=0
gpu=1
reason=$(within 60 "$packforcing" bench merge_states --device cuda --queries 64 --samples 3 2>&1 >/dev/null) || gpu=
if [ -n "$dry" ]; then
  gpu=
  say "a dry run: cpu and simt alone"
elif [ -z "$gpu" ]; then
  say "no GPU (${reason#error: }): cpu and simt alone, and this run fails"
  failed=1
fi
{
  cat "$here/packed.txt"
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"
  grep -m 1 'model name' /proc/cpuinfo || true
  echo "$(nproc) cores"
} | tee "$out/machine.txt"

say "the suite"
export PACKFORCING_GOLDEN=$here/golden RUST_BACKTRACE=0
export PACKFORCING_REQUIRE=cpu,simt,golden${gpu:+,cuda}
suite_ends=$((SECONDS + 270))
for test in "$here"/tests/*; do
  name=$(basename "$test")
  log=$out/suite/$name.log
  left=$((suite_ends - SECONDS))
  code=124
  [ "$left" -le 0 ] || { (cd "$out" && within "$left" "$test") >"$log" 2>&1; code=$?; }
  case $code in
    0) what=ok ;;
    124 | 137) what="out of time" ;;
    *) what="FAILED ($code)" ;;
  esac
  [ "$code" -eq 0 ] || failed=1
  printf '%-16s %-12s %s\n' "$name" "$what" "$(grep -h '^ran on:' "$log" 2>/dev/null | tail -n 1)" | tee -a "$out/suite.txt"
  case $what in FAILED*) tail -n 15 "$log" ;; esac
done

say "vectors of the instructions"
log=$out/suite/instructions.log
if [ -n "$gpu" ]; then
  # Written first, compared then: where a card and the tables disagree, the file is wanted most.
  (cd "$out" && PACKFORCING_RECORD=$out/instructions.safetensors within 60 "$here/tests/unit" device::vectors --nocapture) >"$log" 2>&1
else
  (cd "$out" && within 60 "$here/tests/unit" device::vectors --nocapture) >"$log" 2>&1
fi
code=$?
[ "$code" -eq 0 ] || failed=1
printf '%-16s %s\n' instructions "$([ "$code" -eq 0 ] && echo ok || echo "FAILED ($code)")" | tee -a "$out/suite.txt"
grep -h 'instructions:' "$log"

say "benches"
bench() { # bench NAME OP OPTIONS...
  local name=$1
  shift
  if within 60 "$packforcing" bench "$@" --json >"$out/bench/$name.json" 2>"$out/bench/$name.log"; then
    rm -f "$out/bench/$name.log"
  else
    rm -f "$out/bench/$name.json"
    local reason
    reason=$(tail -n 1 "$out/bench/$name.log")
    printf '%-24s FAILED: %s\n' "$name" "${reason:-out of time}"
  fi
}
if [ -n "$gpu" ]; then
  on="--device cuda"
  bench attention_wan attention $on
  bench attention_wan_contiguous attention $on --contiguous
  bench attention_wan_one_segment attention $on --segments 1
  for kernel in sm80 sm90-free sm90-overlapped; do
    bench "attention_wan_$kernel" attention $on --kernel $kernel
  done
  for kernel in sm90-plain sm90-overlapped-plain; do
    bench "attention_wan_$kernel" attention $on --contiguous --kernel $kernel
  done
  bench attention_wan_f16 attention $on --dtype f16
  bench attention_8k attention $on --queries 8192 --keys 8192 --heads 16 --contiguous
  bench attention_16k attention $on --queries 16384 --keys 16384 --heads 16 --contiguous
  bench attention_dim64 attention $on --heads 24 --dim 64
  bench append_kv_x1 append_kv $on
  bench append_kv_x4 append_kv $on --streams 4
  bench merge_tokens_x1 merge_tokens $on
  bench merge_tokens_x8 merge_tokens $on --blocks 8
  bench match_tokens_x1 match_tokens $on
  bench match_tokens_x8 match_tokens $on --blocks 8
  bench match_tokens_mean_x8 match_tokens $on --blocks 8 --metric mean
  bench unmerge_tokens_x8 unmerge_tokens $on --blocks 8
  bench merge_states_x1 merge_states $on
  bench merge_states_x8 merge_states $on --queries 49920
  bench select_blocks_116 select_blocks $on
  bench select_blocks_2048 select_blocks $on --candidates 2048
  bench sum_keys sum_keys $on
  large="--frames 64 --rows 256 --cols 256"
  bench denoise_euler denoise_step $on
  bench denoise_euler_large denoise_step $on $large
  bench denoise_renoise_large denoise_step $on $large --solver renoise
  bench denoise_guided_large denoise_step $on $large --guided
  bench guidance guidance $on
  bench guidance_large guidance $on $large
  # What takes less than a launch from the host, without it.
  on="$on --graph"
  bench append_kv_x1_graph append_kv $on
  bench merge_tokens_x1_graph merge_tokens $on
  bench match_tokens_x1_graph match_tokens $on
  bench merge_states_x1_graph merge_states $on
  bench select_blocks_116_graph select_blocks $on
  bench sum_keys_graph sum_keys $on
  bench denoise_euler_graph denoise_step $on
  bench denoise_renoise_graph denoise_step $on --solver renoise
  bench guidance_graph guidance $on
else
  block="--frames 2 --rows 5 --cols 8 --heads 2 --dim 64 --page-tokens 32"
  for on in "--device cpu" "--device simt"; do
    few="$on --samples 3 --sample-ms 1"
    at=${on#--device }
    bench "attention_$at" attention $few --queries 64 --keys 500 --heads 2 --segments 5
    bench "attention_contiguous_$at" attention $few --queries 64 --keys 512 --heads 2 --contiguous
    [ "$at" = cpu ] || bench "attention_sm90_$at" attention $few --queries 64 --keys 500 --heads 2 --segments 5 --kernel sm90
    bench "append_kv_$at" append_kv $few $block
    bench "merge_tokens_$at" merge_tokens $few $block
    bench "match_tokens_$at" match_tokens $few $block
    bench "unmerge_tokens_$at" unmerge_tokens $few $block
    bench "merge_states_$at" merge_states $few --queries 100 --heads 2
    bench "select_blocks_$at" select_blocks $few --queries 80 --heads 2 --candidates 30
    bench "sum_keys_$at" sum_keys $few
    bench "denoise_step_$at" denoise_step $few --rows 16 --cols 16
    bench "guidance_$at" guidance $few --rows 16 --cols 16
  done
fi

say "peers"
if ! python3 -c 'import torch' 2>/dev/null; then
  echo "no torch for python3: left out" | tee "$out/peers.txt"
elif [ -n "$gpu" ]; then
  within 240 python3 "$here/peers/peers.py" --device cuda --json "$out/peers.json" >"$out/peers.txt" 2>&1 || echo "peers.py: $?" >>"$out/peers.txt"
else
  within 60 python3 "$here/peers/peers.py" --device cpu --shape small --pairs 3 --json "$out/peers.json" >"$out/peers.txt" 2>&1 || echo "peers.py: $?" >>"$out/peers.txt"
fi

say "summary"
cat "$out/suite.txt"
python3 - "$out" <<'PY' || cat "$out"/bench/*.json
import json, sys
from pathlib import Path
out = Path(sys.argv[1])
print(f"\n{'bench':<26} {'median ms':>10} {'spread':>7} {'TFLOP/s':>8} {'GB/s':>8} {'share':>6}  of")
for file in sorted((out / "bench").glob("*.json")):
    r = json.loads(file.read_text())
    cell = lambda x, form: format(x, form) if x is not None else ""
    floor = r["floor"] or {"what": ""}
    print(f"{file.stem:<26} {r['median_ms']:>10.4g} {100 * r['spread']:>6.1f}% {cell(r.get('tflops'), '.4g'):>8} "
          f"{cell(r.get('gbps'), '.4g'):>8} {cell(r['share'], '.1%'):>6}  {floor['what']}")
PY
echo
cat "$out/peers.txt"
printf '\n%d s; results are in %s; the suite %s\n' "$SECONDS" "$out" "$([ "$failed" -eq 0 ] && echo passed || echo FAILED)"
exit "$failed"
