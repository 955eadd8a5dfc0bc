"""Norm scores and their maxima over windows in plain PyTorch: the reference of `kernel.py`."""

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid


def norm_scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 l2 norms of q (B, N, H, D) and k (B, N, Hkv, D) as qk, kq (B, Hkv, N)."""
    with torch.no_grad():
        qk = q.float().norm(dim=-1).unflatten(-1, (k.shape[2], -1)).amax(-1)
        kq = k.float().norm(dim=-1)
        return qk.transpose(1, 2), kq.transpose(1, 2)


def max_pooled(scores: Tensor, pyramid: Pyramid) -> list[Tensor]:
    """(B, H, N) -> one (B, H, N / p^l) a level: the maximum over each window's level-0 scores."""
    out = [scores]
    for level in range(1, pyramid.levels):
        out.append(out[-1].unflatten(-1, (pyramid.size(level), pyramid.pooling)).amax(-1))
    return out


def score(q: Tensor, k: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
    """q (B, N, H, D), k (B, N, G, D) -> qk (B, H, E - N), kq (B, G, E - N) float32, levels 1 and up."""
    norms = (x.float().norm(dim=-1).transpose(1, 2) for x in (q, k))
    qk, kq = (torch.cat(max_pooled(x, pyramid)[1:], -1) for x in norms)
    return qk, kq
