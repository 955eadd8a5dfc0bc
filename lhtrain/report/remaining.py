"""Estimate of a run's remaining time; the stages may differ in speed."""

from bisect import bisect_right
from collections import deque
from statistics import median
from typing import Any

from lhtrain.compute.flops import step_flops
from lhtrain.conf.schema import Config
from lhtrain.progress import Progress, StageRecord
from lhtrain.schedule import Schedule

RECENT = 50  # number of recent logged steps that a stage's speed is estimated from


class Remaining:
    """Estimates the seconds to the end of a run. config: the filled configuration.

    The time per step of a stage is the median of its recent steps in this process. If there are none yet, it
    is the mean over the steps of earlier processes. If the stage has not begun, it is the time per step of
    the nearest measured stage, multiplied by the ratio of their FLOPs. Future validations and saves are
    counted from the plan and take their mean time so far.
    """

    def __init__(self, config: Config):
        self.config, self.schedule = config, Schedule.of(config)
        self.flops = [step_flops(config.model, stage) for stage in self.schedule.stages.values()]
        self._recent: dict[str, deque[float]] = {}

    def take(self, row: dict[str, Any]) -> None:
        """Record the time of a logged step; 0 is ignored, since the clock was too coarse for that step."""
        if row["kind"] == "train" and row["step_seconds"] > 0:
            self._recent.setdefault(row["stage"], deque(maxlen=RECENT)).append(row["step_seconds"])

    def __call__(self, progress: Progress) -> float | None:
        """Return the estimated seconds to the end, or None if no step was measured yet."""
        records = {record.name: record for record in progress.stages}
        measured = self._measured(records)
        if not measured:
            return None
        saves = sum(record.times["checkpoint"] for record in progress.stages)
        stalls = sum(record.seconds["checkpoint"] for record in progress.stages)
        save = stalls / saves if saves else 0.0
        total, first = 0.0, bisect_right(self.schedule.ends, progress.step)
        for index in range(first, len(self.schedule.ends)):
            end = self.schedule.ends[index]
            begin = max(self.schedule.ends[index - 1] if index else 0, progress.step)
            step = self._step_seconds(index, measured)
            # A switch validates the old weights with the new stage's attention.
            switch = index > 0 and self.schedule.names[index] not in records
            validations = _times(self.config.eval.every, begin, end) + switch
            total += (end - begin) * step
            total += validations * self._validation_seconds(index, step, records)
            total += save * _times(self.config.checkpoint.every, begin, end)
        return total

    def _measured(self, records: dict[str, StageRecord]) -> dict[int, float]:
        """Return the seconds per step of each stage with measured steps, by the stage's index."""
        out = {}
        for index, name in enumerate(self.schedule.names):
            if recent := self._recent.get(name):
                out[index] = median(recent)
            elif name in records and records[name].steps and records[name].busy > 0:
                out[index] = records[name].busy / records[name].steps
        return out

    def _step_seconds(self, index: int, measured: dict[int, float]) -> float:
        if index in measured:
            return measured[index]
        nearest = min(measured, key=lambda other: (abs(other - index), other))
        return measured[nearest] * self.flops[index] / self.flops[nearest]

    def _validation_seconds(self, index: int, step: float, records: dict[str, StageRecord]) -> float:
        stages = list(self.config.stages.values())
        for other in sorted(range(len(stages)), key=lambda other: abs(other - index)):
            record = records.get(self.schedule.names[other])
            if record and record.times["validation"]:
                once = record.seconds["validation"] / record.times["validation"]
                ours, theirs = (self.flops[i] / stages[i].batch_tokens for i in (index, other))
                return once * ours / theirs
        # No validation was measured. A forward pass takes about a third of a step.
        return step * self.config.eval.tokens / stages[index].batch_tokens / 3


def _times(every: int, begin: int, end: int) -> int:
    """Return how many steps in (begin, end] are multiples of `every` or equal to `end`."""
    return end // every - begin // every + (end % every != 0) if end > begin else 0
