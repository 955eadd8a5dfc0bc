"""The plain version of `kernel.py`: same arguments, same results, a sort instead of prefix sums."""

from itertools import pairwise

import torch
from torch import Tensor

from lhtrain.attention.selection import in_attention_order, kept_entries
from lhtrain.kernels.pyramid import Pyramid


def select_places(qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> tuple[Tensor, Tensor]:
    """qk (B, H, E - N), kq (B, G, E - N) -> indices (B, G, S), places (B, G, E) int64, -1 where not kept."""
    qk = qk.unflatten(1, (kq.shape[1], -1)).amax(2)  # a group's score: the maximum over its query heads
    kept = kept_entries(by_level(qk, pyramid), by_level(kq, pyramid), pyramid, n_covered)
    indices = in_attention_order(kept, pyramid)
    places = torch.full((*indices.shape[:2], pyramid.n_entries), -1, device=indices.device)
    order = torch.arange(pyramid.n_selected, device=indices.device).expand_as(indices)
    return indices, places.scatter(-1, indices, order)


def by_level(scores: Tensor, pyramid: Pyramid) -> list[Tensor]:
    """The kernels' layout -> one tensor a level, with nothing for level 0, which is never compared."""
    bounds = [pyramid.offset(level) - pyramid.seq_len for level in range(1, pyramid.levels + 1)]
    return [scores[..., :0], *(scores[..., a:b] for a, b in pairwise(bounds))]
