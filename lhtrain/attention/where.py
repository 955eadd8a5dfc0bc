"""Where the tokens are that a layer attends over: what an attention call gets besides queries, keys, values.

Model and blocks hand it on without looking inside, so that more can travel with it (the boundaries of
documents, for one).
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lhtrain.kernels.scores import Scorer

Rotation = tuple[Tensor, Tensor]  # cosine and sine of the rotary embedding, each (T, D), float32


class Where(NamedTuple):
    """rotation: of the T positions that this rank has, positions (T,) int64. The layer adds its scorer, where
    that has parameters, and its input x (B, T, C)."""

    rotation: Rotation
    scorer: Scorer | None = None
    positions: Tensor | None = None
    x: Tensor | None = None


# q (B, T, H, D), k, v (B, T, Hkv, D), rotated already -> (B, T, H, D)
Attend = Callable[[Tensor, Tensor, Tensor, Where], Tensor]
