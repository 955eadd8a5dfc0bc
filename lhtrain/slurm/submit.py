"""`lhtrain slurm submit`: checks the settings, writes the script into the run directory, calls sbatch."""

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
from lhtrain.text import counted

# The script sets these itself, with an absolute path.
_OWN = re.compile(r"\+{0,2}(run\.dir|resume)=")
# Settings that choose the run or belong to the job, and do not change the run's configuration.
_OF_THE_JOB = re.compile(r"(run\.dir|resume|cluster(\.\w+)?)=")


def prepare(overrides: list[str], config_dirs: Sequence[str] = ()) -> tuple[Job, Config]:
    """Return the job of a command line and its configuration, with `resume` for the first attempt.

    If the settings only name the directory of a run (and settings of the job), the run continues with its own
    configuration.

    Raises:
        ConfigError: as for training; run.dir has characters that SLURM or Hydra would replace.
        RunError: config.yaml of the run cannot be read.
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
    """Return the folder of a setting run.dir=…; None if it is not valid, which later checks report."""
    try:
        return Path(str(value_of(text))).expanduser()
    except (ValueError, RuntimeError):
        return None


def prepare_own(path: Path, overrides: list[str]) -> tuple[Job, Config]:
    """Return the job that continues the run in `path` with its own configuration, changed by `overrides`.

    Raises:
        ConfigError: as `prepare`.
        RunError: `path` is not a run directory, or its config.yaml cannot be read.
    """
    config = load(path, overrides, _n_ranks(load(path, overrides)))
    return _job(config, [text for text in overrides if not _OWN.match(text)], own=True)


def _job(config: Config, overrides: list[str], own: bool) -> tuple[Job, Config]:
    n_ranks = _n_ranks(config)
    if misfits := [*parallel_problems(config, n_ranks), *batch_problems(config, n_ranks)]:
        raise ConfigError(misfits)
    config = filled(config, n_ranks)  # the node derives the micro-batches again, from the memory of its GPUs
    config.run.dir = os.path.abspath(os.path.expanduser(config.run.dir))
    # In the path of the output, SLURM replaces patterns such as %j, and \\ turns this off.
    if wrong := [part for part in ("${", "%", "\\") if part in config.run.dir]:
        rule = f"must not contain {' or '.join(wrong)} for a SLURM job, because SLURM or Hydra replaces it"
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
    """Raise RunError if the run in `run_dir` already has a job in the queue."""
    number = SlurmFolder(run_dir).read_job()
    if other := (queued() or {}).get(number):
        raise RunError(
            f"run.dir={run_dir} already has job {number}, in state {other.state}; two jobs would overwrite "
            f"each other's files. To end it: scancel {number}"
        )


def check(job: Job, config: Config) -> None:
    """Check the run directory before submission, so that the job does not wait in the queue and then fail.

    Raises:
        RunError: the run already has a job, is finished, or cannot continue with these settings.
    """
    check_free(job.run_dir)
    folder = SlurmFolder(job.run_dir)
    chosen = job.own or not all(_OF_THE_JOB.match(text) for text in job.overrides)
    if not chosen and folder.config.exists() and not RunDir(job.run_dir).config.exists():
        raise RunError(
            f"run.dir={job.run_dir} was submitted before but has not started, so it has no config.yaml yet: "
            f"give all settings again, or run `sbatch job.sh` in {folder.path}"
        )
    done = folder.summary().get("steps")
    longer = isinstance(done, int) and config.run.steps > done
    if folder.summary().get("finished") is True and not longer and config.resume is not Resume.restart:
        where = shlex.quote(str(job.run_dir))
        steps = counted(done, "step") if isinstance(done, int) else "all steps"
        raise RunError(
            f"run.dir={job.run_dir} is finished, with {steps}; to make it longer, run "
            f"`lhtrain slurm extend {where} steps=+N`; for a new run, set another run.dir"
        )
    check_start(RunDir(job.run_dir), with_absolute_paths(config))


def submit(job: Job, config: Config) -> str:
    """Write script, configuration and code version into the run directory and submit the script.

    Returns:
        The number of the job.

    Raises:
        RunError: as `check`; there is no sbatch, or it fails; the run directory is not writable.
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
    # The folder is an argument, because an #SBATCH line cannot express every path. The path of the script is
    # absolute, so sbatch never takes it for an option.
    command = ["sbatch", "--parsable", f"--chdir={folder.path}", str(folder.script)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RunError(f"sbatch {folder.script}: {done.stderr.strip() or f'status {done.returncode}'}")
    number = done.stdout.strip().split(";")[0]  # sbatch may append ;CLUSTER
    write_atomic(folder.job, f"{number}\n")
    return number


def require_sbatch() -> None:
    """Raise RunError if sbatch is not installed here."""
    if shutil.which("sbatch") is None:
        raise RunError(
            "there is no sbatch on this machine; submit from a login node of the cluster, "
            "or print the script with --dry-run"
        )
