"""Files hashed in pieces; each piece is verified when it is read, so only verified bytes are used."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lhtrain.checkpoint.errors import Invalid, as_invalid
from lhtrain.files import open_regular

PIECE = 16 * 2**20  # bytes


@dataclass(frozen=True)
class FileEntry:
    """A file in the manifest. sha256: one hash for each `piece` bytes."""

    bytes: int
    sha256: tuple[str, ...]
    piece: int = PIECE

    @property
    def n_pieces(self) -> int:
        return -(-self.bytes // self.piece)


def pieces_of(content: memoryview) -> list[memoryview]:
    """Divide content into parts of PIECE bytes."""
    return [content[begin : begin + PIECE] for begin in range(0, len(content), PIECE)]


def digest(content: memoryview) -> str:
    """Return the SHA-256 as hex digits."""
    return hashlib.sha256(content).hexdigest()


class HashedFile:
    """A file of a checkpoint, open for reading. Use as a context manager.

    Raises:
        Invalid: the file is missing, not a regular file or has the wrong size; on reading, a piece does not
            match its hash.
        OSError: the file cannot be read now.
    """

    def __init__(self, folder: Path, name: str, entry: FileEntry):
        self.name, self.entry, self.path = name, entry, folder / name
        try:
            self._handle = open_regular(self.path, os.O_RDONLY)
        except OSError as error:
            raise as_invalid(error, name) or error from error
        size = os.fstat(self._handle).st_size
        if size != entry.bytes:
            self.close()
            if size < entry.bytes:
                raise Invalid(
                    f"{name} is truncated: it has {size} of the {entry.bytes} bytes in manifest.json"
                )
            raise Invalid(f"{name} has {size} bytes, more than the {entry.bytes} in manifest.json")
        self._verified: set[int] = set()
        # The newest verified piece, in a buffer that all pieces share, so that its memory is touched once.
        self._buffer, self._newest, self._content = np.empty(0, dtype=np.uint8), -1, memoryview(b"")

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._handle)

    def verify(self, number: int) -> None:
        """Compare piece `number` with its hash. Raises Invalid."""
        begin, end = self._range(number)
        found, self._newest = hashlib.sha256(), -1
        for at in range(begin, end, PIECE):
            found.update(self._read_into_buffer(at, min(at + PIECE, end)))
        if begin < end and found.hexdigest() != self.entry.sha256[number]:
            raise self._altered()

    def read(self, begin: int, end: int) -> memoryview:
        """Return the verified bytes from `begin` to `end`; valid until the next call.

        Each piece is read and hashed once if the calls are in the order of the file.
        """
        if self.entry.piece > PIECE:  # format 2: one hash per file, and files may exceed the memory
            for number in range(begin // self.entry.piece, -(-end // self.entry.piece)):
                if number not in self._verified:
                    self.verify(number)
                    self._verified.add(number)
            return self._pread(begin, memoryview(bytearray(end - begin)))
        first, last = begin // self.entry.piece, (end - 1) // self.entry.piece
        if first == last:
            start = first * self.entry.piece
            return self._piece(first)[begin - start : end - start]
        out = bytearray()
        for number in range(first, last + 1):
            start = number * self.entry.piece
            out += self._piece(number)[max(begin - start, 0) : end - start]
        return memoryview(out)

    def _piece(self, number: int) -> memoryview:
        if number != self._newest:
            self._newest = -1  # the buffer changes, also if reading fails
            content = self._read_into_buffer(*self._range(number))
            if digest(content) != self.entry.sha256[number]:
                raise self._altered()
            self._newest, self._content = number, content
        return self._content

    def _range(self, number: int) -> tuple[int, int]:
        return number * self.entry.piece, min((number + 1) * self.entry.piece, self.entry.bytes)

    def _read_into_buffer(self, begin: int, end: int) -> memoryview:
        if len(self._buffer) < end - begin:
            self._buffer = np.empty(min(self.entry.piece, PIECE), dtype=np.uint8)
        return self._pread(begin, self._buffer.data[: end - begin])

    def _pread(self, begin: int, content: memoryview) -> memoryview:
        """Fill `content` with the bytes of the file from `begin`. Raises Invalid, OSError."""
        at = 0
        try:
            while at < len(content):
                n = os.preadv(self._handle, [content[at:]], begin + at)
                if n == 0:
                    raise Invalid(f"{self.name} became shorter while it was read")
                at += n
        except OSError as error:
            error.filename = str(self.path)
            raise
        return content

    def _altered(self) -> Invalid:
        return Invalid(f"{self.name} was altered: its SHA-256 differs from that in manifest.json")


class OpenFiles:
    """Files of a checkpoint, one open at a time. Use as a context manager."""

    def __init__(self, folder: Path, entries: dict[str, FileEntry]):
        self._folder, self._entries = folder, entries
        self._file: HashedFile | None = None

    def __enter__(self) -> "OpenFiles":
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def open(self, name: str) -> HashedFile:
        """Open the file `name` and close the previous one. Raises as `HashedFile`."""
        if self._file is None or self._file.name != name:
            self._close()
            self._file = HashedFile(self._folder, name, self._entries[name])
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
