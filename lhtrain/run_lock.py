"""One run at a time in a run directory: two would write over each other."""

import fcntl
import json
import os
import platform
import time
from pathlib import Path
from typing import TextIO

from lhtrain.errors import RunError


class RunLock:
    """The kernel's lock on run.dir/.lock: it goes with the process that holds it, however that ends.

    On a file system without locks there is none.
    """

    def __init__(self, run_dir: Path, patience: float = 60.0):
        self.path, self.patience = run_dir / ".lock", patience
        self._file: TextIO | None = None

    def take(self) -> None:
        """Raises RunError, with who has it, after `patience` seconds: what was killed may take time to go."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        ends = time.monotonic() + self.patience
        while not self._locked(file):
            if time.monotonic() > ends:
                holder = self.path.read_text().strip() or "another process"
                raise RunError(f"run.dir={self.path.parent} is in use by {holder}; a new run needs another")
            time.sleep(0.2)
        file.truncate(0)
        file.write(json.dumps({"host": platform.node(), "pid": os.getpid()}) + "\n")
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
