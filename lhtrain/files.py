"""Files in folders that others may write to: links are never followed, and content is whole or absent.

Somebody who can write to a folder can put a link, a pipe or a directory where a file of ours is expected.
Opening such a name in the ordinary way would empty the link's target, or wait at the pipe for ever.
"""

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

SUFFIX = ".tmp"  # of files that are being written: ".NAME.UNIQUE.tmp"
_ALWAYS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # O_NONBLOCK: opening a pipe does not wait


class NotRegular(OSError):
    """A link, pipe, directory or device where a regular file is expected. errno is ELOOP for a link, EISDIR
    for a directory, else EINVAL; strerror says what it is and what to do."""


def open_regular(path: str | os.PathLike, flags: int) -> int:
    """A file descriptor of the regular file at `path`; a new file gets the permissions that umask leaves.

    Neither follows a link nor waits at a pipe, and what is there is not changed before it is checked.
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
            rule = "has a second name elsewhere (a hard link), whose content would change too; remove it"
            raise NotRegular(errno.EMLINK, rule, os.fspath(path))
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | os.PathLike, most: int | None = None) -> bytes:
    """The content of a regular file. Raises NotRegular; OSError, EFBIG for more than `most` bytes."""
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as stream:
        if most is not None and (size := os.fstat(stream.fileno()).st_size) > most:
            raise OSError(errno.EFBIG, f"has {size} bytes, must have at most {most}", os.fspath(path))
        with _named(path):
            return stream.read()


def write_atomic(path: Path, content: str | bytes, durable: bool = True) -> None:
    """Write a whole file in place of what is at `path`: a reader sees the old content or the new.

    A link at `path` is replaced, its target stays. durable: on the disk when this returns, instead of when
    the operating system likes. Raises OSError with the path as its filename; then nothing has changed.
    """
    with written_aside(path, durable) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def written_aside(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file at `path` when the block ends without an exception; see
    `write_atomic`. A killed process leaves ".NAME.….tmp", which `remove_leftovers` removes."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{SUFFIX}")
    with _named(path):
        descriptor = open_regular(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with _named(path), os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())  # a rename must not reach the disk before what it publishes
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
    """The regular file at `path`, created if absent, to add text at its end. Raises as `open_regular`."""
    descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return os.fdopen(descriptor, "a", encoding="utf-8")


def open_lock(path: Path) -> TextIO:
    """The file to lock, created if absent; its content stays until the holder of the lock changes it.
    Readable and writable, as with mode "r+". Raises as `open_regular`."""
    return os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "r+", encoding="utf-8", errors="replace")


def numbered(path: Path) -> Path:
    """The first free name beside `path` for an earlier state of it: metrics.0001.jsonl, earlier.0001."""
    number = 1
    while os.path.lexists(free := path.with_name(f"{path.stem}.{number:04d}{path.suffix}")):
        number += 1
    return free


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of `write_atomic`. Only for who knows that nobody else writes there,
    from a lock."""
    for leftover in folder.glob(f".*{SUFFIX}"):
        if leftover.is_symlink() or leftover.is_file():
            leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force names in `folder` to the disk, where the file system can do that."""
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
    """Errors of reading and writing come without a file name: they get that of `path`."""
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
