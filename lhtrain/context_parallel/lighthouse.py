"""Lighthouse Attention on the tokens of one context-parallel rank.

A rank has two chunks of the sequence (`layout.py`). Pooling, scoring and selection stay inside a chunk,
with its share k / 2W of the budget: the layer selects tile by tile, and a chunk is a whole number of tiles,
so that the chunks' kept rows, one after the other, are the rows that one rank alone would keep. They are
attended to by all ranks together. Two things cross a chunk's border, and `exact` does them: the outputs of a
chunk's last entries reach into the next chunk, and only the sequence's first chunk needs its prefix covered.

B batch, T = 2 c tokens of a rank, c tokens of a chunk, H query heads, G key/value heads, D head dim, S rows.
Source: arXiv:2605.06554, context parallelism, which does without `exact`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lhtrain.attention.lighthouse import LighthouseAttention, Selected, gather, scatter
from lhtrain.attention.where import Where
from lhtrain.context_parallel.dense import ContextDense
from lhtrain.context_parallel.halo import from_chunk_before
from lhtrain.context_parallel.layout import as_chunks, as_sequence, chunk_pyramid
from lhtrain.context_parallel.tokens import rank_tokens
from lhtrain.context_parallel.windowed import windowed
from lhtrain.kernels.pyramid import Pyramid


@dataclass(frozen=True)
class ContextLighthouse:
    """The boundary's callable: q (B, T, H, D), k, v (B, T, G, D) -> (B, T, H, D).

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
        layer, batch = self.layer, q.shape[0]
        if layer.window >= q.shape[1] * self.size:
            return self.rows(q, k, v)
        pyramid = chunk_pyramid(layer.pyramid(q.shape[1] * self.size), self.size)
        n_covered = 0
        if layer.cover_prefix:
            n_covered = 2 * batch if not self.exact else batch if self.rank == 0 else 0
        tokens = rank_tokens(q, k, v, where, self.rows, self.group, self.rank, self.size)
        q, k, v = (as_chunks(x) for x in (q, k, v))  # (2 B, c, H, D)
        scorer = layer.scorer_in(where)
        selected = gather(q, k, v, tokens, pyramid, n_covered, layer.backend, scorer, layer.selection)
        if layer.window:
            ranks = self.group, self.rank, self.size
            attend = self.rows.with_lse
            return as_sequence(windowed(q, k, v, selected, pyramid, layer.window, attend, self.exact, ranks))
        rows_q, rows_k, rows_v = (as_sequence(x) for x in (selected.q, selected.k, selected.v))
        rows = as_chunks(self.rows(rows_q, rows_k, rows_v))
        out = scatter(rows, selected, pyramid)
        if self.exact:
            out = self._with_spill(out, last_rows(rows, selected, pyramid), pyramid)
        return as_sequence(out)

    def _with_spill(self, out: Tensor, last: Tensor, pyramid: Pyramid) -> Tensor:
        """Add what the chunk before reaches into each chunk: out (2 B, c, H, D), last (2 B, L - 1, H, D)."""
        before = from_chunk_before(last.unflatten(0, (2, -1)), self.group, self.rank, self.size).flatten(0, 1)
        reach = pyramid.pooling ** (pyramid.levels - 1) - 1
        first = out[:, :reach].float()
        for level in range(1, pyramid.levels):
            n = pyramid.pooling**level - 1
            spilled = before[:, level - 1, None].float().expand(-1, n, -1, -1)
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
