#!/usr/bin/env python3
"""Holds a report.json of `packforcing sample` (default options but for the length) against what the README promises."""
import json
import sys

report = json.load(open(sys.argv[1]))
early, late = report["ms_per_block_early"], report["ms_per_block_late"]
identity = report["identity"]
print(f"{report['frames']} frames in {sum(report['ms_per_block']) / 1e3:.0f} s, cache {report['cache_bytes'][-1] / 1e6:.1f} MB, "
      f"late / early {late / early:.3f} (at most 1.1 on a quiet machine), "
      f"identity {identity['motion_5_s']:.3f} over 5 s, {identity['look']:.3f} over all")
assert report["blocks"] > 60 and report["frames"] == 4 * report["blocks"]
assert len(set(report["cache_bytes"])) == 1, "the cache does not grow"
assert set(report["context_tokens"][6:]) == {3 * 192 + 4 * 12}, "sink, 4 compressed blocks, recent, current"
resident = report["resident_bytes"]
assert resident[-1] < resident[20] + 40e6, f"memory does not grow with the video: {resident[20]} to {resident[-1]}"
if report["frames"] == 960:
    assert sum(report["ms_per_block"]) < 180e3, "24 times the length of a training clip within three minutes"
assert identity["motion_5_s"] > 0.9 and identity["look"] > 0.8, "the scene is still there"
assert abs(sum(report["time_shares"].values()) - 1) < 1e-9
