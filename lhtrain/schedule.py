"""The run's plan: which stage a step belongs to and its learning rate. Data and pure functions, no state."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from lhtrain.conf.schema import Config, LrSchedule, OptimConfig, StageConfig


@dataclass(frozen=True)
class Place:
    """Where a step stands in the run."""

    stage: int  # index into Schedule.stages
    step_in_stage: int  # from 0
    lr: float


@dataclass(frozen=True)
class Schedule:
    """Stages in order, with the learning rate over all of them. Built from a filled configuration."""

    stages: dict[str, StageConfig]
    optim: OptimConfig

    @classmethod
    def of(cls, config: Config) -> "Schedule":
        return cls(config.stages, config.optim)

    @cached_property
    def ends(self) -> list[int]:
        """For every stage the number of steps done when it ends."""
        return list(accumulate(stage.steps or 0 for stage in self.stages.values()))

    @property
    def steps(self) -> int:
        return self.ends[-1]

    @cached_property
    def names(self) -> list[str]:
        return list(self.stages)

    def lookup(self, step: int) -> Place:
        """Stage and learning rate of `step`, counted from 0. Raises ValueError outside the run."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step={step}: must be at least 0 and below the run's {self.steps} steps")
        stage = bisect_right(self.ends, step)
        first = self.ends[stage - 1] if stage else 0
        scale = self.stages[self.names[stage]].lr_scale
        return Place(stage, step - first, self.optim.lr * scale * lr_factor(step, self.steps, self.optim))


def lr_factor(step: int, steps: int, optim: OptimConfig) -> float:
    """Learning rate of `step` over `optim.lr`: linear warm-up, then the schedule's shape.

    The decay ends with the run's last step, not with a stage: a stage switch does not disturb it.
    """
    warmup = round(optim.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / warmup
    span = steps - warmup
    if optim.schedule is LrSchedule.wsd:
        span = round(optim.decay_fraction * steps)
    left = steps - step  # span at the start of the decay, 1 in the last step
    if left >= span:
        return 1.0
    height = left / span
    if optim.schedule is LrSchedule.cosine:
        height = 0.5 * (1 - math.cos(math.pi * height))
    return optim.final_lr_ratio + (1 - optim.final_lr_ratio) * height
