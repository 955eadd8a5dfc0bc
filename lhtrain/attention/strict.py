"""Strictly causal Lighthouse Attention: no output depends on a later token, not even by the choice of rows.

The published selection compares the entries of a whole tile, so that a choice depends on later tokens of the
tile. Here the kept rows of a tile become visible once the tile is closed, that is, at its last token. Until
then its tokens are attended to exactly, and so are the W tokens before the tile. A position adds two parts:

- exact: position j attends to the tokens from W before its tile on, up to itself. A position that closes a
  tile belongs to the next one.
- far: the last coarsest query that ends at or before j, the mean of p^(L-1) queries, attends to the kept rows
  of all closed tiles that the W tokens do not cover. Its resolution depends on no score.

With documents kept apart, both parts stay in the document of the position, and a tile selects among the
entries of its last document, as only that one continues behind the tile.

The two are merged by their logsumexps. Both are attention to one range of keys for each query
(`kernels/ranges`). A model that was trained so decodes with a cache (`decode.py`).

B batch, N sequence length, H query heads, G key/value heads, D head dim, M coarsest entries, S rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lhtrain.attention.row_documents import rows_before
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.ranges.naive import attend_ranges


class Rows(NamedTuple):
    """The kept rows, tile after tile: k, v (B, S, G, D). coarsest: (B, G, M), rows of the coarsest entries.
    kernels: whether the GPU kernels run."""

    k: Tensor
    v: Tensor
    coarsest: Tensor
    kernels: bool


class Ranges(NamedTuple):
    """The keys that queries see: lo[t] ... hi[t] - 1, int32, the same for all heads or (B, [G,] T)."""

    lo: Tensor
    hi: Tensor


def exact_ranges(positions: Tensor, tile_tokens: int, window: int) -> Ranges:
    """Return the tokens that each of `positions` (T,) attends to exactly."""
    tile_start = (positions + 1) // tile_tokens * tile_tokens
    lo = torch.minimum(tile_start - window, positions).clamp(min=0)
    return Ranges(lo.int(), (positions + 1).int())


def far_ranges(entries: Tensor, pyramid: Pyramid, window: int, rows_per_tile: int) -> Ranges:
    """Return the kept rows that the coarsest queries `entries` (M,) attend to, in the order of tiles."""
    closed = (entries + 1) * pyramid.coarsest_window // pyramid.tile_tokens
    hi = (closed - window // pyramid.tile_tokens).clamp(min=0) * rows_per_tile
    return Ranges(torch.zeros_like(hi).int(), hi.int())


def attend(q: Tensor, k: Tensor, v: Tensor, ranges: Ranges, kernels: bool) -> tuple[Tensor, Tensor]:
    """Attend as `kernels.ranges.naive.attend_ranges`. kernels: by its GPU kernel."""
    if not kernels:
        return attend_ranges(q, k, v, *ranges)
    from lhtrain.kernels import ops

    out, lse = ops.attend_ranges(q, k, v, *ranges)
    return out, lse


def coarsest_queries(q: Tensor, window: int) -> Tensor:
    """Return the means of q (B, T, H, D) over windows of tokens: (B, T / window, H, D) in q's dtype."""
    windows = q.unflatten(1, (-1, window))
    return windows.mean(2, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)


def to_positions(x: Tensor, window: int, n: int) -> Tensor:
    """Repeat results of coarsest queries, x (B, M + 1, ...), for n positions: (B, n, ...).

    The first result is that of the query before the first position. Each position uses the result of the last
    query that ends at or before it.
    """
    return x.repeat_interleave(window, 1)[:, 1 : n + 1]


def merge(exact: Tensor, lse: Tensor, far: Tensor, far_lse: Tensor) -> Tensor:
    """Merge two parts of one softmax, exact and far (B, T, H, D), by their logsumexps (B, T, H)."""
    share = torch.sigmoid(far_lse - lse).unsqueeze(-1)
    wide = exact.to(share.dtype)
    return (wide + share * (far.to(share.dtype) - wide)).to(exact.dtype)


class Chunk(NamedTuple):
    """Consecutive tokens, in whole tiles, and the coarsest query before them.

    start: the position of the first. query_before (B, 1, H, D): the coarsest query that ends right before;
    n_before: tokens before the first in keys and values. Both are ignored where the sequence begins.
    """

    start: int
    n_before: int
    query_before: Tensor


def strictly_causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    pyramid: Pyramid,
    window: int,
    chunk: Chunk | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """Attend with the rows that the layer has selected: (B, T, H, D).

    Args:
        q: (B, T, H, D); k, v: (B, n_before + T, G, D), G dividing H.
        rows, pyramid: of the whole sequence.
        chunk: which of the sequence's tokens q has; None: all of them.
        starts: (B, T), the position where the document of each of q's tokens begins; None: no documents.
    """
    if chunk is None:
        chunk = Chunk(0, 0, torch.zeros_like(q[:, :1]))
    coarsest, n = pyramid.coarsest_window, q.shape[1]
    positions = torch.arange(chunk.start, chunk.start + n, device=q.device)
    first_key = chunk.start - chunk.n_before
    lo, hi = exact_ranges(positions, pyramid.tile_tokens, window)
    lo = lo if starts is None else torch.maximum(lo, starts)
    exact, lse = attend(q, k, v, Ranges(lo - first_key, hi - first_key), rows.kernels)

    queries = torch.cat([chunk.query_before, coarsest_queries(q, coarsest)], 1)
    first = chunk.start // coarsest
    entries = torch.arange(first - 1, first + n // coarsest, device=q.device)
    seen = far_ranges(entries, pyramid, window, rows.k.shape[1] // pyramid.n_tiles)
    if starts is not None:
        seen = in_documents(seen, rows.coarsest, starts, coarsest)
    far, far_lse = attend(queries, rows.k, rows.v, seen, rows.kernels)
    far, far_lse = (to_positions(x, coarsest, n) for x in (far, far_lse.transpose(1, 2)))
    if starts is not None:  # the last coarsest query may be one of another document
        begins = ((positions + 1) // coarsest - 1) * coarsest
        far_lse = far_lse.masked_fill((begins < starts).unsqueeze(-1), -torch.inf)
    return merge(exact, lse.transpose(1, 2), far, far_lse)


def in_documents(seen: Ranges, coarsest: Tensor, starts: Tensor, window: int) -> Ranges:
    """Limit the rows that coarsest queries see, from the one before the first token on, to their documents.

    coarsest: (B, G, M), `Rows.coarsest`. starts: (B, T), of the tokens; every window-th begins a query.
    Returns ranges whose `lo` is (B, G, T / window + 1).
    """
    # The query before the first token: if it is of another document than that token, no position uses it.
    begins = torch.cat([starts[:, :1], starts[:, ::window]], 1)
    sequences = torch.arange(len(starts), device=starts.device).unsqueeze(1)
    lo = rows_before(coarsest, sequences, begins, window).transpose(1, 2)
    return Ranges(torch.minimum(lo, seen.hi).int().contiguous(), seen.hi)
