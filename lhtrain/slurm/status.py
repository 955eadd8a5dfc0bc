"""`lhtrain slurm status`: lists the runs in folders with their state, from their files and SLURM's queue."""

import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from lhtrain.files import read_regular
from lhtrain.health.hang import ENDED
from lhtrain.progress import Losses
from lhtrain.runs.metrics_file import Row
from lhtrain.runs.run_dir import RunDir
from lhtrain.slurm.folder import SlurmFolder
from lhtrain.slurm.queue import Queued, queued
from lhtrain.text import duration, number, one_line

RECENT = 50  # the speed is the median of this many logged steps
SIGN = 60.0  # seconds; a rank that has not written its file for longer counts as gone or hanging


@dataclass(frozen=True)
class RunStatus:
    """The state of one run. None means unknown."""

    path: Path
    state: str  # finished, the state of its job such as RUNNING, or how its last attempt ended
    job: str
    step: int
    steps: int | None
    stage: str | None
    loss: float | None
    restarts: int
    run_left: float | None  # estimated seconds to the end of the run
    job_left: str | None  # time to the limit of the job, as SLURM prints it


def find_runs(folders: list[Path]) -> list[Path]:
    """Return the run directories among and in `folders`, sorted by name; sweeps are a level deeper."""
    return [run for folder in folders for run in _runs_in(folder, depth=2)]


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    run_dir = RunDir(folder)  # a run that failed before its first row has only its history
    if SlurmFolder(folder).config.exists() or run_dir.metrics.exists() or run_dir.history.exists():
        yield folder
    elif depth and folder.is_dir():
        try:
            inside = sorted(folder.iterdir())
        except OSError:
            return  # not readable for this user
        for inner in inside:
            if inner.is_dir():
                yield from _runs_in(inner, depth - 1)


def status_of(path: Path, jobs: dict[str, Queued] | None) -> RunStatus:
    """Return the state of the run in `path`. jobs: the queue; None if there is no SLURM."""
    folder = SlurmFolder(path)
    summary, attempts, rows = folder.summary(), folder.read_attempts(), folder.train_rows()
    row: dict[str, Any] = rows[-1] if rows else {}
    job_number = folder.read_job()
    job = (jobs or {}).get(job_number)
    finished, steps = folder.finished(), folder.planned_steps()
    if finished:
        state = "finished"
    elif job:
        state = job.state if job.state != "PENDING" else f"PENDING {job.reason}"
    elif alive := running(path):
        state = alive
    else:
        unknown = "unknown: squeue does not answer here" if job_number and jobs is None else None
        state = attempts.outcome or unknown or _ended(summary)
    step = int(row.get("step", 0))
    return RunStatus(
        path=path,
        state=state,
        job=job_number,
        step=step,
        steps=steps,
        stage=row.get("stage"),
        loss=_loss(rows),
        restarts=attempts.restarts,
        run_left=None if finished else _seconds_left(summary, rows, steps),
        job_left=job.left if job else None,
    )


def running(path: Path, patience: float = SIGN) -> str | None:
    """Return the state "running on HOST" if the run is running without a job; None if it is not.

    The ranks write a file every few seconds. patience: seconds since the newest file, after which a run on
    another machine counts as ended, and one on this machine is reported as not responding.
    """
    here, newest = platform.node(), None
    for file in (path / "ranks").glob("*.json"):
        try:
            doing = json.loads(read_regular(file))
            host, pid, at = str(doing["host"]), int(doing["pid"]), file.stat().st_mtime
            over = doing.get("phase") == ENDED  # the process may live on, in the next run of a sweep
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # being written, or damaged
        if over or (host == here and not _lives(pid, at)):
            continue
        if newest is None or at > newest[1]:
            newest = (host, at)
    if newest is None:
        return None
    host, silent = newest[0], time.time() - newest[1]
    if silent < patience:
        return f"running on {host}"
    # The process exists but does not write: it is stopped, or its file system hangs.
    return f"running on {host}, but not responding for {duration(silent)}" if host == here else None


def _lives(pid: int, since: float) -> bool:
    """Return whether the process that wrote a file at time `since` exists, and its number was not reused."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False  # not a valid process number
    except PermissionError:
        pass  # the process exists and belongs to another user
    try:  # start of the process, in clock ticks after the start of the machine
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):  # no /proc here
        return True
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK") <= since + 1


def _ended(summary: dict[str, Any]) -> str:
    """Return how the latest attempt ended, from summary.json."""
    ended = summary.get("ended")
    if not isinstance(ended, dict):
        return "not running"
    reason = one_line(ended.get("reason") or "no reason given", most=60)
    return {"signal": f"stopped by {reason}", "error": f"failed: {reason}"}.get(
        str(ended.get("how")), "not running"
    )


def _loss(rows: list[Row]) -> float | None:
    """Return the mean of the last losses of the current stage; a single loss is too noisy to compare runs."""
    losses = Losses()
    for row in rows:
        if row.get("stage") == rows[-1].get("stage") and row.get("loss") is not None:
            losses.take(row["loss"])
    return losses.mean


def _seconds_left(summary: dict[str, Any], rows: list[Row], steps: int | None) -> float | None:
    """Return the estimated seconds to the end of the run.

    The run's own estimate at its last validation is used, because it knows the speed of each stage. Before
    the first validation: the remaining steps at the recent speed.
    """
    if not rows:
        return None
    try:
        since = rows[-1]["seconds"] - summary["wall_clock_seconds"]
        return max(summary["seconds_left"] - since, 0.0)
    except (KeyError, TypeError):
        seconds = sorted(row["step_seconds"] for row in rows[-RECENT:] if row.get("step_seconds"))
        return (steps - rows[-1]["step"]) * seconds[len(seconds) // 2] if steps and seconds else None


def table(runs: list[RunStatus]) -> Table:
    """Return a table with one row per run."""
    out = Table("run", "state", "job", box=None, pad_edge=False)
    for column in ("step", "stage", "loss", "restarts", "run left", "job left"):
        out.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    common = _common_folder([run.path for run in runs])
    for run in runs:
        out.add_row(
            Text(one_line(os.path.relpath(run.path, common), 200)),
            Text(one_line(run.state, 200)),
            Text(run.job or "-"),
            f"{run.step:,}/{run.steps:,}" if run.steps else f"{run.step:,}",
            Text(one_line(str(run.stage or "-"), 24)),
            number(run.loss),
            str(run.restarts),
            _duration(run.run_left),
            run.job_left or "-",
        )
    return out


def _common_folder(paths: list[Path]) -> str:
    """Return the deepest folder that contains all runs; names are printed relative to it."""
    return os.path.commonpath([path.absolute().parent for path in paths])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def statuses(folders: list[Path]) -> list[RunStatus]:
    """Return the state of all runs in `folders`, with one call of squeue."""
    jobs = queued()
    return [status_of(path, jobs) for path in find_runs(folders)]
