"""Strictly causal Lighthouse Attention on the tokens of one context-parallel rank.

A chunk consists of whole tiles, so that each chunk selects its rows independently. Two things come from other
ranks: the W tokens and the last coarsest query before a chunk, and the kept rows of all chunks, which every
rank gathers (they are about N / 5 keys and values; in a ring, ranks would wait for each other more often).

B batch, T = 2 c tokens of a rank, c tokens of a chunk, H query heads, G key/value heads, D head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lhtrain.attention.lighthouse import LighthouseAttention, gather_keys, precedence_of
from lhtrain.attention.row_documents import aligned_starts
from lhtrain.attention.strict import Chunk, Rows, coarsest_queries, strictly_causal
from lhtrain.attention.where import Where
from lhtrain.context_parallel.collectives import all_gather
from lhtrain.context_parallel.halo import from_chunk_before, with_tokens_before
from lhtrain.context_parallel.layout import as_chunks, chunk_pyramid, covered_chunks, starts_in_chunks, whole
from lhtrain.context_parallel.rows import coarsest_of_all_chunks
from lhtrain.context_parallel.tokens import Attend, rank_tokens
from lhtrain.kernels.pyramid import Pyramid


@dataclass(frozen=True)
class ContextStrict:
    """Strictly causal Lighthouse Attention as an `Attend`: q (B, T, H, D), k, v (B, T, G, D) -> (B, T, H, D).

    layer: the settings of the whole sequence. attend: full attention over all ranks, for scorers and for a
    window of the whole sequence. exact: keep the first tokens of the sequence at full resolution, as one rank
    does; else those of each chunk.
    Raises ValueError: a window longer than a chunk and shorter than the sequence.
    """

    layer: LighthouseAttention
    attend: Attend
    group: str
    rank: int
    size: int
    exact: bool

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        window, ranks = self.layer.window, (self.group, self.rank, self.size)
        if window >= q.shape[1] * self.size:
            return self.attend(q, k, v, where)
        pyramid = self.layer.pyramid(q.shape[1] * self.size)
        documents = None if where is None else where.documents
        of_chunks: list[Tensor] | list[None] = [None, None]
        if documents is not None:
            of_chunks = list(aligned_starts(documents, pyramid).chunk(2, 1))
        rows = self._rows(q, k, v, where, pyramid)
        q, k, v = (x.unflatten(1, (2, -1)).movedim(1, 0) for x in (q, k, v))  # (2, B, c, H, D)
        coarsest = pyramid.coarsest_window
        last = torch.stack([coarsest_queries(x[:, -coarsest:], coarsest) for x in q])  # (2, B, 1, H, D)
        queries = from_chunk_before(last, *ranks)
        keys, values = (with_tokens_before(x, window, *ranks) for x in (k, v))
        parts = []
        for i, number in enumerate((self.rank, 2 * self.size - 1 - self.rank)):
            chunk = Chunk(number * q.shape[2], window, queries[i])
            parts.append(
                strictly_causal(q[i], keys[i], values[i], rows, pyramid, window, chunk, of_chunks[i])
            )
        return torch.cat(parts, 1)

    def _rows(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None, pyramid: Pyramid) -> Rows:
        """Select the rows of this rank's chunks, and gather those of all ranks: the rows of the sequence."""
        layer, documents, precedence = self.layer, None if where is None else where.documents, None
        chunk = chunk_pyramid(pyramid, self.size)
        if documents is not None:
            starts = starts_in_chunks(documents.starts, self.rank, self.size)
            precedence = precedence_of(starts, chunk, layer.cover_prefix, strictly_causal=True)
        n_covered = covered_chunks(len(q), self.rank, self.exact) if layer.cover_prefix else 0
        ranks = self.group, self.rank, self.size
        tokens = rank_tokens(q, k, v, where, pyramid.coarsest_window, self.attend, *ranks)
        q, k, v = (as_chunks(x) for x in (q, k, v))  # (2 B, c, H, D)
        how = layer.backend, layer.scorer_in(where), layer.selection, precedence, n_covered
        mine = gather_keys(q, k, v, tokens, chunk, *how)
        coarsest = mine.coarsest
        if documents is not None:
            coarsest = coarsest_of_all_chunks(coarsest, mine.k.shape[1], tokens.all_chunks)
        return mine._replace(k=self._of_all_chunks(mine.k), v=self._of_all_chunks(mine.v), coarsest=coarsest)

    def _of_all_chunks(self, rows: Tensor) -> Tensor:
        """This rank's rows (2 B, S / 2 W, G, D) -> those of the whole sequence, (B, S, G, D)."""
        mine = rows.unflatten(0, (2, -1)).movedim(0, 1).flatten(1, 2)
        return whole(all_gather(mine, self.group, self.rank, self.size))
