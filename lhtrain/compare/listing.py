"""`lhtrain runs`: the runs in folders, with their state, progress, validation loss and age."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from lhtrain.compare.run import labels_of, state_of
from lhtrain.runs.run_dir import RunDir
from lhtrain.slurm.folder import SlurmFolder
from lhtrain.slurm.queue import queued
from lhtrain.slurm.status import find_runs, status_of
from lhtrain.text import number, number_at, one_line

RECENT = 50  # the speed is the median of this many logged steps
ORDERS = ("age", "name", "loss", "step", "state")


@dataclass(frozen=True)
class Listed:
    """One run. None: not known. age: seconds since it last wrote a row."""

    name: str
    path: str
    state: str
    detail: str
    stage: str | None
    step: int
    steps: int | None
    val_loss: float | None
    tokens_per_second: float | None
    age: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def listed(folders: list[Path], order: str = "age") -> list[Listed]:
    """Return the runs among and in `folders`. order: one of ORDERS; the newest or the lowest loss first."""
    paths, jobs = list(dict.fromkeys(find_runs(folders))), queued()
    found = [_listed(path, label, jobs) for path, label in zip(paths, labels_of(paths), strict=True)]
    keys: dict[str, Any] = {
        "age": lambda run: (run.age is None, run.age or 0),
        "name": lambda run: run.name,
        "loss": lambda run: (run.val_loss is None, run.val_loss or 0),
        "step": lambda run: -run.step,
        "state": lambda run: run.state,
    }
    return sorted(sorted(found, key=lambda run: run.name), key=keys[order])


def _listed(path: Path, name: str, jobs: Any) -> Listed:
    status, folder = status_of(path, jobs), SlurmFolder(path)
    state, detail = state_of(status.state)
    rows, summary = folder.train_rows(), folder.summary()
    speeds = sorted(
        speed
        for row in rows[-RECENT:]
        if row.get("stage") == status.stage and (speed := number_at(row, "tokens_per_second")) is not None
    )
    return Listed(
        name,
        str(path),
        state,
        detail,
        status.stage,
        status.step,
        status.steps,
        number_at(summary, "val_loss"),
        speeds[len(speeds) // 2] if speeds else None,
        _age(path),
    )


def _age(path: Path) -> float | None:
    for file in (RunDir(path).metrics, RunDir(path).history, SlurmFolder(path).config):
        try:
            return max(time.time() - file.stat().st_mtime, 0.0)
        except OSError:
            continue
    return None


def table(runs: list[Listed]) -> Table:
    """Return a table with a row for each run."""
    out = Table("run", "state", box=None, pad_edge=False)
    for column in ("stage", "step", "val loss", "tokens/s", "age"):
        out.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for run in runs:
        out.add_row(
            Text(one_line(run.name, 200), overflow="fold"),
            Text(one_line(run.detail or run.state, 80)),
            Text(one_line(run.stage or "-", 24)),
            f"{run.step:,}/{run.steps:,}" if run.steps else f"{run.step:,}",
            number(run.val_loss),
            number(run.tokens_per_second, ",.0f"),
            "-" if run.age is None else _short(run.age),
        )
    return out


def _short(seconds: float) -> str:
    """Return an age in its largest unit, such as 45 s, 12 min, 3 h or 5 d."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
