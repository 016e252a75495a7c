#!/usr/bin/env python3
"""Holds a report.json of `packforcing pack` against what the README promises."""
import json
import sys

report = json.load(open(sys.argv[1]))
early, late = report["ms_per_block_early"], report["ms_per_block_late"]
print(f"{report['blocks']} blocks, context {report['context_tokens_max']} tokens, "
      f"cache {report['cache_bytes'] / 1e6:.1f} MB of {report['full_cache_bytes'] / 1e6:.1f} MB, "
      f"late / early {late / early:.3f} (at most 1.1 on a quiet machine), {report['elapsed_seconds']:.0f} s in all")
assert report["cache_bytes"] < report["full_cache_bytes"], "packing saves memory"
assert report["context_tokens_max"] == 2 * 960 + 16 * 30 + 960 + 960, "sink, 16 merged blocks, recent, current"
assert len(report["samples"]) >= 12 and len(report["variants"]) == 9
assert report["peak_rss_bytes"] < 200e6, "memory does not grow with the video"
for variant in report["variants"]:
    kept = variant["attention_mass_kept"]
    assert 0 < kept <= 1 + 1e-4 and 0 < variant["rel_l2_vs_full"] < 0.3, variant
    print(f"{variant['compression']:>5} {variant['policy']:>7}: rel L2 {variant['rel_l2_vs_full']:.3f}, kept {kept:.3f}")
run = next(v for v in report["variants"] if (v["compression"], v["policy"]) == ("mean", "top"))
difference = abs(run["rel_l2_vs_full"] - report["run_rel_l2_vs_full"])
assert difference < 1e-4, "the cache returns what its context, built by hand, gives"
