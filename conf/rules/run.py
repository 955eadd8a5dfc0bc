"""Rules on the run."""

import math
from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config, Init
from lhtrain.conf.typed.paths import path_problem

MOST_PROFILED = 100  # steps in one trace


def run_problems(config: Config) -> Iterator[Problem]:
    """Yield problems of names and paths that are empty or invalid, and of times that exclude each other."""
    if problem := path_problem(config.run.dir):
        yield Problem("run.dir", config.run.dir, problem)
    if not config.run.name.strip():
        yield Problem("run.name", config.run.name, "must not be empty")
    if config.init_from is not None and (problem := path_problem(config.init_from)):
        yield Problem("init_from", config.init_from, f"{problem}; null starts from new weights")
    if config.init is not Init.auto and config.init_from is None:
        rule = "chooses what init_from brings, which is not set; set init_from=CHECKPOINT, or leave init out"
        yield Problem("init", config.init.name, rule)
    retry, limit = config.checkpoint.retry, config.watchdog.save
    if limit is not None and retry >= limit > 0 and math.isfinite(retry):
        rule = f"must be less than watchdog.save={limit:g}, which would otherwise end the run first"
        yield Problem("checkpoint.retry", retry, rule)


def profile_problems(config: Config) -> Iterator[Problem]:
    """Yield a problem if profile.steps are not two steps in order, or too many for one trace."""
    steps = config.profile.steps
    if not steps:
        return
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1]:
        rule = "must be [FIRST,LAST], two step numbers in order from 1, or [] to profile nothing"
        yield Problem("profile.steps", steps, rule)
    elif steps[1] - steps[0] >= MOST_PROFILED:
        rule = f"must be at most {MOST_PROFILED} steps: a trace of a step has tens of megabytes in memory"
        yield Problem("profile.steps", steps, rule)
