"""The paper's scorer without parameters: the l2 norms of queries and keys."""

from dataclasses import dataclass

from torch import Tensor

from lhtrain.kernels.scores.naive import norm_scores


@dataclass(frozen=True)
class Norm:
    """qk = ‖q‖, kq = ‖k‖. `ops.gather_rows` computes the same for all levels in one kernel, `kernel.py`."""

    def scores(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q (B, N, H, D), k (B, N, G, D) -> qk, kq (B, G, N) float32; a group has its heads' largest norm."""
        return norm_scores(q, k)
