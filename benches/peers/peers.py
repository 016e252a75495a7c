#!/usr/bin/env python3
"""Times attention of this repository against PyTorch's and, where importable, FlashInfer's and
FlashAttention 3's, on the same shapes and in turns: one sample of ours, one of the peer's, the order
swapped from pair to pair. README.md beside this file says what is compared. Only torch is needed.

    python3 benches/peers/peers.py --device cuda --json peers.json
"""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

# Threads of torch that wait must not take the cores that our turn needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    sys.exit(f"peers.py needs PyTorch 2.5 or later: {error}")

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# The largest error of a result against one in f32, relative to its norm: a few roundings of the dtype.
TOLERANCE = {"f32": 1e-4, "f16": 4e-3, "bf16": 2e-2}
# queries, keys, heads, kv heads, head dim
SHAPES = {
    "cuda": {"wan": (6240, 27872, 12, 12, 128), "8k": (8192, 8192, 16, 16, 128), "16k": (16384, 16384, 16, 16, 128)},
    "cpu": {"frame": (390, 8192, 4, 4, 128), "small": (256, 692, 4, 4, 128)},
}
BACKENDS = {"cuda": ("cudnn", "flash", "efficient"), "cpu": ("flash", "math")}
SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# Samples are at least this long, in ms: short ones tell of launches, long ones of other programs.
SAMPLE_MS = {"cuda": 10.0, "cpu": 20.0}


def rotated_bytes(device):
    """What all copies of the inputs hold together: four times the cache nearest to memory."""
    if device == "cuda":
        cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
        return 4 * max(cache, 60 << 20)
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    kilobytes = [int(text[:-1]) for text in (size.read_text().strip() for size in sizes) if text.endswith("K")]
    return min(4 * 1024 * max(kilobytes, default=32 << 10), 256 << 20)


