"""The state of jobs in SLURM's queue."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Queued:
    """A job that is not over."""

    state: str  # PENDING, RUNNING, COMPLETING …
    left: str  # of its time limit, as SLURM writes it
    reason: str  # why it is pending, or where it runs


def queued() -> dict[str, Queued] | None:
    """Every job of this user in the queue, by its number; None where there is no SLURM to ask."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--me", "--format=%i|%T|%L|%R"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        return None
    rows = [line.split("|", 3) for line in done.stdout.splitlines()]
    return {row[0].strip(): Queued(*(cell.strip() for cell in row[1:])) for row in rows if len(row) == 4}


def preempted(job: str) -> bool:
    """Whether SLURM is taking the resources of job number `job`, which runs, for another one; False where it
    does not answer."""
    try:
        command = ["scontrol", "show", "job", "--oneliner", job]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    times = dict(re.findall(r"(StartTime|PreemptTime)=(\S+)", done.stdout))
    try:
        began, ended = (datetime.fromisoformat(times[key]) for key in ("StartTime", "PreemptTime"))
    except (KeyError, ValueError):  # not preempted: None
        return False
    return ended >= began  # an earlier one was of an earlier attempt
