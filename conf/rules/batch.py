"""Rules on batch_tokens and grad_accum, which split the tokens of a step into micro-batches."""

import math
from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.rules.parallel import mesh_sizes
from lhtrain.conf.schema import Config

AUTO = "auto"


def number_or_auto(value: object) -> int | None:
    """Return `value`, a number or its text, as a number; None for auto.

    Raises ValueError: `value` is not a whole number that is at least 1, and not auto.
    """
    if value == AUTO:
        return None
    number = int(str(value))  # raises for 1.5 and true
    if number < 1:
        raise ValueError(value)
    return number


def count_problems(config: Config) -> Iterator[Problem]:
    """Yield a problem for each batch_tokens and grad_accum that is neither a number nor auto."""
    for field in ("batch_tokens", "grad_accum"):
        of_run = getattr(config.run, field)
        places = {f"run.{field}": of_run}
        for name, stage in config.stages.items():
            if getattr(stage, field) != of_run:
                places[f"stages.{name}.{field}"] = getattr(stage, field)
        for key, value in places.items():
            try:
                number_or_auto(value)
            except ValueError:
                is_count = isinstance(value, int) and not isinstance(value, bool)
                rule = "must be at least 1, or auto" if is_count else "must be a whole number, or auto"
                yield Problem(key, value, rule)


def batch_problems(config: Config, n_ranks: int | None) -> Iterator[Problem]:
    """Yield a problem for each batch that the ranks cannot split into whole sequences."""
    try:
        dp = data_ranks(config, n_ranks)
    except (ValueError, ZeroDivisionError):  # a problem of `parallel`, which is reported there
        dp = 1
    inherited: dict[int, str] = {}  # what run.batch_tokens must be a multiple of -> the rule
    for name, stage in config.stages.items():
        try:
            tokens, accum = number_or_auto(stage.batch_tokens), number_or_auto(stage.grad_accum)
        except ValueError:
            continue  # reported by count_problems
        if tokens is None or stage.seq_len < 1:
            continue
        factors = {"seq_len": stage.seq_len, "grad_accum": accum or 1, "data-parallel ranks": dp}
        unit = math.prod(factors.values())
        if tokens % unit == 0:
            continue
        shown = {key: count for key, count in factors.items() if count > 1 or key == "seq_len"}
        rule = f"must be a multiple of {' * '.join(shown)} = {' * '.join(map(str, shown.values()))}"
        if accum and tokens % (stage.seq_len * dp) == 0:
            own = stage.grad_accum != config.run.grad_accum
            rule += f"; {f'stages.{name}' if own else 'run'}.grad_accum=auto uses a number that fits"
        if stage.batch_tokens == config.run.batch_tokens:
            inherited[unit] = rule
        else:
            yield Problem(f"stages.{name}.batch_tokens", tokens, f"{rule}; nearest: {_nearest(tokens, unit)}")
    if inherited:
        tokens = int(config.run.batch_tokens)
        near = _nearest(tokens, math.lcm(*inherited))
        # A stage with shorter sequences usually adds nothing: their length divides the longest one.
        implied = {unit for unit in inherited for other in inherited if other != unit and other % unit == 0}
        rules = ", and ".join(rule for unit, rule in inherited.items() if unit not in implied)
        yield Problem("run.batch_tokens", tokens, f"{rules}; nearest: {near}")


def _nearest(number: int, unit: int) -> str:
    below = number // unit * unit
    return " or ".join(str(value) for value in (below, below + unit) if value > 0)


def auto_batch(config: Config, n_ranks: int | None) -> int:
    """Return the batch_tokens that `auto` stands for: one longest sequence for each data-parallel rank."""
    return max(stage.seq_len for stage in config.stages.values()) * data_ranks(config, n_ranks)


def data_ranks(config: Config, n_ranks: int | None) -> int:
    """Return the number of data-parallel ranks. Without `n_ranks`, dp_shard=-1 counts as one rank."""
    parallel = config.parallel
    if n_ranks is None:
        return parallel.dp_replicate * max(parallel.dp_shard, 1)
    replicate, shard, _ = mesh_sizes(parallel, n_ranks)
    return replicate * shard
