"""Time dense attention, the Lighthouse layer, and dense attention over its S selected rows, on one GPU.

    python scripts/bench/attention.py [--sizes 32768,98304] [--csv scripts/bench/results/attention.csv]

First checks the layer against the float32 reference, and prints no times if the check fails. A time is the
median of CUDA-graph replays, measured with events; code that cannot be captured is timed without a graph.
B = 1, H = 8, D = 128, bf16, L = 3, p = 4, k = N / 64; from 1,048,576 tokens on L = 4, k = 4,096.
"""

import argparse
import csv
import statistics
import sys
from datetime import date
from functools import partial
from pathlib import Path

import torch
import triton

from lhtrain.attention import Pyramid, dense_attention, lighthouse_attention
from lhtrain.attention.flash4 import FA4_FROM, INSTALLED
from lhtrain.kernels.scores.kernel import score
from lhtrain.kernels.selection import naive
from lhtrain.kernels.selection.kernel import select_rows
from lhtrain.kernels.windows import kernel as windows
from lhtrain.kernels.windows.naive import gather_pooled, scatter_back

HEADS, DIM = 8, 128
SIZES = "8192,16384,32768,65536,98304,131072,262144,524288,1048576"
# Target speed-ups over dense cuDNN attention: (forward, forward + backward).
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


def check(seq_len: int = 16_384) -> bool:
    """Compare the layer and its gradients with float32 reference code that uses the kernels' scores."""
    pyramid = Pyramid(seq_len, 3, 4, 256).check()
    q, k, v, grad = draw(seq_len)
    qk, kq = score(q, k, pyramid)
    indices, _ = naive.select_rows(qk, kq, pyramid, True)
    same = torch.equal(select_rows(qk, kq, pyramid, True)[0].long(), indices)

    def reference(q, k, v):
        rows = (gather_pooled(x, indices, pyramid) for x in (q, k, v))
        return scatter_back(dense_attention(*rows, "math"), indices, pyramid)

    got = with_gradients(lambda *x: lighthouse_attention(*x, **sizes(pyramid)), (q, k, v), grad)
    want = with_gradients(reference, [x.float() for x in (q, k, v)], grad.float())
    errors = [relative(a, b) for a, b in zip(got, want, strict=True)]
    shown = " ".join(f"{e:.1e}" for e in errors)
    print(
        f"check N={seq_len}: selection {'equal' if same else 'DIFFERS'}; errors of out, dq, dk, dv: {shown}"
    )
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
    }
    print(f"\nkernels at N={seq_len}: ms, GB to move, fraction of the speed of a copy ({ceiling:.0f} GB/s)")
    for name, (fn, n_bytes) in cases.items():
        ms = milliseconds(fn)
        print(f"  {name:24} {ms:8.4f} {n_bytes / 1e9:7.3f} {n_bytes / ms / 1e6 / ceiling:6.0%}")


def peak_memory(seq_len: int) -> None:
    pyramid = pyramid_for(seq_len)
    q, k, v, grad = draw(seq_len)
    layer = partial(lighthouse_attention, **sizes(pyramid))
    for name, fn in (("dense cudnn", partial(dense_attention, backend="cudnn")), ("layer", layer)):
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
    parser.add_argument("--eager", action="store_true", help="also time the layer without a CUDA graph")
    parser.add_argument("--csv", type=Path, help="file to write the results to")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("this benchmark needs a CUDA device", file=sys.stderr)
        return 2
    base = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
            "cudnn": torch.backends.cudnn.version(), "date": date.today().isoformat()}  # fmt: skip
    print(*(f"{key} {value}" for key, value in base.items()), sep="; ")
    if not check():
        print("the check against the reference failed, so nothing is timed", file=sys.stderr)
        return 1
    ceiling = copy_ceiling()
    for seq_len in filter(None, args.kernels.split(",")):
        time_kernels(int(seq_len), ceiling)
    peak_memory(98_304)
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
