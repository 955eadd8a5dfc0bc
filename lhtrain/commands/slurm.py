"""`lhtrain slurm …`: submit a run, list runs; and what a job's script asks."""

import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lhtrain.errors import RunError

if TYPE_CHECKING:  # imported where a command needs them: a job's script asks often, and quickly
    from lhtrain.conf.schema import Config
    from lhtrain.slurm.script import Job

HELP = """lhtrain slurm: runs as SLURM jobs that save, requeue and continue by themselves.

Usage: lhtrain slurm submit [--dry-run] [--config-dir DIR] [GROUP=NAME ...] [KEY=VALUE ...]
       lhtrain slurm resume [--dry-run] DIR [KEY=VALUE ...]
       lhtrain slurm extend DIR steps=+N|N [KEY=VALUE ...]
       lhtrain slurm status [FOLDER ...]

submit takes the settings of training, and cluster.*: what to ask SLURM for. It writes the script, the
configuration with every value and the code's version into the folder slurm of the run directory, and calls
sbatch; --dry-run prints the script and writes nothing. What the run directory's checkpoint would refuse is
refused at once.
resume continues the run in DIR as a job, with its own configuration; KEY=VALUE replaces values, also those of
cluster.*. extend lengthens it before, also if it is finished. `lhtrain extend --help` says what that changes.
status lists the runs in the folders (default: runs), their jobs, and how far they are.

Examples
  lhtrain slurm submit model=gpt_1b run.batch_tokens=2097152 cluster=gpu8 cluster.nodes=4 --dry-run
  lhtrain slurm submit cluster.partition=gpu cluster.gpus_per_node=1 cluster.time=4:00:00 run.dir=runs/mine
  lhtrain slurm resume runs/mine cluster.nodes=2
  lhtrain slurm extend runs/mine steps=+2000
  lhtrain slurm status runs

Keys most often set
  cluster.nodes=2  cluster.gpus_per_node=8  cluster.cpus_per_task=64  cluster.memory=0
  cluster.time=24:00:00          a plain number is minutes, as everywhere in SLURM
  cluster.partition=NAME  cluster.account=NAME  cluster.qos=NAME  cluster.exclusive=true
  cluster.launch=torchrun        one task a node; srun: one task a GPU
  cluster.signal_seconds=300     how long before the time limit the run saves and requeues
  cluster.max_restarts=3         attempts that may crash or make no step before the job gives up
  'cluster.setup=["module load cuda"]'     lines of bash before everything else; quotes within quotes
  'cluster.extra_args=["--mail-type=FAIL"]'

lhtrain help cluster lists all keys, lhtrain help cluster.KEY explains one."""


def main(arguments: list[str]) -> None:
    """`lhtrain slurm ARGUMENTS`. Ends the program: status 2 for wrong arguments, 1 where SLURM refuses."""
    from lhtrain.cli import fail
    from lhtrain.conf.problems import ConfigError

    commands: dict[str, Callable[[list[str]], None]] = {
        "submit": _submit,
        "resume": _resume,
        "extend": _extend,
        "status": _status,
        "begin": _begin,
        "end": _end,
    }
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    command, *rest = arguments
    if command not in commands:
        fail(
            f"no command slurm {command!r} (there is: submit, resume, extend, status); "
            "try lhtrain slurm --help"
        )
    try:
        commands[command](rest)
    except ConfigError as error:
        fail(str(error))
    except BrokenPipeError:
        raise
    except (RunError, OSError) as error:  # OSError: a run's file that cannot be read or written
        fail(str(error), status=1)


def _submit(arguments: list[str]) -> None:
    from lhtrain.cli import fail
    from lhtrain.slurm.submit import prepare

    config_dir = None
    if "--config-dir" in arguments:
        at = arguments.index("--config-dir")
        if at + 1 == len(arguments):
            fail("--config-dir: needs a folder")
        config_dir = arguments[at + 1]
        arguments = arguments[:at] + arguments[at + 2 :]
    for argument in arguments:
        if argument in ("-m", "--multirun"):
            fail("-m: a sweep goes through Hydra's launcher: lhtrain -m hydra/launcher=lhtrain_slurm …")
        if argument.startswith("-") and argument != "--dry-run":
            fail(f"{argument}: no such option of lhtrain slurm submit (there is: --dry-run, --config-dir)")
    job, config = prepare([argument for argument in arguments if argument != "--dry-run"], config_dir)
    _hand_over(job, config, "--dry-run" in arguments)


