"""Paths as users type them. If the system refuses a path, a DataError names it."""

import glob
import os
import stat
from pathlib import Path

from lhtrain.data.errors import DataError


def expanded(given: str | os.PathLike, key: str = "data.path") -> Path:
    """Return `given` with ~ expanded. Raises DataError: a ~ without a home directory, a NUL character."""
    try:
        text = os.fspath(given)
        if "\0" in text:
            raise DataError(f"{key}={text!r}: must not contain a NUL character")
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(f"{key}={text!r}: ~ must be an existing user's home directory ({error})") from error


def matching(given: str | os.PathLike, key: str = "data.path") -> list[Path]:
    """Return the path itself if it exists, else the paths that match it as a pattern, sorted.

    In a pattern, *, ? and [ ] match characters of a name, and ** matches folders.
    Raises DataError: a pattern that matches nothing.
    """
    path = expanded(given, key)
    if exists(path) or not glob.has_magic(str(path)):
        return [path]
    found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        rule = "must exist, or be a pattern (*, ?, [ ], **) that matches something"
        raise DataError(f"{key}={os.fspath(given)!r}: {rule}")
    return [Path(name) for name in found]


def exists(path: Path) -> bool:
    """Return whether a path exists; a link counts even if its target does not exist."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # too long, or not a path
        return False


def is_file(path: Path) -> bool:
    """Return whether the path is a file; False if that cannot be found out."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether the path is a folder; False if that cannot be found out."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def state(path: Path, key: str = "data.path") -> os.stat_result:
    """Return the status of the file at `path`, following links. Raises DataError: missing or unreadable."""
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(path, error, key) from error


def unreadable(path: Path, error: Exception, key: str = "data.path") -> DataError:
    """Return the DataError for a path that the system refuses, with the rule that the path breaks."""
    rule = "must exist" if isinstance(error, FileNotFoundError) else "must be readable"
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        rule = f"is a link to {os.readlink(path)!r}, which must exist; remove or repair the link"
    return DataError(f"{key}={str(path)!r}: {rule} ({getattr(error, 'strerror', None) or error})")


def kind(mode: int) -> str:
    """Return the kind of a special file (neither a regular file nor a folder), for a message."""
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def stamp(path: Path | str) -> str:
    """Return size and modification time of a file: a different stamp means different content.

    Raises DataError: no such file.
    """
    found = state(Path(path))
    return f"{found.st_size} {found.st_mtime_ns}"
