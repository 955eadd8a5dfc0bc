"""Runs `lhtrain slurm`, and submits, signals and waits for jobs on the cluster of `make test-slurm`."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = "run.steps=60"  # of the trainer's runs: enough for a signal to arrive in time


def command(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run `lhtrain slurm ARGUMENTS`."""
    return subprocess.run(
        [sys.executable, "-m", "lhtrain", "slurm", *arguments],
        cwd=cwd,
        env=env or dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
    )


def reason_to_skip() -> str | None:
    """Return why the local cluster cannot be used; None if it can. Tests never use another cluster."""
    if shutil.which("slurmctld") is None:
        return "slurmctld is not installed; make test-slurm installs and starts a local cluster"
    conf = Path(os.environ.get("SLURM_CONF", "/"))
    if not conf.is_file() or "ClusterName=lhtrain\n" not in conf.read_text():
        return "the local SLURM cluster is not running (SLURM_CONF is of another); make test-slurm starts it"
    if slurm("sinfo", "-h", "-N", "-p", "low", "-t", "idle", check=False).count("\n") < 2:
        return (
            "the local SLURM cluster has fewer than two idle nodes; "
            "run scripts/slurm/local_cluster.sh stop, then start"
        )
    return None


def slurm(*words: str, check: bool = True) -> str:
    """Run one of SLURM's commands and return its output."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 or not check, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout


class Cluster:
    """Submits runs in `folder`, each with `settings`."""

    def __init__(self, folder: Path, *settings: str):
        self.folder, self.settings = folder, settings

    def submit(self, name: str, *overrides: str) -> "SlurmRun":
        return self.submit_to(self.folder / name, f"run.dir={name}", *overrides)

    def submit_to(self, run_dir: Path, *overrides: str) -> "SlurmRun":
        done = command("submit", *self.settings, *overrides, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return SlurmRun(run_dir, done.stdout.split()[1])


class SlurmRun:
    """A submitted run: its job and its files."""

    def __init__(self, path: Path, job: str):
        self.path, self.job = path, job

    def until(self, what: str, holds, seconds: float = 180) -> None:
        """Wait until `holds()` is true. After `seconds`, fail with the output of the job."""
        ends = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < ends, f"no {what} in {seconds} s\n{self.fields}\n{self.out}"
            time.sleep(0.05)

    def until_step(self, step: int) -> None:
        from lhtrain.slurm.folder import SlurmFolder

        def done() -> bool:
            rows = SlurmFolder(self.path).train_rows()
            return bool(rows) and rows[-1]["step"] >= step

        self.until(f"step {step}", done)

    def until_printed(self, text: str) -> None:
        self.until(repr(text), lambda: text in self.out)

    def until_requeued(self, times: int = 1) -> None:
        """Wait until the job is in the queue again, then start it at once; SLURM would delay it."""
        self.until(
            "requeue", lambda: self.state == "PENDING" and int(self.fields.get("Restarts", 0)) == times
        )
        # SLURM refuses to launch a job in the second in which it was requeued.
        moment = datetime.fromisoformat(self.fields["SubmitTime"])
        self.until("second after", lambda: datetime.now() - moment > timedelta(seconds=1.5))
        slurm("scontrol", "update", f"JobId={self.job}", "StartTime=now")

    def until_over(self, state: str) -> None:
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        self.until("end", lambda: self.state in over)
        assert self.state == state, f"{self.state}, not {state}\n{self.out}"

    @property
    def fields(self) -> dict[str, str]:
        words = slurm("scontrol", "show", "job", "-o", self.job, check=False).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def state(self) -> str:
        return self.fields.get("JobState", "")

    @property
    def out(self) -> str:
        path = self.path / "slurm" / f"{self.job}.out"
        return path.read_text() if path.exists() else ""
