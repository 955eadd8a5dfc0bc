"""The files of a job: they are in the folder `slurm` of the run directory."""

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
    """The attempts of a job so far. An attempt begins each time SLURM starts the script."""

    job: str = ""
    count: int = 0
    restarts: int = 0  # attempts whose predecessor crashed or saved no checkpoint
    step: int = 0  # of the newest checkpoint when the latest attempt began
    summary: int = 0  # modification time of summary.json at that moment in ns; 0 without one
    outcome: str = ""  # how the latest attempt ended; empty while it runs


@dataclass(frozen=True)
class SlurmFolder:
    """Paths and contents of the files that belong to a run's job."""

    run_dir: Path

    @property
    def path(self) -> Path:
        return self.run_dir / "slurm"

    @property
    def script(self) -> Path:
        return self.path / "job.sh"

    @property
    def config(self) -> Path:
        """The submitted configuration. The trainer writes its own config.yaml into the run directory."""
        return self.path / "config.yaml"

    @property
    def version(self) -> Path:
        return self.path / "version.json"

    @property
    def job(self) -> Path:
        """A file with the number of the job that was submitted or started last."""
        return self.path / "job"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.json"

    @property
    def ended_by(self) -> Path:
        """A file with a value of `attempt.By`.

        The script writes it as soon as SLURM ends the job, because SLURM may kill the script soon after.
        """
        return self.path / "ended_by"

    def read_job(self) -> str:
        """Return the number of the run's latest job; "" if there is none."""
        try:
            return _text(self.job).strip()
        except FileNotFoundError:
            return ""

    def read_attempts(self) -> Attempts:
        """Return the recorded attempts; empty `Attempts` if the file is missing or damaged."""
        try:
            return Attempts(**json.loads(_text(self.attempts)))
        except (OSError, ValueError, TypeError, RecursionError):
            return Attempts()

    def write_attempts(self, attempts: Attempts) -> None:
        write_aside(self.attempts, asdict(attempts))

    def summary(self) -> dict[str, Any]:
        """Return the content of summary.json; empty if it is missing or damaged."""
        try:
            summary = json.loads(_text(RunDir(self.run_dir).summary))
        except (OSError, ValueError, RecursionError):
            return {}
        return summary if isinstance(summary, dict) else {}

    def summary_time(self) -> int:
        """Return the modification time of summary.json in nanoseconds; 0 if it is missing."""
        path = RunDir(self.run_dir).summary
        return path.stat().st_mtime_ns if path.exists() else 0

    def saved_step(self) -> int:
        """Return the step of the newest checkpoint; 0 if there is none."""
        found = (
            re.fullmatch(r"step_(\d+)", path.name) for path in RunDir(self.run_dir).checkpoints.glob("*")
        )
        return max((int(match[1]) for match in found if match), default=0)

    def train_rows(self, size: int = 65536) -> list[Row]:
        """Return the training rows that are complete within the last `size` bytes of metrics.jsonl."""
        path = RunDir(self.run_dir).metrics
        try:
            with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                lines = file.read().split(b"\n")
        except OSError:
            return []
        # row_of returns None for a line that is incomplete (the first one, or after a kill) or damaged.
        rows = [row for line in lines if (row := row_of(line)) is not None]
        return [row for row in rows if row["kind"] == "train" and isinstance(row.get("loss"), float | None)]

    def ended_orderly(self, since: int) -> bool:
        """Return whether the latest attempt finished the run, or saved and stopped after a signal.

        since: `summary_time()` at the start of the attempt. A newer time is not enough, because the trainer
        also rewrites summary.json while it runs, with `ended: null`.
        """
        ended = self.summary().get("ended")
        how = ended.get("how") if isinstance(ended, dict) else None
        return how in ("finished", "signal") and self.summary_time() != since

    def planned_steps(self) -> int | None:
        """Return run.steps from the newer of the submitted and the trainer's config.yaml; None if unknown."""
        paths = [path for path in (self.config, RunDir(self.run_dir).config) if path.exists()]
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            try:
                return int(yaml.safe_load(_text(path))["run"]["steps"])
            except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, yaml.YAMLError):
                continue
        return None

    def finished(self) -> bool:
        """Return whether the run has done all steps that are planned now."""
        summary, planned = self.summary(), self.planned_steps()
        done = summary.get("steps")
        longer = planned is not None and isinstance(done, int) and done < planned
        return summary.get("finished") is True and not longer

    def started_by(self, job: str) -> bool:
        """Return whether the trainer has started or resumed the run in the job with number `job`."""
        try:
            records = History(RunDir(self.run_dir).history).records()
        except OSError:
            return False
        return any(record.get("event") == "start" and record.get("job") == job for record in records)


def write_aside(path: Path, content: Any) -> None:
    """Write `content` as JSON to a temporary file and rename it, so that readers never see a partial file."""
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def _text(path: Path) -> str:
    """Return the text of a regular file. Raises OSError.

    A link or a pipe raises FileNotFoundError: lhtrain did not make it, and a pipe would block the reader.
    """
    try:
        return read_regular(path).decode(errors="replace")
    except NotRegular as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
