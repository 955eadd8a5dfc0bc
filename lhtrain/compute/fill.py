"""Replaces `auto` and other open values of a configuration by numbers, so that a saved one is complete.

Micro-batches and recomputation change results only by rounding, so they are chosen for the hardware, at every
start. `batch_tokens` changes what the model learns, so `auto` is replaced only once, when a run is new.
"""

from copy import deepcopy

from lhtrain.compute.memory import estimate
from lhtrain.conf.compose import check_overrides
from lhtrain.conf.rules.batch import AUTO, auto_batch, data_ranks, number_or_auto
from lhtrain.conf.rules.steps import stage_steps
from lhtrain.conf.schema import Config, ModelConfig, Recompute, RunConfig, StageConfig
from lhtrain.conf.sliding import sliding_layers
from lhtrain.stage import Stage

USABLE = 0.9  # usable fraction of GPU memory; the rest: CUDA, NCCL, fragmentation, error of the estimate
CPU_TOKENS = 32_768  # most tokens of a micro-batch on a CPU, unless one sequence has more
# Recomputation and offloading, fastest first.
CHOICES = (
    (Recompute.none, False),
    (Recompute.selective, False),
    (Recompute.full, False),
    (Recompute.full, True),
)


def compose_config(overrides: list[str], n_ranks: int | None = None, memory: int | None = None) -> Config:
    """Compose and fill a configuration, for commands that do not train.

    n_ranks, memory: see `filled`. Raises ConfigError.
    """
    return filled(check_overrides(overrides, n_ranks=n_ranks), n_ranks, memory)


def filled(config: Config, n_ranks: int | None = None, memory: int | None = None) -> Config:
    """Return a copy of a valid `config` without open values.

    Every stage has a number of steps, instead of tokens or a fraction, dense_layers and sliding_layers
    count from the first layer, and `auto` is replaced by `derive`.

    Args:
        config: a valid configuration.
        n_ranks: number of ranks of the run; None: the number that `parallel` names.
        memory: bytes of one GPU; None: the run is on CPUs.
    """
    config = deepcopy(config)
    model = config.model
    model.sliding_layers = sliding_layers(model)
    owners: list[ModelConfig | StageConfig] = [model, *config.stages.values()]
    for owner in owners:
        owner.dense_layers = sorted({layer % model.n_layers for layer in owner.dense_layers})
    steps, _ = stage_steps(config, n_ranks)
    for stage, count in zip(config.stages.values(), steps, strict=True):
        stage.steps, stage.tokens, stage.fraction = count, None, None
    derive(config, n_ranks, memory)
    return config


def derive(config: Config, n_ranks: int | None = None, memory: int | None = None) -> None:
    """Replace `auto` in the valid `config`, in place. Arguments as `filled`.

    Chooses the first of CHOICES that is estimated to fit the memory, with as few micro-batches as possible.
    If none fits, chooses the one with the lowest estimated peak.
    """
    dp = data_ranks(config, n_ranks)
    parts: list[RunConfig | StageConfig] = [config.run, *config.stages.values()]
    automatic = auto_batch(config, n_ranks)
    for part in parts:
        part.batch_tokens = number_or_auto(part.batch_tokens) or automatic
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
    """Return the numbers of micro-batches into which a step of `stage` can be divided, in rising order."""
    sequences = stage.batch_tokens // (stage.seq_len * dp)
    return [count for count in range(1, sequences + 1) if sequences % count == 0]


def _on_cpu(stage: StageConfig, dp: int) -> int:
    tokens = stage.batch_tokens // dp
    fitting = (count for count in counts(stage, dp) if tokens // count <= CPU_TOKENS)
    return next(fitting, tokens // stage.seq_len)


def _fewest(config: Config, stage: StageConfig, dp: int, n_ranks: int | None, memory: int) -> tuple[int, int]:
    """Return the estimated peak in bytes and the smallest number of micro-batches that fits.

    If none fits, return those with the lowest peak.
    """
    given = number_or_auto(stage.grad_accum)
    peaks = []
    for count in [given] if given else counts(stage, dp):
        stage.grad_accum = count
        peaks.append((estimate(config, Stage.of("", stage), n_ranks).total, count))
        if peaks[-1][0] <= USABLE * memory:
            break
    stage.grad_accum = given or AUTO
    return peaks[-1] if peaks[-1][0] <= USABLE * memory else min(peaks)
