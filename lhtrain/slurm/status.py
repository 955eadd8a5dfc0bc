"""`lhtrain slurm status`: the runs under some folders, with what their files and the queue say."""

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
from lhtrain.progress import Losses
from lhtrain.runs.metrics_file import Row
from lhtrain.runs.run_dir import RunDir
from lhtrain.slurm.folder import SlurmFolder
from lhtrain.slurm.queue import Queued, queued
from lhtrain.text import duration, number, one_line

RECENT = 50  # logged steps that the speed is taken from
SIGN = 60.0  # seconds after which a rank that writes no sign of life counts as gone or stuck


@dataclass(frozen=True)
class RunStatus:
    """One run; None: not known."""

    path: Path
    state: str  # of the run: finished, RUNNING (or another state of its job), or how its last attempt ended
    job: str
    step: int
    steps: int | None
    stage: str | None
    loss: float | None
    restarts: int
    run_left: float | None  # seconds to the end of the run at its recent speed
    job_left: str | None  # of the job's time limit, as SLURM writes it


def find_runs(folders: list[Path]) -> list[Path]:
    """Run directories in `folders`, or these themselves, oldest name first; sweeps lie one level deeper."""
    return [run for folder in folders for run in _runs_in(folder, depth=2)]


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    if SlurmFolder(folder).config.exists() or RunDir(folder).metrics.exists():
        yield folder
    elif depth and folder.is_dir():
        try:
            inside = sorted(folder.iterdir())
        except OSError:
            return  # somebody else's
        for inner in inside:
            if inner.is_dir():
                yield from _runs_in(inner, depth - 1)


def status_of(path: Path, jobs: dict[str, Queued] | None) -> RunStatus:
    """The state of the run in `path`, by its files and the queue."""
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
        unknown = "unknown: no SLURM here" if job_number and jobs is None else None
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
    """That the run in `path` is running without a job, in words, by the files that its ranks write every few
    seconds; None if it is not."""
    here, newest = platform.node(), None
    for file in (path / "ranks").glob("*.json"):
        try:
            doing = json.loads(read_regular(file))
            host, pid, at = str(doing["host"]), int(doing["pid"]), file.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # being written, or damaged
        if host == here and not _lives(pid, at):
            continue
        if newest is None or at > newest[1]:
            newest = (host, at)
    if newest is None:
        return None
    host, silent = newest[0], time.time() - newest[1]
    if silent < patience:
        return f"running on {host}"
    # A process that is there and writes nothing is stopped, or its file system hangs.
    return f"running on {host}, but silent for {duration(silent)}" if host == here else None


def _lives(pid: int, since: float) -> bool:
    """Whether the process that wrote a file at `since` is there; not another one that has its number now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False  # no number of a process
    except PermissionError:
        pass  # somebody else's
    try:  # its start, in clock ticks since the machine's
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):  # no /proc here
        return True
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK") <= since + 1


def _ended(summary: dict[str, Any]) -> str:
    """How the latest attempt ended, by the summary."""
    ended = summary.get("ended")
    if not isinstance(ended, dict):
        return "not running"
    reason = one_line(ended.get("reason") or "no reason given", most=60)
    return {"signal": f"stopped by {reason}", "error": f"failed: {reason}"}.get(
        str(ended.get("how")), "not running"
    )


def _loss(rows: list[Row]) -> float | None:
    """Mean of the last losses of the newest stage: a single batch is too noisy to compare runs by."""
    losses = Losses()
    for row in rows:
        if row.get("stage") == rows[-1].get("stage") and row.get("loss") is not None:
            losses.take(row["loss"])
    return losses.mean


def _seconds_left(summary: dict[str, Any], rows: list[Row], steps: int | None) -> float | None:
    """The run's own estimate at its last validation, which allows for the speeds of its stages;
    before there is one, its steps at the recent speed."""
    if not rows:
        return None
    try:
        since = rows[-1]["seconds"] - summary["wall_clock_seconds"]
        return max(summary["seconds_left"] - since, 0.0)
    except (KeyError, TypeError):
        seconds = sorted(row["step_seconds"] for row in rows[-RECENT:] if row.get("step_seconds"))
        return (steps - rows[-1]["step"]) * seconds[len(seconds) // 2] if steps and seconds else None


def table(runs: list[RunStatus]) -> Table:
    """A row a run."""
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
    """The folder that all runs share; names are printed relative to it."""
    return os.path.commonpath([path.absolute().parent for path in paths])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def statuses(folders: list[Path]) -> list[RunStatus]:
    """Every run in `folders`; the queue is asked once."""
    jobs = queued()
    return [status_of(path, jobs) for path in find_runs(folders)]
