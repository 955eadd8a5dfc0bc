"""Which tokens deserve their full resolution: scorers, and what they are given."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


def _alone(x: Tensor) -> Tensor:
    return x


class Tokens(NamedTuple):
    """The tokens to score: a whole sequence, or the part of it that a context-parallel rank has.

    B batch, T tokens, H query heads, G key/value heads, D head dim, C model dim, P chunks of T / P tokens.

    q: (B, T, H, D); k, v: (B, T, G, D), after the rotary embedding.
    positions: (T,) int64, the places of the tokens in their sequence.
    x: (B, T, C), the input of the attention layer; None where there is no layer.
    attend: causal attention over the whole sequence, (q, k, v) of these tokens -> (B, T, H, D). It also takes
        (B, T / d, d H, D), the tokens of every d-th position as heads of their own. None where only single
        tokens can be scored.
    chunks: the numbers, in the order of the sequence, of the P equal chunks that these tokens are.
    all_chunks: a tensor (P, ...) of these chunks -> those of all chunks of the sequence, in its order.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    positions: Tensor
    x: Tensor | None = None
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    chunks: tuple[int, ...] = (0,)
    all_chunks: Callable[[Tensor], Tensor] = _alone


class Scorer(Protocol):
    """Gives every token two scores. A scorer with parameters is an `nn.Module`; register it in SCORERS.

    A class attribute `token_local = True` says that the scores of a token depend on that token and its
    position alone. Only such scorers work in strictly causal layers that decode.
    """

    def scores(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """-> qk, kq (B, G, T) of level 0, compared in float32; qk is the largest of a group's query heads.

        The caller takes no gradient through the scores, and the maximum over windows for coarser levels.
        """
        ...


def is_token_local(scorer: Scorer) -> bool:
    """Whether the scores of a token depend on that token and its position alone."""
    return getattr(scorer, "token_local", False)


def norms_of(rows: Tensor, n_groups: int) -> Tensor:
    """Float32 l2 norms of rows (B, T, H, D), the largest of each group's heads: (B, G, T)."""
    return rows.float().norm(dim=-1).unflatten(-1, (n_groups, -1)).amax(-1).transpose(1, 2)
