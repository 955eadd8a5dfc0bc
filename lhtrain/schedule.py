"""The stage and the learning rate of each step. Data and pure functions, without state."""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby, pairwise

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
        """Return the schedule of a filled configuration."""
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
        index = bisect_right(self.ends, step)
        first, stage = self._first(index), self.stages[self.names[index]]
        lr = self._peak(stage) * self._factor(index, step)
        if step - first < (stage.warmup_steps or 0):
            before = self.lookup(first - 1).lr if first else 0.0
            lr = before + (lr - before) * (step - first + 1) / (stage.warmup_steps or 1)
        return StepPlan(index, step - first, lr)

    def plan(self, done: int) -> list[str]:
        """Return a line for each stage that is not finished after `done` steps, with its learning rates."""
        lines = []
        for index, (name, end) in enumerate(zip(self.names, self.ends, strict=True)):
            first = max(self._first(index), done)
            if first < end:
                what = f"{name} ({self.stages[name].attention}): steps {first + 1:,} to {end:,}"
                words = self.stages[name].data_in_words()
                data = f", {words}" if words else ""
                lines.append(f"{what}, learning rate {self.course(index, first)}{data}")
        return lines

    def course(self, index: int, begin: int) -> str:
        """Describe the learning rates of a stage from step `begin`, counted from 0, to its end.

        The rate turns only where a warm-up ends and where a decay begins, so the rates there are enough.
        """
        stage, first, end = self.stages[self.names[index]], self._first(index), self.ends[index]
        warmup = first + self._warmup(index)
        falling = self.steps - decay_steps(self.steps, self.optim)
        if decays(stage):
            falling = end - decay_steps(stage.steps, own_optim(stage, self.optim), self._warmup(index))
        turns = sorted(step for step in {begin, warmup - 1, warmup, falling, end - 1} if begin <= step < end)
        rates = [(step, self.lookup(step).lr) for step in turns]
        words = [f"{rates[0][1]:.3g}"]
        # Each part of the course rises, falls, or is constant.
        parts = [
            (0 if math.isclose(after, before) else 1 if after > before else -1, step, after)
            for (_, before), (step, after) in pairwise(rates)
        ]
        for sign, part in groupby(parts, key=lambda one: one[0]):
            *_, (_, step, rate) = part
            if sign:
                words.append(f"{'up' if sign > 0 else 'down'} to {rate:.3g} at step {step + 1:,}")
            elif step < end - 1:
                words.append(f"constant until step {step + 1:,}")
        return ", ".join(words)

    def _first(self, index: int) -> int:
        """Return the first step of a stage, counted from 0."""
        return self.ends[index - 1] if index else 0

    def _peak(self, stage: Stage) -> float:
        return self.optim.lr * stage.lr_scale if stage.lr is None else stage.lr

    def _factor(self, index: int, step: int) -> float:
        """Return the learning rate of `step` divided by its stage's peak, without the stage's warm-up."""
        stage = self.stages[self.names[index]]
        if not decays(stage):
            factor = decay_factor(step, self.steps, self.optim)
        else:
            first = self._first(index)
            factor = decay_factor(
                step - first, stage.steps, own_optim(stage, self.optim), self._warmup(index)
            )
        # The run's warm-up counts in stages without their own.
        warmup = warmup_steps(self.steps, self.optim) if stage.warmup_steps is None else 0
        return factor if step >= warmup else (step + 1) / warmup

    def _warmup(self, index: int) -> int:
        """Return the number of steps at the beginning of a stage that are part of a warm-up."""
        stage = self.stages[self.names[index]]
        if stage.warmup_steps is not None:
            return stage.warmup_steps
        return min(max(warmup_steps(self.steps, self.optim) - self._first(index), 0), stage.steps)


def decays(stage: Stage) -> bool:
    """Return whether the learning rate falls within the stage, instead of over the run."""
    return not (stage.schedule is stage.decay_fraction is stage.final_lr_ratio is None)


def own_optim(stage: Stage, optim: OptimConfig) -> OptimConfig:
    """Return `optim` with the decay of a stage."""
    own = {key: getattr(stage, key) for key in ("schedule", "decay_fraction", "final_lr_ratio")}
    return replace(optim, **{key: value for key, value in own.items() if value is not None})


def decay_factor(step: int, steps: int, optim: OptimConfig, warmup: int | None = None) -> float:
    """Return the factor of the decay at `step` of `steps`: 1.0 until it begins. warmup: see `decay_steps`."""
    span = decay_steps(steps, optim, warmup)
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


def decay_steps(steps: int, optim: OptimConfig, warmup: int | None = None) -> int:
    """Return the number of steps at the end of a run of `steps` steps in which the learning rate falls.

    warmup: the number of warm-up steps; None: `warmup_steps`.
    """
    if optim.schedule is LrSchedule.wsd:
        return round(optim.decay_fraction * steps)
    return steps - (warmup_steps(steps, optim) if warmup is None else warmup)
