#!/usr/bin/env python3
"""Prints every dependency of the library (not of its tests) whose rust-version is above the library's.

Reads `cargo metadata --format-version 1` on standard input.
"""
import json
import sys

meta = json.load(sys.stdin)
packages = {p["id"]: p for p in meta["packages"]}
nodes = {n["id"]: n for n in meta["resolve"]["nodes"]}
root = next(p["id"] for p in meta["packages"] if p["name"] == "packforcing")


def version(text):
    return tuple(int(part) for part in (text.split(".") + ["0", "0"])[:3])


wanted = version(packages[root]["rust_version"])
seen, queue = set(), [root]
while queue:
    node = queue.pop()
    if node in seen:
        continue
    seen.add(node)
    for dep in nodes[node]["deps"]:
        if any(kind["kind"] in (None, "build") for kind in dep["dep_kinds"]):
            queue.append(dep["pkg"])
for node in sorted(seen):
    package = packages[node]
    if package["rust_version"] and version(package["rust_version"]) > wanted:
        print(package["name"], package["version"], "wants Rust", package["rust_version"])
