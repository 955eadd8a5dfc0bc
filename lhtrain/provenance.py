"""Versions, commit and processor, for the records of a run; and the command that resumes it."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lhtrain
from lhtrain.process.threads import within

PACKAGES = ("torch", "triton", "hydra-core", "omegaconf", "numpy", "tiktoken")
PATIENCE = 10.0  # seconds to wait for git, so that a file system that hangs does not block a run


def code_version() -> dict[str, Any]:
    """Return the versions of lhtrain and torch; in a git checkout also the commit and if files changed."""
    out: dict[str, Any] = {"lhtrain": lhtrain.__version__, "torch": installed("torch")}
    return out | (within(PATIENCE, _commit) or {})


def versions() -> dict[str, str | None]:
    """Return the versions of lhtrain, Python and the packages that affect results; None: not installed."""
    out: dict[str, str | None] = {"lhtrain": lhtrain.__version__, "python": platform.python_version()}
    return out | {name: installed(name) for name in PACKAGES}


def installed(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the model of the processor, or its architecture if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cpu_cores() -> int | None:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _commit() -> dict[str, Any]:
    root = Path(lhtrain.__file__).parents[1]
    # If the package is installed inside another repository, do not report that repository's commit.
    if _git(root, "ls-files", "--error-unmatch", "lhtrain/__init__.py") is None:
        return {}
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(root, "rev-parse", "HEAD"), "uncommitted_changes": bool(changes)}


def in_words(version: dict[str, Any]) -> str:
    """Return the result of `code_version` as one line."""
    text = f"lhtrain {version['lhtrain']}"
    if commit := version.get("commit"):
        text += f", commit {commit[:12]}"
        text += " with uncommitted changes" if version["uncommitted_changes"] else ""
    return text


def _git(folder: Path, *arguments: str) -> str | None:
    # No locks, because a git process that hangs is left running.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def resume_command(run_dir: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Return the command `lhtrain resume DIR`, with torchrun or srun if this process was started by it."""
    words = ["resume", _relative(run_dir)]
    if environment.get("TORCHELASTIC_RUN_ID"):
        per_node = environment.get("LOCAL_WORLD_SIZE", "1")
        nodes = environment.get("GROUP_WORLD_SIZE", "1")
        launch = ["torchrun", f"--nproc-per-node={per_node}"]
        if nodes != "1":  # "...": torchrun does not tell its ranks the rendezvous options
            launch += [f"--nnodes={nodes}", "..."]
        return f"{shlex.join(launch)} -m lhtrain {shlex.join(words)}"
    command = f"{_program()} {shlex.join(words)}"
    tasks = environment.get("SLURM_NTASKS", "1")
    return f"srun --ntasks={tasks} {command}" if "SLURM_STEP_ID" in environment and tasks != "1" else command


def _program() -> str:
    if shutil.which("lhtrain"):
        return "lhtrain"
    return f"{shlex.quote(_relative(Path(sys.executable)))} -m lhtrain"


def _relative(path: Path) -> str:
    """Return `path` relative to the current folder if it is inside; never like an option or KEY=VALUE."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    if absolute == here or not absolute.is_relative_to(here):
        return str(absolute)
    relative = str(absolute.relative_to(here))
    return f"./{relative}" if relative.startswith("-") or "=" in relative.split("/")[0] else relative
