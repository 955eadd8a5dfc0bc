"""Kernel times of a training step from the profiler, and how much of the communication is hidden."""

import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch


class Span(NamedTuple):
    """One run of a kernel on the GPU. begin, end: microseconds of the profiler's clock."""

    name: str
    begin: float
    end: float


def kernel_spans(one_step: Callable[[], object], device: torch.device) -> list[Span]:
    """Run one step and return its kernels, including copies; [] on a CPU."""
    if device.type != "cuda":
        return []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        one_step()
    on_gpu = (e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    return [Span(e.name, e.time_range.start, e.time_range.end) for e in on_gpu]


def print_kernels(spans: list[Span], count: int) -> None:
    """Print the `count` kernels with the longest total time."""
    times: Counter[str] = Counter()
    for span in spans:
        times[span.name] += span.end - span.begin
    calls = Counter(span.name for span in spans)
    whole = max(span.end for span in spans) - min(span.begin for span in spans)
    print(f"kernels run in {busy(spans) / whole:.1%} of {whole / 1e3:.1f} ms; columns: ms, calls, kernel")
    for name, time_ in times.most_common(count):
        print(f"{time_ / 1e3:9.2f} {calls[name]:6} {name[:110]}")


def busy(spans: list[Span]) -> float:
    """Return the microseconds in which at least one of the kernels runs."""
    total, until = 0.0, -math.inf
    for span in sorted(spans, key=lambda span: span.begin):
        total += max(span.end - max(span.begin, until), 0.0)
        until = max(until, span.end)
    return total


def communication(spans: list[Span]) -> tuple[float | None, float | None]:
    """Return the shares of the step in which NCCL kernels run, and run alone; None without a GPU."""
    if not spans:
        return None, None
    whole = max(span.end for span in spans) - min(span.begin for span in spans)
    others = [span for span in spans if "nccl" not in span.name.lower()]
    nccl = [span for span in spans if "nccl" in span.name.lower()]
    return round(busy(nccl) / whole, 4), round((busy(spans) - busy(others)) / whole, 4)
