"""Fill in what a configuration leaves open, so that a saved one says everything.

Micro-batches and recomputation change how a step is computed, not what it learns (beyond rounding), so both
are derived from the hardware. `batch_tokens` decides what is learnt: `auto` gives it once, at a run's start.
"""

from copy import deepcopy

from lhtrain.compute.memory import estimate
from lhtrain.conf.compose import check_overrides
from lhtrain.conf.rules.batch import AUTO, data_ranks, number_or_auto
from lhtrain.conf.rules.stages import stage_steps
from lhtrain.conf.schema import Config, Recompute, RunConfig, StageConfig
from lhtrain.stage import Stage

USABLE = 0.9  # of a GPU's memory: the rest is for CUDA, NCCL, fragmentation and the estimate's error
CPU_TOKENS = 32_768  # of a micro-batch on a CPU, where one sequence has no more
# Recomputation and offloading, in the order in which they cost time.
CHOICES = (
    (Recompute.none, False),
    (Recompute.selective, False),
    (Recompute.full, False),
    (Recompute.full, True),
)


def compose_config(overrides: list[str], n_ranks: int | None = None, memory: int | None = None) -> Config:
    """The filled configuration of `overrides`, for commands that do not train. Raises ConfigError.

    n_ranks, memory: as `filled` has them.
    """
    return filled(check_overrides(overrides, n_ranks=n_ranks), n_ranks, memory)


def filled(config: Config, n_ranks: int | None = None, memory: int | None = None) -> Config:
    """A copy of a valid `config` with the steps of every stage, dense_layers counted from the front, and
    numbers where it says auto. n_ranks: of the run; memory: bytes of a GPU, None on CPUs; see `derive`."""
    config = deepcopy(config)
    model = config.model
    model.dense_layers = sorted({layer % model.n_layers for layer in model.dense_layers})
    steps, _ = stage_steps(config)
    for stage, count in zip(config.stages.values(), steps, strict=True):
        stage.steps, stage.fraction = count, None
    derive(config, n_ranks, memory)
    return config


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
    given = number_or_auto(stage.grad_accum)
    peaks = []
    for count in [given] if given else counts(stage, dp):
        stage.grad_accum = count
        peaks.append((estimate(config, Stage.of("", stage), n_ranks).total, count))
        if peaks[-1][0] <= USABLE * memory:
            break
    stage.grad_accum = given or AUTO
    return peaks[-1] if peaks[-1][0] <= USABLE * memory else min(peaks)
