"""Whether two runs had the same losses, bit for bit; and reference files, which keep the losses of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhtrain.errors import RunError
from lhtrain.files import write_atomic
from lhtrain.runs.metrics_file import Row, read_rows
from lhtrain.runs.run_dir import RunDir
from lhtrain.text import from_json, one_line, to_json

# Kinds of rows that are compared. "changed" is not one: a run that was resumed may equal one that was not.
KINDS = ("train", "validation", "switch", "recovered", "skipped", "spike", "rewound", "evaluation")
NEEDED = {"train": "loss", "validation": "val_loss", "switch": "val_loss_after"}
TIMED = ("seconds", "per_second", "mfu", "memory")  # parts of names of values that differ between equal runs
REFERENCE = "reference"  # the kind of the first row of a reference file


@dataclass(frozen=True)
class Trace:
    """The rows of a run that must be equal. about: data fingerprint, versions and hardware, if known."""

    name: str
    about: dict[str, Any]
    rows: list[Row]


def read_trace(path: Path) -> Trace:
    """Return the trace of a run directory, or of a file: metrics.jsonl or one of `save_reference`.

    Raises RunError: there are no rows, or some are damaged.
    """
    file = RunDir(path).metrics if path.is_dir() else path
    try:
        rows, damaged = read_rows(file)
    except OSError as error:
        raise RunError(str(error)) from error
    if damaged:
        raise RunError(f"{file}: line {damaged[0]} is not a JSON row, so nothing can be compared")
    about: dict[str, Any] = {}
    if rows and rows[0]["kind"] == REFERENCE:
        about = rows[0]
    elif path.is_dir():
        about = _about(RunDir(path).summary)
    rows = [row for row in rows if row["kind"] in KINDS]
    if not rows:
        what = "has no rows of steps" if file.exists() else "does not exist"
        raise RunError(f"{file} {what}: give a run that has logged steps, or a file of --save-reference")
    return Trace(str(path), about, rows)


def _about(path: Path) -> dict[str, Any]:
    try:
        summary = from_json(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    keys = ("data", "parameters", "ranks", "versions", "hardware")
    return {key: summary[key] for key in keys if key in summary} if isinstance(summary, dict) else {}


def first_difference(a: Trace, b: Trace) -> str | None:
    """Return the first difference of two traces in words; None if they are equal.

    A value that only one of them has is not compared, because it may be of another version; but losses must
    be in both.
    """
    data = a.about.get("data"), b.about.get("data")
    if None not in data and data[0] != data[1]:
        return f"data: the fingerprints of the tokens are {data[0]} and {data[1]}"
    for one, other in zip(a.rows, b.rows, strict=False):
        if found := _difference(one, other):
            return found
    if len(a.rows) != len(b.rows):
        longer, shorter = (a, b) if len(a.rows) > len(b.rows) else (b, a)
        extra = longer.rows[len(shorter.rows)]
        return f"step {extra['step']}: only {longer.name} has a row of kind {extra['kind']}"
    return None


def _difference(one: Row, other: Row) -> str | None:
    at = f"step {one['step']}"
    if (one["step"], one["kind"]) != (other["step"], other["kind"]):
        return f"{at}, {one['kind']}: the other run has step {other['step']}, {other['kind']} in its place"
    for key in dict.fromkeys([*one, *other]):
        if any(part in key for part in TIMED):
            continue
        if key in one and key in other:
            if one[key] != other[key]:
                values = (one_line(to_json(value), 200) for value in (one[key], other[key]))
                return f"{at}, {one['kind']}: {key} is {' and '.join(values)}"
        elif key == NEEDED.get(one["kind"]):
            return f"{at}, {one['kind']}: only one of the runs has {key}"
    return None


def save_reference(trace: Trace, path: Path) -> None:
    """Write the rows of a run without times, after a row on the data, versions and hardware.

    Raises RunError: the file cannot be written.
    """
    head = {"kind": REFERENCE, "step": trace.rows[-1]["step"], **trace.about}
    rows = [
        {key: value for key, value in row.items() if not any(part in key for part in TIMED)}
        for row in trace.rows
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(to_json(row) + "\n" for row in [head, *rows]))
    except OSError as error:
        raise RunError(str(error)) from error
