"""Checks of inputs, strides and block sizes, for all kernel launchers.

Shapes: B batch, N sequence length, H query heads, G key/value heads, D head dim, E pyramid entries, S rows.
"""

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid

MAX_UNROLLED_WINDOW = 64  # levels with longer windows use loops instead of unrolled loads
MAX_HEAD_DIM = 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_tokens(q: Tensor, k: Tensor, v: Tensor, pooling: int) -> None:
    """Raise ValueError if the kernels do not support these inputs."""
    if pooling > MAX_UNROLLED_WINDOW:
        raise ValueError(f"pooling={pooling}: must be at most {MAX_UNROLLED_WINDOW} for the kernels")
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"dtype={q.dtype}, {k.dtype}, {v.dtype}: q, k, v must share one of bf16, fp16, fp32")
    if not 1 <= q.shape[-1] <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim={q.shape[-1]}: must be between 1 and {MAX_HEAD_DIM}")
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[-1] != q.shape[-1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"shapes={shapes}: must be (B, N, H, D), (B, N, Hkv, D), (B, N, Hkv, D)")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"n_heads={q.shape[2]}: must be a multiple of n_kv_heads={k.shape[2]}")


def rows_last(x: Tensor) -> Tensor:
    """Return x (B, N, H, D) with a contiguous last dimension; the other strides may be any."""
    return x if x.stride(-1) == 1 else x.contiguous()


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def unrolled_levels(pyramid: Pyramid) -> int:
    """Return the number of levels, from 0 up, with windows of at most MAX_UNROLLED_WINDOW tokens."""
    levels = 1
    while levels < pyramid.levels and pyramid.pooling**levels <= MAX_UNROLLED_WINDOW:
        levels += 1
    return levels


def blocks(pyramid: Pyramid, head_dim: int, tokens: int, windows: int) -> dict[str, int]:
    """Return the constants of a kernel whose program handles BLOCK_T tokens of a head.

    BLOCK_T is at least `tokens`, and consists of at least `windows` whole windows of the coarsest unrolled
    level. With D = 128 in bf16 and 16 bytes per thread, eight windows keep 128 threads busy with one token of
    each window.
    """
    window = pyramid.pooling ** (unrolled_levels(pyramid) - 1)
    return {"BLOCK_T": max(tokens, windows * window), "D": head_dim, "BLOCK_D": power_of_two(head_dim)}
