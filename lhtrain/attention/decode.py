"""Caches with which a layer attends one token at a time. Each stands in for the `attend` of one layer.

B batch, T new tokens, N tokens seen, H query heads, G key/value heads, D head dim.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lhtrain.attention.dense import DenseAttention
from lhtrain.attention.lighthouse import LighthouseAttention, level_scores
from lhtrain.attention.strict import merge
from lhtrain.attention.where import Attend, Where
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.ranges.naive import attend_ranges
from lhtrain.kernels.scores import Tokens, is_token_local
from lhtrain.kernels.windows.naive import gather_pooled


def _to_every_key(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Of one query, q (B, 1, H, D), to all of k, v (B, S, G, D): out (B, 1, H, D), lse (B, 1, H) float32."""
    hi = torch.tensor([k.shape[1]], device=q.device)
    out, lse = attend_ranges(q, k, v, torch.zeros_like(hi), hi)
    return out, lse.transpose(1, 2)


@dataclass
class FullCache:
    """Full attention: the keys and values of all tokens so far."""

    k: Tensor | None = None
    v: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """q (B, T, H, D), k, v (B, T, G, D) of the next T tokens -> (B, T, H, D)."""
        self.k, self.v = _longer(self.k, k), _longer(self.v, v)
        hi = torch.arange(self.k.shape[1] - q.shape[1], self.k.shape[1], device=q.device) + 1
        return attend_ranges(q, self.k, self.v, torch.zeros_like(hi), hi)[0]


@dataclass
class StrictCache:
    """The strictly causal layer: keys of the open tile and of the W tokens before it, rows of closed tiles.

    It gives the outputs of the layer over the whole sequence. A tile is selected when its last token comes;
    the far part is computed when a coarsest window ends, once in p^(L-1) tokens.

    Raises ValueError: a layer that is not strictly causal, or a scorer whose scores need more than a token.
    """

    layer: LighthouseAttention
    seq_len: int  # for which the layer was trained: with the budget it sets the length of a tile
    n_seen: int = 0
    q: Tensor | None = None  # of the open tile
    k: Tensor | None = None  # of the W tokens before the open tile, and of the open tile
    v: Tensor | None = None
    # k, v (B, rows, G, D) of each closed tile
    rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    far: tuple[Tensor, Tensor] | None = None  # of the last coarsest query: out (B, 1, H, D), lse (B, 1, H)

    def __post_init__(self) -> None:
        if not self.layer.strictly_causal:
            rule = "only strictly causal layers and full attention give one token at a time"
            raise ValueError(f"strictly_causal=False: {rule}")
        self.pyramid = self.layer.pyramid(self.seq_len)
        self.scorer = self.layer.scorer_in(None)
        if not is_token_local(self.scorer):
            name = type(self.scorer).__name__
            raise ValueError(f"scorer={name}: decoding needs a scorer whose scores depend on one token alone")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """q (B, T, H, D), k, v (B, T, G, D) of the next T tokens -> (B, T, H, D)."""
        return torch.cat([self._next(*(x[:, t : t + 1] for x in (q, k, v))) for t in range(q.shape[1])], 1)

    def _next(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output of one more token."""
        coarsest = self.pyramid.pooling ** (self.pyramid.levels - 1)
        self.q, self.k, self.v = _longer(self.q, q), _longer(self.k, k), _longer(self.v, v)
        self.n_seen += 1
        query = self.q[:, -coarsest:].float().mean(1, keepdim=True).to(q.dtype)
        if self.n_seen % self.pyramid.tile_tokens == 0:
            self._close_tile()
            seen = max(self.layer.window, 1)
            exact, lse = _to_every_key(q, self.k[:, -seen:], self.v[:, -seen:])
            self.q = None
            self.k, self.v = (x[:, max(x.shape[1] - self.layer.window, 0) :] for x in (self.k, self.v))
        else:
            exact, lse = _to_every_key(q, self.k, self.v)
        if self.n_seen % coarsest == 0:
            self.far = self._attend_far(query)
        return exact if self.far is None else merge(exact, lse, *self.far)

    def _close_tile(self) -> None:
        """Select the rows of the open tile, which is whole now."""
        assert self.q is not None and self.k is not None and self.v is not None
        tokens, whole = self.pyramid.tile_tokens, self.pyramid
        tile = Pyramid(tokens, whole.levels, whole.pooling, whole.tile, whole.tile)
        k, v = self.k[:, -tokens:], self.v[:, -tokens:]
        positions = torch.arange(self.n_seen - tokens, self.n_seen, device=k.device)
        scores = level_scores(self.scorer, Tokens(self.q, k, v, positions), tile)
        indices = self.layer.selection.reference(*scores, tile, 0)
        self.rows.append((gather_pooled(k, indices, tile), gather_pooled(v, indices, tile)))

    def _attend_far(self, query: Tensor) -> tuple[Tensor, Tensor] | None:
        """Of a coarsest query to the rows of the closed tiles that the exact part does not cover."""
        visible = len(self.rows) - self.layer.window // self.pyramid.tile_tokens
        if visible <= 0:
            return None
        rows_k, rows_v = zip(*self.rows[:visible], strict=True)
        return _to_every_key(query, torch.cat(rows_k, 1), torch.cat(rows_v, 1))


def _longer(seen: Tensor | None, new: Tensor) -> Tensor:
    return new if seen is None else torch.cat([seen, new], 1)


def cache_of(attend: Attend, seq_len: int) -> FullCache | StrictCache:
    """An empty cache for a layer that attends with `attend`; seq_len: that of its training.

    Raises ValueError: a layer whose outputs depend on later tokens, which no cache can give.
    """
    if isinstance(attend, DenseAttention):
        return FullCache()
    if isinstance(attend, LighthouseAttention):
        return StrictCache(attend, seq_len)
    raise ValueError(f"attention={type(attend).__name__}: there is no cache to decode with")
