"""The plain version of `kernel.py`: the whole pyramid is written out; autograd gives both backward passes."""

from torch import Tensor

from lhtrain.attention.lighthouse import gather_pooled, scatter_back
from lhtrain.kernels.pyramid import Pyramid


def gather(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, pyramid: Pyramid) -> tuple[Tensor, ...]:
    """q (B, N, H, D), k, v (B, N, G, D), indices (B, G, S) -> rows (B, S, H or G, D)."""
    return tuple(gather_pooled(x, indices, pyramid) for x in (q, k, v))


def scatter(rows: Tensor, indices: Tensor, pyramid: Pyramid) -> Tensor:
    """rows (B, S, H, D), indices (B, G, S) -> (B, N, H, D)."""
    return scatter_back(rows, indices, pyramid)
