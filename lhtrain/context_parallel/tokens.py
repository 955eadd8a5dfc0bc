"""The input of scorers on one context-parallel rank, with access to the tokens of other ranks."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lhtrain.attention.documents import Documents
from lhtrain.attention.where import Where
from lhtrain.context_parallel.collectives import all_gather
from lhtrain.context_parallel.layout import positions
from lhtrain.kernels.scores import Tokens

Attend = Callable[[Tensor, Tensor, Tensor, Where | None], Tensor]


def rank_tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    where: Where | None,
    align: int,
    attend: Attend,
    group: str,
    rank: int,
    size: int,
) -> Tokens:
    """Return the T tokens of a rank as the input of a scorer. q (B, T, H, D), k, v (B, T, G, D).

    align: documents that are kept apart begin at multiples of it. attend: attention over all ranks.
    """
    here = None if where is None else where.positions_in_sequence
    if here is None:
        here = positions(q.shape[1] * size, rank, size, q.device)
    x, documents = (None, None) if where is None else (where.x, where.documents)
    chunks, all_chunks = (rank, 2 * size - 1 - rank), partial(_all_chunks, group, rank, size)
    return Tokens(q, k, v, here, x, partial(_attend, attend, where), chunks, all_chunks, documents, align)


def _attend(
    attend: Attend, where: Where | None, q: Tensor, k: Tensor, v: Tensor, documents: Documents | None = None
) -> Tensor:
    return attend(q, k, v, None if where is None else where._replace(documents=documents))


def _all_chunks(group: str, rank: int, size: int, mine: Tensor) -> Tensor:
    """A rank's two chunks (2, ...) -> those of all ranks in the order of the sequence, (2 W, ...)."""
    heads, tails = all_gather(mine, group, rank, size).unbind(1)
    return torch.cat([heads, tails.flip(0)])
