"""Write a folder completely or not at all: fill a temporary folder beside it and rename that.

A killed export or import leaves a folder ".NAME.….export.tmp" without a lock on it; the next one to NAME
removes it.
"""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lhtrain.errors import RunError
from lhtrain.files import sync_folder

SUFFIX = ".export.tmp"
_OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # left by its writer after a kill


@contextmanager
def staged(folder: Path, last: str = "config.json") -> Iterator[Path]:
    """Yield an empty folder that becomes `folder` when the block ends without an exception.

    It is made beside `folder`, or inside of it where that is not possible.

    last: the file that makes the folder complete, for a reader.

    Raises:
        RunError: `folder` exists and is not an empty folder.
        OSError: it cannot be written. After this and any exception in the block, no files are left.
    """
    check_empty(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    inside = folder.is_dir() and (os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK))
    within = folder if inside else folder.parent
    staging = within / f".{folder.name}.{uuid.uuid4().hex[:12]}{SUFFIX}"
    with _locked(within):  # so that no other export removes our folder before it has its lock
        for leftover in _leftovers(within, folder.name):
            shutil.rmtree(leftover, ignore_errors=True)
        staging.mkdir()
        descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
        _lock(descriptor)
    try:
        yield staging
        _sync(staging)
        _publish(staging, folder, inside, last)
    finally:
        os.close(descriptor)
        shutil.rmtree(staging, ignore_errors=True)


def check_empty(folder: Path) -> None:
    """Raise RunError if `folder` exists and is not an empty folder."""
    if folder.is_dir():
        held = sorted(path.name for path in folder.iterdir() if not _is_leftover(path))
        if not held:
            return
        what = f"it contains {', '.join(held[:3])}{' and more' if len(held) > 3 else ''}"
    elif os.path.lexists(folder):
        what = "it is a broken link" if folder.is_symlink() else "it is a file"
    else:
        return
    raise RunError(
        f"{folder}: must be a new or an empty folder, but {what}; choose another folder or remove this one"
    )


def _publish(staging: Path, folder: Path, inside: bool, last: str) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            if _is_leftover(path) and path != staging:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    if not inside:
        os.rename(staging, folder)  # onto an empty folder too
        sync_folder(folder.parent)
        return
    for path in sorted(staging.iterdir(), key=lambda path: path.name == last):
        os.rename(path, folder / path.name)
    sync_folder(folder)


def _is_leftover(path: Path) -> bool:
    if path.is_symlink():
        return False
    return path.name.endswith(SUFFIX) if path.is_dir() else bool(_OF_SAFETENSORS.fullmatch(path.name))


def _leftovers(within: Path, name: str) -> Iterator[Path]:
    """Yield folders that killed exports to `name` have left."""
    for path in within.iterdir():
        if not (path.name.startswith(f".{name}.") and path.name.endswith(SUFFIX)) or path.is_symlink():
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if _lock(descriptor):
                yield path
        finally:
            os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wait: bool = False) -> bool:
    """Return whether the lock is held now, until `descriptor` is closed. False if there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _sync(folder: Path) -> None:
    """Write the files of `folder` to the disk, so that the rename cannot reach it before them."""
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)
