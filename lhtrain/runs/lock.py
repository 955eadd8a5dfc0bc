"""One run at a time in a run directory: two would write over each other."""

import fcntl
import os
import platform
import sys
import time
from pathlib import Path
from typing import TextIO

from lhtrain.errors import RunError
from lhtrain.files import NotRegular, open_lock

PATIENCE = 60.0  # seconds that a killed predecessor may take to end


class RunLock:
    """The kernel's lock on run.dir/.lock: it ends with the process that holds it, however that ends.

    On a file system without locks nothing is locked. filelock does not serve here: on such file systems it
    leaves lock files that outlive a killed run, it erases the holder's name when another process only tries,
    and it opens whatever is planted at the name.
    """

    def __init__(self, run_dir: Path, patience: float = PATIENCE):
        self.path, self.patience = run_dir / ".lock", patience
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Wait for the lock for at most `patience` seconds.

        Raises RunError: another process holds it, which is named; .lock is no regular file.
        """
        ends = time.monotonic() + self.patience
        reported = False
        while (file := self._opened()) is None or not self._locked(file):
            used = f"run.dir={self.path.parent} is in use by {self.holder()}"
            if time.monotonic() > ends:
                raise RunError(f"{used}; a new run needs another run.dir")
            if not reported:
                print(f"lhtrain: {used}; waiting for {self.patience:g} s", file=sys.stderr, flush=True)
                reported = True
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        self._file = file

    def holder(self) -> str:
        """The process that holds the lock, as it wrote itself into the file."""
        try:
            return self.path.read_text(errors="replace").strip() or "another process"
        except OSError:
            return "another process"

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> TextIO | None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return open_lock(self.path)
        except NotRegular as error:
            raise RunError(f"{self.path} {error.strerror}") from error
        except FileNotFoundError:  # a start that failed removed the directory just now
            return None

    def _locked(self, file: TextIO) -> bool:
        """Whether the lock of `file` is ours now. Not if the holder has removed that file since: its lock
        would exclude nobody."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError:
            return True  # no locks here
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(file.fileno())):
                return True
        except FileNotFoundError:
            pass
        file.close()
        return False
