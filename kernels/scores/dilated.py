"""The paper's main scorer: norms of the output of attention among every fourth token."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lhtrain.kernels.pyramid import DILATION
from lhtrain.kernels.scores import Tokens, norms_of


@dataclass(frozen=True)
class Dilated:
    """Causal attention of each token to the tokens 0, d, 2 d, ... before it, d = 4.

    qk = ‖attention of (q, k, v)‖, kq = ‖attention of (k, q, v)‖. The tokens of every d-th position form a
    separate sequence, so one call of causal attention with N / d rows and d H heads computes each score.
    """

    token_local: ClassVar[bool] = False

    def scores(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return qk, kq (B, G, T) float32. Raises ValueError if 4 does not divide the length of a chunk."""
        q, k, v = tokens.q, tokens.k, tokens.v
        assert tokens.attend is not None
        chunk, n_heads, n_groups = q.shape[1] // len(tokens.chunks), q.shape[2], k.shape[2]
        if chunk % DILATION:
            rule = f"the scorer dilated needs a multiple of {DILATION} in each chunk of the sequence"
            raise ValueError(f"seq_len={chunk}: {rule}")
        if tokens.documents is not None and tokens.align % DILATION:
            rule = f"the scorer dilated needs a multiple of {DILATION} where documents are kept apart"
            raise ValueError(f"pooling^(levels-1)={tokens.align}: {rule}")
        # In the second role q acts as the key with H heads, so k and v are repeated to H heads too.
        k_of_heads, v_of_heads = (x.repeat_interleave(n_heads // n_groups, 2) for x in (k, v))
        roles = ((q, k, v), (k_of_heads, q, v_of_heads))
        outs = (tokens.attend(*map(_apart, role), documents=tokens.every(DILATION)) for role in roles)
        qk, kq = (norms_of(_together(out), n_groups) for out in outs)
        return qk, kq


def _apart(x: Tensor) -> Tensor:
    """(B, T, H, D) -> (B, T / d, d H, D): d neighbouring tokens become d H heads."""
    return x.unflatten(1, (-1, DILATION)).flatten(2, 3)


def _together(x: Tensor) -> Tensor:
    """The inverse of `_apart`."""
    return x.unflatten(2, (DILATION, -1)).flatten(1, 2)
