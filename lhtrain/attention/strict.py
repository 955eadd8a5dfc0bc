"""Strictly causal Lighthouse Attention: no output depends on a later token, not even by the choice of rows.

The published selection compares the entries of a whole tile, so that a choice depends on later tokens of the
tile. Here the kept rows of a tile become visible once the tile is closed, that is, at its last token. Until
then its tokens are attended to exactly, and so are the W tokens before the tile. A position adds two parts:

- exact: position j attends to the tokens from W before its tile on, up to itself. A position that closes a
  tile belongs to the next one.
- far: the last coarsest query that ends at or before j, the mean of p^(L-1) queries, attends to the kept rows
  of all closed tiles that the W tokens do not cover. Its resolution depends on no score.

The two are merged by their logsumexps. Both are attention to one range of keys for each query
(`kernels/ranges`). A model that was trained so decodes with a cache (`decode.py`).

B batch, N sequence length, H query heads, G key/value heads, D head dim, M coarsest entries, S rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.ranges.naive import attend_ranges


class Ranges(NamedTuple):
    """The keys that queries see: lo[t] ... hi[t] - 1, int32."""

    lo: Tensor
    hi: Tensor


def exact_ranges(positions: Tensor, tile_tokens: int, window: int) -> Ranges:
    """The tokens that each of `positions` (T,) attends to exactly."""
    tile_start = (positions + 1) // tile_tokens * tile_tokens
    lo = torch.minimum(tile_start - window, positions).clamp(min=0)
    return Ranges(lo.int(), (positions + 1).int())


def far_ranges(entries: Tensor, pyramid: Pyramid, window: int, rows_per_tile: int) -> Ranges:
    """The kept rows that the coarsest queries `entries` (M,) attend to, tiles in order."""
    closed = (entries + 1) * pyramid.pooling ** (pyramid.levels - 1) // pyramid.tile_tokens
    hi = (closed - window // pyramid.tile_tokens).clamp(min=0) * rows_per_tile
    return Ranges(torch.zeros_like(hi).int(), hi.int())


def attend(q: Tensor, k: Tensor, v: Tensor, ranges: Ranges, kernels: bool) -> tuple[Tensor, Tensor]:
    """`kernels.ranges.naive.attend_ranges`, through its GPU kernel where `kernels` says so."""
    if not kernels:
        return attend_ranges(q, k, v, *ranges)
    from lhtrain.kernels import ops

    out, lse = ops.attend_ranges(q, k, v, *ranges)
    return out, lse


def coarsest_queries(q: Tensor, window: int) -> Tensor:
    """q (B, T, H, D) -> the means of windows of so many tokens, (B, T / window, H, D) in q's dtype."""
    windows = q.unflatten(1, (-1, window))
    return windows.mean(2, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)


def to_positions(x: Tensor, window: int, n: int) -> Tensor:
    """Of coarsest entries (B, M + 1, ...), from the one before the first on, that which each of n positions
    uses: the last to end at or before it, (B, n, ...)."""
    return x.repeat_interleave(window, 1)[:, 1 : n + 1]


def merge(exact: Tensor, lse: Tensor, far: Tensor, far_lse: Tensor) -> Tensor:
    """Two parts of one softmax: exact, far (B, T, H, D) with logsumexps (B, T, H) -> (B, T, H, D)."""
    share = torch.sigmoid(far_lse - lse).unsqueeze(-1)
    wide = exact.to(share.dtype)
    return (wide + share * (far.to(share.dtype) - wide)).to(exact.dtype)


class Chunk(NamedTuple):
    """Consecutive tokens, whole tiles, with what lies before them.

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
    rows_k: Tensor,
    rows_v: Tensor,
    pyramid: Pyramid,
    window: int,
    kernels: bool,
    chunk: Chunk | None = None,
) -> Tensor:
    """The layer after its rows have been selected.

    Args:
        q: (B, T, H, D); k, v: (B, n_before + T, G, D), G dividing H.
        rows_k, rows_v: (B, S, G, D), the kept rows of the whole sequence, tile after tile.
        pyramid: of the whole sequence.
        kernels: whether the GPU kernels run.
        chunk: which of the sequence's tokens q has; None: all of them.
    """
    if chunk is None:
        chunk = Chunk(0, 0, torch.zeros_like(q[:, :1]))
    coarsest, n = pyramid.pooling ** (pyramid.levels - 1), q.shape[1]
    positions = torch.arange(chunk.start, chunk.start + n, device=q.device)
    first_key = chunk.start - chunk.n_before
    keys = (bound - first_key for bound in exact_ranges(positions, pyramid.tile_tokens, window))
    exact, lse = attend(q, k, v, Ranges(*keys), kernels)

    queries = torch.cat([chunk.query_before, coarsest_queries(q, coarsest)], 1)
    first = chunk.start // coarsest
    entries = torch.arange(first - 1, first + n // coarsest, device=q.device)
    rows = far_ranges(entries, pyramid, window, rows_k.shape[1] // pyramid.n_tiles)
    far, far_lse = attend(queries, rows_k, rows_v, rows, kernels)
    far, far_lse = (to_positions(x, coarsest, n) for x in (far, far_lse.transpose(1, 2)))
    return merge(exact, lse.transpose(1, 2), far, far_lse)
