"""Rules on the run and its learning rate."""

import math
from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config, LrSchedule
from lhtrain.conf.typed.paths import path_problem


def run_problems(config: Config) -> Iterator[Problem]:
    """Yield problems of names and paths that are empty or invalid, and of times that exclude each other."""
    if problem := path_problem(config.run.dir):
        yield Problem("run.dir", config.run.dir, problem)
    if not config.run.name.strip():
        yield Problem("run.name", config.run.name, "must not be empty")
    if config.init_from is not None and (problem := path_problem(config.init_from)):
        yield Problem("init_from", config.init_from, f"{problem}; null starts from new weights")
    retry, limit = config.checkpoint.retry, config.watchdog.save
    if limit is not None and retry >= limit > 0 and math.isfinite(retry):
        rule = f"must be less than watchdog.save={limit:g}, which would otherwise end the run first"
        yield Problem("checkpoint.retry", retry, rule)


def optim_problems(config: Config) -> Iterator[Problem]:
    """Yield problems of the optimizer's decay rates, and of schedule fractions that do not fit together."""
    optim = config.optim
    if len(optim.betas) != 2:
        yield Problem("optim.betas", list(optim.betas), "must be two numbers")
    if optim.warmup_fraction + optim.decay_fraction > 1 and optim.schedule is LrSchedule.wsd:
        rule = f"plus optim.warmup_fraction={optim.warmup_fraction} must be at most 1"
        yield Problem("optim.decay_fraction", optim.decay_fraction, rule)
