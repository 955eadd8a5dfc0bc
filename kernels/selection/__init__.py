"""The interface of selections, which choose the pyramid entries that attention sees, and their order."""

from typing import ClassVar, Protocol

from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid


class Selection(Protocol):
    """A rule that selects pyramid entries by their scores.

    `reference` and `kernel` take qk, kq (B, G, E - N) float32, the scores of levels 1 and up
    (`scores.naive.max_pooled`). In the first n_covered batch elements, entry 0 of every level is expanded.
    """

    tile_local: ClassVar[bool]  # each tile of the coarsest level selects by its own scores only

    def n_rows(self, pyramid: Pyramid) -> int:
        """Return S, the number of selected entries per sequence and key/value head; the same for all data."""
        ...

    def reference(self, qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> Tensor:
        """Return the selected entries in attention order, indices (B, G, S) int64, with plain PyTorch."""
        ...

    def kernel(self, qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> tuple[Tensor, Tensor]:
        """With Triton, return indices (B, G, S) and row_of_entry (B, G, E), int32; -1: no row."""
        ...
