"""Losses and gradients that are not finite: skipped steps, jumps of the loss, and when to rewind."""

import math
from collections import deque
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from torch import Tensor

from lhtrain.conf.schema import GuardConfig
from lhtrain.text import counted

WINDOW, LEAST = 50, 20  # most and least number of logged losses that a new loss is compared with


@dataclass(frozen=True)
class Skip:
    """A step that updated no weights."""

    step: int
    position: int  # token of the data at which its batch begins
    end: int  # token of the data at which its batch ends


class NonFiniteGuard:
    """Counts skipped steps and finds jumps of the loss.

    Flags stay on the GPU and are read only when we log, to avoid a sync per step.
    """

    def __init__(self, config: GuardConfig):
        self.config = config
        self.in_a_row = 0
        self.rewinds = 0
        self._flags: list[tuple[Skip, Tensor]] = []
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def remember(self, step: int, position: int, end: int, skipped: Tensor) -> None:
        """Remember a step and its batch, tokens `position` to `end`. skipped: a scalar on the device."""
        self._flags.append((Skip(step, position, end), skipped))

    def newly_skipped(self) -> list[Skip]:
        """Return the steps since the last call that updated no weights; waits for the device."""
        found = []
        for skip, flag in self._flags:
            bad = bool(flag.item())
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                found.append(skip)
        self._flags.clear()
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, so that a resumed run reports the same spikes."""
        return {"losses": list(self._losses), "in_a_row": self.in_a_row, "rewinds": self.rewinds}

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore the state that `as_dict` returned."""
        self._losses.clear()
        self._losses.extend(saved["losses"])
        self.in_a_row, self.rewinds = saved["in_a_row"], saved["rewinds"]

    @property
    def must_rewind(self) -> bool:
        return self.in_a_row >= self.config.max_skips

    def skipped(self) -> str:
        """Return the number of steps that were skipped in a row, as text."""
        return f"{counted(self.in_a_row, 'step')} in a row"

    def rewound(self) -> None:
        self.rewinds += 1
        self.in_a_row = 0
        self._flags.clear()
        self._losses.clear()

    def new_stage(self) -> None:
        """Forget the losses, which belong to the attention of the previous stage."""
        self._losses.clear()

    def spike(self, loss: float) -> float | None:
        """Add a logged loss; return its standard deviations above the previous ones if above the limit."""
        past, limit = list(self._losses), self.config.spike
        if math.isfinite(loss):
            self._losses.append(loss)
        if not limit or len(past) < LEAST or not math.isfinite(loss):
            return None
        # The losses may be almost equal, so the standard deviation counts as at least 1 % of the mean loss.
        deviations = (loss - fmean(past)) / max(pstdev(past), 0.01 * abs(fmean(past)), 1e-12)
        return deviations if deviations > limit else None
