"""What the files of a run directory say about the run. Missing and damaged files count as empty."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from lhtrain.compute.flops import step_flops
from lhtrain.errors import ExplainedError, RunError
from lhtrain.files import read_regular
from lhtrain.runs.history import History, Record
from lhtrain.runs.metrics_file import Row, read_rows
from lhtrain.runs.own_config import load
from lhtrain.runs.run_dir import RunDir
from lhtrain.slurm.queue import queued
from lhtrain.slurm.status import find_runs, status_of
from lhtrain.stage import stages_of
from lhtrain.text import counted, one_line

# The states of a run. A run that was killed counts as stopped.
STATES = ("running", "waiting", "finished", "stopped", "failed")


@dataclass(frozen=True)
class Run:
    """A run, as its directory records it.

    Attributes:
        path: the run directory.
        label: a short name that differs from those of the other runs.
        state: one of STATES; "reference" for a file of `equal.save_reference`.
        detail: the state in more words, such as "running on HOST".
        config: config.yaml.
        summary: summary.json.
        rows: metrics.jsonl.
        history: history.jsonl.
        evaluation: eval.json.
        samples: samples.jsonl.
        flops: stage name -> FLOPs of one step, of all ranks; {} if the configuration cannot be read.
        notes: what could not be read.
    """

    path: Path
    label: str
    state: str
    detail: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    history: list[Record] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    flops: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Return the runs in `paths`: run directories, or folders that contain run directories.

    Raises RunError: a path does not exist, or there is no run in it.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "does not exist"
            raise RunError(f"{path} {what}: give the directory of a run, such as runs/mine")
        inside = find_runs([path])
        if not inside:
            raise RunError(
                f"{path} contains no run: give the directory of a run, which has a file metrics.jsonl"
            )
        found += [run for run in inside if run not in found]
    jobs = queued()
    labels = labels_of(found)
    return [
        _read(path, label, *state_of(status_of(path, jobs).state))
        for path, label in zip(found, labels, strict=True)
    ]


def labels_of(paths: list[Path]) -> list[str]:
    """Return the paths relative to the deepest folder that contains all of them."""
    if not paths:
        return []
    common = os.path.commonpath([path.absolute().parent for path in paths])
    return [one_line(os.path.relpath(path.absolute(), common), 60) for path in paths]


def state_of(text: str) -> tuple[str, str]:
    """Return one of STATES for a state of `slurm.status`, and the state in full."""
    first = text.split()[0].strip(",:").lower() if text else ""
    known = {"pending": "waiting", "completing": "running", "not": "stopped", "unknown:": "stopped"}
    state = first if first in STATES else known.get(first, "stopped")
    return state, "" if text.lower() == state else text


def _read(path: Path, label: str, state: str, detail: str) -> Run:
    notes: list[str] = []
    run_dir = RunDir(path)
    rows, samples = _rows(run_dir.metrics, notes), _records(path / "samples.jsonl", notes)
    try:
        config = run_dir.read_config()
    except RunError as error:
        config = {}
        notes.append(str(error))
    if config is None:
        notes.append("config.yaml is missing")
    try:
        history = History(run_dir.history).records()
    except OSError as error:
        history = []
        notes.append(f"history.jsonl cannot be read: {error}")
    return Run(
        path,
        label,
        state,
        detail,
        config=config or {},
        summary=_json(run_dir.summary, notes),
        rows=rows,
        history=history,
        evaluation=_json(path / "eval.json", notes, optional=True),
        samples=samples,
        flops=_flops(path) if config else {},
        notes=notes,
    )


def _rows(path: Path, notes: list[str]) -> list[Row]:
    try:
        rows, damaged = read_rows(path)
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return []
    if damaged:
        notes.append(
            f"{path.name}: {counted(len(damaged), 'damaged line')} left out, the first is line {damaged[0]}"
        )
    return rows


def _records(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines, without lines that are not objects; [] if it is missing."""
    try:
        lines = read_regular(path).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return []
    found = []
    for line in filter(None, lines):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        found += [value] if isinstance(value, dict) else []
    return found


def _json(path: Path, notes: list[str], optional: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(read_regular(path), parse_constant=lambda _: None)
    except FileNotFoundError:
        if not optional:
            notes.append(f"{path.name} is missing")
        return {}
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read: {one_line(error, 200)}")
        return {}
    return value if isinstance(value, dict) else {}


def _flops(path: Path) -> dict[str, int]:
    """Return the FLOPs of a step of each stage; {} if this version cannot read the configuration."""
    try:
        config = load(path, [])
        return {name: step_flops(config.model, stage) for name, stage in stages_of(config).items()}
    except (ExplainedError, OmegaConfBaseException, ArithmeticError, AttributeError, LookupError):
        return {}
    except (TypeError, ValueError):  # a value of another version that this version computes with
        return {}
