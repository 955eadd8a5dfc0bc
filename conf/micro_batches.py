"""How a step's tokens become micro-batches: what `auto` stands for, and which numbers divide.

Micro-batches and recomputation change how a step is computed, not what it learns (beyond rounding), so both
are derived from the hardware. `batch_tokens` decides what is learnt: `auto` gives it once, at a run's start.
"""

import math
from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.rules.parallel import mesh_sizes
from lhtrain.conf.schema import Config, Recompute, RunConfig, StageConfig

AUTO = "auto"
USABLE = 0.9  # of a GPU's memory: the rest is for CUDA, NCCL, fragmentation and the estimate's error
CPU_TOKENS = 32_768  # of a micro-batch on a CPU, where one sequence has no more
# Recomputation and offloading, in the order in which they cost time.
CHOICES = (
    (Recompute.none, False),
    (Recompute.selective, False),
    (Recompute.full, False),
    (Recompute.full, True),
)


def number_or_auto(value: object) -> int | None:
    """The whole number, at least 1, that `value` is or spells; None for auto. Raises ValueError otherwise."""
    if value == AUTO:
        return None
    number = int(str(value))  # neither 1.5 nor true
    if number < 1:
        raise ValueError(value)
    return number


def count_problems(config: Config) -> Iterator[Problem]:
    """Values of batch_tokens and grad_accum that are neither numbers nor auto, each under its own key."""
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
    """Steps that the ranks cannot share out as whole sequences, with the nearest that they can."""
    try:
        dp = data_ranks(config, n_ranks)
    except (ValueError, ZeroDivisionError):  # a problem of `parallel`, named there
        dp = 1
    inherited: dict[tuple[str, int], None] = {}
    for name, stage in config.stages.items():
        try:
            tokens, accum = number_or_auto(stage.batch_tokens), number_or_auto(stage.grad_accum)
        except ValueError:
            continue  # named by count_problems
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
            rule += f"; {f'stages.{name}' if own else 'run'}.grad_accum=auto takes a number that fits"
        if stage.batch_tokens == config.run.batch_tokens:
            inherited[rule, unit] = None
        else:
            yield Problem(f"stages.{name}.batch_tokens", tokens, f"{rule}; nearest: {_nearest(tokens, unit)}")
    if inherited:
        tokens = int(config.run.batch_tokens)
        near = _nearest(tokens, math.lcm(*(unit for _, unit in inherited)))
        rules = ", and ".join(rule for rule, _ in inherited)
        yield Problem("run.batch_tokens", tokens, f"{rules}; nearest: {near}")


def _nearest(number: int, unit: int) -> str:
    below = number // unit * unit
    return " or ".join(str(value) for value in (below, below + unit) if value > 0)


def derive(config: Config, n_ranks: int | None = None, memory: int | None = None) -> None:
    """Put numbers where the valid `config` says auto.

    n_ranks: of the run; None: as many as `parallel` names. memory: bytes of a GPU; None: the run is on CPUs.
    Of the ways to compute a step that fit the memory by the estimate, takes the first in the order of
    CHOICES, with as few micro-batches as possible; if none fits, the one that comes nearest to it.
    """
    dp = data_ranks(config, n_ranks)
    longest = max(stage.seq_len for stage in config.stages.values())
    parts: list[RunConfig | StageConfig] = [config.run, *config.stages.values()]
    for part in parts:
        part.batch_tokens = number_or_auto(part.batch_tokens) or longest * dp
    config.run.grad_accum = number_or_auto(config.run.grad_accum) or AUTO  # the stages have the numbers
    if memory is None:
        for stage in config.stages.values():
            stage.grad_accum = number_or_auto(stage.grad_accum) or _on_cpu(stage, dp)
        if config.compute.recompute is Recompute.auto:
            config.compute.recompute = Recompute.none
        return
    choices: tuple[tuple[Recompute, bool], ...] = CHOICES
    if config.compute.recompute is not Recompute.auto:
        choices = ((config.compute.recompute, config.compute.offload),)
    stages = list(config.stages.values())
    found: list[tuple[bool, int, Recompute, bool, list[int]]] = []
    for recompute, offload in choices:
        config.compute.recompute, config.compute.offload = recompute, offload
        best = [_fewest(config, stage, dp, n_ranks, memory) for stage in stages]
        peak = max(peak for peak, _ in best)
        found.append((peak > USABLE * memory, peak, recompute, offload, [count for _, count in best]))
        if not found[-1][0]:
            break
    _, _, config.compute.recompute, config.compute.offload, counts = min(found, key=lambda one: one[:2])
    for stage, count in zip(stages, counts, strict=True):
        stage.grad_accum = count


def data_ranks(config: Config, n_ranks: int | None) -> int:
    """Ranks that have sequences of their own. Without `n_ranks`, dp_shard=-1 counts as one rank."""
    parallel = config.parallel
    if n_ranks is None:
        return parallel.dp_replicate * max(parallel.dp_shard, 1)
    replicate, shard, _ = mesh_sizes(parallel, n_ranks)
    return replicate * shard


def counts(stage: StageConfig, dp: int) -> list[int]:
    """Numbers of micro-batches that a step of `stage` can be cut into, rising."""
    sequences = stage.batch_tokens // (stage.seq_len * dp)
    return [count for count in range(1, sequences + 1) if sequences % count == 0]


def _on_cpu(stage: StageConfig, dp: int) -> int:
    tokens = stage.batch_tokens // dp
    fitting = (count for count in counts(stage, dp) if tokens // count <= CPU_TOKENS)
    return next(fitting, tokens // stage.seq_len)


def _fewest(config: Config, stage: StageConfig, dp: int, n_ranks: int | None, memory: int) -> tuple[int, int]:
    """Estimated peak in bytes, and the fewest micro-batches that fit; those of the least peak if none do."""
    from lhtrain.compute.memory import estimate
    from lhtrain.stage import Stage

    given = number_or_auto(stage.grad_accum)
    peaks = []
    for count in [given] if given else counts(stage, dp):
        stage.grad_accum = count
        peaks.append((estimate(config, Stage.of("", stage), n_ranks).total, count))
        if peaks[-1][0] <= USABLE * memory:
            break
    stage.grad_accum = given or AUTO
    return peaks[-1] if peaks[-1][0] <= USABLE * memory else min(peaks)
