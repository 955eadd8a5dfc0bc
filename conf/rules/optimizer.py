"""Rules on the optimizer, and on which parameters it trains."""

import math
from collections.abc import Iterator
from typing import Any

from lhtrain.conf.parameters import broken_rule, chosen, shapes
from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config, LrSchedule, MomentDtype


def optim_problems(config: Config) -> Iterator[Problem]:
    """Yield problems of the optimizer's decay rates, and of schedule fractions that do not fit together."""
    optim = config.optim
    if len(optim.betas) != 2:
        yield Problem("optim.betas", list(optim.betas), "must be two numbers")
    elif optim.state is MomentDtype.bfloat16 and optim.betas[1] > 0.99:
        rule = (
            "the second must be at most 0.99 with optim.state=bfloat16, which would round slower changes away"
        )
        yield Problem("optim.betas", list(optim.betas), rule)
    if optim.warmup_fraction + optim.decay_fraction > 1 and optim.schedule is LrSchedule.wsd:
        rule = f"plus optim.warmup_fraction={optim.warmup_fraction} must be at most 1"
        yield Problem("optim.decay_fraction", optim.decay_fraction, rule)
    if optim.mup and optim.kind != "adamw":
        rule = f"is for optim.kind=adamw: its factors do not fit the updates of {optim.kind}; set it to false"
        yield Problem("optim.mup", optim.mup, rule)


def pattern_problems(config: Config) -> Iterator[Problem]:
    """Yield problems of the patterns of parameters in stages.NAME.frozen and optim.groups."""
    frozen = {name: stage.frozen for name, stage in config.stages.items() if stage.frozen}
    if not (frozen or config.optim.groups):
        return
    names = list(shapes(config.model))
    for name, patterns in frozen.items():
        key, problems = f"stages.{name}.frozen", []
        for pattern in patterns:
            if rule := _broken(pattern, names, config.model.tie_embeddings):
                problems.append(Problem(key, pattern, rule))
        yield from problems
        if not problems and len(chosen(patterns, names)) == len(names):
            rule = "freezes every parameter, so the stage would train nothing; leave some out"
            yield Problem(key, list(patterns), rule)
    for pattern, settings in config.optim.groups.items():
        if rule := _broken(pattern, names, config.model.tie_embeddings):
            yield Problem(f"optim.groups.{pattern}", settings, rule)
        yield from _group(f"optim.groups.{pattern}", settings)


def _broken(pattern: Any, names: list[str], tied: bool) -> str | None:
    if tied and pattern in ("head", "head.weight"):
        return "model.tie_embeddings=true: the head's weight is the embedding's; name the embedding"
    return broken_rule(pattern, names)


def _group(key: str, settings: Any) -> Iterator[Problem]:
    """Check the settings of one group of parameters."""
    known = ("lr_scale", "weight_decay")
    if not isinstance(settings, dict):
        settings, key = {"lr_scale": settings}, key.removesuffix(".lr_scale")
    elif not settings or not set(settings) <= set(known):
        yield Problem(key, settings, "must be a factor, or {lr_scale: FACTOR, weight_decay: NUMBER}")
        return
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            rule = "must be a number that is at least 0 and finite"
            rule += "; stages.NAME.frozen trains nothing of a group" if name == "lr_scale" else ""
            yield Problem(f"{key}.{name}", value, rule)
