"""What the kernels' launchers share: checks, strides, block sizes.

B batch, N sequence length, H query heads, G key/value heads, D head dim, E pyramid entries, S kept rows.
"""

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid

MAX_UNROLLED_WINDOW = 64  # levels with longer windows go through loops instead of unrolled loads
MAX_HEAD_DIM = 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_tokens(q: Tensor, k: Tensor, v: Tensor, pooling: int) -> None:
    """Raise ValueError naming what the kernels cannot take."""
    if pooling > MAX_UNROLLED_WINDOW:
        raise ValueError(f"pooling={pooling}: the kernels take at most {MAX_UNROLLED_WINDOW}")
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
    """x (B, N, H, D) with its last dimension contiguous; the other strides are free."""
    return x if x.stride(-1) == 1 else x.contiguous()


def power_of_two(n: int) -> int:
    """The least power of two not below n."""
    return 1 << max(n - 1, 0).bit_length()


def unrolled_levels(pyramid: Pyramid) -> int:
    """Levels, from 0 up, whose windows are at most MAX_UNROLLED_WINDOW tokens."""
    levels = 1
    while levels < pyramid.levels and pyramid.pooling**levels <= MAX_UNROLLED_WINDOW:
        levels += 1
    return levels


def blocks(pyramid: Pyramid, head_dim: int, tokens: int, windows: int) -> dict[str, int]:
    """Constants of a kernel whose program owns BLOCK_T tokens of a head: at least `tokens`, in whole windows.

    The coarsest unrolled level has at least `windows` entries in a program: at D = 128 in bf16, 16 bytes a
    thread, eight entries keep 128 threads busy with one token of each window.
    """
    window = pyramid.pooling ** (unrolled_levels(pyramid) - 1)
    return {"BLOCK_T": max(tokens, windows * window), "D": head_dim, "BLOCK_D": power_of_two(head_dim)}
