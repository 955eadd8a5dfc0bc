"""Non-finite losses and gradients: steps that updated nothing, losses that jump, when to rewind."""

import math
from collections import deque
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from torch import Tensor

from lhtrain.conf.schema import GuardConfig

WINDOW, LEAST = 50, 20  # logged losses that a new one is compared with: at most, at least


@dataclass(frozen=True)
class Skip:
    """A step that updated nothing: its number, and where in the data its batch begins and ends."""

    step: int
    position: int
    end: int


class NonFiniteGuard:
    """Watches the steps of a run.

    Flags stay on the GPU and are read only when we log, to avoid a sync per step.
    """

    def __init__(self, config: GuardConfig):
        self.config = config
        self.in_a_row = 0
        self.rewinds = 0
        self._flags: list[tuple[Skip, Tensor]] = []
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def remember(self, step: int, position: int, end: int, skipped: Tensor) -> None:
        """Remember a step; `skipped` is a scalar on the device."""
        self._flags.append((Skip(step, position, end), skipped))

    def newly_skipped(self) -> list[Skip]:
        """The steps since the last call that updated nothing; waits for the device."""
        found = []
        for skip, flag in self._flags:
            bad = bool(flag.item())
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                found.append(skip)
        self._flags.clear()
        return found

    def as_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: a resumed run finds the same spikes as one that was not interrupted."""
        return {"losses": list(self._losses), "in_a_row": self.in_a_row, "rewinds": self.rewinds}

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from what `as_dict` returned."""
        self._losses.clear()
        self._losses.extend(saved["losses"])
        self.in_a_row, self.rewinds = saved["in_a_row"], saved["rewinds"]

    @property
    def must_rewind(self) -> bool:
        return self.in_a_row >= self.config.max_skips

    def rewound(self) -> None:
        self.rewinds += 1
        self.in_a_row = 0
        self._flags.clear()
        self._losses.clear()

    def new_stage(self) -> None:
        """Forget the losses: those of the previous stage's attention say nothing about the new one's."""
        self._losses.clear()

    def spike(self, loss: float) -> float | None:
        """How many standard deviations a logged loss lies above those before it, if that is too many."""
        past, limit = list(self._losses), self.config.spike
        if math.isfinite(loss):
            self._losses.append(loss)
        if not limit or len(past) < LEAST or not math.isfinite(loss):
            return None
        # A flat stretch has no spread of its own: a hundredth of the loss is always ordinary.
        deviations = (loss - fmean(past)) / max(pstdev(past), 0.01 * abs(fmean(past)), 1e-12)
        return deviations if deviations > limit else None
