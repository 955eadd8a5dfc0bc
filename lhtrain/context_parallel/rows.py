"""Attention of all ranks to their selected rows, where documents are kept apart.

A rank has the rows of two chunks, s of each. One chunk's rows after the other are those of the whole
sequence, S = 2 W s.

B batch, H query heads, G key/value heads, D head dim, M coarsest entries of the whole sequence, W ranks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lhtrain.attention.documents import Documents
from lhtrain.attention.row_documents import row_bounds
from lhtrain.attention.varlen import attend_documents
from lhtrain.attention.windowed import rows_apart
from lhtrain.context_parallel.dense import ContextDense
from lhtrain.context_parallel.ring import ring_with_lse
from lhtrain.context_parallel.ulysses import ulysses_by
from lhtrain.kernels.pyramid import Pyramid


def coarsest_of_all_chunks(mine: Tensor, n_rows: int, all_chunks: Callable[[Tensor], Tensor]) -> Tensor:
    """The rows in the whole sequence of its coarsest entries: (B, G, M).

    mine: (2 B, G, M / 2 W), those of each chunk of this rank among the n_rows of the chunk. all_chunks: as in
    `Tokens`.
    """
    chunks = all_chunks(mine.unflatten(0, (2, -1)))  # (2 W, B, G, M / 2 W)
    first = torch.arange(len(chunks), device=mine.device) * n_rows
    return (chunks + first[:, None, None, None]).movedim(0, 2).flatten(2, 3)


def attend_rows_apart(
    dense: ContextDense,
    rank: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Documents,
    coarsest: Tensor,
    pyramid: Pyramid,
) -> tuple[Tensor, Tensor]:
    """Each row attends to its own document: out (B, 2 s, H, D), lse (B, H, 2 s), with gradients through both.

    q: (B, 2 s, H, D); k, v: (B, 2 s, G, D). coarsest: `coarsest_of_all_chunks`. pyramid: of a chunk.
    """
    seq_len, n_rows = 2 * dense.size * pyramid.seq_len, dense.size * q.shape[1]
    if dense.method == "ring":
        bounds = row_bounds(documents.bounds, coarsest, seq_len, n_rows)
        return rows_apart(q, k, v, lambda q, k, v: ring_with_lse(q, k, v, dense.group, bounds))
    own = coarsest.chunk(dense.size, 1)[rank]  # of this rank's share of the heads
    bounds = row_bounds(documents.bounds, own, seq_len, n_rows)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return rows_apart(q, k, v, lambda q, k, v: attend_documents(q, k, v, bounds))

    return ulysses_by(attend, q, k, v, dense.group, dense.size)
