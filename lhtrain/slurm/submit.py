"""`lhtrain slurm submit`: check the settings, render the script into the run directory, hand it to sbatch."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from lhtrain.compute.fill import filled
from lhtrain.conf.compose import check_overrides, with_folders
from lhtrain.conf.paths import with_absolute_paths
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.rules.batch import batch_problems
from lhtrain.conf.rules.parallel import parallel_problems
from lhtrain.conf.schema import Config, Resume
from lhtrain.errors import RunError
from lhtrain.files import write_atomic
from lhtrain.provenance import code_version, in_words
from lhtrain.runs.changes import as_container
from lhtrain.runs.checks import check_start
from lhtrain.runs.own_config import load, value_of
from lhtrain.runs.run_dir import RunDir, unwritable
from lhtrain.slurm.folder import SlurmFolder, write_aside
from lhtrain.slurm.queue import queued
from lhtrain.slurm.script import Job, render

# The script sets these itself, with an absolute path.
_OWN = re.compile(r"\+{0,2}(run\.dir|resume)=")
# Settings beside run.dir that belong to the job, not to the run.
_OF_THE_JOB = re.compile(r"(run\.dir|resume|cluster(\.\w+)?)=")


def prepare(overrides: list[str], config_dirs: Sequence[str] = ()) -> tuple[Job, Config]:
    """The job of a command line, and its configuration, whose `resume` is that of the job's first attempt.

    The directory of a run, alone or with settings of the job, is continued with its own configuration.

    Raises:
        ConfigError: as for training, and for what a job cannot take.
    """
    if not config_dirs and all(_OF_THE_JOB.match(text) for text in overrides):
        places = [text for text in overrides if text.startswith("run.dir=")]
        path = _place(places[-1]) if places else None
        if path is not None and os.path.isfile(RunDir(path).config):
            return prepare_own(path, [text for text in overrides if text not in places])
    overrides = with_folders(list(config_dirs), overrides)
    config = check_overrides(overrides)
    if not any(re.match(r"\+{0,2}resume=", text) for text in overrides):
        config.resume = Resume.auto
    return _job(config, [text for text in overrides if not _OWN.match(text)], own=False)


def _place(text: str) -> Path | None:
    """The folder that run.dir=… names; None where it names none, which the checks of a new run say."""
    try:
        return Path(str(value_of(text))).expanduser()
    except (ValueError, RuntimeError):
        return None


def prepare_own(path: Path, overrides: list[str]) -> tuple[Job, Config]:
    """The job that continues the run in `path` with its own configuration, whose values `overrides` replace.

    Raises:
        ConfigError: as `prepare`.
        RunError: no run directory, or a config.yaml that cannot be read.
    """
    config = load(path, overrides, _n_ranks(load(path, overrides)))
    return _job(config, [text for text in overrides if not _OWN.match(text)], own=True)


def _job(config: Config, overrides: list[str], own: bool) -> tuple[Job, Config]:
    n_ranks = _n_ranks(config)
    if misfits := [*parallel_problems(config, n_ranks), *batch_problems(config, n_ranks)]:
        raise ConfigError(misfits)
    config = filled(config, n_ranks)  # micro-batches are derived again on the node, from its GPU's memory
    config.run.dir = os.path.abspath(os.path.expanduser(config.run.dir))
    # SLURM fills in %j and its like in the path of a job's output, and takes \\ for "do not".
    if wrong := [part for part in ("${", "%", "\\") if part in config.run.dir]:
        rule = f"a job's must not hold {' and '.join(wrong)}: SLURM or Hydra takes it for something else"
        raise ConfigError([Problem("run.dir", repr(config.run.dir), rule)])
    first = Resume.auto if config.resume is Resume.never else config.resume
    job = Job(
        name=config.run.name,
        run_dir=Path(config.run.dir),
        work_dir=Path.cwd(),
        cluster=config.cluster,
        overrides=overrides,
        python=config.cluster.python or sys.executable,
        version=in_words(code_version()),
        resume=first.value,
        own=own,
    )
    return job, config


def _n_ranks(config: Config) -> int:
    return config.cluster.nodes * max(config.cluster.gpus_per_node, 1)


def check_free(run_dir: Path) -> None:
    """Raises RunError: the run in `run_dir` has a job already."""
    number = SlurmFolder(run_dir).read_job()
    if other := (queued() or {}).get(number):
        raise RunError(
            f"run.dir={run_dir} has job {number} already, which is {other.state}; two would write over "
            f"each other. scancel {number} ends it"
        )


def check(job: Job, config: Config) -> None:
    """Check what the job would find in its run directory, so that it does not wait in the queue to fail.

    Raises:
        RunError: the run has a job already, or is finished; or its directory cannot be continued so.
    """
    check_free(job.run_dir)
    folder = SlurmFolder(job.run_dir)
    chosen = job.own or not all(_OF_THE_JOB.match(text) for text in job.overrides)
    if not chosen and folder.config.exists() and not RunDir(job.run_dir).config.exists():
        raise RunError(
            f"run.dir={job.run_dir} was submitted before and has not started, so that it has no config.yaml "
            f"to continue with: give all its settings again, or call sbatch in {folder.path} with job.sh"
        )
    done = folder.summary().get("steps")
    longer = isinstance(done, int) and config.run.steps > done
    if folder.summary().get("finished") is True and not longer and config.resume is not Resume.restart:
        where = shlex.quote(str(job.run_dir))
        raise RunError(
            f"run.dir={job.run_dir} is finished, with {done} steps; `lhtrain slurm extend {where} steps=+N` "
            "lengthens it, a new run needs another directory"
        )
    check_start(RunDir(job.run_dir), with_absolute_paths(config))


def submit(job: Job, config: Config) -> str:
    """Write the script and what it belongs to into the run directory, submit it; returns the job's number.

    Raises:
        RunError: no sbatch here, sbatch refuses, or what `check` finds.
    """
    require_sbatch()
    if problem := unwritable(job.run_dir):
        raise RunError(f"run.dir={job.run_dir}: {problem}")
    check(job, config)
    folder = SlurmFolder(job.run_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomic(folder.script, render(job))
    write_atomic(folder.config, OmegaConf.to_yaml(OmegaConf.create(as_container(config))))
    write_aside(folder.version, code_version())
    # The folder goes here and not into the script: a line of #SBATCH has no notation for every path. By an
    # absolute path to the script no name is taken for an option.
    command = ["sbatch", "--parsable", f"--chdir={folder.path}", str(folder.script)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RunError(f"sbatch {folder.script}: {done.stderr.strip() or f'status {done.returncode}'}")
    number = done.stdout.strip().split(";")[0]  # the cluster's name may follow
    write_atomic(folder.job, f"{number}\n")
    return number


def require_sbatch() -> None:
    """Raises RunError where there is none."""
    if shutil.which("sbatch") is None:
        raise RunError(
            "there is no sbatch on this machine: submit from a login node of the cluster, "
            "or see the script with --dry-run"
        )
