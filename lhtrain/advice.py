"""What to change when a GPU's memory does not hold a run: each choice with its estimated peak."""

from copy import deepcopy

from lhtrain.conf.schema import Config, Recompute
from lhtrain.estimate import estimate

# From the cheapest on.
CHOICES = (
    ("compute.recompute=selective", Recompute.selective, False),
    ("compute.recompute=full", Recompute.full, False),
    ("compute.recompute=full compute.offload=true", Recompute.full, True),
)


def advice(config: Config, capacity: float) -> list[str]:
    """Lines on the filled `config` and a GPU of `capacity` GB: what it needs by the estimate, what helps."""
    peaks = _peaks(config)
    lines = [
        f"Estimated peak: {_said(peaks)}; the GPU has {capacity:.0f} GB. What helps, from the cheapest on:"
    ]
    if smaller := _more_micro_batches(config):
        lines.append(_line(_micro_batches(config, smaller), smaller, capacity))
    for setting, recompute, offload in CHOICES:
        other = deepcopy(config)
        other.compute.recompute, other.compute.offload = recompute, offload
        if config.compute.recompute_every != 1:
            other.compute.recompute_every, setting = 1, f"{setting} compute.recompute_every=1"
        if max(_peaks(other).values()) < max(peaks.values()):
            lines.append(_line(setting, other, capacity))
    lines.append("  more GPUs (parallel.dp_shard, parallel.cp), shorter sequences, a smaller model")
    return lines


def _more_micro_batches(config: Config) -> Config | None:
    """The configuration with twice the micro-batches, where every stage can cut its step so."""
    data_ranks = max(config.parallel.dp_shard, 1) * config.parallel.dp_replicate
    other = deepcopy(config)
    other.run.grad_accum *= 2
    for stage in other.stages.values():
        stage.grad_accum *= 2
        if stage.batch_tokens % (stage.seq_len * stage.grad_accum * data_ranks):
            return None
    return other


def _micro_batches(config: Config, other: Config) -> str:
    """The settings that make `other` of `config`: the run's, and those of stages that have their own."""
    pairs = [(name, stage, other.stages[name]) for name, stage in config.stages.items()]
    own = [(name, new) for name, old, new in pairs if old.grad_accum != config.run.grad_accum]
    said = [f"run.grad_accum={other.run.grad_accum}"] if len(own) < len(pairs) else []
    return " ".join([*said, *(f"stages.{name}.grad_accum={new.grad_accum}" for name, new in own)])


def _peaks(config: Config) -> dict[str, float]:
    """GB of each stage."""
    return {name: estimate(config, stage).total / 1e9 for name, stage in config.stages.items()}


def _said(peaks: dict[str, float]) -> str:
    return ", ".join(f"{name} {peak:.1f} GB" for name, peak in peaks.items())


def _line(setting: str, config: Config, capacity: float) -> str:
    peaks = _peaks(config)
    fits = "fits" if max(peaks.values()) < capacity else "does not fit"
    return f"  {setting:<46} {_said(peaks)}: {fits}"
