"""The stage and the learning rate of each step. Data and pure functions, without state."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from lhtrain.conf.schema import Config, LrSchedule, OptimConfig
from lhtrain.stage import Stage, stages_of


@dataclass(frozen=True)
class StepPlan:
    """The stage of a step, and its learning rate."""

    stage: int  # index into Schedule.stages
    step_in_stage: int  # from 0
    lr: float


@dataclass(frozen=True)
class Schedule:
    """Stages in order, with the learning rate over all of them. Built from a filled configuration."""

    stages: dict[str, Stage]
    optim: OptimConfig

    @classmethod
    def of(cls, config: Config) -> "Schedule":
        return cls(stages_of(config), config.optim)

    @cached_property
    def ends(self) -> list[int]:
        """The number of steps done at the end of each stage."""
        return list(accumulate(stage.steps for stage in self.stages.values()))

    @property
    def steps(self) -> int:
        return self.ends[-1]

    @cached_property
    def names(self) -> list[str]:
        return list(self.stages)

    def lookup(self, step: int) -> StepPlan:
        """Return the stage and learning rate of `step`, counted from 0. Raises ValueError outside the run."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step={step}: must be at least 0 and below the run's {self.steps} steps")
        stage = bisect_right(self.ends, step)
        first = self.ends[stage - 1] if stage else 0
        scale = self.stages[self.names[stage]].lr_scale
        return StepPlan(stage, step - first, self.optim.lr * scale * lr_factor(step, self.steps, self.optim))

    def plan(self, done: int) -> list[str]:
        """Return a line for each stage that is not finished after `done` steps, with its learning rates."""
        lines = []
        for name, end in zip(self.names, self.ends, strict=True):
            first = max(end - self.stages[name].steps, done)
            if first < end:
                what = f"{name} ({self.stages[name].attention}): steps {first + 1:,} to {end:,}"
                lines.append(f"{what}, learning rate {self._course(first, end)}")
        return lines

    def _course(self, first: int, end: int) -> str:
        """Describe the learning rates of the steps from `first`, counted from 0, to `end` - 1.

        Warm-up, constant part and decay are each monotonic, so the rates at their ends are enough.
        """
        warmup, decay = warmup_steps(self.steps, self.optim), decay_steps(self.steps, self.optim)
        turns = {first, end - 1, warmup - 1, warmup, self.steps - decay}
        rates = {step: self.lookup(step).lr for step in sorted(turns) if first <= step < end}
        top = max(rates.values())
        highest = [step for step, rate in rates.items() if rate == top]
        if len(highest) == len(rates):
            return f"{top:.3g}"
        words = [f"{rates[first]:.3g}"]
        if rates[first] < top:
            words.append(f"up to {top:.3g} at step {highest[0] + 1:,}")
        if first < highest[-1] < end - 1:
            words.append(f"constant until step {highest[-1] + 1:,}")
        if rates[end - 1] < top:
            words.append(f"down to {rates[end - 1]:.3g} at step {end:,}")
        return ", ".join(words)


def lr_factor(step: int, steps: int, optim: OptimConfig) -> float:
    """Return the learning rate of `step` divided by `optim.lr`: linear warm-up, then the schedule's shape.

    The decay ends with the last step of the run, so a stage switch does not affect it.
    """
    warmup, span = warmup_steps(steps, optim), decay_steps(steps, optim)
    if step < warmup:
        return (step + 1) / warmup
    left = steps - step  # equals span at the start of the decay, and 1 in the last step
    if left >= span:
        return 1.0
    height = left / span
    if optim.schedule is LrSchedule.cosine:
        height = 0.5 * (1 - math.cos(math.pi * height))
    return optim.final_lr_ratio + (1 - optim.final_lr_ratio) * height


def warmup_steps(steps: int, optim: OptimConfig) -> int:
    """Return the number of warm-up steps in a run of `steps` steps."""
    return round(optim.warmup_fraction * steps)


def decay_steps(steps: int, optim: OptimConfig) -> int:
    """Return the number of steps at the end of a run of `steps` steps in which the learning rate falls."""
    if optim.schedule is LrSchedule.wsd:
        return round(optim.decay_fraction * steps)
    return steps - warmup_steps(steps, optim)
