#!/usr/bin/env python3
"""Holds a report.json of `packforcing pack` against what the README promises."""
import json
import sys

report = json.load(open(sys.argv[1]))
early, late = report["ms_per_block_early"], report["ms_per_block_late"]
print(f"{report['blocks']} blocks, context {report['context_tokens_max']} tokens, "
      f"cache {report['cache_bytes'] / 1e6:.1f} MB of {report['full_cache_bytes'] / 1e6:.1f} MB, "
      f"late / early {late / early:.3f}")
assert report["cache_bytes"] < report["full_cache_bytes"], "packing saves memory"
for variant in report["variants"]:
    kept = variant["attention_mass_kept"]
    assert 0 < kept <= 1 + 1e-4 and 0 <= variant["rel_l2_vs_full"] < 2, variant
    print(f"{variant['compression']:>5} {variant['policy']:>7}: rel L2 {variant['rel_l2_vs_full']:.3f}, kept {kept:.3f}")
