"""The interface of scorers, which decide the tokens that keep their full resolution, and their input."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor


def _alone(x: Tensor) -> Tensor:
    return x


class Tokens(NamedTuple):
    """The tokens to score: a whole sequence, or the part of it that a context-parallel rank has.

    B batch, T tokens, H query heads, G key/value heads, D head dim, C model dim, P chunks of T / P tokens.

    q: (B, T, H, D); k, v: (B, T, G, D), after the rotary embedding.
    positions: (T,) int64, the positions of the tokens in their sequence.
    x: (B, T, C), the input of the attention layer; None without a layer.
    attend: causal attention over the whole sequence, attend(q, k, v, documents=None) of these tokens
        -> (B, T, H, D). It also accepts (B, T / d, d H, D), with the tokens of every d-th position as
        separate heads; `every` gives their documents. None if only single tokens can be scored.
    chunks: these tokens are P equal chunks of the sequence; chunks holds their numbers in the sequence.
    all_chunks: a tensor (P, ...) of these chunks -> the tensor of all chunks of the sequence, in order.
    documents: where the documents begin if they are kept apart, else None: `starts` (B, T), for each token
        the position of the first of its document, and `bounds` (n + 1,), in the flattened batch of whole
        sequences. No score may then depend on tokens of another document.
    align: documents begin at multiples of it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    positions: Tensor
    x: Tensor | None = None
    attend: Callable[..., Tensor] | None = None
    chunks: tuple[int, ...] = (0,)
    all_chunks: Callable[[Tensor], Tensor] = _alone
    documents: Any = None
    align: int = 1

    def every(self, n: int) -> Any:
        """The documents of the tokens of every n-th position. n divides `align`."""
        if self.documents is None:
            return None
        starts, bounds = self.documents.starts[:, ::n] // n, self.documents.bounds // n
        return self.documents._replace(starts=starts, bounds=bounds)


class Scorer(Protocol):
    """Gives every token two scores. A scorer with parameters is an `nn.Module`; register it in SCORERS.

    The class attribute `token_local = True` means that the scores of a token depend only on this token and
    its position. Strictly causal layers can generate text only with such scorers.
    """

    def scores(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return qk, kq (B, G, T) of level 0, compared in float32; qk is the maximum over query heads.

        The caller computes no gradient of the scores, and takes the maximum over windows for coarser levels.
        """
        ...


def is_token_local(scorer: Scorer) -> bool:
    """Return whether the scores of a token depend only on this token and its position."""
    return getattr(scorer, "token_local", False)


def norms_of(rows: Tensor, n_groups: int) -> Tensor:
    """Return the float32 l2 norms of rows (B, T, H, D), the maximum over each group's heads: (B, G, T)."""
    return rows.float().norm(dim=-1).unflatten(-1, (n_groups, -1)).amax(-1).transpose(1, 2)
