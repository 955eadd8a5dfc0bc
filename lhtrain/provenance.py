"""Versions, commit and processor of this process, and the command that continues a run."""

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
PATIENCE = 10.0  # seconds for git: a file system that hangs must not hang the start of a run


def code_version() -> dict[str, Any]:
    """The package's version; from a working copy also the commit, and whether files differ from it."""
    out: dict[str, Any] = {"lhtrain": lhtrain.__version__, "torch": installed("torch")}
    return out | (within(PATIENCE, _commit) or {})


def versions() -> dict[str, str | None]:
    """Of lhtrain, of Python and of the packages that decide numbers; None: not installed."""
    out: dict[str, str | None] = {"lhtrain": lhtrain.__version__, "python": platform.python_version()}
    return out | {name: installed(name) for name in PACKAGES}


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's model, or else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cpu_cores() -> int | None:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _commit() -> dict[str, Any]:
    root = Path(lhtrain.__file__).parents[1]
    # A package installed inside some other repository would name that one's commit.
    if _git(root, "ls-files", "--error-unmatch", "lhtrain/__init__.py") is None:
        return {}
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(root, "rev-parse", "HEAD"), "uncommitted_changes": bool(changes)}


def in_words(version: dict[str, Any]) -> str:
    """The version on one line."""
    text = f"lhtrain {version['lhtrain']}"
    if commit := version.get("commit"):
        text += f", commit {commit[:12]}"
        text += " with uncommitted changes" if version["uncommitted_changes"] else ""
    return text


def _git(folder: Path, *arguments: str) -> str | None:
    # Without locks: a git that is left behind holds none.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def resume_command(run_dir: Path, environment: Mapping[str, str] = os.environ) -> str:
    """`lhtrain resume DIR`, started as this process was: alone, by torchrun, or by srun."""
    words = ["resume", _seen_from_here(run_dir)]
    if environment.get("TORCHELASTIC_RUN_ID"):
        per_node = environment.get("LOCAL_WORLD_SIZE", "1")
        nodes = environment.get("GROUP_WORLD_SIZE", "1")
        launch = ["torchrun", f"--nproc-per-node={per_node}"]
        if nodes != "1":  # whose rendezvous torchrun does not pass on
            launch += [f"--nnodes={nodes}", "..."]
        return f"{shlex.join(launch)} -m lhtrain {shlex.join(words)}"
    command = f"{_program()} {shlex.join(words)}"
    tasks = environment.get("SLURM_NTASKS", "1")
    return f"srun --ntasks={tasks} {command}" if "SLURM_STEP_ID" in environment and tasks != "1" else command


def _program() -> str:
    if shutil.which("lhtrain"):
        return "lhtrain"
    return f"{shlex.quote(_seen_from_here(Path(sys.executable)))} -m lhtrain"


def _seen_from_here(path: Path) -> str:
    """Relative to the current folder, where it lies in there and cannot be taken for an option."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    if absolute == here or not absolute.is_relative_to(here):
        return str(absolute)
    relative = str(absolute.relative_to(here))
    return f"./{relative}" if relative.startswith("-") or "=" in relative.split("/")[0] else relative
