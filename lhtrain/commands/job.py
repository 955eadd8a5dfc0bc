"""`lhtrain slurm begin|end`: what a job's script asks before and after each attempt. Quick: it asks often."""

import os
import sys
import time
from argparse import Namespace
from pathlib import Path

from lhtrain.slurm import attempt
from lhtrain.slurm.queue import preempted


def begin(arguments: Namespace) -> None:
    """Print what an attempt of the job resumes."""
    run_dir, number = Path(arguments.DIR), os.environ["SLURM_JOB_ID"]
    answer, why = attempt.begin(run_dir, number, arguments.MAX_RESTARTS, *arguments.RESUME)
    _answer(answer.value, why or "an attempt begins")


def end(arguments: Namespace) -> None:
    """Print what follows an attempt of the job."""
    taken = preempted(os.environ.get("SLURM_JOB_ID", ""))
    answer, why = attempt.end(
        Path(arguments.DIR), arguments.STATUS, attempt.By(arguments.BY), arguments.MAX_RESTARTS, taken
    )
    _answer(answer.value, why)


def _answer(word: str, why: str) -> None:
    """The word for the script, the reason for its output."""
    print(f"lhtrain slurm {time.strftime('%Y-%m-%d %H:%M:%S')}: {why}", file=sys.stderr, flush=True)
    print(word)
