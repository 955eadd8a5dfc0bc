"""What SLURM says about jobs."""

import shutil
import subprocess
from dataclasses import dataclass


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
