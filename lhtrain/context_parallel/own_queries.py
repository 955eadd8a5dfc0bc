"""Lighthouse Attention with own queries over context-parallel ranks.

Each rank computes the layer for some of the heads over the whole sequence: rows are selected for each group
of heads alone, so that ranks exchange nothing but heads (`ulysses.py`).

B batch, T tokens of a rank, H query heads, G key/value heads, D head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lhtrain.attention.documents import Documents, first_keys
from lhtrain.attention.lighthouse import LighthouseAttention
from lhtrain.attention.where import Where
from lhtrain.context_parallel.ulysses import ulysses_out


@dataclass(frozen=True)
class ContextOwnQueries:
    """Lighthouse Attention with own queries as an `Attend`, for the T tokens of this rank.

    layer: the layer of one rank, whose scorer must treat each head alone and without the input of the layer.
    """

    layer: LighthouseAttention
    group: str
    size: int

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        if where is not None:
            documents = where.documents and _of_whole(where.documents, q.shape[0], q.shape[1] * self.size)
            where = where._replace(positions=None, x=None, documents=documents)
        return ulysses_out(lambda q, k, v: self.layer(q, k, v, where), q, k, v, self.group, self.size)


def _of_whole(documents: Documents, n_sequences: int, n: int) -> Documents:
    """The documents of the whole sequences of n tokens, from those of this rank's tokens."""
    first = torch.arange(n_sequences, device=documents.bounds.device, dtype=torch.int32).unsqueeze(1) * n
    return Documents(
        first_keys(documents.bounds, n_sequences * n).view(n_sequences, n) - first, documents.bounds
    )
