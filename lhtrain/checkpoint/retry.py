"""Retries after temporary errors of the file system."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lhtrain.errors import RunError

T = TypeVar("T")
TRIES, PAUSE = 4, 2.0  # attempts, and seconds between two attempts


def patiently(read: Callable[[], T], path: Path) -> T:
    """Return the result of `read`, retried after an OSError. Raises Invalid; RunError at the last attempt."""
    for attempt in range(1, TRIES + 1):
        try:
            return read()
        except OSError as error:
            if attempt == TRIES:
                raise unreadable(error, path) from error
            time.sleep(PAUSE)
    raise AssertionError


def unreadable(error: OSError, path: Path) -> RunError:
    """Return the error for a file of a checkpoint that exists but cannot be read."""
    file = error.filename or path
    return RunError(
        f"checkpoint {path}: {file} cannot be read: [Errno {error.errno}] {error.strerror}. This is an error "
        "of the file system, not a damaged checkpoint; nothing was renamed. Start again when the file can be "
        f"read; if it is lost, rename {path.name} to damaged-{path.name} to use an older checkpoint"
    )
