"""Sliding-window attention over context-parallel ranks, by the tokens before each chunk or by Ulysses.

B batch, T tokens of a rank, H query heads, G key/value heads, D head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lhtrain.attention.sliding import attend_near, sliding_attention
from lhtrain.attention.where import Where
from lhtrain.context_parallel.dense import ContextDense
from lhtrain.context_parallel.halo import with_tokens_before
from lhtrain.context_parallel.layout import as_chunks, as_sequence, starts_in_chunks
from lhtrain.context_parallel.ulysses import ulysses_out


@dataclass(frozen=True)
class ContextSliding:
    """Sliding-window attention as an `Attend`: q (B, T, H, D), k, v (B, T, G, D) -> (B, T, H, D).

    With the method "ring", a rank gets the last W - 1 keys and values of the chunks before its own two, so
    that the cost does not depend on the number of ranks. The window is then at most as long as a chunk, or at
    least as long as the sequence. dense: full attention by the same method.
    """

    window: int
    dense: ContextDense
    rank: int

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        size, group = self.dense.size, self.dense.group
        if self.window >= q.shape[1] * size:
            return self.dense(q, k, v, where)
        documents = None if where is None else where.documents
        if self.dense.method == "ulysses":

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return sliding_attention(q, k, v, self.window, documents)

            return ulysses_out(attend, q, k, v, group, size)
        starts = None if documents is None else starts_in_chunks(documents.starts, self.rank, size)
        return over_chunks(q, k, v, self.window, (group, self.rank, size), starts)


def over_chunks(
    q: Tensor, k: Tensor, v: Tensor, window: int, ranks: tuple[str, int, int], starts: Tensor | None
) -> Tensor:
    """Attend with the two chunks of this rank to the last `window` tokens: (B, T, H, D), q's dtype.

    ranks: the group, this rank and the number of ranks. starts: (2 B, T / 2), where the document of each
    token begins, counted from the first token of its chunk; None: no documents.

    Raises ValueError: a window longer than a chunk.
    """
    queries = as_chunks(q).chunk(2)
    keys, values = (
        with_tokens_before(as_chunks(x).unflatten(0, (2, -1)), window - 1, *ranks) for x in (k, v)
    )
    parts = []
    for i, of_q in enumerate(queries):
        first = window - 1 if i == 0 and ranks[1] == 0 else 0  # nothing precedes the first chunk
        of_starts = None if starts is None else starts.chunk(2)[i]
        parts.append(attend_near(of_q, keys[i, :, first:], values[i, :, first:], window, of_starts))
    return as_sequence(torch.cat(parts))
