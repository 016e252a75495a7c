#!/usr/bin/env python3
"""Compares the sizes of the kernels' plans of shared memory under nvcc and under the host's C++ compiler.

    plans.py FOLDER    with NAME.ptx and NAME.nm (of nm -S) of every kernel file, compiled after plans.h

The launchers' formulas are held against the host's sizes by the suite: the SIMT device refuses a launch that asks
for less than the plan.
"""

import re
import subprocess
import sys
from pathlib import Path


def by_type(pairs):
    """(mangled name, bytes) as a table by the plan's type."""
    names = subprocess.run(["c++filt"], input="\n".join(n for n, _ in pairs), capture_output=True, text=True, check=True)
    plans = {}
    for name, (_, size) in zip(names.stdout.splitlines(), pairs):
        plans[re.search(r"plan_of<(.*)>$", name).group(1)] = size
    return plans


def main():
    folder, compared, differ = Path(sys.argv[1]), 0, 0
    for ptx in sorted(folder.glob("*.ptx")):
        device = by_type([(m[1], int(m[2])) for m in re.finditer(r"\.b8 (\w*plan_of\w*)\[(\d+)\]", ptx.read_text())])
        lines = map(str.split, ptx.with_suffix(".nm").read_text().splitlines())
        host = by_type([(line[3], int(line[1], 16)) for line in lines if len(line) == 4 and "plan_of" in line[3]])
        for plan in sorted(device.keys() | host.keys()):
            compared += 1
            if device.get(plan) != host.get(plan):
                differ += 1
                print(f"plans: {ptx.stem}.cu, {plan}: {device.get(plan)} bytes by nvcc, {host.get(plan)} by the host's compiler")
    good = compared and not differ
    print(f"{'agrees' if good else 'DIFFERS':8} plans: {compared} compared, {differ} differ")
    sys.exit(0 if good else 1)


main()
