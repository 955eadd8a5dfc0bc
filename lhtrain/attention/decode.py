"""Caches with which a layer attends to a prompt in one pass, and then to one token at a time.

Each replaces the `attend` of one layer, and returns the outputs that the layer has for the whole sequence.

B batch, T new tokens, N tokens seen, H query heads, G key/value heads, D head dim.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lhtrain.attention.dense import DenseAttention, dense_attention
from lhtrain.attention.lighthouse import LighthouseAttention, gather_keys
from lhtrain.attention.own_queries import rows_seen
from lhtrain.attention.sliding import SlidingAttention, attend_near, sliding_attention
from lhtrain.attention.strict import Ranges, attend, coarsest_queries, exact_ranges, far_ranges, merge
from lhtrain.attention.where import Attend, Where
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.ranges.naive import attend_ranges
from lhtrain.kernels.scores import Tokens, is_token_local


class Kept:
    """Tensors (B, n, ...) of consecutive tokens, appended in place. The memory grows by at least a half."""

    def __init__(self, capacity: int = 0):
        self.capacity = capacity  # tokens for which memory is allocated at first
        self.size = 0
        self._memory: Tensor | None = None

    def add(self, new: Tensor) -> Tensor:
        """Append new (B, T, ...); return all tokens (B, n, ...), a view to use before the next call."""
        size = self.size + new.shape[1]
        if self._memory is None or size > self._memory.shape[1]:
            grown = 0 if self._memory is None else self._memory.shape[1] * 3 // 2
            bigger = new.new_empty(new.shape[0], max(size, grown, self.capacity), *new.shape[2:])
            if self._memory is not None:
                bigger[:, : self.size] = self._memory[:, : self.size]
            self._memory = bigger
        self._memory[:, self.size : size] = new
        self.size = size
        return self._memory[:, :size]

    @property
    def seen(self) -> Tensor:
        """All tokens, (B, n, ...)."""
        assert self._memory is not None
        return self._memory[:, : self.size]

    def keep_last(self, n: int) -> None:
        """Drop all but the last n tokens, and the memory beyond `capacity`."""
        last = self.seen[:, self.size - n :]
        self._memory, self.size = None, 0
        self.add(last)


def _one_query(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attend with one query, q (B, 1, H, D), to all of k, v (B, S, G, D), S at least 1.

    The host does not wait for the device. Returns out (B, 1, H, D) and the logsumexp (B, 1, H), in float32 or
    more.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = q.unflatten(2, (k.shape[2], -1)).squeeze(1).to(wide) * q.shape[-1] ** -0.5  # (B, G, R, D)
    scores = torch.einsum("bgrd,bsgd->bgrs", grouped, k.to(wide))
    out = torch.einsum("bgrs,bsgd->bgrd", scores.softmax(-1), v.to(wide))
    return out.flatten(1, 2).unsqueeze(1).to(q.dtype), scores.logsumexp(-1).flatten(1, 2).unsqueeze(1)


def _nothing(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return what queries without any key have: zeros like q (B, T, H, D), and logsumexps of -inf."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.zeros_like(q), q.new_full(q.shape[:3], -torch.inf, dtype=wide)


class FullCache:
    """Full attention: the keys and values of all tokens so far. capacity: tokens to allocate memory for."""

    def __init__(self, capacity: int = 0) -> None:
        self.k, self.v = Kept(capacity), Kept(capacity)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """q (B, T, H, D), k, v (B, T, G, D) of the next T tokens -> (B, T, H, D)."""
        seen = self.k.size
        all_k, all_v = self.k.add(k), self.v.add(v)
        if not seen:
            return dense_attention(q, k, v)
        if q.shape[1] == 1:
            q, k, v = (x.transpose(1, 2) for x in (q, all_k, all_v))
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)
        hi = torch.arange(seen, seen + q.shape[1], device=q.device) + 1
        return attend_ranges(q, all_k, all_v, torch.zeros_like(hi), hi)[0]


class SlidingCache:
    """Sliding-window attention: the keys and values of the last W tokens, so that the memory does not grow.

    capacity: tokens that will come; at most W of them are kept between calls.
    """

    def __init__(self, window: int, capacity: int = 0) -> None:
        self.window = window
        self.k, self.v = (Kept(min(2 * window, capacity)) for _ in range(2))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """q (B, T, H, D), k, v (B, T, G, D) of the next T tokens -> (B, T, H, D)."""
        is_first = self.k.size == 0
        keys, values = self.k.add(k), self.v.add(v)
        if is_first:
            out = sliding_attention(q, k, v, self.window)
        elif q.shape[1] == 1:
            out = _one_query(q, keys[:, -self.window :], values[:, -self.window :])[0]
        else:
            out = attend_near(q, keys, values, self.window)
        if self.k.size >= 2 * self.window:  # rarely, because it copies
            for kept in (self.k, self.v):
                kept.keep_last(self.window)
        return out


@dataclass
class RowsCache:
    """The rows of closed tiles, selected when the last token of a tile comes, and the tokens to select from.

    The memory for tokens does not grow; rows are about a fifth of all tokens or fewer.

    Raises ValueError: a scorer whose scores need more than a token.
    """

    layer: LighthouseAttention
    seq_len: int  # for which the layer was trained: with the budget it sets the length of a tile
    capacity: int = 0  # tokens for whose rows memory is allocated
    n_seen: int = 0
    q: Kept = field(init=False)  # of the open tile
    k: Kept = field(init=False)  # of the open tile, and of tokens before it
    v: Kept = field(init=False)
    rows_k: Kept = field(init=False)  # of the closed tiles, one after the other
    rows_v: Kept = field(init=False)

    def __post_init__(self) -> None:
        self.pyramid = self.layer.pyramid(self.seq_len)
        self.scorer = self.layer.scorer_in(None)
        if not is_token_local(self.scorer):
            name = type(self.scorer).__name__
            raise ValueError(f"scorer={name}: decoding needs a scorer whose scores depend on only one token")
        self.coarsest = self.pyramid.coarsest_window
        tile = self.pyramid.tile_tokens
        self.rows_per_tile = self.layer.selection.n_rows(self.pyramid) // self.pyramid.n_tiles
        exact = min(self.layer.window + tile, self.capacity)
        self.q, self.k, self.v = Kept(min(tile, self.capacity)), Kept(exact), Kept(exact)
        self.rows_k, self.rows_v = (Kept(self.capacity // tile * self.rows_per_tile) for _ in range(2))

    def _close_tiles(self, queries: Tensor, keys: Tensor, values: Tensor, n_new: int) -> bool:
        """Select the rows of the tiles that the new tokens close; return whether kernels ran."""
        tile, whole = self.pyramid.tile_tokens, self.pyramid
        first = self.n_seen // tile
        n_tiles = (self.n_seen + n_new) // tile - first
        if not n_tiles:
            return False
        n_open = self.n_seen % tile + n_new  # tokens from the first tile on
        q, (k, v) = queries[:, : n_tiles * tile], (x[:, x.shape[1] - n_open :] for x in (keys, values))
        k, v = k[:, : n_tiles * tile], v[:, : n_tiles * tile]
        positions = torch.arange(first * tile, (first + n_tiles) * tile, device=q.device)
        tiles = Pyramid(n_tiles * tile, whole.levels, whole.pooling, n_tiles * whole.tile, whole.tile)
        tokens = Tokens(q, k, v, positions)
        layer = self.layer
        how = layer.backend, self.scorer, layer.selection, None
        n_covered = len(q) if layer.cover_prefix and not first else 0
        rows_k, rows_v, _, kernels = gather_keys(q, k, v, tokens, tiles, *how, n_covered)
        self.rows_k.add(rows_k)
        self.rows_v.add(rows_v)
        return kernels

    def _forget(self, n_new: int) -> None:
        """Count the new tokens; if they closed a tile, keep the open one and the W tokens before it."""
        self.n_seen += n_new
        tile = self.pyramid.tile_tokens
        if self.n_seen // tile > (self.n_seen - n_new) // tile:
            n_open = self.n_seen % tile
            self.q.keep_last(n_open)
            for kept in (self.k, self.v):
                kept.keep_last(min(n_open + self.layer.window, kept.size))


class OwnQueriesCache(RowsCache):
    """The layer with own queries: the last W tokens exactly, and rows of closed tiles with each query."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """q (B, T, H, D), k, v (B, T, G, D) of the next T tokens -> (B, T, H, D)."""
        n_new, window = q.shape[1], self.layer.window
        queries, before = self.q.add(q), self.k.size
        keys, values = self.k.add(k), self.v.add(v)
        kernels = self._close_tiles(queries, keys, values, n_new)
        positions = torch.arange(self.n_seen, self.n_seen + n_new, device=q.device)
        first = self.n_seen - before  # the position of the first key
        seen = Ranges((positions - (window - 1)).clamp(min=0).int() - first, (positions + 1).int() - first)
        near, lse = attend(q, keys, values, seen, kernels)
        far, far_lse = _nothing(q)
        if self.rows_k.size:
            of_rows = rows_seen(self.pyramid, positions)
            far, far_lse = attend(q, self.rows_k.seen, self.rows_v.seen, of_rows, kernels)
            far_lse = far_lse.transpose(1, 2)
        self._forget(n_new)
        return merge(near, lse.transpose(1, 2), far, far_lse)


@dataclass
class StrictCache(RowsCache):
    """The strictly causal layer: keys of the open tile and of the W tokens before it, rows of closed tiles.

    The far part is computed when a coarsest window ends, once in p^(L-1) tokens.

    Raises ValueError: a layer that is not strictly causal, or a scorer whose scores need more than a token.
    """

    far: tuple[Tensor, Tensor] | None = None  # of the last coarsest query: out (B, 1, H, D), lse (B, 1, H)

    def __post_init__(self) -> None:
        if not self.layer.strictly_causal:
            rule = "only strictly causal layers and full attention give one token at a time"
            raise ValueError(f"strictly_causal=False: {rule}")
        super().__post_init__()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """q (B, T, H, D), k, v (B, T, G, D) of the next T tokens -> (B, T, H, D)."""
        n_new = q.shape[1]
        queries = self.q.add(q)  # from the first token of the open tile on
        before = self.k.size  # tokens before the new ones among the keys
        keys, values = self.k.add(k), self.v.add(v)
        kernels = self._close_tiles(queries, keys, values, n_new)
        exact, lse = self._attend_exactly(q, keys, values, before, kernels)
        far, far_lse = self._attend_far(queries, n_new, kernels)
        self._forget(n_new)
        return merge(exact, lse, far, far_lse)

    def _attend_exactly(
        self, q: Tensor, keys: Tensor, values: Tensor, before: int, kernels: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the exact part of the new tokens, (B, T, H, D), and its logsumexp (B, T, H)."""
        first = self.n_seen - before  # the position of the first key
        if q.shape[1] == 1:
            tile_start = (self.n_seen + 1) // self.pyramid.tile_tokens * self.pyramid.tile_tokens
            lo = max(min(tile_start - self.layer.window, self.n_seen), 0)
            return _one_query(q, keys[:, lo - first :], values[:, lo - first :])
        positions = torch.arange(self.n_seen, self.n_seen + q.shape[1], device=q.device)
        ranges = exact_ranges(positions, self.pyramid.tile_tokens, self.layer.window)
        out, lse = attend(q, keys, values, Ranges(*(bound - first for bound in ranges)), kernels)
        return out, lse.transpose(1, 2)

    def _attend_far(self, queries: Tensor, n_new: int, kernels: bool) -> tuple[Tensor, Tensor]:
        """Return the far part that each new token uses, (B, T, H, D), and its logsumexp (B, T, H)."""
        if self.far is None:
            self.far = _nothing(queries[:, :1])
        begin, end = self.n_seen // self.coarsest, (self.n_seen + n_new) // self.coarsest
        if begin == end:
            far, lse = self.far
            return far.expand(-1, n_new, -1, -1), lse.expand(-1, n_new, -1)
        tile_start = self.n_seen - self.n_seen % self.pyramid.tile_tokens
        windows = queries[:, begin * self.coarsest - tile_start : end * self.coarsest - tile_start]
        far, lse = self._of_entries(coarsest_queries(windows, self.coarsest), begin, end, kernels)
        far, lse = torch.cat([self.far[0], far], 1), torch.cat([self.far[1], lse], 1)
        self.far = far[:, -1:], lse[:, -1:]
        positions = torch.arange(self.n_seen, self.n_seen + n_new, device=queries.device)
        entry = (positions + 1) // self.coarsest - begin
        return far[:, entry], lse[:, entry]

    def _of_entries(self, queries: Tensor, begin: int, end: int, kernels: bool) -> tuple[Tensor, Tensor]:
        """Attend with the coarsest queries (B, end - begin, H, D) to the rows of the tiles before them."""
        closed = self.rows_k.size // self.rows_per_tile
        visible = max(closed - self.layer.window // self.pyramid.tile_tokens, 0) * self.rows_per_tile
        if not visible:
            return _nothing(queries)
        rows_k, rows_v = (kept.seen[:, :visible] for kept in (self.rows_k, self.rows_v))
        if end - begin == 1:
            return _one_query(queries, rows_k, rows_v)
        entries = torch.arange(begin, end, device=queries.device)
        ranges = far_ranges(entries, self.pyramid, self.layer.window, self.rows_per_tile)
        out, lse = attend(queries, rows_k, rows_v, ranges, kernels)
        return out, lse.transpose(1, 2)


Cache = FullCache | SlidingCache | StrictCache | OwnQueriesCache


def cache_of(attend: Attend, seq_len: int, capacity: int = 0) -> Cache:
    """Return an empty cache for a layer that attends with `attend`.

    seq_len: the sequence length of training. capacity: tokens to allocate memory for; more may come.

    Raises ValueError: a layer whose outputs depend on later tokens, which no cache can give.
    """
    if isinstance(attend, DenseAttention):
        return FullCache(capacity)
    if isinstance(attend, SlidingAttention):
        return SlidingCache(attend.window, capacity)
    if isinstance(attend, LighthouseAttention) and attend.own_queries:
        if attend.window >= seq_len:  # the layer is full attention, see `lighthouse_attention`
            return FullCache(capacity)
        return OwnQueriesCache(attend, seq_len, capacity)
    if isinstance(attend, LighthouseAttention):
        return StrictCache(attend, seq_len, capacity)
    raise ValueError(f"attention={type(attend).__name__}: there is no cache to decode with")
