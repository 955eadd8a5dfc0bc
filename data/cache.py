"""Folders that are complete or absent: built aside, then renamed to the hash of what they hold."""

import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lhtrain.data.errors import DamagedStore, DataError

ATTEMPTS = 4

log = logging.getLogger(__name__)
T = TypeVar("T")


def cache_root(cache_dir: str | os.PathLike | None) -> Path:
    """`cache_dir`, else $LHTRAIN_CACHE, else $XDG_CACHE_HOME/lhtrain, else ~/.cache/lhtrain."""
    if cache_dir or os.environ.get("LHTRAIN_CACHE"):
        return Path(cache_dir or os.environ["LHTRAIN_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lhtrain"


def load_or_build(folder: Path, load: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """load(folder), after build() has filled it if it is absent or damaged.

    Any number of processes may do so at once: the first to finish publishes its folder, the others drop
    theirs. A process killed half-way leaves a folder named ".…" that nobody reads.
    load raises FileNotFoundError or DamagedStore for what is to be rebuilt (the latter with a warning).
    Raises DataError if the cache cannot be written.
    """
    try:
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
    aside = _aside(folder)
    aside.mkdir()
    try:
        build(aside)
        os.rename(aside, folder)
    except OSError:
        if not folder.is_dir():  # if it is, another process was first, with the same content
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
