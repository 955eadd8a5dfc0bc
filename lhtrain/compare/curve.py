"""The losses of a run as points that have a step, tokens, seconds and FLOPs."""

from typing import Any, NamedTuple

from lhtrain.compare.run import Run
from lhtrain.runs.metrics_file import Row
from lhtrain.stage import saved_attention_settings
from lhtrain.text import number_at

AXES = ("step", "tokens", "seconds", "flops")


class Point(NamedTuple):
    """A value of a run after `step` steps. flops: FLOPs so far, of all ranks; None if not known."""

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
        for row, flops in zip(run.rows, _flops_so_far(run), strict=True)
        if row["kind"] == kind and (point := _point(row, key, flops)) is not None
    ]


def validations(run: Run) -> list[Point]:
    """Return all validations, in order; the validation at a switch belongs to the new stage."""
    found = []
    for row, flops in zip(run.rows, _flops_so_far(run), strict=True):
        if row["kind"] == "validation":
            point = _point(row, "val_loss", flops)
        elif row["kind"] == "switch":  # its step is the first of the new stage, which has not been done yet
            point = _point(row | {"step": row["step"] - 1, "stage": row.get("to")}, "val_loss_after", flops)
        else:
            continue
        found += [point] if point is not None else []
    return found


def switches(run: Run) -> list[Point]:
    """Return the switches, each with the last step before it and the name of the new stage; value is 0."""
    found = []
    for row, flops in zip(run.rows, _flops_so_far(run), strict=True):
        if row["kind"] == "switch":
            moved = row | {"step": row["step"] - 1, "stage": row.get("to"), "value": 0}
            found += [point] if (point := _point(moved, "value", flops)) is not None else []
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


def _point(row: Row, key: str, flops: float | None) -> Point | None:
    value = number_at(row, key)
    tokens, seconds = number_at(row, "tokens"), number_at(row, "seconds")
    if value is None or tokens is None or seconds is None:
        return None
    return Point(row["step"], tokens, seconds, flops, str(row.get("stage")), value)


def _flops_so_far(run: Run) -> list[float | None]:
    """Return the FLOPs done before each row."""
    out: list[float | None] = []
    step, flops = 0, 0.0 if run.flops else None
    for row in run.rows:
        # The row of a switch names the new stage; no step of it has been done.
        done = row["step"] - 1 if row["kind"] == "switch" else row["step"]
        each = run.flops.get(str(row.get("from") if row["kind"] == "switch" else row.get("stage")))
        if flops is not None and done > step:
            flops = flops + each * (done - step) if each is not None else None
        step = max(step, done)
        out.append(flops)
    return out
