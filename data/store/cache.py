"""The cache of folders. A folder is built under a temporary name, then renamed: it is complete or absent."""

import fcntl
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from lhtrain.data.errors import DamagedStore, DataError
from lhtrain.data.sources.paths import expanded

ATTEMPTS = 4
ASIDE = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{12}")  # a folder that is being built, or being removed
OLD = 7 * 24 * 3600.0  # seconds; on a file system without locks, an older such folder counts as abandoned

log = logging.getLogger(__name__)
T = TypeVar("T")


def cache_root(cache_dir: str | os.PathLike | None) -> Path:
    """Return `cache_dir`, else $LHTRAIN_CACHE, else $XDG_CACHE_HOME/lhtrain, else ~/.cache/lhtrain.

    Raises DataError: a ~ without a home directory.
    """
    if cache_dir or os.environ.get("LHTRAIN_CACHE"):
        return expanded(cache_dir or os.environ["LHTRAIN_CACHE"], "data.cache_dir")
    try:
        return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "data.cache_dir") / "lhtrain"
    except DataError as error:
        rule = "must be set, or $LHTRAIN_CACHE, because there is no home directory"
        raise DataError(f"data.cache_dir=null: {rule}") from error


def load_or_build(folder: Path, load: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """Return load(folder); build the folder first if it is absent or damaged.

    Any number of processes may call this at once: the first one to finish publishes its folder, the others
    discard theirs. A killed process leaves a folder named ".…", which is never read and which the next call
    removes. `load` must raise FileNotFoundError if there is no folder, and DamagedStore if it must be
    rebuilt; the latter is logged as a warning.
    Raises DataError: the cache cannot be written.
    """
    try:
        remove_abandoned(folder.parent)
        for _ in range(ATTEMPTS):  # more than one only if another process removes the folder just built
            try:
                return load(folder)
            except FileNotFoundError:
                pass
            except DamagedStore as damage:
                log.warning("rebuilding the damaged cache %r: %s", str(folder), damage)
            _publish(folder, build)
    except OSError as error:
        rule = "must be readable and writable, with enough free space for the tokens"
        raise DataError(f"data.cache_dir={str(folder.parent)!r}: {rule} ({error})") from error
    rule = f"{folder.name} was removed or damaged {ATTEMPTS} times while it was in use"
    raise DataError(f"data.cache_dir={str(folder.parent)!r}: {rule}")


def _publish(folder: Path, build: Callable[[Path], None]) -> None:
    _discard(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _owned(folder) as aside:
        try:
            build(aside)
            os.rename(aside, folder)
        except OSError:
            if not folder.is_dir():  # else another process published the same content first
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _owned(folder: Path) -> Iterator[Path]:
    """Make a new folder beside `folder` and hold a lock on it: it shows that the process is still alive."""
    while True:
        aside = _aside(folder)
        aside.mkdir()
        descriptor = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _lock(descriptor)
            if aside.is_dir():  # else another process removed it before it was locked
                yield aside
                return
        finally:
            os.close(descriptor)


def remove_abandoned(root: Path) -> None:
    """Remove folders of the cache that killed processes were building.

    A process holds a lock on the folder that it builds; the system releases the lock when the process ends.
    """
    try:
        names = [name for name in os.listdir(root) if ASIDE.fullmatch(name)]
    except OSError:
        return
    for name in names:
        try:
            descriptor = os.open(root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # another process removed it first, or it is not a folder
        try:
            locked = _lock(descriptor)
            if locked or (locked is None and time.time() - os.fstat(descriptor).st_mtime > OLD):
                shutil.rmtree(root / name, ignore_errors=True)
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Return whether the lock was acquired; None if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _discard(folder: Path) -> None:
    """Remove a damaged folder. It is renamed first, so that no process sees it partly removed."""
    aside = _aside(folder)
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}")
