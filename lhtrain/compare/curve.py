"""The losses of a run as points that have a step, tokens, seconds of training and FLOPs."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lhtrain.compare.run import Run
from lhtrain.runs.metrics_file import Row
from lhtrain.stage import saved_attention_settings
from lhtrain.text import number_at

AXES = ("step", "tokens", "seconds", "flops")


class Point(NamedTuple):
    """A value of a run after `step` steps.

    seconds: of training so far, see `training_seconds`. flops: so far, of all ranks; None if not known.
    """

    step: int
    tokens: float
    seconds: float
    flops: float | None
    stage: str
    value: float


def points(run: Run, kind: str, key: str) -> list[Point]:
    """Return the finite values at `key` of the rows of a kind, in order."""
    return [
        point
        for row, so_far in _rows(run)
        if row["kind"] == kind and (point := _point(row, key, so_far)) is not None
    ]


def validations(run: Run) -> list[Point]:
    """Return all validations, in order; the validation at a switch belongs to the new stage."""
    found = []
    for row, so_far in _rows(run):
        if row["kind"] == "validation":
            point = _point(row, "val_loss", so_far)
        elif row["kind"] == "switch":  # its step is the first of the new stage, which has not been done yet
            point = _point(row | {"step": row["step"] - 1, "stage": row.get("to")}, "val_loss_after", so_far)
        else:
            continue
        found += [point] if point is not None else []
    return found


def switches(run: Run) -> list[Point]:
    """Return the switches, each with the last step before it and the name of the new stage; value is 0."""
    found = []
    for row, so_far in _rows(run):
        if row["kind"] == "switch":
            moved = row | {"step": row["step"] - 1, "stage": row.get("to"), "value": 0}
            found += [point] if (point := _point(moved, "value", so_far)) is not None else []
    return found


def comparable(run: Run) -> list[Point]:
    """Return the validations under the attention of the last validated stage.

    Losses under another attention are not those of the model that the run ends with: with the published layer
    they can be lower, because the selection of rows depends on later tokens.
    """
    found = validations(run)
    if not found:
        return []
    last = attention_of(run, found[-1].stage)
    return [point for point in found if attention_of(run, point.stage) == last]


def attention_of(run: Run, stage: str) -> dict[str, Any]:
    """Return the settings of the attention of a stage, except the sequence length.

    If the configuration does not have the stage: its name.
    """
    try:
        settings = saved_attention_settings(run.config["stages"][stage], run.config.get("model") or {})
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError):
        return {"stage": stage}
    return {key: value for key, value in settings.items() if key != "seq_len"}


def training_seconds(run: Run) -> list[float | None]:
    """Return the seconds of training done before each row: of reading data and computing steps.

    Validation, evaluation, samples, checkpoints and compilation do not count, so that runs with different
    eval.every are compared by their training. A row of a step has the mean time of the steps since the row
    before it. Time between two of these rows is taken to be linear. None: no row has the time of its steps.
    """
    steps, seconds, pace = [0], [0.0], 0.0
    for row in run.rows:
        each = number_at(row, "step_seconds")
        if row["kind"] == "train" and each is not None and row["step"] > steps[-1]:
            seconds.append(seconds[-1] + each * (row["step"] - steps[-1]))
            steps.append(row["step"])
            pace = each
    if len(steps) == 1:
        return [None] * len(run.rows)
    done = [_done(row) for row in run.rows]
    if (last := max(done)) > steps[-1]:
        seconds.append(seconds[-1] + pace * (last - steps[-1]))
        steps.append(last)
    return [float(x) for x in np.interp(done, steps, seconds)]


class _SoFar(NamedTuple):
    """Seconds of training and FLOPs done before a row."""

    seconds: float | None
    flops: float | None


def _rows(run: Run) -> Iterator[tuple[Row, _SoFar]]:
    both = zip(training_seconds(run), _flops_so_far(run), strict=True)
    for row, (seconds, flops) in zip(run.rows, both, strict=True):
        yield row, _SoFar(seconds, flops)


def _done(row: Row) -> int:
    """Return the steps done before a row. That of a switch names the first step of the new stage."""
    return row["step"] - 1 if row["kind"] == "switch" else row["step"]


def _point(row: Row, key: str, so_far: _SoFar) -> Point | None:
    value, tokens = number_at(row, key), number_at(row, "tokens")
    if value is None or tokens is None or so_far.seconds is None:
        return None
    return Point(row["step"], tokens, so_far.seconds, so_far.flops, str(row.get("stage")), value)


def _flops_so_far(run: Run) -> list[float | None]:
    """Return the FLOPs done before each row."""
    out: list[float | None] = []
    step, flops = 0, 0.0 if run.flops else None
    for row in run.rows:
        done = _done(row)
        each = run.flops.get(str(row.get("from") if row["kind"] == "switch" else row.get("stage")))
        if flops is not None and done > step:
            flops = flops + each * (done - step) if each is not None else None
        step = max(step, done)
        out.append(flops)
    return out
