"""Which pyramid entries attention sees, their order, and the row of each."""

from typing import ClassVar, Protocol

from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid


class Selection(Protocol):
    """A rule that picks pyramid entries by their scores.

    Both methods take qk, kq (B, G, E - N) float32, the scores of levels 1 and up (`scores.naive.max_pooled`),
    and n_covered: in so many batch elements, from the first on, entry 0 of every level is expanded.
    """

    tile_local: ClassVar[bool]  # each tile of the coarsest level selects by its own scores alone

    def n_rows(self, pyramid: Pyramid) -> int:
        """S, the selected entries of one sequence and key/value head; it depends on no data."""
        ...

    def reference(self, qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> Tensor:
        """In plain PyTorch: the selected entries in attention order, indices (B, G, S) int64."""
        ...

    def kernel(self, qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> tuple[Tensor, Tensor]:
        """With Triton: indices (B, G, S) and their inverse, row_of_entry (B, G, E), int32; -1: no row."""
        ...
