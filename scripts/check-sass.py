#!/usr/bin/env python3
"""Looks at the disassembly of a kernel file for what makes wgmma slow without being wrong.

    nvdisasm -c attention_sm90.cubin | scripts/check-sass.py

Of every kernel: a loop with all products of a tile in it (HGMMA), at most two waits for products in that
loop (a wait after each product is what ptxas makes where it "serializes"), no local memory (a spill), and
registers that change hands (USETMAXREG: ptxas drops setmaxnreg with no more than a remark).
"""

import re
import sys


def kernels(lines):
    """Name and instructions, as (label or None, text), of every kernel."""
    name, code = None, []
    for line in lines:
        section = re.match(r"\s*\.section\s+\.text\.(\w+)", line)
        if section:
            if name:
                yield name, code
            name, code = section.group(1), []
        label = re.match(r"(\.L_x_\d+):", line)
        instruction = re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line)
        if label:
            code.append((label.group(1), ""))
        elif instruction:
            code.append((None, instruction.group(1)))
    if name:
        yield name, code


def loops(code):
    """(first, last) of every backward branch."""
    at = {label: i for i, (label, _) in enumerate(code) if label}
    for i, (_, text) in enumerate(code):
        target = re.search(r"\bBRA\b.*?`\((\.L_x_\d+)\)", text)
        if target and at.get(target.group(1), i + 1) <= i:
            yield at[target.group(1)], i


def count(code, pattern):
    return sum(bool(re.search(pattern, text)) for _, text in code)


def check(name, code):
    faults = []
    if spills := count(code, r"\b(STL|LDL)\b"):
        faults.append(f"{spills} accesses of local memory")
    given, taken = count(code, r"\bUSETMAXREG\.DEALLOC\b"), count(code, r"\bUSETMAXREG\.TRY_ALLOC\b")
    if not given or not taken:
        faults.append(f"{given} USETMAXREG that give registers up, {taken} that take them")
    # Head dim / 16 products for the logits, 96 / 16 for the results.
    wanted = int(name.rsplit("_", 1)[1]) // 16 + 96 // 16
    bodies = [code[first : last + 1] for first, last in loops(code)]
    main = min((b for b in bodies if count(b, r"\bHGMMA\b") >= wanted), key=len, default=None)
    if main is None:
        return faults + [f"no loop with {wanted} HGMMA"]
    products, waits = count(main, r"\bHGMMA\b"), count(main, r"\bWARPGROUP\.DEPBAR\b")
    if waits > 2 + (products > wanted):
        faults.append(f"{waits} waits for {products} products in the loop")
    print(f"{name}: {products} HGMMA and {waits} waits in a loop of {len(main)} instructions")
    return faults


def main():
    failed = found = 0
    for name, code in kernels(sys.stdin):
        found += 1
        for fault in check(name, code):
            print(f"{name}: {fault}", file=sys.stderr)
            failed += 1
    if not found:
        print("no kernel in the disassembly", file=sys.stderr)
    sys.exit(1 if failed or not found else 0)


main()
