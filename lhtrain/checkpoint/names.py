"""Names of checkpoints, step_ and the step with eight digits or more, and the folders that have them.

Imports no PyTorch.
"""

import os
import re
from pathlib import Path

from lhtrain.errors import RunError

_STEP = re.compile(r"step_([0-9]{8,})")


def folder_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """The step in a name, None for names that the program does not write."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found and folder_of(Path(), int(found[1])).name == name else None


def present(folder: Path) -> list[Path]:
    """Everything in `folder` that has the name of a checkpoint, by step. Raises OSError."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = [(step, name) for name in names if (step := step_of(name)) is not None]
    return [folder / name for _, name in sorted(steps)]


def leftovers(folder: Path) -> list[Path]:
    """All that a run left in `folder`: checkpoints, sound or not, finished or not, and those that were
    renamed as damaged. Where there are some, a new run would mix with another one. Raises OSError."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    damaged = [folder / name for name in names if re.match(r"damaged-step_[0-9]{8,}", name)]
    return [*present(folder), *damaged]


def complete(folder: Path) -> list[Path]:
    """Checkpoints in `folder` that were finished, oldest first; not all need be sound."""
    try:
        return [path for path in present(folder) if (path / "manifest.json").exists()]
    except OSError as error:
        raise RunError(f"{folder} cannot be read: [Errno {error.errno}] {error.strerror}") from error
