"""Decides at the start and at the end of each attempt of a job what the job does next.

The decision depends on the run directory, because the exit status is not enough: torchrun exits with 1
whatever the exit statuses of its ranks were.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lhtrain.checkpoint.names import complete
from lhtrain.files import write_atomic
from lhtrain.runs.checks import lost_run
from lhtrain.runs.run_dir import RunDir
from lhtrain.slurm.folder import Attempts, SlurmFolder

CONFIGURATION_ERROR = 2  # exit status of `lhtrain` if its arguments are wrong
SIGNALS = (128 + 2, 128 + 10, 128 + 15)  # INT, USR1, TERM


class By(Enum):
    """Who ended an attempt. The script passes these values."""

    ranks = "ranks"  # the ranks ended, for any reason
    slurm = "slurm"  # SLURM cancelled, preempted or requeued the whole job
    limit = "limit"  # SLURM ended the job at its time limit, and the script has requeued it


class Next(Enum):
    """What the script does next. The script reads these values."""

    run = "run"
    continue_ = "continue"  # run, but with resume=auto instead of the submitted value
    finished = "finished"
    requeue = "requeue"
    stop = "stop"
    leave = "leave"  # nothing: SLURM or the script has already decided


@dataclass(frozen=True)
class End:
    """How an attempt ended."""

    status: int  # exit status of srun: the largest of its tasks
    by: By
    finished: bool  # summary.json says that the run is finished
    orderly: bool  # this attempt wrote a summary.json that says "finished" or "signal"
    saved: bool  # the newest checkpoint is newer than at the start of the attempt
    preempted: bool = False  # SLURM needs the nodes for another job


def begin(run_dir: Path, job: str, max_restarts: int, resume: str = "auto") -> tuple[Next, str]:
    """Decide whether an attempt of a job runs, and record the attempt in the run directory.

    Args:
        run_dir: the run directory.
        job: number of the job.
        max_restarts: cluster.max_restarts.
        resume: the submitted value. A value other than auto applies until one attempt of the job has
            started the run with it; later attempts continue from the newest checkpoint.

    Returns:
        What the script does next, and the reason if the attempt does not run.
    """
    folder = SlurmFolder(run_dir)
    first = resume != "auto" and not _has_begun(folder, job, resume)
    afresh = first and resume == "restart"
    if folder.finished() and not afresh:
        return Next.finished, "the run is already finished"
    attempts = folder.read_attempts()
    if attempts.job != job:
        attempts = Attempts(job)
    killed = attempts.count > 0 and not attempts.outcome  # before it could record its end
    if killed and folder.saved_step() <= attempts.step and not _taken_by_slurm(folder):
        attempts.restarts += 1
    folder.ended_by.unlink(missing_ok=True)
    attempts.outcome = ""
    answer = Next.run if first or resume == "auto" else Next.continue_
    if attempts.restarts > max_restarts:
        answer = Next.stop
        attempts.outcome = f"stopped: cluster.max_restarts={max_restarts} is reached"
    elif not afresh and (lost := _lost(run_dir)):
        answer, attempts.outcome = Next.stop, f"stopped: {lost}"
    attempts.count += 1
    attempts.step, attempts.summary = folder.saved_step(), folder.summary_time()
    folder.write_attempts(attempts)
    write_atomic(folder.job, f"{job}\n")
    return answer, attempts.outcome


def _has_begun(folder: SlurmFolder, job: str, resume: str) -> bool:
    # After resume=restart, an attempt must not continue the old run: it restarts until the new run has saved.
    return folder.started_by(job) and (resume != "restart" or folder.saved_step() > 0)


def _taken_by_slurm(folder: SlurmFolder) -> bool:
    """Return whether SLURM ended the latest attempt, from the file that its script wrote."""
    try:
        return folder.ended_by.read_text().strip() == By.slurm.value
    except OSError:
        return False


def _lost(run_dir: Path) -> str | None:
    """Return why the run cannot continue, however often the job tries; None if it can."""
    folder = RunDir(run_dir)
    damaged = any(folder.checkpoints.glob("damaged-step_*"))
    if not (damaged or folder.metrics.exists() or folder.history.exists()):
        return None
    return None if complete(folder.checkpoints) else lost_run(folder)


def end(run_dir: Path, status: int, by: By, max_restarts: int, preempted: bool = False) -> tuple[Next, str]:
    """Decide what follows an attempt that ended, and record it in the run directory.

    Args:
        run_dir: the run directory.
        status: exit status of srun.
        by: who ended the attempt.
        max_restarts: cluster.max_restarts.
        preempted: whether SLURM needs the nodes for another job.

    Returns:
        What the script does next, and the reason.
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
    """Return what the script does next, whether this counts as a restart, and the reason."""
    if ended.finished:
        return Next.finished, False, "finished"
    if ended.by is By.slurm:
        return Next.leave, False, "cancelled, preempted or requeued"
    if ended.by is By.limit:
        return Next.leave, not ended.saved, "reached the time limit, requeued"
    if ended.status == CONFIGURATION_ERROR and not ended.orderly:
        return Next.stop, False, "stopped: error in the settings"
    signalled = ended.orderly or ended.status in SIGNALS  # an orderly end of an unfinished run
    if signalled and ended.saved:
        return Next.requeue, False, "saved after a signal, requeued"
    if ended.preempted:  # not counted as a restart, however early it comes
        return Next.requeue, False, "preempted before it could save, requeued"
    what = (
        "ended by a signal before a checkpoint was saved"
        if signalled
        else f"crashed with status {ended.status}"
    )
    if restarts >= max_restarts:
        return Next.stop, False, f"stopped: {what}, and cluster.max_restarts={max_restarts} is reached"
    return Next.requeue, True, f"{what}, restart {restarts + 1} of {max_restarts}"
