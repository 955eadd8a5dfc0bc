"""Full attention over context-parallel ranks, by the ring or by Ulysses."""

from dataclasses import dataclass

from torch import Tensor

from lhtrain.attention.where import Where
from lhtrain.context_parallel.ring import ring_attention, ring_with_lse
from lhtrain.context_parallel.ulysses import ulysses_attention, ulysses_with_lse


@dataclass(frozen=True)
class ContextDense:
    """Full attention as an `Attend`: q (B, T, H, D), k, v (B, T, Hkv, D) -> (B, T, H, D)."""

    method: str
    group: str
    size: int
    backend: str = "auto"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        documents = None if where is None else where.documents
        if self.method == "ring":
            return ring_attention(q, k, v, self.group, None if documents is None else documents.bounds)
        return ulysses_attention(q, k, v, self.group, self.size, self.backend, documents)

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, kernels: bool) -> tuple[Tensor, Tensor]:
        """Return the output, and the logsumexp of the scores (B, H, T) float32, with gradients through both.

        kernels: whether GPU kernels serve, as in `attend_rows`.
        """
        if self.method == "ring":
            return ring_with_lse(q, k, v, self.group)
        return ulysses_with_lse(q, k, v, self.group, self.size, kernels)
