"""Norm scores and their maxima over windows in plain PyTorch: the reference for `kernel.py`."""

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid


def norm_scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float32 l2 norms of q (B, N, H, D) and k (B, N, G, D) as qk, kq (B, G, N).

    The qk of a key/value head is the maximum over its H / G query heads.
    """
    with torch.no_grad():
        qk = q.float().norm(dim=-1).unflatten(-1, (k.shape[2], -1)).amax(-1)
        kq = k.float().norm(dim=-1)
        return qk.transpose(1, 2), kq.transpose(1, 2)


def max_pooled(scores: Tensor, pyramid: Pyramid) -> Tensor:
    """Scores of level 0 (B, H, N) -> of levels 1 and up (B, H, E - N): the maximum over each window.

    Level l starts at `pyramid.offset(l) - N`. Level 0 is omitted, because its scores are never compared.
    """
    levels = [scores]
    for level in range(1, pyramid.levels):
        levels.append(levels[-1].unflatten(-1, (pyramid.size(level), pyramid.pooling)).amax(-1))
    return torch.cat(levels[1:], -1)


def score(q: Tensor, k: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
    """q (B, N, H, D), k (B, N, G, D) -> qk (B, H, E - N), kq (B, G, E - N) float32, levels 1 and up."""
    qk, kq = (max_pooled(x.float().norm(dim=-1).transpose(1, 2), pyramid) for x in (q, k))
    return qk, kq
