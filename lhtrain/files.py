"""Safe access to files in folders that other users may write to. Never follows links; writes are atomic.

A user who can write to a folder can put a link, a pipe or a directory at the name of one of our files. The
usual `open` would empty the target of the link, or wait at the pipe forever.
"""

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

SUFFIX = ".tmp"  # the end of names of files that are being written: ".NAME.UNIQUE.tmp"
_ALWAYS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # O_NONBLOCK: opening a pipe does not wait


class NotRegular(OSError):
    """The path is a link, pipe, directory or device instead of a regular file, or a file with a hard link.

    errno is ELOOP for a link, EISDIR for a directory, EMLINK for a hard link, else EINVAL. strerror says what
    the path is and what to do.
    """


def open_regular(path: str | os.PathLike, flags: int) -> int:
    """Open the regular file at `path` and return its descriptor. umask limits a new file's permissions.

    Does not follow links or wait at pipes, and changes nothing at `path` before it is checked.
    Raises NotRegular; OSError as `os.open`.
    """
    try:
        descriptor = os.open(path, (flags & ~os.O_TRUNC) | _ALWAYS, 0o666)
    except OSError as error:
        raise _explained(path, error) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _not_regular(path, found.st_mode)
        if found.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
            rule = "has another name elsewhere (a hard link), whose content would change too; remove it"
            raise NotRegular(errno.EMLINK, rule, os.fspath(path))
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | os.PathLike, most: int | None = None) -> bytes:
    """Return the content of a regular file. Raises NotRegular; OSError, with EFBIG if above `most` bytes."""
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as stream:
        if most is not None and (size := os.fstat(stream.fileno()).st_size) > most:
            raise OSError(errno.EFBIG, f"has {size} bytes, must have at most {most}", os.fspath(path))
        with _named(path):
            return stream.read()


def write_atomic(path: Path, content: str | bytes, durable: bool = True) -> None:
    """Replace the file at `path` atomically: a reader sees the old content or the new content.

    A link at `path` is replaced; its target does not change. durable: wait until the content is on disk.
    Raises OSError with the path as its filename; then nothing has changed.
    """
    with written_aside(path, durable) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def written_aside(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file at `path` if the block ends without an exception.

    See `write_atomic`. A killed process leaves a file ".NAME.UNIQUE.tmp"; `remove_leftovers` removes it.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{SUFFIX}")
    with _named(path):
        descriptor = open_regular(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with _named(path), os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())  # the content must be on disk before the rename
        try:
            os.replace(aside, path)
        except OSError as error:
            error.filename, error.filename2 = os.fspath(path), None
            raise _explained(path, error) from error
        if durable:
            sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def open_append(path: Path) -> TextIO:
    """Open the regular file at `path` to append text; create it if absent. Raises as `open_regular`."""
    descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return os.fdopen(descriptor, "a", encoding="utf-8")


def open_lock(path: Path) -> TextIO:
    """Open the file to lock for reading and writing; create it if absent, and keep its content.

    Raises as `open_regular`.
    """
    return os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "r+", encoding="utf-8", errors="replace")


def numbered(path: Path) -> Path:
    """Return the first free name for an older version of `path`: metrics.0001.jsonl, earlier.0001."""
    number = 1
    while os.path.lexists(free := path.with_name(f"{path.stem}.{number:04d}{path.suffix}")):
        number += 1
    return free


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of `write_atomic` that killed processes left.

    Call it only with a lock on `folder`, so that no other process writes there.
    """
    for leftover in folder.glob(f".*{SUFFIX}"):
        if leftover.is_symlink() or leftover.is_file():
            leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Write the names in `folder` to disk, if the file system supports it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse it for folders; the content itself was flushed
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: str | os.PathLike) -> Iterator[None]:
    """Add the name of `path` to errors of reading and writing, which have no file name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def _explained(path: str | os.PathLike, error: OSError) -> OSError:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return error
    if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EMLINK) and not stat.S_ISREG(mode):
        return _not_regular(path, mode)
    return error


def _not_regular(path: str | os.PathLike, mode: int) -> NotRegular:
    number = {stat.S_IFLNK: errno.ELOOP, stat.S_IFDIR: errno.EISDIR}.get(stat.S_IFMT(mode), errno.EINVAL)
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe"}
    kind = kinds.get(stat.S_IFMT(mode), "a device or socket")
    return NotRegular(number, f"is {kind}, must be a regular file; remove it", os.fspath(path))
