"""The attention of a stage at other sequence lengths."""

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from lhtrain.attention.dense import FULL_ATTENTION
from lhtrain.attention.where import Attend
from lhtrain.distributed.mesh import Mesh
from lhtrain.kernels.pyramid import DILATION
from lhtrain.registry import ATTENTIONS
from lhtrain.stage import Stage


class At(NamedTuple):
    """The attention at a sequence length.

    shared: whether the context-parallel ranks share a sequence. If not, each of them has all of it, because
    it is too short to be shared.
    """

    layers: Attend
    dense: Attend  # of `dense_layers`
    shared: bool
    dense_layers: tuple[int, ...] = ()


class FullAttention:
    """Full attention at every length.

    mesh: None for a single rank. sliding: the window of the model's sliding layers, None if it has none.
    """

    def __init__(self, mesh: Mesh | None = None, sliding: int | None = None) -> None:
        self.cp = 1 if mesh is None else mesh.slice.cp_size
        self.over_ranks = FULL_ATTENTION if mesh is None else mesh.attention(FULL_ATTENTION)
        self.of_ring = None if mesh is None or mesh.method != "ring" else sliding

    def __call__(self, length: int) -> At:
        chunk, rest = divmod(length, 2 * self.cp)
        # Over a ring, a sliding window must end in the chunk before.
        fits = self.of_ring is None or self.of_ring <= chunk or self.of_ring >= length
        shared = self.cp > 1 and rest == 0 and fits
        full = self.over_ranks if shared else FULL_ATTENTION
        return At(full, full, shared)


class StageAttention:
    """The attention of a stage at any length: see `stage_at`.

    backend: lighthouse.backend. mesh, sliding: as in `FullAttention`.
    """

    def __init__(
        self, stage: Stage, backend: str, mesh: Mesh | None = None, sliding: int | None = None
    ) -> None:
        self.stage, self.backend, self.mesh = stage, backend, mesh
        self.full = FullAttention(mesh, sliding)
        self.at = lru_cache(self._at)

    def __call__(self, length: int) -> At:
        return self.at(length)

    def _at(self, length: int) -> At:
        full, there = self.full(length), stage_at(self.stage, length)
        if there is None:
            return full
        attend = ATTENTIONS[there.attention].of(there, self.backend)
        if self.mesh is None or not full.shared or not _divides(there, self.mesh.slice.cp_size):
            return At(attend, FULL_ATTENTION, False, there.dense_layers)
        return At(self.mesh.attention(attend), full.dense, True, there.dense_layers)


def stage_at(stage: Stage, length: int) -> Stage | None:
    """Return `stage` with sequences of `length` tokens; None if its layers have full attention there.

    The share of entries that a Lighthouse layer selects stays as it is, rounded up to the next budget that is
    possible at this length. A sequence that is too short for one tile, or not longer than the window, or
    that the scorer cannot divide, has full attention.
    """
    whole = stage.pyramid
    if whole is None or length == stage.seq_len:
        return replace(stage, seq_len=length)
    if stage.window >= length or (stage.scorer == "dilated" and length % DILATION):
        return None
    least = -(-whole.budget * length // (whole.seq_len * whole.tile)) * whole.tile
    for budget in range(least, length + 1, whole.tile):
        pyramid = replace(whole, seq_len=length, budget=budget)
        if not pyramid.problems():
            return replace(stage, seq_len=length, pyramid=pyramid)
    return None


def _divides(stage: Stage, cp: int) -> bool:
    """Return whether `cp` ranks can share a sequence: each of its 2 cp chunks has whole tiles and windows."""
    whole, chunks = stage.pyramid, 2 * cp
    if whole is None:
        return True
    if stage.window > stage.seq_len // chunks or whole.budget % chunks:
        return False
    if stage.scorer == "dilated" and stage.seq_len % (DILATION * chunks):
        return False
    return not replace(whole, seq_len=whole.seq_len // chunks, budget=whole.budget // chunks).problems()


def length_problem(stage: Stage, length: int) -> str | None:
    """Return the rule that a sequence length breaks in `stage`, or None."""
    if stage.pyramid is None:
        return None
    unit = stage.pyramid.coarsest_window * (DILATION if stage.scorer == "dilated" else 1)
    return f"each must be a multiple of {unit} for stage {stage.name}" if length % unit else None