def _resume(arguments: list[str]) -> None:
    from lhtrain.slurm.submit import prepare_own

    path, settings, dry_run = _run_and_settings("resume", arguments)
    _hand_over(*prepare_own(path, settings), dry_run)


def _extend(arguments: list[str]) -> None:
    from lhtrain.cli import fail
    from lhtrain.runs.saved import extend
    from lhtrain.slurm.submit import check_free, prepare_own, require_sbatch

    path, settings, dry_run = _run_and_settings("extend", arguments)
    steps = [text.partition("=")[2] for text in settings if text.startswith("steps=")]
    settings = [text for text in settings if not text.startswith("steps=")]
    if len(steps) != 1 or dry_run:
        fail("slurm extend: needs DIR steps=+N, so many more, or steps=N, so many in all; no --dry-run")
    require_sbatch()
    check_free(path)
    _, config = prepare_own(path, settings)  # what it refuses is refused before the plan changes
    print(*extend(path, steps[0], config), sep="\n", flush=True)
    _hand_over(*prepare_own(path, settings), dry_run=False)


def _run_and_settings(command: str, arguments: list[str]) -> tuple[Path, list[str], bool]:
    """The run directory, KEY=VALUE, and whether there is --dry-run."""
    from lhtrain.cli import fail

    place, *settings = [argument for argument in arguments if argument != "--dry-run"] or [""]
    if not place or place.startswith("-") or any(s.startswith("-") or "=" not in s for s in settings):
        fail(f"slurm {command} {' '.join(arguments)}: needs DIR and then KEY=VALUE; try lhtrain slurm --help")
    return Path(place).expanduser(), settings, "--dry-run" in arguments


def _hand_over(job: "Job", config: "Config", dry_run: bool) -> None:
    from lhtrain.slurm.script import render
    from lhtrain.slurm.submit import submit

    if dry_run:
        print(render(job), end="")
        return
    number = submit(job, config)
    run_dir = shlex.quote(str(job.run_dir))
    print(f"job {number} in {run_dir}\nlhtrain slurm status {run_dir} says how far it is")


def _status(arguments: list[str]) -> None:
    from rich.console import Console

    from lhtrain.slurm.status import statuses, table

    folders = [Path(argument).expanduser() for argument in arguments or ["runs"]]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise RunError(
            f"no such folder: {', '.join(missing)}; lhtrain slurm status FOLDER says where runs are"
        )
    runs = statuses(folders)
    if not runs:
        print(f"no runs in {', '.join(map(str, folders))}")
        return
    console = Console()
    # What reads a pipe cuts lines itself; so does a terminal in which the runs' names would find no room.
    console = Console(width=max(console.width, 110) if console.is_terminal else 200)
    console.print(table(runs), highlight=False)


def _begin(arguments: list[str]) -> None:
    from lhtrain.slurm.attempt import begin

    run_dir, max_restarts, *resume = arguments
    answer, why = begin(Path(run_dir), os.environ["SLURM_JOB_ID"], int(max_restarts), *resume)
    _answer(answer.value, why or "an attempt begins")


def _end(arguments: list[str]) -> None:
    from lhtrain.slurm.attempt import By, end
    from lhtrain.slurm.queue import preempted

    run_dir, status, by, max_restarts = arguments
    taken = preempted(os.environ.get("SLURM_JOB_ID", ""))
    answer, why = end(Path(run_dir), int(status), By(by), int(max_restarts), taken)
    _answer(answer.value, why)


def _answer(word: str, why: str) -> None:
    """The word for the script, the reason for its output."""
    print(f"lhtrain slurm {time.strftime('%Y-%m-%d %H:%M:%S')}: {why}", file=sys.stderr, flush=True)
    print(word)
