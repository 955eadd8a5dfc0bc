"""What scorers get of one context-parallel rank, and how they look at the tokens of others."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lhtrain.attention.where import Where
from lhtrain.context_parallel.collectives import all_gather
from lhtrain.context_parallel.layout import positions
from lhtrain.kernels.scores import Tokens

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def rank_tokens(
    q: Tensor, k: Tensor, v: Tensor, where: Where | None, attend: Attend, group: str, rank: int, size: int
) -> Tokens:
    """Of the T tokens of a rank: q (B, T, H, D), k, v (B, T, G, D). attend: over all ranks together."""
    here = None if where is None else where.positions
    if here is None:
        here = positions(q.shape[1] * size, rank, size).to(q.device)
    x = None if where is None else where.x
    return Tokens(
        q, k, v, here, x, attend, (rank, 2 * size - 1 - rank), partial(_all_chunks, group, rank, size)
    )


def _all_chunks(group: str, rank: int, size: int, mine: Tensor) -> Tensor:
    """A rank's two chunks (2, ...) -> those of all ranks in the order of the sequence, (2 W, ...)."""
    heads, tails = all_gather(mine, group, rank, size).unbind(1)
    return torch.cat([heads, tails.flip(0)])
