"""Strictly causal Lighthouse Attention on the tokens of one context-parallel rank.

A chunk is whole tiles, so that each chunk selects its rows alone. Two things come from other ranks: the W
tokens and the last coarsest query before a chunk, and the kept rows of all chunks, which every rank gathers
(they are about N / 5 keys and values; no rank waits for another in between, as it would in a ring).

B batch, T = 2 c tokens of a rank, c tokens of a chunk, H query heads, G key/value heads, D head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lhtrain.attention.lighthouse import LighthouseAttention, gather_keys, precedence_of
from lhtrain.attention.row_documents import aligned_starts
from lhtrain.attention.strict import Chunk, coarsest_queries, strictly_causal
from lhtrain.attention.where import Where
from lhtrain.context_parallel.collectives import all_gather
from lhtrain.context_parallel.halo import from_chunk_before, with_tokens_before
from lhtrain.context_parallel.layout import as_chunks, chunk_pyramid, starts_in_chunks, whole
from lhtrain.context_parallel.rows import coarsest_of_all_chunks
from lhtrain.context_parallel.tokens import Attend, rank_tokens


@dataclass(frozen=True)
class ContextStrict:
    """The boundary's callable: q (B, T, H, D), k, v (B, T, G, D) -> (B, T, H, D).

    layer: the settings of the whole sequence. attend: full attention over all ranks, for scorers. exact: keep
    the first tokens of the sequence at full resolution, as one rank does; else those of each chunk.
    Raises ValueError: a window longer than a chunk.
    """

    layer: LighthouseAttention
    attend: Attend
    group: str
    rank: int
    size: int
    exact: bool

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        layer, ranks = self.layer, (self.group, self.rank, self.size)
        pyramid = layer.pyramid(q.shape[1] * self.size)
        chunks_of = chunk_pyramid(pyramid, self.size)
        documents = None if where is None else where.documents
        starts = None if documents is None else as_chunks(aligned_starts(documents, pyramid))
        in_chunks = None
        if documents is not None:
            in_chunks = starts_in_chunks(documents.starts, self.rank, self.size)
        precedence = precedence_of(in_chunks, chunks_of, layer.cover_prefix, True)
        n_covered = 0
        if layer.cover_prefix:
            n_covered = 2 * len(q) if not self.exact else len(q) if self.rank == 0 else 0
        tokens = rank_tokens(q, k, v, where, pyramid.coarsest_window, self.attend, *ranks)
        chunks = [x.unflatten(1, (2, -1)).movedim(1, 0) for x in (q, k, v)]  # (2, B, c, H, D)
        q, k, v = chunks
        flat_q, flat_k, flat_v = (x.flatten(0, 1) for x in chunks)
        rows = gather_keys(
            flat_q,
            flat_k,
            flat_v,
            tokens,
            chunks_of,
            layer.backend,
            layer.scorer_in(where),
            layer.selection,
            precedence,
            n_covered,
        )
        rows_k, rows_v = (self._of_all_chunks(x) for x in (rows.k, rows.v))
        coarsest_rows = rows.coarsest
        if documents is not None:
            n_rows = rows.k.shape[1]
            coarsest_rows = coarsest_of_all_chunks(coarsest_rows, n_rows, tokens.all_chunks)
        rows = rows._replace(k=rows_k, v=rows_v, coarsest=coarsest_rows)
        of_chunks = [None, None] if starts is None else list(starts.chunk(2))
        coarsest = pyramid.coarsest_window
        last = coarsest_queries(flat_q[:, -coarsest:], coarsest).unflatten(0, (2, -1))  # (2, B, 1, H, D)
        queries = from_chunk_before(last, *ranks)
        keys, values = (with_tokens_before(x, layer.window, *ranks) for x in (k, v))
        numbers = self.rank, 2 * self.size - 1 - self.rank
        parts = [
            strictly_causal(
                q[i], keys[i], values[i], rows, pyramid, layer.window,
                Chunk(number * q.shape[2], layer.window, queries[i]), of_chunks[i],
            )
            for i, number in enumerate(numbers)
        ]  # fmt: skip
        return torch.cat(parts, 1)

    def _of_all_chunks(self, rows: Tensor) -> Tensor:
        """This rank's rows (2 B, S / 2 W, G, D) -> those of the whole sequence, (B, S, G, D)."""
        mine = rows.unflatten(0, (2, -1)).movedim(0, 1).flatten(1, 2)
        return whole(all_gather(mine, self.group, self.rank, self.size))
