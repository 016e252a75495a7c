#!/usr/bin/env python3
"""Compares the machine code of the kernels ours_NAME and theirs_NAME of pairs.cu.

    nvdisasm -c pairs.cubin | pairs.py device/ptx.cuh

Every function of ptx.cuh must have its pair.
"""

import difflib
import re
import sys
from pathlib import Path

# What CUTLASS asks for beside the instruction, and what then stands in its machine code.
KNOWN = {
    "cp_async": ("CUTLASS asks for 128 bytes to be prefetched to L2", [(r"\.LTC128B\b", "")]),
    "cp_async_wait_0": ("CUTLASS waits for copies of no group, too", [(r"^LDGDEPBAR$", "")]),
    "tma_load_4d": ("CUTLASS passes a cache hint, of 0", [(r", desc\[URZ\]$", "")]),
}

# What CUTLASS has nothing like.
ALONE = {
    "shared_address": "part of every pair",
    "ex2": "an instruction alone",
    "wgmma_hold": "no instruction",
}


def kernels(lines):
    """The instructions of every kernel, by its name, without padding and with jumps to nowhere in particular."""
    found, code = {}, None
    for line in lines:
        if section := re.match(r"\s*\.text\.(\w+):", line):
            code = found.setdefault(section.group(1), [])
        elif (instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+([^;]*?)\s*;", line)) and code is not None:
            text = re.sub(r"\.L_x_\d+", "L", re.sub(r"\s+", " ", instruction.group(1)))
            if text != "NOP":
                code.append(text)
    return found


def replaced(code, patterns):
    for pattern, by in patterns:
        code = [re.sub(pattern, by, text) for text in code]
    return [text for text in code if text]


def main():
    code = kernels(sys.stdin)
    names = [name.removeprefix("ours_") for name in code if name.startswith("ours_")]
    differ = 0
    for name in names:
        ours, theirs = code["ours_" + name], code["theirs_" + name]
        why, patterns = KNOWN.get(name, ("", []))
        same = ours == replaced(theirs, patterns)
        if why and ours == theirs:
            print(f"pairs: {name}: no longer another: {why}")
            same = False
        if not same:
            print(f"pairs: {name}:")
            for line in list(difflib.unified_diff(ours, replaced(theirs, patterns), "ours", "theirs", lineterm="", n=0))[:16]:
                print(f"    {line[:140]}")
            differ += 1
    functions = set(re.findall(r"^ *__device__ .*?(\w+)\(", Path(sys.argv[1]).read_text(), re.M))
    source = Path(__file__).with_suffix(".cu").read_text()
    for function in sorted(functions - ALONE.keys()):
        if not re.search(rf"\b{function}\b", source):
            print(f"pairs: {function} of ptx.cuh has no pair")
            differ += 1
    for name in KNOWN:
        if name not in names:
            print(f"pairs: no pair {name}")
            differ += 1
    print(f"{'DIFFERS' if differ else 'agrees':8} pairs: {len(names)} of machine code compared, {differ} differ, "
          f"{len(KNOWN)} known to: {'; '.join(f'{name}: {why}' for name, (why, _) in KNOWN.items())}")
    sys.exit(1 if differ or not names or not functions else 0)


main()
