"""The paper's scorer without parameters: the l2 norms of queries and keys."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lhtrain.kernels.scores import Tokens
from lhtrain.kernels.scores.naive import norm_scores


@dataclass(frozen=True)
class Norm:
    """qk = ‖q‖, kq = ‖k‖. `ops.gather_rows` computes the same for all levels in one kernel (kernel.py)."""

    token_local: ClassVar[bool] = True

    def scores(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return qk, kq (B, G, T) float32."""
        return norm_scores(tokens.q, tokens.k)
