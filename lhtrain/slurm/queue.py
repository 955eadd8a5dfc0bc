"""Reads the state of jobs from SLURM's queue."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Queued:
    """A job that has not ended."""

    state: str  # PENDING, RUNNING, COMPLETING …
    left: str  # time to its limit, as SLURM prints it
    reason: str  # why it is pending, or the nodes it runs on


def queued() -> dict[str, Queued] | None:
    """Return the jobs of this user by number; None if squeue is missing, fails or takes over 30 s."""
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
    """Return whether SLURM is preempting the running job `job`; False if scontrol does not answer."""
    try:
        command = ["scontrol", "show", "job", "--oneliner", job]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    times = dict(re.findall(r"(StartTime|PreemptTime)=(\S+)", done.stdout))
    try:
        began, ended = (datetime.fromisoformat(times[key]) for key in ("StartTime", "PreemptTime"))
    except (KeyError, ValueError):  # PreemptTime is None: not preempted
        return False
    return ended >= began  # an earlier PreemptTime belongs to an earlier attempt
