"""Writing of a rank's file, and publishing of a finished checkpoint."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhtrain.checkpoint import manifest
from lhtrain.checkpoint.folder import REPLACED, WRITING, free_name, in_words, remove
from lhtrain.checkpoint.hashed import PIECE, FileEntry, digest, pieces_of
from lhtrain.checkpoint.staging import Staging
from lhtrain.files import open_regular
from lhtrain.process.threads import in_background


@dataclass
class RankPart:
    """The files and tensors that one rank wrote."""

    files: dict[str, FileEntry]
    tensors: dict[str, Any]  # as in the manifest, with this rank's chunks

    def to_json(self) -> str:
        files = {name: [entry.bytes, entry.sha256] for name, entry in self.files.items()}
        return json.dumps([files, self.tensors])

    @classmethod
    def from_json(cls, text: str) -> "RankPart":
        files, tensors = json.loads(text)
        return cls(
            {name: FileEntry(size, tuple(digests)) for name, (size, digests) in files.items()}, tensors
        )


def aside_of(target: Path) -> Path:
    return target.with_name(WRITING + target.name)


def begin(aside: Path) -> None:
    """Create an empty folder at `aside`; remove what is there. Raises OSError."""
    aside.parent.mkdir(parents=True, exist_ok=True)
    remove(aside)
    aside.mkdir()


def write_part(aside: Path, staged: Staging) -> RankPart:
    """Write this rank's file and sync it. Raises OSError with the file's path."""
    if not staged.n_bytes:
        return RankPart({}, staged.tensors)
    name = manifest.file_name(staged.rank)
    return RankPart({name: write_file(aside / name, staged.content)}, staged.tensors)


def write_file(path: Path, content: memoryview) -> FileEntry:
    """Write a new file and sync it. Raises OSError with the file's path."""
    pieces = pieces_of(content)
    digests = in_background(lambda: tuple(map(digest, pieces)), "hashes")
    with _new_file(path) as handle:
        for piece in pieces:
            while piece:
                piece = piece[os.write(handle, piece) :]
    return FileEntry(len(content), digests.result())


def write_stream(path: Path, chunks: Iterable[bytes]) -> FileEntry:
    """Write a new file from chunks of any length and sync it. Raises OSError with the file's path."""
    digests, size, room, hashed = [], 0, PIECE, hashlib.sha256()
    with _new_file(path) as handle:
        for chunk in chunks:
            left = memoryview(chunk)
            while left:
                part = left[: os.write(handle, left[:room])]
                hashed.update(part)
                left, room, size = left[len(part) :], room - len(part), size + len(part)
                if not room:
                    digests.append(hashed.hexdigest())
                    room, hashed = PIECE, hashlib.sha256()
    return FileEntry(size, (*digests, hashed.hexdigest()) if size % PIECE else tuple(digests))


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """Create a file for a block that writes to the descriptor, and sync it at the end.

    Raises OSError with the file's path, or with another path that the block itself named.
    """
    handle = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        yield handle
        os.fsync(handle)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(handle)


def publish(
    aside: Path, target: Path, step: int, state: str, parts: list[RankPart], before: Callable[[], object]
) -> tuple[int, list[str]]:
    """Write state.json and manifest.json, then rename the checkpoint in `aside` to `target`.

    Args:
        aside: the folder with the files of all ranks.
        target: the final name.
        step: the step of the checkpoint.
        state: the content of state.json.
        parts: the files and tensors of all ranks.
        before: called when everything is on the disk, before the rename.

    Returns its size in bytes, and notes on errors after the rename.

    Raises OSError, Invalid: the checkpoint was not published.
    """
    size = describe(aside, step, state, parts)
    before()
    replaced = None
    if os.path.lexists(target):  # a checkpoint of the same step
        replaced = free_name(target.parent, REPLACED + target.name)
        target.rename(replaced)
    try:
        aside.rename(target)
    except OSError:
        if replaced is not None:
            replaced.rename(target)
        raise
    notes = []
    try:
        _sync(target.parent)
        if replaced is not None:
            remove(replaced)
    except OSError as error:
        notes.append(f"checkpoint {target.name} was written, but a later step failed: {in_words(error)}")
    return size, notes


def describe(aside: Path, step: int, state: str, parts: list[RankPart]) -> int:
    """Write state.json and manifest.json beside the files of all ranks. Returns the checkpoint's bytes.

    Raises OSError, Invalid.
    """
    tensors: dict[str, Any] = {}
    files = {name: entry for part in parts for name, entry in part.files.items()}
    for part in parts:
        for name, tensor in part.tensors.items():
            chunks = tensors.setdefault(name, tensor | {"chunks": []})["chunks"]
            chunks.extend(tensor["chunks"])
    files[manifest.STATE] = write_file(aside / manifest.STATE, memoryview(state.encode()))
    content = manifest.write(step, files, tensors)
    write_file(aside / manifest.NAME, memoryview(content))
    _sync(aside)
    return sum(entry.bytes for entry in files.values()) + len(content)


def _sync(folder: Path) -> None:
    """Sync the entries of `folder` to the disk. Raises OSError with the folder's path."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by some file systems
            error.filename = str(folder)
            raise
    finally:
        os.close(handle)
