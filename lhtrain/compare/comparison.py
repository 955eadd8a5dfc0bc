"""Several runs beside each other: losses, times, speed-ups against the first one, and notes on them."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from lhtrain.compare.curve import attention_of, comparable, training_seconds
from lhtrain.compare.measures import SpeedUp, loss_at, speed_up
from lhtrain.compare.run import Run
from lhtrain.compare.settings import Difference, differing
from lhtrain.conf.rules.evaluation import ATTENTIONS
from lhtrain.report.evaluation import numbers
from lhtrain.text import dict_at, dicts_at, number_at

# Settings that decide on which tokens a run is validated.
VALIDATED_ON = ("data.tokenizer", "data.val_fraction", "eval.tokens", "data.eos")


@dataclass(frozen=True)
class Compared:
    """The numbers of one run. None: not known. Losses in nats per token, times in seconds.

    seconds is the time of training: reading data and computing steps. wall_clock_seconds also has
    validation, evaluation and checkpoints.

    speed_up and loss_at_equal_time are against the first run, and None for the first run itself:
      speed_up            how many times sooner the run reached the lowest validation loss that both reached
      loss_at_equal_time  its validation loss, and that of the first run, when the shorter of the two ended

    evaluation has the main numbers of eval.json, `report.evaluation.NUMBERS`, for each attention that was
    measured; evaluated_after is the step of its weights.
    """

    label: str
    state: str
    stages: str
    step: int
    tokens: float | None
    val_loss: float | None
    attention: str | None  # of the last validation
    seconds: float | None
    wall_clock_seconds: float | None
    tokens_per_second: float | None  # of the whole run: tokens / seconds
    mfu: float | None  # of the last stage
    peak_memory_gb: float | None
    flops: float | None
    device_hours: float | None
    evaluation: dict[str, dict[str, float | None]]
    evaluated_after: float | None
    speed_up: SpeedUp | None = None
    loss_at_equal_time: tuple[float, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """runs: in the order in which they were given. notes: what makes their losses hard to compare."""

    runs: list[Compared]
    settings: list[Difference]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        out = asdict(self)
        for run, compared in zip(out["runs"], self.runs, strict=True):
            run["speed_up"] = compared.speed_up._asdict() if compared.speed_up else None
        return out


def compare(runs: list[Run]) -> Comparison:
    """Compare each run with the first one."""
    rows = [_compared(run, runs[0] if number else None) for number, run in enumerate(runs)]
    many = len(runs) > 1
    return Comparison(rows, differing(runs) if many else [], _notes(runs) if many else [])


def by_loss(rows: list[Compared]) -> list[int]:
    """Return the numbers of the runs, those with the lowest validation loss first, those without one last."""
    return sorted(range(len(rows)), key=lambda at: math.inf if (x := rows[at].val_loss) is None else x)


def summary_stages(run: Run) -> list[dict[str, Any]]:
    """Return the entries of stages in summary.json."""
    return dicts_at(run.summary, "stages")


def seconds_of(run: Run) -> float | None:
    """Return the wall-clock seconds of a run, without compilation."""
    found = [number_at(run.summary, "wall_clock_seconds")]
    found += [number_at(row, "seconds") for row in run.rows[-1:]]
    return max((value for value in found if value is not None), default=None)


def _seconds(run: Run) -> float | None:
    """Return the seconds of training; from summary.json if no row has them."""
    found = next(iter(training_seconds(run)[-1:]), None)
    if found is None:
        parts = [dict_at(stage, "wall_clock_seconds") for stage in summary_stages(run)]
        found = sum(number_at(one, key) or 0 for one in parts for key in ("data", "compute")) or None
    return found


def device_hours(run: Run) -> float | None:
    """Return the hours of all ranks, with compilation; None if the number of ranks is not known."""
    seconds, ranks = seconds_of(run), number_at(run.summary, "ranks")
    if seconds is None or ranks is None:
        return None
    return (seconds + (number_at(run.summary, "compile_seconds") or 0)) * ranks / 3600


def flops_of(run: Run) -> float | None:
    """Return the FLOPs of a run; None if not known."""
    if not run.flops:
        return None
    done = [
        (run.flops.get(str(stage.get("name"))), number_at(stage, "steps")) for stage in summary_stages(run)
    ]
    return sum(each * steps for each, steps in done if each and steps) or None


def _compared(run: Run, baseline: Run | None) -> Compared:
    points, seconds = comparable(run), _seconds(run)
    stages = summary_stages(run)
    last: dict[str, Any] = run.rows[-1] if run.rows else {}
    tokens = number_at(last, "tokens") or number_at(run.summary, "tokens")
    memory = [found for stage in stages if (found := number_at(stage, "peak_memory_gb")) is not None]
    return Compared(
        run.label,
        run.state,
        " -> ".join(str(stage.get("name")) for stage in stages) or "-",
        int(last.get("step", 0)),
        tokens,
        points[-1].value if points else None,
        _attention(run, points[-1].stage) if points else None,
        seconds,
        seconds_of(run),
        tokens / seconds if tokens and seconds else None,
        number_at(stages[-1], "mfu") if stages else None,
        max(memory, default=None),
        flops_of(run),
        device_hours(run),
        _evaluation(run),
        number_at(run.evaluation, "step"),
        speed_up(comparable(baseline), points) if baseline else None,
        _at_equal_time(baseline, run) if baseline else None,
    )


def _evaluation(run: Run) -> dict[str, dict[str, float | None]]:
    found = {name: numbers(dict_at(run.evaluation, name)) for name in ATTENTIONS}
    return {name: values for name, values in found.items() if values}


def _at_equal_time(baseline: Run, run: Run) -> tuple[float, float] | None:
    both = comparable(run), comparable(baseline)
    if not all(both):
        return None
    time = min(points[-1].seconds for points in both)
    losses = [loss_at(points, time) for points in both]
    return None if losses[0] is None or losses[1] is None else (losses[0], losses[1])


def _attention(run: Run, stage: str) -> str:
    return str(attention_of(run, stage).get("attention", stage))


def _notes(runs: list[Run]) -> list[str]:
    """Return reasons why the validation losses of `runs` may not be comparable."""
    notes = []
    if _differ([run.summary.get("data") for run in runs]):
        notes.append(
            "the runs read different data: their losses are comparable only if the validation is equal"
        )
    for key in VALIDATED_ON:
        group, name = key.split(".")
        values = [(run.config.get(group) or {}).get(name) for run in runs]
        if _differ(values):
            notes.append(f"{key} differs, so the validation losses are not of the same tokens")
    if _differ([max((stage.get("seq_len") or 0 for stage in _stages(run)), default=None) for run in runs]):
        notes.append(
            "the longest sequence length differs, so the validation losses are not of the same tokens"
        )
    notes += _evaluation_notes(runs)
    kinds = [_attention(run, points[-1].stage) if (points := comparable(run)) else None for run in runs]
    if _differ(kinds):
        each = ", ".join(f"{run.label}: {kind}" for run, kind in zip(runs, kinds, strict=True) if kind)
        notes.append(f"the last validations used different attention ({each})")
    return notes


def _evaluation_notes(runs: list[Run]) -> list[str]:
    """Return what makes the evaluations of `runs` hard to compare."""
    evaluated = [run.evaluation for run in runs if run.evaluation]
    values = {key: [of.get(key) for of in evaluated] for key in ("context", "texts")}
    values |= {
        f"eval.{key}": [dict_at(of, "settings").get(key) for of in evaluated]
        for key in ("lengths", "depths", "samples", "seed")
    }
    if unequal := [key for key, of_runs in values.items() if _differ(of_runs)]:
        return [f"{', '.join(unequal)} of the evaluations differ, so they did not measure the same"]
    return []


def _stages(run: Run) -> list[dict[str, Any]]:
    stages = run.config.get("stages")
    return [s for s in stages.values() if isinstance(s, dict)] if isinstance(stages, dict) else []


def _differ(values: list[Any]) -> bool:
    """Return whether known values differ."""
    return len({str(value) for value in values if value is not None}) > 1
