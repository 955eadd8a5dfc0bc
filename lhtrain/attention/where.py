"""The inputs of an attention call besides queries, keys and values, such as the positions of the tokens.

The model and its blocks pass `Where` on without using its content, so that fields can be added.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lhtrain.attention.documents import Documents
from lhtrain.kernels.scores import Scorer

Rotation = tuple[Tensor, Tensor]  # cosine and sine of the rotary embedding, each (T, D) or (B, T, D), float32


class Where(NamedTuple):
    """Describes the T tokens of a call on this rank. Each attention layer adds `scorer` and `x`."""

    rotation: Rotation
    scorer: Scorer | None = None  # the layer's own scorer, if it has parameters
    positions: Tensor | None = None  # (T,) or (B, T) int64, positions of the tokens for the rotary embedding
    x: Tensor | None = None  # (B, T, C), the input of the layer
    documents: Documents | None = None  # None: tokens attend to all documents of their sequence

    @property
    def positions_in_sequence(self) -> Tensor | None:
        """`positions` where they count in the sequence (T,), and None where each document has its own."""
        return self.positions if self.positions is not None and self.positions.ndim == 1 else None


# q (B, T, H, D), k, v (B, T, Hkv, D), after the rotary embedding -> (B, T, H, D)
Attend = Callable[[Tensor, Tensor, Tensor, Where], Tensor]
