"""Attention to ranges of keys in plain PyTorch: the reference of `kernel.py`, and what runs on CPUs.

B batch, T queries, S keys, H query heads, G key/value heads, R = H / G query heads a group, D head dim.
"""

import torch
from torch import Tensor

QUERIES = 512  # at a time, which bounds the scores that exist at once


def attend_ranges(q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention of query t to keys lo[t] ... hi[t] - 1, with scale 1/sqrt(D) and gradients.

    Args:
        q: (B, T, H, D); k, v: (B, S, G, D), G dividing H. Any float dtype; computed in float32 at least.
        lo, hi: (T,), (B, T) or (B, G, T), int32 or int64, neither of them ever falling along T, 0 <= lo and
            hi <= S.

    Returns:
        out (B, T, H, D) in q's dtype and lse (B, H, T) float32, the logsumexp of the scores; out is 0 and lse
        is -inf where lo[t] >= hi[t].
    """
    parts = [
        _part(q[:, part], k, v, lo[..., part], hi[..., part])
        for part in (slice(first, first + QUERIES) for first in range(0, q.shape[1], QUERIES))
    ]
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, 1), torch.cat(lses, 2)


def _part(q: Tensor, k: Tensor, v: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    keys = slice(0, k.shape[1])
    if not torch.compiler.is_compiling():  # a compiler cannot read the bounds, so it gets all keys
        first = min(int(lo.min()), k.shape[1] - 1)
        keys = slice(first, max(int(hi.max()), first + 1))
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = q.unflatten(2, (k.shape[2], -1)).to(wide)  # (B, T, G, R, D)
    scores = torch.einsum("btgrd,bsgd->bgrts", grouped, k[:, keys].to(wide)) * q.shape[-1] ** -0.5
    number = torch.arange(scores.shape[-1], device=q.device) + keys.start
    seen = (number >= _of_heads(lo)) & (number < _of_heads(hi))  # (..., T, S)
    empty = ~seen.any(-1, keepdim=True)
    # A row without keys gets zeros instead of -inf in all places, whose softmax and its gradient are NaN.
    scores = scores.masked_fill(~(seen | empty), -torch.inf).masked_fill(empty, 0.0)
    weights = scores.softmax(-1).masked_fill(empty, 0.0)
    out = torch.einsum("bgrts,bsgd->btgrd", weights, v[:, keys].to(wide)).flatten(2, 3)
    lse = scores.logsumexp(-1).masked_fill(empty.squeeze(-1), -torch.inf).flatten(1, 2)
    return out.to(q.dtype), lse


def _of_heads(bounds: Tensor) -> Tensor:
    """Bounds (T,), (B, T) or (B, G, T) in a shape that goes with scores (B, G, R, T, S)."""
    if bounds.ndim == 1:
        return bounds[:, None]
    return bounds[:, None, None, :, None] if bounds.ndim == 2 else bounds[:, :, None, :, None]
