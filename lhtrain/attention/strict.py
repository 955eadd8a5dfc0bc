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
import torch.nn.functional as F
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


def coarsest_queries(q: Tensor, pyramid: Pyramid) -> Tensor:
    """q (B, N, H, D) -> the means of its windows of p^(L-1) tokens, (B, M, H, D) in q's dtype."""
    windows = q.unflatten(1, (-1, pyramid.pooling ** (pyramid.levels - 1)))
    return windows.mean(2, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)


def to_positions(x: Tensor, window: int, n: int, fill: float) -> Tensor:
    """Of coarsest entries (B, M, ...), that which each of n positions uses, `fill` before the first ends."""
    spread = x.repeat_interleave(window, 1)[:, : n - window + 1]
    return F.pad(spread, (0, 0) * (x.ndim - 2) + (window - 1, 0), value=fill)


def merge(exact: Tensor, lse: Tensor, far: Tensor, far_lse: Tensor) -> Tensor:
    """Two parts of one softmax: exact, far (B, T, H, D) with logsumexps (B, T, H) -> (B, T, H, D)."""
    share = torch.sigmoid(far_lse - lse).unsqueeze(-1)
    wide = exact.to(share.dtype)
    return (wide + share * (far.to(share.dtype) - wide)).to(exact.dtype)


def strictly_causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows_k: Tensor,
    rows_v: Tensor,
    pyramid: Pyramid,
    window: int,
    kernels: bool,
) -> Tensor:
    """The layer after its rows have been selected.

    q (B, N, H, D), k, v (B, N, G, D); rows_k, rows_v (B, S, G, D): the kept rows, tile after tile.
    """
    coarsest = pyramid.pooling ** (pyramid.levels - 1)
    positions = torch.arange(pyramid.seq_len, device=q.device)
    exact, lse = attend(q, k, v, exact_ranges(positions, pyramid.tile_tokens, window), kernels)
    entries = torch.arange(pyramid.size(pyramid.levels - 1), device=q.device)
    ranges = far_ranges(entries, pyramid, window, rows_k.shape[1] // pyramid.n_tiles)
    far, far_lse = attend(coarsest_queries(q, pyramid), rows_k, rows_v, ranges, kernels)
    far = to_positions(far, coarsest, pyramid.seq_len, 0.0)
    far_lse = to_positions(far_lse.transpose(1, 2), coarsest, pyramid.seq_len, -torch.inf)
    return merge(exact, lse.transpose(1, 2), far, far_lse)
