"""Gather and scatter-back in plain PyTorch, the reference for `kernel.py`.

It stores the whole pyramid; autograd computes both backward passes.
Shapes: B batch, N sequence length, H query heads, G key/value heads, R = H / G query heads per group, D head
dim, E pyramid entries, S selected rows.
"""

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid


def gather(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, pyramid: Pyramid) -> tuple[Tensor, ...]:
    """q (B, N, H, D), k, v (B, N, G, D), indices (B, G, S) -> rows (B, S, H or G, D)."""
    return tuple(gather_pooled(x, indices, pyramid) for x in (q, k, v))


def gather_pooled(x: Tensor, indices: Tensor, pyramid: Pyramid) -> Tensor:
    """Return the rows `indices` (B, G, S) of x's pyramid of window means: (B, N, H, D) -> (B, S, H, D)."""
    levels = [x]
    for level in range(1, pyramid.levels):
        levels.append(levels[-1].unflatten(1, (pyramid.size(level), pyramid.pooling)).mean(2))
    entries = torch.cat(levels, 1).unflatten(2, (indices.shape[1], -1))  # (B, E, G, R, D)
    where = indices.transpose(1, 2)[..., None, None].expand(-1, -1, -1, *entries.shape[3:])
    return entries.gather(1, where).flatten(2, 3)


def scatter_back(rows: Tensor, indices: Tensor, pyramid: Pyramid, starts: Tensor | None = None) -> Tensor:
    """Add each row to p^l positions, starting at its window's last: (B, S, H, D) -> (B, N, H, D).

    The output of entry (l, i) goes to positions i p^l + p^l - 1 ... i p^l + 2 p^l - 2, clipped to N. starts
    (B, N): where the document of each position begins; an entry goes only to positions of its own document.
    """
    position = torch.arange(pyramid.seq_len, device=rows.device)
    rows = rows.unflatten(2, (indices.shape[1], -1))  # (B, S, G, R, D)
    where = indices.transpose(1, 2)[..., None, None].expand_as(rows)
    shape = (rows.shape[0], pyramid.n_entries, *rows.shape[2:])
    entries = rows.new_zeros(shape).scatter(1, where, rows)
    out = entries[:, : pyramid.seq_len]
    for level in range(1, pyramid.levels):
        window, first = pyramid.pooling**level, pyramid.offset(level)
        spread = entries[:, first : first + pyramid.size(level)].repeat_interleave(window, 1)
        shifted = torch.nn.functional.pad(spread, (0, 0) * 3 + (window - 1, 0))
        shifted = shifted[:, : pyramid.seq_len]
        if starts is not None:
            entry = (position - (window - 1)).div(window, rounding_mode="floor")
            shifted = shifted.masked_fill((entry * window < starts)[..., None, None, None], 0)
        out = out + shifted
    return out.flatten(2, 3)
