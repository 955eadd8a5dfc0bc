"""Names of checkpoints: step_ and the step with at least eight digits. Imports no PyTorch."""

import os
import re
from pathlib import Path

from lhtrain.errors import RunError

_STEP = re.compile(r"step_([0-9]{8,})")


def folder_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step in a name; None if lhtrain does not write this name."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found and folder_of(Path(), int(found[1])).name == name else None


def present(folder: Path) -> list[Path]:
    """Return all paths in `folder` that have the name of a checkpoint, by step. Raises OSError."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = [(step, name) for name in names if (step := step_of(name)) is not None]
    return [folder / name for _, name in sorted(steps)]


def leftovers(folder: Path) -> list[Path]:
    """Return all checkpoints of a run in `folder`, also unfinished, damaged and renamed ones. Raises OSError.

    If there are any, a new run must not write into this folder.
    """
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    damaged = [folder / name for name in names if re.match(r"damaged-step_[0-9]{8,}", name)]
    return [*present(folder), *damaged]


def complete(folder: Path) -> list[Path]:
    """Return the finished checkpoints in `folder`, oldest first; some may be damaged. Raises RunError."""
    try:
        return [path for path in present(folder) if (path / "manifest.json").exists()]
    except OSError as error:
        raise RunError(f"{folder} cannot be read: [Errno {error.errno}] {error.strerror}") from error
