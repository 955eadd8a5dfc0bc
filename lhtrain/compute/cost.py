"""Estimates the cost of a run before it starts: epochs of the data, disk space, time. Pure functions."""

from collections.abc import Mapping

from lhtrain.compute.flops import step_flops
from lhtrain.compute.prediction import predict
from lhtrain.compute.rates import MEASURED
from lhtrain.compute.trained import state_bytes
from lhtrain.conf.schema import Config, DocumentMode
from lhtrain.stage import stages_of
from lhtrain.text import counted, one_line

ASSUMED_MFU = 0.5  # fraction of the data sheet's FLOP/s; measured: 0.40 to 0.55, see scripts/bench/results
SHOWN = 5  # most sources that a warning names
MANY_EPOCHS = 4  # more repetitions of the same text improve a model little (arXiv:2305.16264)


def cost(
    config: Config,
    n_parameters: int,
    tokens_per_epoch: int | None,
    peak: float | None = None,
    n_ranks: int = 1,
    done: int = 0,
    gpu: str = "",
    kernel: str = "",
) -> list[str]:
    """Return lines with tokens, checkpoints and, if `gpu` or `peak` is known, the time of the steps to do.

    Args:
        config: a filled configuration.
        n_parameters: weights of the model.
        tokens_per_epoch: tokens of the training data of the run. Stages with data of their own do not count
            for the epochs. None: unknown.
        peak: FLOP/s of one GPU from its data sheet; None if unknown.
        n_ranks: number of GPUs.
        done: steps already done.
        gpu: name of the GPU; if its rates were measured (rates.MEASURED), the time is predicted from them.
        kernel: the attention kernel of the prediction, fa4 or cudnn.
    """
    stages, steps = stages_of(config), _steps_left(config, done)
    tokens = sum(count * stages[name].batch_tokens for name, count in steps.items())
    flops = sum(count * step_flops(config.model, stages[name]) for name, count in steps.items())
    of_run = sum(count * stages[name].batch_tokens for name, count in steps.items() if not stages[name].data)
    data = "the data of the run" if any(stage.data for stage in stages.values()) else "the data"
    epochs = ""
    if tokens_per_epoch is not None:
        epochs = f", {_number(of_run / max(tokens_per_epoch, 1))} epochs of {data}"
    whole = sum((stage.steps or 0) * stage.batch_tokens for stage in config.stages.values())
    each = f"{_number(whole / max(n_parameters, 1))} tokens per parameter in the whole run"
    lines = [f"{tokens:,} tokens to read{epochs}; {each}"]
    lines.append(_checkpoints(config, n_parameters, steps, done))
    gpus = "this GPU" if n_ranks == 1 else f"{n_ranks} of these GPUs"
    # Whole sequences are counted: how long documents are is not known here.
    about = "at most" if config.data.documents is DocumentMode.apart else "about"
    if gpu in MEASURED:
        times = (
            predict(config, stages[name], MEASURED[gpu], n_ranks, kernel=kernel).seconds for name in steps
        )
        seconds = sum(count * time for count, time in zip(steps.values(), times, strict=True))
        lines.append(f"{about} {_duration(seconds)}, predicted from rates measured on {gpus}")
    elif peak is not None:
        time = _duration(flops / (peak * n_ranks * ASSUMED_MFU))
        lines.append(f"{about} {time}, estimated at {ASSUMED_MFU:.0%} of the peak FLOP/s of {gpus}")
    return lines


def repeats(epochs: Mapping[str, float], tokens: Mapping[str, int]) -> str | None:
    """Return a warning if the whole run reads a source of its data more than MANY_EPOCHS times, else None.

    Args:
        epochs: of each source that the run reads.
        tokens: in an epoch of each source.
    """
    often = sorted((name for name in epochs if epochs[name] > MANY_EPOCHS), key=lambda name: -epochs[name])
    if not often:
        return None
    read = [f"{_number(epochs[name])} times ({tokens[name]:,} tokens each time)" for name in often[:SHOWN]]
    if len(epochs) == 1:
        (what,) = (f"its data {text}" for text in read)
    else:
        what = ", ".join(f"{one_line(name)} {text}" for name, text in zip(often, read, strict=False))
        what += f" and {counted(len(often) - SHOWN, 'further source')} as often" if often[SHOWN:] else ""
    return (
        f"the run reads {what}; a model learns little from more than {MANY_EPOCHS} times; "
        "use more data or fewer steps"
    )


def _steps_left(config: Config, done: int) -> dict[str, int]:
    left = {}
    for name, stage in config.stages.items():
        count = stage.steps or 0
        left[name] = max(count - done, 0)
        done = max(done - count, 0)
    return left


def _checkpoints(config: Config, n_parameters: int, steps: dict[str, int], done: int) -> str:
    """Return a line with the number of checkpoints to save and the disk space of those that are kept."""
    last = done + sum(steps.values())
    at, end = set(range(0, last + 1, config.checkpoint.every)), 0
    for stage in config.stages.values():
        end += stage.steps or 0
        at.add(end)
    count = sum(done < step <= last for step in at)
    size = 4 * n_parameters + state_bytes(config)  # float32 weights, and the state of the optimizer
    kept = min(count, config.checkpoint.keep)
    if count == 1:
        return f"1 checkpoint of {_bytes(size)}"
    stay = f"{kept} {'is' if kept == 1 else 'are'} kept"
    return f"{count:,} checkpoints of {_bytes(size)} each; {stay}, {_bytes(kept * size)} on disk"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{_number(seconds / length)} {unit}"
    return "1 second" if _number(seconds) == "1" else f"{_number(seconds)} seconds"
