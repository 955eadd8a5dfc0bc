"""Reading again after errors of the file system that may pass."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lhtrain.errors import RunError

T = TypeVar("T")
TRIES, PAUSE = 4, 2.0  # reading again after an error that may pass; seconds in between


def patiently(read: Callable[[], T], path: Path) -> T:
    """The result of `read`, called again after errors that may pass. Raises Invalid; RunError at last."""
    for attempt in range(1, TRIES + 1):
        try:
            return read()
        except OSError as error:
            if attempt == TRIES:
                raise unreadable(error, path) from error
            time.sleep(PAUSE)
    raise AssertionError


def unreadable(error: OSError, path: Path) -> RunError:
    """The error for a checkpoint's file that exists and cannot be read."""
    file = error.filename or path
    return RunError(
        f"checkpoint {path}: {file} cannot be read: [Errno {error.errno}] {error.strerror}. This is an error "
        "of the file system, not damage, and nothing was renamed: start again when the file can be read; if "
        f"it is lost for good, rename {path.name} to damaged-{path.name} to use an older checkpoint"
    )
