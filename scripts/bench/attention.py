"""Time dense attention, the Lighthouse layer, and dense attention over its S selected rows, on one GPU.

    python scripts/bench/attention.py [--sizes 32768,98304] [--csv scripts/bench/results/attention.csv]

Rows named `windowed 512` are the layer with lighthouse.window=512; `rows` and `near` are its two attention
calls alone. First checks the layers against the float32 reference, and prints no times if a check fails. A
time is the median of CUDA-graph replays, measured with events; code that cannot be captured is timed without
a graph.
B = 1, H = 8, D = 128, bf16, L = 3, p = 4, k = N / 64; from 1,048,576 tokens on L = 4, k = 4,096.
"""

import argparse
import csv
import itertools
import random
import statistics
import sys
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import triton

from lhtrain.attention import Pyramid, dense_attention, lighthouse_attention
from lhtrain.attention.dense_kernels import DENSE_KERNELS, attend_with_lse, backward_of, kernel_for
from lhtrain.attention.documents import Documents, documents_of
from lhtrain.attention.flash4 import FA4_FROM, INSTALLED
from lhtrain.attention.lighthouse import level_scores
from lhtrain.attention.window_kernels import WINDOW_KERNELS, window_kernel_for
from lhtrain.attention.windowed import merge_window
from lhtrain.kernels.merge.kernel import merge, merge_backward
from lhtrain.kernels.scores import Tokens
from lhtrain.kernels.scores.gla import Gla
from lhtrain.kernels.scores.kernel import score
from lhtrain.kernels.selection import naive
from lhtrain.kernels.selection.kernel import select_rows
from lhtrain.kernels.selection.naive import inverse
from lhtrain.kernels.windows import kernel as windows
from lhtrain.kernels.windows.naive import gather_pooled, scatter_back
from lhtrain.registry import SCORERS

HEADS, DIM, WINDOW = 8, 128, 512
SIZES = "8192,16384,32768,65536,98304,131072,262144,524288,1048576"
# Target speed-ups of the published layer over dense cuDNN attention: (forward, forward + backward).
TARGETS = {32768: (8, 9), 98304: (18, 22), 262144: (25, 25), 524288: (25, 25)}
DENSE_UP_TO = {"cudnn": 524_288, "fa4": 524_288, "flash": 131_072}  # above, one call takes seconds
COLUMNS = ["gpu", "torch", "triton", "cudnn", "date", "seq_len", "levels", "pooling", "budget"]
COLUMNS += ["direction", "impl", "ms", "speedup_vs_cudnn"]


