"""One run at a time in a run directory: two would write over each other."""

import fcntl
import os
import platform
import sys
import time
from pathlib import Path
from typing import TextIO

from lhtrain.errors import RunError

PATIENCE = 60.0  # seconds: what was killed may take as long to go


class RunLock:
    """The kernel's lock on run.dir/.lock: it goes with the process that holds it, however that ends.

    On a file system without locks there is none.
    """

    def __init__(self, run_dir: Path, patience: float = PATIENCE):
        self.path, self.patience = run_dir / ".lock", patience
        self._file: TextIO | None = None

    def take(self) -> None:
        """Raises RunError, with who has it, after `patience` seconds."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        ends = time.monotonic() + self.patience
        told = False
        while not self._locked(file):
            holder = self.path.read_text().strip() or "another process"
            used = f"run.dir={self.path.parent} is in use by {holder}"
            if time.monotonic() > ends:
                raise RunError(f"{used}; a new run needs another")
            if not told:
                print(f"lhtrain: {used}; waiting for {self.patience:g} s", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _locked(self, file: TextIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # no locks here
        return True
