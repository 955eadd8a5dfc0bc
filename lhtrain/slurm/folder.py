"""The files of a job in a run directory: all are in its folder `slurm`."""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lhtrain.files import NotRegular, open_regular, read_regular, write_atomic
from lhtrain.runs.history import History
from lhtrain.runs.metrics_file import Row, row_of
from lhtrain.runs.run_dir import RunDir


@dataclass
class Attempts:
    """The job's attempts so far; one begins whenever SLURM starts the script."""

    job: str = ""
    count: int = 0
    restarts: int = 0  # of those, because the one before crashed or made no step
    step: int = 0  # of the newest checkpoint when the latest began
    summary: int = 0  # modification time of summary.json then, 0 without one
    outcome: str = ""  # how the latest ended; empty while it runs


@dataclass(frozen=True)
class SlurmFolder:
    run_dir: Path

    @property
    def path(self) -> Path:
        return self.run_dir / "slurm"

    @property
    def script(self) -> Path:
        return self.path / "job.sh"

    @property
    def config(self) -> Path:
        """The configuration as it was submitted; the trainer writes its own beside the metrics."""
        return self.path / "config.yaml"

    @property
    def version(self) -> Path:
        return self.path / "version.json"

    @property
    def job(self) -> Path:
        """The number of the job that was submitted last, or that began last."""
        return self.path / "job"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.json"

    @property
    def ended_by(self) -> Path:
        """Who ended an attempt, a value of `attempt.By`. The script notes it at once when SLURM ends the job,
        which may kill it before it has done the rest."""
        return self.path / "ended_by"

    def read_job(self) -> str:
        """The number of the run's latest job; empty without one."""
        try:
            return _text(self.job).strip()
        except FileNotFoundError:
            return ""

    def read_attempts(self) -> Attempts:
        """None so far where the file is not there, or not readable."""
        try:
            return Attempts(**json.loads(_text(self.attempts)))
        except (OSError, ValueError, TypeError, RecursionError):
            return Attempts()

    def write_attempts(self, attempts: Attempts) -> None:
        write_aside(self.attempts, asdict(attempts))

    def summary(self) -> dict[str, Any]:
        """summary.json; empty where there is none."""
        try:
            summary = json.loads(_text(RunDir(self.run_dir).summary))
        except (OSError, ValueError, RecursionError):
            return {}
        return summary if isinstance(summary, dict) else {}

    def summary_time(self) -> int:
        """When summary.json was written, in nanoseconds; 0 without one."""
        path = RunDir(self.run_dir).summary
        return path.stat().st_mtime_ns if path.exists() else 0

    def saved_step(self) -> int:
        """The step of the newest checkpoint, 0 without one."""
        found = (
            re.fullmatch(r"step_(\d+)", path.name) for path in RunDir(self.run_dir).checkpoints.glob("*")
        )
        return max((int(match[1]) for match in found if match), default=0)

    def train_rows(self, size: int = 65536) -> list[Row]:
        """The newest rows of training steps: the whole ones among the last `size` bytes of metrics.jsonl."""
        path = RunDir(self.run_dir).metrics
        try:
            with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                lines = file.read().split(b"\n")
        except OSError:
            return []
        # None: cut by where reading began, torn by a kill, or damaged.
        rows = [row for line in lines if (row := row_of(line)) is not None]
        return [row for row in rows if row["kind"] == "train" and isinstance(row.get("loss"), float | None)]

    def ended_orderly(self, since: int) -> bool:
        """Whether the run, in the attempt that began with a summary of `since`, finished or obeyed a signal.

        The trainer renews summary.json while it runs, with `ended: null`: its time alone proves nothing.
        """
        ended = self.summary().get("ended")
        how = ended.get("how") if isinstance(ended, dict) else None
        return how in ("finished", "signal") and self.summary_time() != since

    def planned_steps(self) -> int | None:
        """run.steps as it was submitted or as the trainer last had it, whichever is newer; None: unknown."""
        paths = [path for path in (self.config, RunDir(self.run_dir).config) if path.exists()]
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            try:
                return int(yaml.safe_load(_text(path))["run"]["steps"])
            except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, yaml.YAMLError):
                continue
        return None

    def finished(self) -> bool:
        """Whether the run is done with all the steps that are planned now."""
        summary, planned = self.summary(), self.planned_steps()
        done = summary.get("steps")
        longer = planned is not None and isinstance(done, int) and done < planned
        return summary.get("finished") is True and not longer

    def started_by(self, job: str) -> bool:
        """Whether the trainer has begun or continued the run in job number `job`."""
        try:
            records = History(RunDir(self.run_dir).history).records()
        except OSError:
            return False
        return any(record.get("event") == "start" and record.get("job") == job for record in records)


def write_aside(path: Path, content: Any) -> None:
    """JSON, written aside and renamed: a reader never sees half of it."""
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def _text(path: Path) -> str:
    """The text of a regular file; a link or a pipe is no file of ours and counts as none. Raises OSError."""
    try:
        return read_regular(path).decode(errors="replace")
    except NotRegular as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