def pyramid_for(seq_len: int) -> Pyramid:
    if seq_len >= 2**20:
        return Pyramid(seq_len, 4, 4, 4096).check()
    return Pyramid(seq_len, 3, 4, seq_len // 64).check()


def sizes(pyramid: Pyramid) -> dict[str, int]:
    return {"levels": pyramid.levels, "pooling": pyramid.pooling, "budget": pyramid.budget}


def draw(seq_len: int, dtype=torch.bfloat16) -> list[torch.Tensor]:
    """Return random q, k, v and gradient of the output, each (1, seq_len, HEADS, DIM)."""
    make = torch.Generator("cuda").manual_seed(seq_len)
    shape = (1, seq_len, HEADS, DIM)
    return [torch.randn(shape, generator=make, device="cuda", dtype=dtype) for _ in range(4)]


def relative(a, b) -> float:
    a, b = a.detach().float(), b.detach().float()
    return float((a - b).norm() / b.norm())


def check(window: int, seq_len: int = 16_384) -> bool:
    """Compare the layer and its gradients with float32 reference code that uses the kernels' scores."""
    pyramid = Pyramid(seq_len, 3, 4, 256).check()
    q, k, v, grad = draw(seq_len)
    qk, kq = score(q, k, pyramid)
    indices, _ = naive.select_rows(qk, kq, pyramid, True)
    same = torch.equal(select_rows(qk, kq, pyramid, True)[0].long(), indices)

    def reference(q, k, v):
        rows = [gather_pooled(x, indices, pyramid) for x in (q, k, v)]
        if not window:
            return scatter_back(dense_attention(*rows, "math"), indices, pyramid)
        far, lse = attend_with_lse(*rows, kernel=DENSE_KERNELS["naive"])
        places = inverse(indices, pyramid)
        return merge_window(q, k, v, far, lse, places, pyramid, window, kernels=False)

    layer = partial(lighthouse_attention, window=window, **sizes(pyramid))
    got = with_gradients(layer, (q, k, v), grad)
    want = with_gradients(reference, [x.float() for x in (q, k, v)], grad.float())
    errors = [relative(a, b) for a, b in zip(got, want, strict=True)]
    shown = " ".join(f"{e:.1e}" for e in errors)
    selection = "equal" if same else "DIFFERS"
    print(f"check N={seq_len}, window {window}: selection {selection}; errors of out, dq, dk, dv: {shown}")
    return same and all(e < 1e-2 for e in errors)


def with_gradients(fn, inputs, grad):
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = fn(*inputs)
    return out, *torch.autograd.grad(out, inputs, grad)


def milliseconds(fn, capture: bool = True, budget_ms: float = 200.0) -> float:
    """Return the median time of `fn` over about `budget_ms`; of two plain calls if one takes longer."""
    fn()
    first = _once(fn)
    if first > budget_ms:  # launch overhead does not matter here
        return statistics.median([_once(fn), _once(fn)])
    run = graph_of(fn) if capture else fn
    run()
    repeats = min(50, max(3, int(budget_ms / first)))
    return statistics.median([_once(run) for _ in range(repeats)])


def _once(run) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def graph_of(fn):
    """Capture `fn` in a CUDA graph and return the graph's replay function."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            fn()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    return graph.replay


def both_directions(fn, inputs, grad, capture=True) -> dict[str, float]:
    with torch.no_grad():
        forward = milliseconds(lambda: fn(*inputs), capture)
    return {"fwd": forward, "fwd_bwd": milliseconds(lambda: with_gradients(fn, inputs, grad), capture)}


def time_size(seq_len: int, rows: list[dict], base: dict, eager: bool) -> None:
    pyramid = pyramid_for(seq_len)
    q, k, v, grad = draw(seq_len)
    times = {}
    for name, most in DENSE_UP_TO.items():
        if seq_len <= most and INSTALLED.get(name, True):
            times["dense " + name] = both_directions(partial(dense_attention, backend=name), (q, k, v), grad)
    if "dense cudnn" not in times:  # the cost is quadratic: four times that of half the length
        halves = (r for r in rows if (r["seq_len"], r["impl"]) == (seq_len // 2, "dense cudnn"))
        half = {r["direction"]: r["ms"] for r in halves}
        if half:
            times["dense cudnn (extrapolated)"] = {d: 4 * ms for d, ms in half.items()}
    # Time the kernel that `auto` chooses, and the other one.
    others = ["cudnn" if pyramid.n_selected >= FA4_FROM else "fa4"] if INSTALLED["fa4"] else []
    layers = {"layer": "auto"} | {f"layer, {name}": name for name in others}
    for name, dense in layers.items():
        fn = partial(lighthouse_attention, dense=dense, **sizes(pyramid))
        times[name] = both_directions(fn, (q, k, v), grad)
    if eager and seq_len <= 32_768:  # launch overhead matters only for short sequences
        fn = partial(lighthouse_attention, **sizes(pyramid))
        times["layer, not captured"] = both_directions(fn, (q, k, v), grad, capture=False)
        compiled = torch.compile(fn, fullgraph=True)
        times["layer, compiled, not captured"] = both_directions(compiled, (q, k, v), grad, capture=False)
        torch.compiler.reset()
    some = [x[:, : pyramid.n_selected].contiguous() for x in (q, k, v, grad)]
    for name in ["auto", *others]:
        times[f"S rows, {name}"] = both_directions(partial(dense_attention, backend=name), some[:3], some[3])
    if seq_len > WINDOW:
        times |= time_windowed(q, k, v, grad, pyramid)
    cudnn = times.get("dense cudnn") or times.get("dense cudnn (extrapolated)")
    for impl, by_direction in times.items():
        for direction, ms in by_direction.items():
            speedup = round(cudnn[direction] / ms, 2) if cudnn else ""
            found = {"seq_len": seq_len, "direction": direction, "impl": impl, "ms": round(ms, 4)}
            rows.append(base | sizes(pyramid) | found | {"speedup_vs_cudnn": speedup})
    targets = "x, ".join(map(str, TARGETS[seq_len])) + "x" if seq_len in TARGETS else "none"
    print(
        f"\nN={seq_len} S={pyramid.n_selected} {sizes(pyramid)}; target speed-ups (fwd, fwd+bwd): {targets}"
    )
    print(f"  {'':30} {'fwd ms':>9} {'':7} {'f+b ms':>9}   speed-up over dense cudnn beside each time")
    for impl, ms in times.items():
        ratios = {d: cudnn[d] / ms[d] if cudnn else float("nan") for d in ms}
        print(f"  {impl:30}", *(f"{ms[d]:9.3f} {ratios[d]:6.2f}x" for d in ms))
    if seq_len > WINDOW:
        whole, rows_part, near = (times[f"windowed {WINDOW}{part}"] for part in ("", ", rows", ", near"))
        shares = (f"{1 - (rows_part[d] + near[d]) / whole[d]:.0%}" for d in whole)
        print(f"  outside of attention calls: {' fwd, '.join(shares)} fwd+bwd of windowed {WINDOW}")


def time_windowed(q, k, v, grad, pyramid: Pyramid) -> dict[str, dict[str, float]]:
    """Time the windowed layer, and each of its two attention calls alone."""
    name = f"windowed {WINDOW}"
    layer = partial(lighthouse_attention, window=WINDOW, **sizes(pyramid))
    some = [x[:, : pyramid.n_selected].contiguous() for x in (q, k, v, grad)]
    near, attend = WINDOW_KERNELS[window_kernel_for(q)], kernel_for(some[0])
    out, lse = near.forward(q, k, v, WINDOW)
    results = attend.forward(*some[:3], True)
    grad_lse = torch.ones_like(results[1])
    calls = {
        ", rows": (
            lambda: attend.forward(*some[:3], True),
            lambda: backward_of(attend, some[3], grad_lse, *some[:3], *results, True),
        ),
        ", near": (
            lambda: near.forward(q, k, v, WINDOW),
            lambda: near.backward(grad, q, k, v, out, lse, WINDOW),
        ),
    }
    times = {name: both_directions(layer, (q, k, v), grad)}
    for part, passes in calls.items():
        forward, backward = map(milliseconds, passes)
        times[name + part] = {"fwd": forward, "fwd_bwd": forward + backward}
    print(f"windowed {WINDOW} at N={q.shape[1]}: rows by {attend.name}, near by {near.name}")
    return times


def time_documents(seq_len: int) -> None:
    """Time dense attention to documents apart: many short ones of 1,024 to 8,192 tokens, and one long one."""
    q, k, v, grad = draw(seq_len)
    lengths = random.Random(0)
    short = list(itertools.accumulate(lengths.randint(1024, 8192) for _ in range(seq_len // 1024)))
    cases: dict[str, list[int] | None] = {"together": None, "apart, one document": []}
    cases["apart, documents of 1,024 to 8,192"] = [begin for begin in short if begin < seq_len]
    print(f"\ndense attention at N={seq_len}: ms of the forward pass, and of both passes")
    for name, begins in cases.items():
        documents = None if begins is None else documents_of([begins], seq_len, seq_len // 1024 + 16)
        documents = documents and Documents(*(x.cuda() for x in documents))
        times = both_directions(partial(dense_attention, documents=documents), (q, k, v), grad)
        print(f"  {name:36}", *(f"{ms:9.3f}" for ms in times.values()))


def time_scorers(seq_len: int) -> None:
    """Time each scorer alone, as the layer calls it; the norms also by their own kernel."""
    pyramid = pyramid_for(seq_len)
    q, k, v, _ = draw(seq_len)
    x = torch.randn(1, seq_len, HEADS * DIM, device="cuda", dtype=torch.bfloat16)
    tokens = Tokens(q, k, v, torch.arange(seq_len, device="cuda"), x, dense_attention)
    gla = Gla(SimpleNamespace(n_kv_heads=HEADS, dim=HEADS * DIM)).cuda()
    torch.nn.init.normal_(gla.weight, std=0.02)
    cases = {"norm, kernel": lambda: score(q, k, pyramid)}
    for name in SCORERS.names():
        scorer = gla if name == "gla" else SCORERS[name]()
        cases[name] = partial(level_scores, scorer, tokens, pyramid)
        cases[f"{name}, compiled"] = torch.compile(cases[name], fullgraph=True, dynamic=False)
    print(f"\nscorers at N={seq_len}: ms, GB of peak memory beside their inputs")
    for name, fn in cases.items():
        fn()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fn()
        peak = torch.cuda.max_memory_allocated() - before
        print(f"  {name:24} {milliseconds(fn):8.4f} {peak / 1e9:7.3f}")
    torch.compiler.reset()


def copy_ceiling() -> float:
    """Return the GB/s of a device-to-device copy, counting bytes read and bytes written."""
    x = torch.empty(2**31, device="cuda", dtype=torch.uint8).random_()
    y = torch.empty_like(x)
    return 2 * x.numel() / milliseconds(lambda: y.copy_(x), capture=False) / 1e6


def time_kernels(seq_len: int, ceiling: float) -> None:
    """Time each kernel alone, and compare with the bytes that it must move."""
    pyramid = pyramid_for(seq_len)
    q, k, v, grad = draw(seq_len)
    token, row = HEADS * DIM * 2, HEADS * DIM * 2 * pyramid.n_selected
    tokens = seq_len * token
    kept = 4 * HEADS * pyramid.n_selected
    above, entries = 4 * HEADS * (pyramid.n_entries - seq_len), 4 * HEADS * pyramid.n_entries
    qk, kq = score(q, k, pyramid)
    _, row_of_entry = select_rows(qk, kq, pyramid, True)
    rows = windows.gather(q, k, v, row_of_entry, pyramid)
    merged = torch.zeros_like(q), torch.zeros(1, HEADS, seq_len, device="cuda")
    far = rows[0], torch.zeros(1, HEADS, pyramid.n_selected, device="cuda")
    statistics_bytes = 4 * HEADS * (seq_len + pyramid.n_selected)
    cases = {
        "score": (lambda: score(q, k, pyramid), 2 * tokens + 2 * above),
        "select": (lambda: select_rows(qk, kq, pyramid, True), 2 * above + entries + kept),
        "gather": (lambda: windows.gather(q, k, v, row_of_entry, pyramid), 3 * (tokens + row) + entries),
        "scatter": (lambda: windows.scatter(rows[0], row_of_entry, pyramid), row + tokens + entries),
        "scatter backward": (
            lambda: windows.scatter_backward(grad, row_of_entry, pyramid),
            tokens + row + entries,
        ),
        "gather backward": (
            lambda: windows.gather_backward(*rows, row_of_entry, pyramid),
            3 * (row + tokens) + entries,
        ),
        "merge": (
            lambda: merge(*merged, *far, row_of_entry, pyramid),
            row + 2 * tokens + entries + statistics_bytes,
        ),
        "merge backward": (
            lambda: merge_backward(grad, *merged, *far, row_of_entry, pyramid),
            2 * row + 2 * tokens + entries + statistics_bytes,
        ),
    }
    print(f"\nkernels at N={seq_len}: ms, GB to move, fraction of the speed of a copy ({ceiling:.0f} GB/s)")
    for name, (fn, n_bytes) in cases.items():
        ms = milliseconds(fn)
        print(f"  {name:24} {ms:8.4f} {n_bytes / 1e9:7.3f} {n_bytes / ms / 1e6 / ceiling:6.0%}")


def peak_memory(seq_len: int) -> None:
    pyramid = pyramid_for(seq_len)
    q, k, v, grad = draw(seq_len)
    layer = partial(lighthouse_attention, **sizes(pyramid))
    windowed = partial(layer, window=WINDOW)
    dense = partial(dense_attention, backend="cudnn")
    for name, fn in (("dense cudnn", dense), ("layer", layer), (f"windowed {WINDOW}", windowed)):
        with_gradients(fn, (q, k, v), grad)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with_gradients(fn, (q, k, v), grad)
        extra = torch.cuda.max_memory_allocated() - before
        print(f"peak extra memory of fwd+bwd at N={seq_len}, {name}: {extra / 1e9:.3f} GB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=SIZES, help="sequence lengths to time the layer at")
    parser.add_argument("--kernels", default="32768,98304,262144", help="lengths to time each kernel at")
    parser.add_argument("--scorers", default="98304", help="lengths to time each scorer at")
    parser.add_argument("--documents", default="98304", help="lengths to time documents apart at")
    parser.add_argument("--eager", action="store_true", help="also time the layer without a CUDA graph")
    parser.add_argument("--csv", type=Path, help="file to write the results to")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("this benchmark needs a CUDA device", file=sys.stderr)
        return 2
    base = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
            "cudnn": torch.backends.cudnn.version(), "date": date.today().isoformat()}  # fmt: skip
    print(*(f"{key} {value}" for key, value in base.items()), sep="; ")
    if not all([check(0), check(WINDOW)]):
        print("the check against the reference failed, so nothing is timed", file=sys.stderr)
        return 1
    ceiling = copy_ceiling()
    for seq_len in filter(None, args.kernels.split(",")):
        time_kernels(int(seq_len), ceiling)
    for seq_len in filter(None, args.documents.split(",")):
        time_documents(int(seq_len))
    peak_memory(98_304)
    for seq_len in filter(None, args.scorers.split(",")):
        time_scorers(int(seq_len))
    rows: list[dict] = []
    for seq_len in filter(None, args.sizes.split(",")):
        time_size(int(seq_len), rows, base, args.eager)
        torch.cuda.empty_cache()
        if args.csv:
            with args.csv.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
