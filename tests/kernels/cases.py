"""Inputs, results of the reference, and the measure of error, for the kernel tests."""

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.scores.naive import max_pooled
from lhtrain.kernels.selection.naive import select_rows

ON_GPU = torch.cuda.is_available()


def options(pyramid: Pyramid) -> dict[str, int]:
    return {"levels": pyramid.levels, "pooling": pyramid.pooling, "budget": pyramid.budget}


def draw_qkv(pyramid, device, batch=1, heads=2, kv_heads=2, dim=16, dtype=torch.float32) -> list[Tensor]:
    """Return new random q, k, v; every call in a session returns others."""
    shapes = [(batch, pyramid.seq_len, h, dim) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, device=device).to(dtype) for shape in shapes]


def random_selection(pyramid, groups, device, batch=1) -> tuple[Tensor, Tensor]:
    """Return indices and row_of_entry of a selection by random scores."""
    draws = (torch.rand(batch, groups, pyramid.seq_len, device=device) for _ in range(2))
    return select_rows(*(max_pooled(scores, pyramid) for scores in draws), pyramid, True)


def error(value: Tensor, want: Tensor) -> float:
    """Return ‖a − b‖ / ‖b‖; NaN if a contains NaN."""
    value, want = value.detach().double(), want.detach().double()
    return float((value - want).norm() / want.norm())
