"""Decisions at the start and the end of every attempt of a job: is anything left to do, and what comes next.

The answer comes from the run directory and not from the exit status alone: torchrun ends with 1 whatever its
ranks ended with.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lhtrain.checkpoint.names import complete
from lhtrain.files import write_atomic
from lhtrain.runs.checks import lost_run
from lhtrain.runs.run_dir import RunDir
from lhtrain.slurm.folder import Attempts, SlurmFolder

CONFIGURATION_ERROR = 2  # what `lhtrain` ends with when its arguments are at fault
SIGNALS = (128 + 2, 128 + 10, 128 + 15)  # INT, USR1, TERM


class By(Enum):
    """Who ended an attempt; the values are the words of the script."""

    ranks = "ranks"  # they ended, whatever the reason
    slurm = "slurm"  # the whole job was cancelled, preempted or requeued
    limit = "limit"  # … because its time was over; the script requeued it then


class Next(Enum):
    """What the script does next; the values are the words it reads."""

    run = "run"
    continue_ = "continue"  # run, with resume=auto instead of what was submitted
    finished = "finished"
    requeue = "requeue"
    stop = "stop"
    leave = "leave"  # decided already, by SLURM or at the time limit


@dataclass(frozen=True)
class End:
    """How an attempt ended."""

    status: int  # of srun: the largest of its tasks
    by: By
    finished: bool  # according to summary.json
    orderly: bool  # ended by itself or by a signal, by the summary.json of this attempt
    saved: bool  # there is a later checkpoint than at its beginning
    preempted: bool = False  # SLURM needs the nodes for another job


def begin(run_dir: Path, job: str, max_restarts: int, resume: str = "auto") -> tuple[Next, str]:
    """Whether an attempt of job number `job` is to run, and why not; noted in the run directory.

    resume: as submitted. A value other than auto is for the job's first attempts, until one of them
    has started the run that way; later attempts continue what that one saved.
    """
    folder = SlurmFolder(run_dir)
    first = resume != "auto" and not _has_begun(folder, job, resume)
    afresh = first and resume == "restart"
    if folder.finished() and not afresh:
        return Next.finished, "finished already"
    attempts = folder.read_attempts()
    if attempts.job != job:
        attempts = Attempts(job)
    killed = attempts.count > 0 and not attempts.outcome  # before its end could be noted
    if killed and folder.saved_step() <= attempts.step and not _taken_by_slurm(folder):
        attempts.restarts += 1
    folder.ended_by.unlink(missing_ok=True)
    attempts.outcome = ""
    answer = Next.run if first or resume == "auto" else Next.continue_
    if attempts.restarts > max_restarts:
        answer = Next.stop
        attempts.outcome = f"stopped: cluster.max_restarts={max_restarts} is used up"
    elif not afresh and (lost := _lost(run_dir)):
        answer, attempts.outcome = Next.stop, f"stopped: {lost}"
    attempts.count += 1
    attempts.step, attempts.summary = folder.saved_step(), folder.summary_time()
    folder.write_attempts(attempts)
    write_atomic(folder.job, f"{job}\n")
    return answer, attempts.outcome


def _has_begun(folder: SlurmFolder, job: str, resume: str) -> bool:
    # The run that a restart replaced must not be continued before the new run has a checkpoint of its own.
    return folder.started_by(job) and (resume != "restart" or folder.saved_step() > 0)


def _taken_by_slurm(folder: SlurmFolder) -> bool:
    """Whether the latest attempt was preempted, requeued or cancelled, by its script's own note."""
    try:
        return folder.ended_by.read_text().strip() == By.slurm.value
    except OSError:
        return False


def _lost(run_dir: Path) -> str | None:
    """Why what is there cannot be continued, which no further attempt changes; None if it can."""
    folder = RunDir(run_dir)
    damaged = any(folder.checkpoints.glob("damaged-step_*"))
    if not (damaged or folder.metrics.exists() or folder.history.exists()):
        return None
    return None if complete(folder.checkpoints) else lost_run(folder)


def end(run_dir: Path, status: int, by: By, max_restarts: int, preempted: bool = False) -> tuple[Next, str]:
    """The next action after an attempt that ended with `status`, and the reason; noted in the run directory.

    preempted: SLURM takes the nodes for another job.
    """
    folder = SlurmFolder(run_dir)
    attempts = folder.read_attempts()
    ended = End(
        status=status,
        by=by,
        finished=folder.finished(),
        orderly=folder.ended_orderly(since=attempts.summary),
        saved=folder.saved_step() > attempts.step,
        preempted=preempted,
    )
    answer, counts, attempts.outcome = decide(ended, attempts.restarts, max_restarts)
    attempts.restarts += counts
    folder.write_attempts(attempts)
    return answer, attempts.outcome


def decide(ended: End, restarts: int, max_restarts: int) -> tuple[Next, bool, str]:
    """The answer, whether it counts as a restart, and the reason in words."""
    if ended.finished:
        return Next.finished, False, "finished"
    if ended.by is By.slurm:
        return Next.leave, False, "cancelled, preempted or requeued"
    if ended.by is By.limit:
        return Next.leave, not ended.saved, "ran into the time limit, requeued"
    if ended.status == CONFIGURATION_ERROR and not ended.orderly:
        return Next.stop, False, "stopped: the configuration is at fault"
    signalled = ended.orderly or ended.status in SIGNALS  # an orderly end before the run's is a signal's
    if signalled and ended.saved:
        return Next.requeue, False, "saved after a signal, requeued"
    if ended.preempted:  # which is no fault of the run, however early it came
        return Next.requeue, False, "preempted before a step was done, requeued"
    what = "ended by a signal before a step was done" if signalled else f"crashed with status {ended.status}"
    if restarts >= max_restarts:
        return Next.stop, False, f"stopped: {what}, and cluster.max_restarts={max_restarts} is used up"
    return Next.requeue, True, f"{what}, restart {restarts + 1} of {max_restarts}"
