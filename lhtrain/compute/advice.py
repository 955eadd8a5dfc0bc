"""Settings that reduce the memory of a run, each with the peak that it is estimated to have."""

from copy import deepcopy

from lhtrain.compute.fill import CHOICES, counts
from lhtrain.compute.memory import estimate, how
from lhtrain.conf.rules.batch import data_ranks
from lhtrain.conf.rules.parallel import mesh_sizes
from lhtrain.conf.schema import Config, Recompute
from lhtrain.stage import stages_of


def advice(config: Config, capacity: float) -> list[str]:
    """Return lines with the estimated peak of each stage and the settings that reduce it.

    config: a filled configuration. capacity: memory of the GPU in GB (10^9 bytes).
    """
    peaks = _peaks(config)
    have = f"the GPU has {capacity:.0f} GB"
    lines = [f"Estimated peak: {_listed(peaks)}; {have}. Settings that reduce it, cheapest first:"]
    if smaller := _more_micro_batches(config):
        lines.append(_line(_micro_batches(config, smaller), smaller, capacity))
    for recompute, offload in CHOICES:
        if recompute is Recompute.none:
            continue
        setting = f"compute.recompute={recompute.value}" + (" compute.offload=true" if offload else "")
        other = deepcopy(config)
        other.compute.recompute, other.compute.offload = recompute, offload
        if config.compute.recompute_every != 1:
            other.compute.recompute_every, setting = 1, f"{setting} compute.recompute_every=1"
        if max(_peaks(other).values()) < max(peaks.values()):
            lines.append(_line(setting, other, capacity))
    lines.append("  more GPUs (parallel.dp_shard, parallel.cp), shorter sequences or a smaller model")
    return lines


def outlook(config: Config, n_ranks: int, memory: int) -> tuple[str, list[str]]:
    """Return a line with the estimated memory and the settings that decide it, and `advice` if needed.

    config: a filled configuration. memory: bytes of the GPU. The second value is empty if the run fits.
    """
    config = deepcopy(config)
    config.parallel.dp_shard = mesh_sizes(config.parallel, n_ranks)[1]
    peaks = _peaks(config)
    line = f"estimated peak {_listed(peaks)}, of {memory / 1e9:.1f} GB per GPU, with {how(config)}"
    return line, advice(config, memory / 1e9) if max(peaks.values()) * 1e9 >= memory else []


def _more_micro_batches(config: Config) -> Config | None:
    """Return `config` with the next larger number of micro-batches per stage; None if no stage has one."""
    dp, other = data_ranks(config, None), deepcopy(config)
    for stage in other.stages.values():
        stage.grad_accum = next((n for n in counts(stage, dp) if n > stage.grad_accum), stage.grad_accum)
    return other if other.stages != config.stages else None


def _micro_batches(config: Config, other: Config) -> str:
    """Return the settings of grad_accum that turn `config` into `other`.

    run.grad_accum is used if all stages that have its value change to the same number.
    """
    changed = {
        name: new.grad_accum
        for name, new in other.stages.items()
        if new.grad_accum != config.stages[name].grad_accum
    }
    of_run = [name for name, stage in config.stages.items() if stage.grad_accum == config.run.grad_accum]
    new_of_run = {other.stages[name].grad_accum for name in of_run}
    settings = []
    if len(new_of_run) == 1 and changed.keys() >= set(of_run):
        settings.append(f"run.grad_accum={new_of_run.pop()}")
        changed = {name: count for name, count in changed.items() if name not in of_run}
    return " ".join([*settings, *(f"stages.{name}.grad_accum={count}" for name, count in changed.items())])


def _peaks(config: Config) -> dict[str, float]:
    """Return the estimated peak of each stage in GB."""
    return {name: estimate(config, stage).total / 1e9 for name, stage in stages_of(config).items()}


def _listed(peaks: dict[str, float]) -> str:
    return ", ".join(f"{name} {peak:.1f} GB" for name, peak in peaks.items())


def _line(setting: str, config: Config, capacity: float) -> str:
    peaks = _peaks(config)
    fits = "fits" if max(peaks.values()) < capacity else "does not fit"
    return f"  {setting:<46} {_listed(peaks)}: {fits}"
