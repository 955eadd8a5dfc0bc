"""Which tokens deserve their full resolution: scorers, and norm scores with their maxima over windows."""

from typing import Protocol

from torch import Tensor


class Scorer(Protocol):
    """Gives every token two scores. A scorer with parameters is an `nn.Module`; register it in SCORERS."""

    def scores(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q (B, N, H, D), k (B, N, G, D) -> qk, kq (B, G, N) of level 0, compared in float32.

        The caller takes no gradient through the scores, and the maximum over windows for coarser levels.
        """
        ...