class Inputs:
    """Normal random queries, keys and values; with pages, the keys and values in a pool of them, in
    random order: page `order[i // page]`, slot `i % page` holds key i."""

    def __init__(self, shape, dtype, device, page, seed):
        queries, keys, heads, kv_heads, dim = shape
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*extents):
            return torch.randn(*extents, generator=generator, device=device, dtype=torch.float32).to(dtype)

        self.q = normal(1, queries, heads, dim)
        if page is None:
            self.k, self.v = normal(1, keys, kv_heads, dim), normal(1, keys, kv_heads, dim)
            return
        self.page, self.pages = page, -(-keys // page)
        self.order = torch.randperm(self.pages, generator=generator, device=device)
        self.k_pages, self.v_pages = (normal(self.pages, page, kv_heads, dim) for _ in range(2))
        slot = torch.arange(keys, device=device)
        self.slots = self.order[slot // page] * page + slot % page

    def gathered(self):
        """Keys and values in their order, without pages."""
        if not hasattr(self, "k_pages"):
            return self.k, self.v
        return tuple(x.flatten(0, 1).index_select(0, self.slots)[None] for x in (self.k_pages, self.v_pages))

    def bytes(self):
        tensors = [x for x in vars(self).values() if isinstance(x, torch.Tensor)]
        return sum(x.numel() * x.element_size() for x in tensors) + self.q.numel() * self.q.element_size()


def sdpa(backend):
    """One backend of torch's scaled_dot_product_attention; pages are gathered first."""

    def prepare(inputs):
        def call():
            k, v = inputs.gathered()
            q, k, v = (x.transpose(1, 2) for x in (inputs.q, k, v))
            with sdpa_kernel([SDPA[backend]]):
                return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)

        return call

    return prepare


def flashinfer_peer(inputs):
    import flashinfer

    q = inputs.q[0]
    if not hasattr(inputs, "k_pages"):
        k, v = inputs.k[0], inputs.v[0]
        return lambda: flashinfer.single_prefill_with_kv_cache(q, k, v, causal=False, kv_layout="NHD")[None]
    device, keys = q.device, inputs.slots.numel()
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
        torch.empty(256 << 20, dtype=torch.uint8, device=device), "NHD"
    )

    def numbers(*values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    wrapper.plan(
        numbers(0, q.shape[0]),
        numbers(0, inputs.pages),
        inputs.order.to(torch.int32),
        numbers(keys - (inputs.pages - 1) * inputs.page),
        q.shape[1],
        inputs.k_pages.shape[2],
        q.shape[2],
        inputs.page,
        causal=False,
        q_data_type=q.dtype,
        kv_data_type=q.dtype,
    )
    return lambda: wrapper.run(q, (inputs.k_pages, inputs.v_pages))[None]


def flash_attention_3(inputs):
    import flash_attn_interface as fa3

    def out(result):
        return result[0] if isinstance(result, tuple) else result

    if not hasattr(inputs, "k_pages"):
        return lambda: out(fa3.flash_attn_func(inputs.q, inputs.k, inputs.v, causal=False))
    lengths = torch.tensor([inputs.slots.numel()], dtype=torch.int32, device=inputs.q.device)
    table = inputs.order.to(torch.int32)[None]
    return lambda: out(
        fa3.flash_attn_with_kvcache(
            inputs.q, inputs.k_pages, inputs.v_pages, cache_seqlens=lengths, page_table=table, causal=False
        )
    )


# Other builds of our kernel, as the peers of the one that is chosen: name, whether paged, its --kernel.
BUILDS = [
    ("ours, sm90-plain", False, "sm90-plain"),
    ("ours, sm90-overlapped-plain", False, "sm90-overlapped-plain"),
    ("ours, sm90-overlapped", True, "sm90-overlapped"),
    ("ours, sm90-free", True, "sm90-free"),
    ("ours, sm80", True, "sm80"),
]


def peers(device, paged):
    gather = "gather + " if paged else ""
    made = [(f"{gather}SDPA {backend}", sdpa(backend)) for backend in BACKENDS[device]]
    if device == "cuda":
        made += [("FlashInfer", flashinfer_peer), ("FlashAttention 3", flash_attention_3)]
    return made


def error_against_f32(inputs, result):
    """The relative L2 error of some rows against a plain softmax in f32."""
    k, v = (x.float() for x in inputs.gathered())
    queries = inputs.q.shape[1]
    rows = torch.linspace(0, queries - 1, min(queries, 64), device=inputs.q.device).long()
    q = inputs.q[:, rows].float()
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    wide = q.shape[-1] ** -0.5 * torch.einsum("bqhd,bkhd->bhqk", q, k)
    expected = torch.einsum("bhqk,bkhd->bqhd", wide.softmax(-1), v)
    return ((result[:, rows].float() - expected).norm() / expected.norm()).item()


class Peer:
    """Calls that go through copies of the inputs, timed as ours are."""

    def __init__(self, prepare, shape, dtype, device, page):
        inputs = Inputs(shape, dtype, device, page, seed=0)
        copies = max(1, min(64, -(-rotated_bytes(device) // inputs.bytes())))
        every = [inputs] + [Inputs(shape, dtype, device, page, seed=i) for i in range(1, copies)]
        self.calls, self.next, self.device = [prepare(inputs) for inputs in every], 0, device
        self.error = error_against_f32(inputs, self.calls[0]())
        self.count = 1
        while True:
            took = self.sample()
            if took * self.count >= SAMPLE_MS[device]:
                break
            self.count = max(self.count + 1, int(self.count * min(8, 1.1 * SAMPLE_MS[device] / max(took * self.count, 1e-6))))

    def call(self):
        self.calls[self.next]()
        self.next = (self.next + 1) % len(self.calls)

    def sample(self):
        """Milliseconds of a call, after one that does not count."""
        self.call()
        if self.device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(self.count):
                self.call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / self.count
        start = time.perf_counter()
        for _ in range(self.count):
            self.call()
        return 1e3 * (time.perf_counter() - start) / self.count


class Ours:
    """`packforcing bench attention --turns`: a line in, a line of JSON back."""

    def __init__(self, program, shape, dtype, device, page, more):
        names = ("--queries", "--keys", "--heads", "--kv-heads", "--dim")
        options = [text for name, n in zip(names, shape) for text in (name, str(n))]
        options += ["--contiguous"] if page is None else ["--page-tokens", str(page)]
        options += ["--dtype", dtype, "--device", device, "--sample-ms", str(SAMPLE_MS[device]), "--turns", *more]
        self.command = [str(program), "bench", "attention", *options]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.sample()  # answered when it is warm

    def sample(self):
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            sys.exit(f"{' '.join(self.command)} ended with {self.process.wait()}")
        return json.loads(line)["ms"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def take_turns(ours, peer, pairs, device):
    """Pairs of milliseconds, ours and the peer's."""
    taken = []
    for i in range(pairs):
        times = {}
        for name in ("ours", "peer") if i % 2 == 0 else ("peer", "ours"):
            times[name] = ours.sample() if name == "ours" else peer.sample()
            if device == "cpu":
                time.sleep(0.02)  # threads that still wait for work go to sleep
        taken.append((times["ours"], times["peer"]))
    return taken


def quartiles(values):
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def row(name, layout, shape, peer_name, error, taken):
    queries, keys, heads, _, dim = shape
    flops = 4.0 * queries * keys * heads * dim
    ours, theirs = (statistics.median(pair[i] for pair in taken) for i in (0, 1))
    low, middle, high = quartiles([peer / our for our, peer in taken])
    return {
        "shape": name,
        "layout": layout,
        "queries": queries,
        "keys": keys,
        "heads": heads,
        "kv_heads": shape[3],
        "dim": dim,
        "peer": peer_name,
        "peer_error_against_f32": error,
        "pairs": len(taken),
        "ours_ms": ours,
        "peer_ms": theirs,
        "ours_tflops": 1e-9 * flops / ours,
        "peer_tflops": 1e-9 * flops / theirs,
        "ratio": middle,
        "ratio_quartiles": [low, high],
    }


def find_program(given):
    here = Path(__file__).resolve()
    places = [given] if given else [os.environ.get("PACKFORCING")]
    if not given:
        places += [folder / "target/release/packforcing" for folder in here.parents]
        places += [folder / "bin/packforcing" for folder in here.parents] + [shutil.which("packforcing")]
    for place in filter(None, places):
        if Path(place).is_file():
            return Path(place)
    sys.exit("peers.py: no packforcing program: cargo build --release -p packforcing-cli, or --program FILE")


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 on a GPU, f32 on the CPU")
    parser.add_argument("--pairs", type=int, default=20, help="turns of each, at least 1 (default: 20)")
    parser.add_argument("--shape", action="append", help="one of the named shapes, or QUERIES,KEYS,HEADS,KV_HEADS,DIM; may be repeated")
    parser.add_argument("--layout", choices=("contiguous", "paged", "both"), default="both")
    parser.add_argument("--page-tokens", type=int, default=96)
    parser.add_argument("--program", type=Path, help="the packforcing program; looked for where cargo puts it")
    parser.add_argument("--ours", action="append", default=[], metavar="OPTION", help="passed on to packforcing bench attention, as in --ours=--segments --ours=1")
    parser.add_argument("--json", type=Path, help="writes everything into this file")
    given = parser.parse_args()
    if given.pairs < 1 or given.page_tokens < 1:
        parser.error("--pairs and --page-tokens are at least 1")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    given.dtype = given.dtype or ("bf16" if given.device == "cuda" else "f32")
    known, shapes = SHAPES[given.device], {}
    for name in given.shape or known:
        numbers = known.get(name) or tuple(int(n) if n.isdigit() else 0 for n in name.split(","))
        if len(numbers) != 5 or min(numbers) < 1 or numbers[2] % numbers[3]:
            parser.error(f"--shape {name}: one of {', '.join(known)}, or five numbers, heads a multiple of kv heads")
        shapes[name] = numbers
    given.shapes = shapes
    return given


def main():
    given = options()
    program, device = find_program(given.program), given.device
    warnings.filterwarnings("ignore", module="torch")
    torch.set_grad_enabled(False)
    where = torch.cuda.get_device_name(0) if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__} on {where}, {given.dtype}, {given.pairs} pairs, samples of {SAMPLE_MS[device]:g} ms and more")
    layouts = ("contiguous", "paged") if given.layout == "both" else (given.layout,)
    rows, failed = [], []

    def save():
        """What there is so far: a peer that hangs takes nothing with it."""
        record = {
            "torch": torch.__version__,
            "device": where,
            "dtype": given.dtype,
            "sample_ms": SAMPLE_MS[device],
            "page_tokens": given.page_tokens,
            "rows": rows,
            "not_run": failed,
        }
        if given.json:
            given.json.write_text(json.dumps(record, indent=1) + "\n")

    # Whoever ends it early sees what there is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("peers.py: told to end"))
    try:
        for name, shape in given.shapes.items():
            for layout in layouts:
                page = given.page_tokens if layout == "paged" else None
                ours = Ours(program, shape, given.dtype, device, page, given.ours)
                for peer_name, prepare in peers(device, page is not None):
                    try:
                        peer = Peer(prepare, shape, DTYPES[given.dtype], device, page)
                    except Exception as error:  # whatever keeps a peer from running is told, and the others go on
                        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                        failed.append({"shape": name, "layout": layout, "peer": peer_name, "reason": reason, "wrong": False})
                        continue
                    if not peer.error <= TOLERANCE[given.dtype]:
                        reason = f"its result is {peer.error:.2e} off (relative L2, against f32)"
                        failed.append({"shape": name, "layout": layout, "peer": peer_name, "reason": reason, "wrong": True})
                        continue
                    taken = take_turns(ours, peer, given.pairs, device)
                    rows.append(row(name, layout, shape, peer_name, peer.error, taken))
                    del peer
                    if device == "cuda":
                        torch.cuda.empty_cache()
                    save()
                hopper = device == "cuda" and torch.cuda.get_device_capability(0) == (9, 0)
                if hopper and page is not None and name == "wan" and given.dtype == "bf16":
                    for build, paged, kernel in BUILDS:
                        other = Ours(program, shape, given.dtype, device, page if paged else None, ["--kernel", kernel])
                        taken = take_turns(ours, other, given.pairs, device)
                        rows.append(row(name, layout, shape, build, None, taken))
                        other.close()
                        save()
                ours.close()
    finally:
        save()
        show(rows, failed)
    if any(f["wrong"] for f in failed) or not rows:
        sys.exit(1)


def show(rows, failed):
    print(f"\n{'shape':<8} {'layout':<10} {'peer':<28} {'ours ms':>9} {'peer ms':>9} {'ours':>8} {'peer':>8}  ours / peer (middle half)")
    for r in rows:
        low, high = r["ratio_quartiles"]
        print(
            f"{r['shape']:<8} {r['layout']:<10} {r['peer']:<28} {r['ours_ms']:>9.4g} {r['peer_ms']:>9.4g} "
            f"{r['ours_tflops']:>8.4g} {r['peer_tflops']:>8.4g}  {r['ratio']:.3f} ({low:.3f} to {high:.3f})"
        )
    print("medians; rates in TFLOP/s; above 1: ours is faster")
    for f in failed:
        print(f"{'WRONG' if f['wrong'] else 'not run'}: {f['shape']} {f['layout']} {f['peer']}: {f['reason']}")


if __name__ == "__main__":
    main()
