"""Lighthouse Attention on the tokens of one context-parallel rank.

A rank has two chunks of the sequence (`layout.py`). Pooling, scoring and selection stay inside a chunk,
with its share k / 2W of the budget: the layer selects tile by tile, and a chunk is a whole number of tiles,
so that the kept rows of all chunks, one after the other, are those that a single rank would keep. All ranks
together attend to them. Two things cross a chunk's border, and `exact` does them: the outputs of a
chunk's last entries reach into the next chunk, and only the sequence's first chunk needs its prefix covered.

B batch, T = 2 c tokens of a rank, c tokens of a chunk, H query heads, G key/value heads, D head dim, S rows.
Source: arXiv:2605.06554, context parallelism, which has no counterpart of `exact`.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lhtrain.attention.documents import Documents
from lhtrain.attention.lighthouse import LighthouseAttention, Selected, gather, precedence_of, scatter
from lhtrain.attention.row_documents import aligned_starts
from lhtrain.attention.where import Where
from lhtrain.context_parallel.dense import ContextDense
from lhtrain.context_parallel.halo import from_chunk_before
from lhtrain.context_parallel.layout import (
    as_chunks,
    as_sequence,
    chunk_pyramid,
    covered_chunks,
    starts_in_chunks,
)
from lhtrain.context_parallel.rows import attend_rows_apart, coarsest_of_all_chunks
from lhtrain.context_parallel.tokens import rank_tokens
from lhtrain.context_parallel.windowed import windowed
from lhtrain.kernels.pyramid import Pyramid


@dataclass(frozen=True)
class ContextLighthouse:
    """Lighthouse Attention as an `Attend`: q (B, T, H, D), k, v (B, T, G, D) -> (B, T, H, D).

    layer: the settings of the whole sequence. rows: how the ranks attend to their rows together.
    Raises ValueError: a window longer than a chunk and shorter than the sequence.
    """

    layer: LighthouseAttention
    rows: ContextDense
    group: str
    rank: int
    size: int
    exact: bool

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        layer = self.layer
        if layer.window >= q.shape[1] * self.size:
            return self.rows(q, k, v, where)
        pyramid = chunk_pyramid(layer.pyramid(q.shape[1] * self.size), self.size)
        n_covered = covered_chunks(len(q), self.rank, self.exact) if layer.cover_prefix else 0
        ranks, starts = (self.group, self.rank, self.size), None
        documents = None if where is None else where.documents
        if documents is not None:
            starts = starts_in_chunks(aligned_starts(documents, pyramid), self.rank, self.size)
        precedence = precedence_of(starts, pyramid, layer.cover_prefix, layer.strictly_causal)
        tokens = rank_tokens(q, k, v, where, pyramid.coarsest_window, self.rows, *ranks)
        q, k, v = (as_chunks(x) for x in (q, k, v))  # (2 B, c, H, D)
        scorer = layer.scorer_in(where)
        selected = gather(
            q, k, v, tokens, pyramid, n_covered, layer.backend, scorer, layer.selection, precedence
        )
        attend = self.rows.with_lse
        if documents is not None:
            n_rows = selected.indices.shape[-1]
            coarsest = coarsest_of_all_chunks(selected.coarsest_rows(pyramid), n_rows, tokens.all_chunks)
            attend = partial(self._apart, documents, coarsest, pyramid)
        if layer.window:
            sizes = pyramid, layer.window
            return as_sequence(windowed(q, k, v, selected, *sizes, attend, self.exact, ranks, starts))
        rows_q, rows_k, rows_v = (as_sequence(x) for x in (selected.q, selected.k, selected.v))
        if documents is None:
            rows = as_chunks(self.rows(rows_q, rows_k, rows_v))
        else:
            rows = as_chunks(attend(rows_q, rows_k, rows_v, False)[0])
        out = scatter(rows, selected, pyramid, starts)
        if self.exact:
            out = self._with_spill(out, last_rows(rows, selected, pyramid), pyramid, starts)
        return as_sequence(out)

    def _apart(
        self,
        documents: Documents,
        coarsest: Tensor,
        pyramid: Pyramid,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kernels: bool,
    ) -> tuple[Tensor, Tensor]:
        """`ContextDense.with_lse` for rows of documents that are kept apart."""
        return attend_rows_apart(self.rows, self.rank, q, k, v, documents, coarsest, pyramid)

    def _with_spill(
        self, out: Tensor, last: Tensor, pyramid: Pyramid, starts: Tensor | None = None
    ) -> Tensor:
        """Add what the chunk before reaches into each chunk: out (2 B, c, H, D), last (2 B, L - 1, H, D).

        starts: (2 B, c), as in `scatter`.
        """
        before = from_chunk_before(last.unflatten(0, (2, -1)), self.group, self.rank, self.size).flatten(0, 1)
        reach = pyramid.coarsest_window - 1
        first = out[:, :reach].float()
        for level in range(1, pyramid.levels):
            n = pyramid.pooling**level - 1
            spilled = before[:, level - 1, None].float().expand(-1, n, -1, -1)
            if starts is not None:  # only where the document began before the entry's window
                spilled = spilled.masked_fill((starts[:, :n] > -(n + 1))[..., None, None], 0)
            first = first + torch.nn.functional.pad(spilled, (0, 0, 0, 0, 0, reach - n))
        return torch.cat([first.to(out.dtype), out[:, reach:]], 1)


def last_rows(rows: Tensor, selected: Selected, pyramid: Pyramid) -> Tensor:
    """The output of each level's last entry, from level 1 up, zero where it is not kept: (B, L - 1, H, D).

    Entries are ordered by the last position of their windows, so these are among the last L - 1 rows.
    """
    n = pyramid.levels - 1
    entries = (pyramid.offset(level) + pyramid.size(level) - 1 for level in range(1, pyramid.levels))
    last = selected.indices[..., -n:]
    found = torch.stack([last == entry for entry in entries], -1)  # (B, G, rows, levels)
    tail = rows[:, -n:].unflatten(2, (last.shape[1], -1))  # (B, rows, G, R, D)
    return torch.einsum("bgsl,bsgrd->blgrd", found.to(rows.dtype), tail).flatten(2, 3)
