"""Replaces `auto` and other open values of a configuration by numbers, so that a saved one is complete.

Micro-batches and recomputation change results only by rounding, so they are chosen for the hardware, at every
start. `batch_tokens` changes what the model learns, so `auto` is replaced only once, when a run is new.
"""

from copy import deepcopy
from dataclasses import dataclass

from lhtrain.compute.memory import estimate
from lhtrain.compute.rates import H100
from lhtrain.compute.step_time import step_time
from lhtrain.conf.compose import check_overrides
from lhtrain.conf.rules.batch import AUTO, auto_batch, data_ranks, number_or_auto
from lhtrain.conf.rules.steps import stage_steps
from lhtrain.conf.schema import Config, ModelConfig, Recompute, RunConfig, StageConfig
from lhtrain.conf.sliding import sliding_layers
from lhtrain.stage import Stage, stages_of

USABLE = 0.9  # usable fraction of GPU memory; the rest: CUDA, NCCL, fragmentation, error of the estimate
CPU_TOKENS = 32_768  # most tokens of a micro-batch on a CPU, unless one sequence has more
# Recomputation and offloading, fastest first.
CHOICES = (
    (Recompute.none, False),
    (Recompute.selective, False),
    (Recompute.attention, False),
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
    If none fits, chooses the one with the lowest estimated peak. Recomputation of all but attention is chosen
    only if it is better than full recomputation (`_is_better`), and not with parallel.cp.
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
    if config.compute.recompute is not Recompute.auto:
        choices = [_with(config, config.compute.recompute, config.compute.offload, n_ranks, memory)]
    else:
        choices = _until_one_fits(config, n_ranks, memory)
    _use(config, min(choices, key=lambda choice: (not choice.fits, choice.peak)))


@dataclass(frozen=True)
class Choice:
    """A way to recompute, with the micro-batches of each stage and the estimated peak in bytes."""

    recompute: Recompute
    offload: bool
    grad_accum: list[int]
    peak: int
    fits: bool


def _until_one_fits(config: Config, n_ranks: int | None, memory: int) -> list[Choice]:
    """Return CHOICES, the last of them the first that fits, if one does."""
    found = []
    for recompute, offload in CHOICES:
        if recompute is Recompute.attention and config.parallel.cp > 1:
            continue  # it keeps the results of exchanges between ranks, too; their memory was not measured
        found.append(_with(config, recompute, offload, n_ranks, memory))
        if found[-1].fits and recompute is Recompute.attention:
            full = _with(config, Recompute.full, False, n_ranks, memory)
            if not _is_better(config, found[-1], full, n_ranks or _named_ranks(config)):
                found[-1] = full
        if found[-1].fits:
            break
    return found


def _with(config: Config, recompute: Recompute, offload: bool, n_ranks: int | None, memory: int) -> Choice:
    """Return the choice with the fewest micro-batches of each stage that fit."""
    other = deepcopy(config)
    other.compute.recompute, other.compute.offload = recompute, offload
    dp = data_ranks(config, n_ranks)
    best = [_fewest(other, stage, dp, n_ranks, memory) for stage in other.stages.values()]
    peak = max(peak for peak, _ in best)
    return Choice(recompute, offload, [count for _, count in best], peak, peak <= USABLE * memory)


def _use(config: Config, choice: Choice) -> None:
    config.compute.recompute, config.compute.offload = choice.recompute, choice.offload
    for stage, count in zip(config.stages.values(), choice.grad_accum, strict=True):
        stage.grad_accum = count


def _is_better(config: Config, one: Choice, other: Choice, n_ranks: int) -> bool:
    """Return whether `one` needs no more micro-batches than `other` in any stage, and takes less time.

    The times are predicted for H100s; on other GPUs the order is the same.
    """
    if any(a > b for a, b in zip(one.grad_accum, other.grad_accum, strict=True)):
        return False
    return _seconds(config, one, n_ranks) < _seconds(config, other, n_ranks)


def _named_ranks(config: Config) -> int:
    """Return the number of ranks that `parallel` names, where dp_shard=-1 counts as 1."""
    parallel = config.parallel
    return parallel.dp_replicate * max(parallel.dp_shard, 1) * parallel.cp


def _seconds(config: Config, choice: Choice, n_ranks: int) -> float:
    """Return the predicted seconds of all steps of a run with `choice`."""
    config = deepcopy(config)
    _use(config, choice)
    stages = stages_of(config).values()
    counts = [stage.steps or 0 for stage in config.stages.values()]
    times = (step_time(config, stage, H100, n_ranks).total for stage in stages)
    return sum(n * time for n, time in zip(counts, times, strict=True))


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
