"""The paper's selection: in each tile the entries with the highest scores, level by level."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.selection import naive


@dataclass(frozen=True)
class TopK:
    """Of every tile and level, expand the 64 entries with the highest qk, then the 64 with the highest kq."""

    tile_local: ClassVar[bool] = True

    def n_rows(self, pyramid: Pyramid) -> int:
        return pyramid.n_selected

    def reference(self, qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> Tensor:
        return naive.select_indices(qk, kq, pyramid, n_covered)

    def kernel(self, qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> tuple[Tensor, Tensor]:
        from lhtrain.kernels import ops  # needs triton, which the reference does without

        sizes = pyramid.seq_len, pyramid.levels, pyramid.pooling, pyramid.budget
        indices, row_of_entry = ops.select_rows(qk, kq, *sizes, n_covered, pyramid.tile)
        return indices, row_of_entry
