"""The command that continues a run, as it can be typed where the run was started."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path


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
