"""How long a run still takes, though its stages differ in speed."""

from bisect import bisect_right
from collections import deque
from statistics import median
from typing import Any

from lhtrain.compute.flops import step_flops
from lhtrain.conf.schema import Config
from lhtrain.progress import Progress, StageRecord
from lhtrain.schedule import Schedule

RECENT = 50  # logged steps that decide a stage's speed


class Remaining:
    """Estimates the seconds to the end of a run of a filled configuration.

    The time of a stage's step is the median of its recent steps in this process; before there are any, the
    mean in its record of an earlier process; before that, the nearest stage's time multiplied by the ratio of
    their FLOPs. Validations and saves still to come are counted from the plan, at the mean time so far.
    """

    def __init__(self, config: Config):
        self.config, self.schedule = config, Schedule.of(config)
        self.flops = [step_flops(config.model, stage) for stage in self.schedule.stages.values()]
        self._recent: dict[str, deque[float]] = {}

    def take(self, row: dict[str, Any]) -> None:
        """Note how long a logged step took. A clock may be too coarse for a tiny one: that says nothing."""
        if row["kind"] == "train" and row["step_seconds"] > 0:
            self._recent.setdefault(row["stage"], deque(maxlen=RECENT)).append(row["step_seconds"])

    def __call__(self, progress: Progress) -> float | None:
        """None as long as no step was measured."""
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
            switch = index > 0 and self.schedule.names[index] not in records  # which is validated too
            validations = _times(self.config.eval.every, begin, end) + switch
            total += (end - begin) * step
            total += validations * self._validation_seconds(index, step, records)
            total += save * _times(self.config.checkpoint.every, begin, end)
        return total

    def _measured(self, records: dict[str, StageRecord]) -> dict[int, float]:
        """Seconds of a step, by the index of every stage of which a step was measured."""
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
        # A forward pass is a third of a step.
        return step * self.config.eval.tokens / stages[index].batch_tokens / 3


def _times(every: int, begin: int, end: int) -> int:
    """Steps after `begin` and up to `end` that are multiples of `every`, or `end` itself."""
    return end // every - begin // every + (end % every != 0) if end > begin else 0
