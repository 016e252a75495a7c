#!/usr/bin/env bash
# What can be told of attention_sm90.cu without a card: that it compiles in under 40 seconds, without a spill
# or a remark of ptxas' that costs speed, and that its main loops are rows of HGMMA. Wants nvcc and nvdisasm:
#
#   eval "$(scripts/cuda-toolkit.sh --nvdisasm)" && scripts/check-sm90.sh
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
start=$(date +%s%N)
nvcc -gencode=arch=compute_90a,code=sm_90a -cubin -std=c++17 -O3 -Xptxas -v,-warn-spills \
  -I kernels/device -I kernels -o "$folder/attention.cubin" kernels/attention_sm90.cu 2>"$folder/report"
ms=$((($(date +%s%N) - start) / 1000000))
if grep -E 'erializ|wait injected|arrive injected|C75[0-9]{2}|[1-9][0-9]* bytes spill' "$folder/report"; then
  exit 1
fi
nvdisasm -c "$folder/attention.cubin" | scripts/check-sass.py
echo "attention_sm90.cu: compiled in $ms ms"
test "$ms" -lt 40000
