"""`lhtrain slurm submit`: check the settings, render the script into the run directory, hand it to sbatch."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

from lhtrain.conf.compose import check_overrides
from lhtrain.conf.fill import filled
from lhtrain.conf.micro_batches import batch_problems
from lhtrain.conf.parallel import parallel_problems
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.schema import Config
from lhtrain.errors import RunError
from lhtrain.provenance import code_version, in_words
from lhtrain.run_dir import as_container, unwritable
from lhtrain.slurm import quote
from lhtrain.slurm.folder import SlurmFolder, write_aside
from lhtrain.slurm.queue import queued
from lhtrain.slurm.script import Job, render

# The script says these itself, with an absolute path and resume=auto.
_OWN = re.compile(r"(run\.dir|resume)=")


def prepare(overrides: list[str], config_dir: str | None = None) -> tuple[Job, Config]:
    """The job of a command line, and its configuration.

    Raises:
        ConfigError: as for training, and for what a job cannot take.
    """
    if config_dir is not None:
        overrides = [quote.search_path(config_dir), *overrides]
    config = check_overrides(overrides)
    n_ranks = config.cluster.nodes * max(config.cluster.gpus_per_node, 1)
    if misfits := [*parallel_problems(config, n_ranks), *batch_problems(config, n_ranks)]:
        raise ConfigError(misfits)
    config = filled(config, n_ranks)  # micro-batches are derived again on the node, from its GPU's memory
    config.run.dir = os.path.abspath(config.run.dir)
    # SLURM fills in %j and its like in the path of a job's output, and takes \\ for "do not".
    if wrong := [part for part in ("${", "%", "\\") if part in config.run.dir]:
        rule = f"a job's must not hold {' and '.join(wrong)}: SLURM or Hydra takes it for something else"
        raise ConfigError([Problem("run.dir", repr(config.run.dir), rule)])
    job = Job(
        name=config.run.name,
        run_dir=Path(config.run.dir),
        work_dir=Path.cwd(),
        cluster=config.cluster,
        overrides=[text for text in overrides if not _OWN.match(text)],
        python=config.cluster.python or sys.executable,
        version=in_words(code_version()),
    )
    return job, config


def submit(job: Job, config: Config) -> str:
    """Write the script and what it belongs to into the run directory, submit it; returns the job's number.

    Raises:
        RunError: no sbatch here, sbatch refuses, or the run has a job already or is finished.
    """
    if shutil.which("sbatch") is None:
        raise RunError(
            "there is no sbatch on this machine: submit from a login node of the cluster, "
            "or see the script with --dry-run"
        )
    folder = SlurmFolder(job.run_dir)
    if folder.finished():
        raise RunError(f"run.dir={job.run_dir} is finished; a new run needs another directory")
    if problem := unwritable(job.run_dir):
        raise RunError(f"run.dir={job.run_dir}: {problem}")
    number = folder.read_job()
    if other := (queued() or {}).get(number):
        raise RunError(
            f"run.dir={job.run_dir} has job {number} already, which is {other.state}; two would write over "
            f"each other. scancel {number} ends it"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.script.write_text(render(job))
    folder.config.write_text(OmegaConf.to_yaml(OmegaConf.create(as_container(config))))
    write_aside(folder.version, code_version())
    # The folder goes here and not into the script: a line of #SBATCH has no notation for every path. By an
    # absolute path to the script no name is taken for an option.
    command = ["sbatch", "--parsable", f"--chdir={folder.path}", str(folder.script)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RunError(f"sbatch {folder.script}: {done.stderr.strip() or f'status {done.returncode}'}")
    number = done.stdout.strip().split(";")[0]  # the cluster's name may follow
    folder.job.write_text(f"{number}\n")
    return number
