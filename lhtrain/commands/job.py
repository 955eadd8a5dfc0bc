"""`lhtrain slurm begin|end`: job scripts call it before and after each attempt. It must be quick."""

import os
import sys
import time
from argparse import Namespace
from pathlib import Path

from lhtrain.slurm import attempt
from lhtrain.slurm.queue import preempted


def begin(arguments: Namespace) -> None:
    """Print whether an attempt of the job starts or resumes the run."""
    run_dir, number = Path(arguments.DIR), os.environ["SLURM_JOB_ID"]
    answer, why = attempt.begin(run_dir, number, arguments.MAX_RESTARTS, *arguments.RESUME)
    _answer(answer.value, why or "an attempt begins")


def end(arguments: Namespace) -> None:
    """Print what the job does after an attempt."""
    taken = preempted(os.environ.get("SLURM_JOB_ID", ""))
    answer, why = attempt.end(
        Path(arguments.DIR), arguments.STATUS, attempt.By(arguments.BY), arguments.MAX_RESTARTS, taken
    )
    _answer(answer.value, why)


def _answer(word: str, why: str) -> None:
    """Print the answer for the script to stdout, and the reason to stderr, which is the job's output file."""
    print(f"lhtrain slurm {time.strftime('%Y-%m-%d %H:%M:%S')}: {why}", file=sys.stderr, flush=True)
    print(word)
