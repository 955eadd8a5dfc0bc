"""Paths as users type them. What the system refuses in a path becomes a DataError that names it."""

import glob
import os
import stat
from pathlib import Path

from lhtrain.data.errors import DataError


def expanded(given: str | os.PathLike, key: str = "data.path") -> Path:
    """`given` with ~ replaced. Raises DataError: a ~ without a home directory, a NUL character."""
    try:
        text = os.fspath(given)
        if "\0" in text:
            raise DataError(f"{key}={text!r}: must have no NUL character")
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(f"{key}={text!r}: ~ must stand for a home directory ({error})") from error


def matching(given: str | os.PathLike, key: str = "data.path") -> list[Path]:
    """The path itself if it exists, whatever characters it has; else what it matches as a pattern, in which
    *, ? and [ ] match characters of a name and ** folders; by name.

    Raises DataError: neither exists.
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
    """Whether the name is there, be it a link that leads nowhere."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # too long, or not a path
        return False


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def state(path: Path, key: str = "data.path") -> os.stat_result:
    """What is at `path`, links followed. Raises DataError: nothing, or nothing that can be looked at."""
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(path, error, key) from error


def unreadable(path: Path, error: Exception, key: str = "data.path") -> DataError:
    """The error for a path that the system refuses, with the rule that it breaks."""
    rule = "must exist" if isinstance(error, FileNotFoundError) else "must be readable"
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        rule = f"is a link to {os.readlink(path)!r}, which must exist; remove the link or mend it"
    return DataError(f"{key}={str(path)!r}: {rule} ({getattr(error, 'strerror', None) or error})")


def kind(mode: int) -> str:
    """What a file that is neither a regular file nor a folder is, in words."""
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def stamp(path: Path | str) -> str:
    """Size and time of change of a file: other ones mean other content. Raises DataError: no such file."""
    found = state(Path(path))
    return f"{found.st_size} {found.st_mtime_ns}"
