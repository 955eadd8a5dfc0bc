"""The plain version of `kernel.py`: same arguments, same layout, PyTorch alone."""

import torch
from torch import Tensor

from lhtrain.attention.selection import max_pooled
from lhtrain.kernels.pyramid import Pyramid


def score(q: Tensor, k: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
    """q (B, N, H, D), k (B, N, G, D) -> qk (B, H, E - N), kq (B, G, E - N) float32, levels 1 and up."""
    norms = (x.float().norm(dim=-1).transpose(1, 2) for x in (q, k))
    qk, kq = (torch.cat(max_pooled(x, pyramid)[1:], -1) for x in norms)
    return qk, kq
