"""The description of a source for the processes that tokenize it during training."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from lhtrain.data.order.permutation import permutation
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources.units import Unit

STREAM = 2**64 - 1  # separates this permutation from those of blocks


@dataclass(frozen=True)
class Job:
    """A source and where its shards are written.

    units: in the order of the plan; unit n becomes shard n of `folder`.
    most_bytes: of all shards in the folder. ahead_bytes: of the shards that are written before they are
        needed.
    """

    folder: Path
    recipe: Recipe
    units: tuple[Unit, ...]
    most_bytes: int
    ahead_bytes: int

    def unit_at(self, index: int) -> int:
        """Return the number of the unit that is read as the one of this index, counted over all epochs.

        Every epoch has another order. It does not depend on run.seed, so that all runs on a machine can
        share the shards and validate on the same documents.
        """
        epoch, nth = divmod(index, len(self.units))
        return int(_order(len(self.units), epoch)[nth])


@lru_cache(maxsize=2)
def _order(n_units: int, epoch: int) -> np.ndarray:
    return permutation(n_units, 0, epoch, STREAM)
