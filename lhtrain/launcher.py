"""What started this process: which torchrun, and how long it waits before it kills. Imports no PyTorch."""

import os
import platform
from pathlib import Path

from lhtrain.files import read_regular
from lhtrain.ranks import under_torchrun

NOTE = Path("ranks", "launcher")  # in run.dir: the torchrun that began the run


def launcher() -> str:
    """The torchrun that started this rank; no two of a machine that is up have the same."""
    parent = os.getppid()
    began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{platform.node()} {parent} {began} {os.environ.get('TORCHELASTIC_RUN_ID')}"


def of_this_launch(folder: Path) -> Path | None:
    """The run in `folder` that an earlier attempt of this torchrun began, if there is one.

    The default run.dir holds the time: without this, every restart would begin another run.
    """
    if not under_torchrun():
        return None
    for note in folder.glob(f"*/{NOTE}"):
        try:
            if read_regular(note).decode() == launcher():
                return note.parents[1]
        except (OSError, ValueError):
            continue
    return None
