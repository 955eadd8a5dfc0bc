"""Names of checkpoints: step_ and the step, with eight digits or more."""

import re
from pathlib import Path

_STEP = re.compile(r"step_([0-9]{8,})")


def folder_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """The step in a name, None for names that the program does not write."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found and folder_of(Path(), int(found[1])).name == name else None
