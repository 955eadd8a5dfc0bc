"""The paper's selection: the entries with the highest scores in each tile, level by level."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.selection import naive


@dataclass(frozen=True)
class TopK:
    """In every tile and level, expands the 64 entries with the highest qk, then the 64 with the highest kq.

    These are the numbers for `Pyramid.tile` = 128; in general, each score expands tile / 2 entries.
    """

    tile_local: ClassVar[bool] = True

    def n_rows(self, pyramid: Pyramid) -> int:
        return pyramid.n_selected

    def reference(self, qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> Tensor:
        return naive.select_indices(qk, kq, pyramid, n_covered)

    def kernel(self, qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> tuple[Tensor, Tensor]:
        from lhtrain.kernels import ops  # imported here, because it needs triton and the reference does not

        sizes = pyramid.seq_len, pyramid.levels, pyramid.pooling, pyramid.budget
        indices, row_of_entry = ops.select_rows(qk, kq, *sizes, n_covered, pyramid.tile)
        return indices, row_of_entry
