"""`lhtrain slurm submit|resume|extend|status`: runs as SLURM jobs."""

import shlex
from argparse import Namespace
from pathlib import Path

from rich.console import Console

from lhtrain.commands.resume import steps_of
from lhtrain.conf.schema import Config
from lhtrain.errors import RunError
from lhtrain.runs.extend import lengthen
from lhtrain.slurm import submit as jobs
from lhtrain.slurm.script import Job, render
from lhtrain.slurm.status import statuses, table


def submit(arguments: Namespace) -> None:
    """Submit a run with the settings. Raises ConfigError, RunError."""
    _hand_over(*jobs.prepare(arguments.settings, arguments.config_dir), arguments.dry_run)


def resume(arguments: Namespace) -> None:
    """Submit the continuation of the run in DIR. Raises ConfigError, RunError."""
    _hand_over(*jobs.prepare_own(Path(arguments.DIR), arguments.settings), arguments.dry_run)


def extend(arguments: Namespace) -> None:
    """Give the run in DIR more steps and submit it again. Raises UsageError, ConfigError, RunError."""
    path, settings, steps = Path(arguments.DIR), arguments.settings, steps_of(arguments)
    jobs.require_sbatch()
    jobs.check_free(path)
    _, config = jobs.prepare_own(path, settings)  # raises errors before the plan of the run is changed
    print(*lengthen(path, steps, config), sep="\n", flush=True)
    _hand_over(*jobs.prepare_own(path, settings), dry_run=False)


def _hand_over(job: Job, config: Config, dry_run: bool) -> None:
    if dry_run:
        print(render(job), end="")
        return
    number = jobs.submit(job, config)
    run_dir = shlex.quote(str(job.run_dir))
    print(f"job {number} in {run_dir}\nlhtrain slurm status {run_dir} shows its progress")


def status(arguments: Namespace) -> None:
    """Print a row for each run in the folders. Raises RunError."""
    folders = [Path(argument).expanduser() for argument in arguments.FOLDER]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        remedy = "name the folder that contains runs: lhtrain slurm status FOLDER"
        raise RunError(f"no such folder: {', '.join(missing)}; {remedy}")
    runs = statuses(folders)
    if not runs:
        print(f"no runs in {', '.join(map(str, folders))}")
        return
    console = Console()
    # 110 columns are enough for the names of runs; a narrower terminal wraps or cuts the lines, like a pager.
    console = Console(width=max(console.width, 110) if console.is_terminal else 200)
    console.print(table(runs), highlight=False)
