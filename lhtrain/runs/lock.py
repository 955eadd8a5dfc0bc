"""A lock on the run directory, because two runs in one directory would overwrite each other's files."""

import fcntl
import os
import platform
import sys
import time
from pathlib import Path
from typing import TextIO

from lhtrain.errors import RunError
from lhtrain.files import NotRegular, open_lock

PATIENCE = 60.0  # seconds to wait for an earlier process that is still ending


class RunLock:
    """A lock by flock on run.dir/.lock; the kernel releases it when the process ends, even by a kill.

    On a file system without locks, nothing is locked. The package filelock is not used, for three reasons: on
    such file systems it leaves lock files that outlive a killed run, it erases the holder's name when another
    process tries to lock, and it follows a symbolic link at the path.
    """

    def __init__(self, run_dir: Path, patience: float = PATIENCE):
        self.path, self.patience = run_dir / ".lock", patience
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Acquire the lock, waiting at most `patience` seconds.

        Raises RunError: another process, which is named, has the lock; or .lock is not a regular file.
        """
        ends = time.monotonic() + self.patience
        reported = False
        while (file := self._opened()) is None or not self._locked(file):
            used = f"run.dir={self.path.parent} is in use by {self.holder()}"
            if time.monotonic() > ends:
                raise RunError(f"{used}; for a separate run, set another run.dir")
            if not reported:
                print(f"lhtrain: {used}; waiting up to {self.patience:g} s", file=sys.stderr, flush=True)
                reported = True
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        self._file = file

    def holder(self) -> str:
        """Return the process that has the lock, from the text that it wrote into the file."""
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
        except FileNotFoundError:  # another process, whose start failed, has just removed the directory
            return None

    def _locked(self, file: TextIO) -> bool:
        """Try to lock `file`; return whether this process has the lock now.

        If the previous holder has removed the file, a lock on it would exclude nobody; then this is False.
        """
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError:
            return True  # the file system has no locks
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(file.fileno())):
                return True
        except FileNotFoundError:
            pass
        file.close()
        return False
