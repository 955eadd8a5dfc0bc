"""Folders that are complete or absent: built aside, then renamed to the hash of what they hold."""

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
ASIDE = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{12}")  # a folder that is being built, or taken out of the way
OLD = 7 * 24 * 3600.0  # seconds, after which one counts as left behind where the file system has no locks

log = logging.getLogger(__name__)
T = TypeVar("T")


def cache_root(cache_dir: str | os.PathLike | None) -> Path:
    """`cache_dir`, else $LHTRAIN_CACHE, else $XDG_CACHE_HOME/lhtrain, else ~/.cache/lhtrain.

    Raises DataError: a ~ without a home directory.
    """
    if cache_dir or os.environ.get("LHTRAIN_CACHE"):
        return expanded(cache_dir or os.environ["LHTRAIN_CACHE"], "data.cache_dir")
    try:
        return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "data.cache_dir") / "lhtrain"
    except DataError as error:
        raise DataError(
            "data.cache_dir=null: must be set, or $LHTRAIN_CACHE, without a home directory"
        ) from error


def load_or_build(folder: Path, load: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """load(folder), after build() has filled it if it is absent or damaged.

    Any number of processes may do so at once: the first to finish publishes its folder, the others drop
    theirs. A process killed half-way leaves a folder named ".…" that nobody reads and the next call removes.
    load raises FileNotFoundError or DamagedStore for what is to be rebuilt (the latter with a warning).
    Raises DataError if the cache cannot be written.
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
        rule = "must be readable and writable, with room for the tokens"
        raise DataError(f"data.cache_dir={str(folder.parent)!r}: {rule} ({error})") from error
    raise DataError(f"data.cache_dir={str(folder.parent)!r}: {folder.name} keeps vanishing or being damaged")


def _publish(folder: Path, build: Callable[[Path], None]) -> None:
    _discard(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _owned(folder) as aside:
        try:
            build(aside)
            os.rename(aside, folder)
        except OSError:
            if not folder.is_dir():  # if it is, another process was first, with the same content
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _owned(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, locked by this process for as long as it lives."""
    while True:
        aside = _aside(folder)
        aside.mkdir()
        descriptor = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _lock(descriptor)
            if aside.is_dir():  # else another process found it before it was locked
                yield aside
                return
        finally:
            os.close(descriptor)


def remove_abandoned(root: Path) -> None:
    """Remove from the cache what killed processes were building there. A process holds a lock on what it
    builds, which ends with it."""
    try:
        names = [name for name in os.listdir(root) if ASIDE.fullmatch(name)]
    except OSError:
        return
    for name in names:
        try:
            descriptor = os.open(root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # another process was first, or it is no folder
        try:
            locked = _lock(descriptor)
            if locked or (locked is None and time.time() - os.fstat(descriptor).st_mtime > OLD):
                shutil.rmtree(root / name, ignore_errors=True)
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock could be had; None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _discard(folder: Path) -> None:
    """Take a damaged or incomplete folder out of the way; by renaming, so that none sees it half removed."""
    aside = _aside(folder)
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}")
