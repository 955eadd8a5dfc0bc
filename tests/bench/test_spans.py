"""The benchmark's measure of communication: how long it runs, and how long it runs alone."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "bench" / "spans.py"
SPEC = importlib.util.spec_from_file_location("spans", PATH)
spans = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(spans)
Span = spans.Span


def test_time_that_overlaps_counts_once():
    assert spans.busy([Span("a", 0, 10), Span("b", 5, 12), Span("c", 6, 8), Span("d", 20, 21)]) == 13
    assert spans.busy([]) == 0


def test_communication_is_exposed_when_nothing_else_runs():
    found = [
        Span("matmul", 0, 40),
        Span("ncclDevKernel_AllGather", 10, 30),  # hidden
        Span("ncclDevKernel_ReduceScatter", 35, 60),  # 40 to 60 alone
        Span("ncclDevKernel_ReduceScatter", 50, 55),  # on another stream at the same time
        Span("adamw", 60, 100),
    ]
    assert spans.communication(found) == pytest.approx((0.45, 0.20))


def test_without_a_gpu_there_are_no_shares():
    assert spans.communication([]) == (None, None)
