"""The token file (shard): tokens and document boundaries. data/README.md describes its bytes."""

import os
import struct
import zlib
from array import array
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from lhtrain.data.errors import REMEDY, DamagedStore, unreadable
from lhtrain.data.store.descriptors import Descriptors, Identity, identity
from lhtrain.files import open_regular

FORMAT_VERSION = 2
MAGIC = b"LHTOKENS"
# magic, format version, bytes per token, number of tokens, of documents, of bytes of text, crc32 of the rest
# of the file, the tokenizer's hash, crc32 of these fields, the escaped token
HEADER = struct.Struct("<8sIIQQQI12sII")
DTYPES: dict[int, np.dtype] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
ESCAPE = 255  # stands for the token that does not fit into one byte; the byte 255 never occurs in UTF-8
ALIGNMENT = 8  # alignment of the document hashes and offsets, in bytes
CHUNK_BYTES = 1 << 22


class Header(NamedTuple):
    """The fields of the first 64 bytes.

    itemsize: bytes per token. crc: CRC-32 of the rest of the file. tokenizer: the first 12 bytes of its hash.
    escaped: the token that is stored as ESCAPE, 0 for none.
    """

    itemsize: int
    n_tokens: int
    n_documents: int
    text_bytes: int
    crc: int
    tokenizer: bytes
    escaped: int

    def pack(self) -> bytes:
        fields = (self.itemsize, self.n_tokens, self.n_documents, self.text_bytes, self.crc, self.tokenizer)
        unsigned = HEADER.pack(MAGIC, FORMAT_VERSION, *fields, 0, self.escaped)
        return HEADER.pack(MAGIC, FORMAT_VERSION, *fields, zlib.crc32(unsigned), self.escaped)


class TokenStore:
    """The documents of one token file, which may have none.

    tokens: (n_tokens,) uint8, uint16 or uint32 as stored, memory-mapped, end-of-text after each document.
    offsets: (n_documents + 1,) int64; document i is tokens[offsets[i]:offsets[i + 1]].
    hashes: (n_documents,) uint64, the first 8 bytes of the SHA-256 of each document's text, big-endian.
    vocab_size: `read` raises an error for tokens of this value or above; None accepts all.

    An open store holds no file descriptor, so there may be any number of stores.
    Raises DamagedStore: the file is truncated, is not a token file, or is inconsistent. Damage that only
    shows when all tokens are read is found by `verify`.
    """

    def __init__(self, path: Path, vocab_size: int | None = None) -> None:
        self.path, self.vocab_size = path, vocab_size
        descriptor = _open(path)
        try:
            self.identity: Identity = identity(descriptor)
            self.header = _read_header(path, descriptor)
            self.n_tokens, self.n_documents = self.header.n_tokens, self.header.n_documents
            self.dtype = DTYPES[self.header.itemsize]
            at = _tables_at(self.n_tokens, self.dtype.itemsize)
            self.offsets: np.ndarray = _read_offsets(path, descriptor, at, self.n_documents, self.n_tokens)
            hashes = _pread(path, descriptor, at, 8 * self.n_documents)
        except MemoryError as error:
            rule = f"its {self.n_documents} documents need more memory than is available"
            raise DamagedStore(f"{str(path)!r}: {rule}") from error
        finally:
            os.close(descriptor)
        self.hashes: np.ndarray = np.frombuffer(hashes, "<u8")
        self._below_vocab = vocab_size is None or np.iinfo(self.dtype).max < vocab_size
        self.before_first_read: Callable[[], object] | None = None  # set to compare the checksum at that time

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @cached_property
    def tokens(self) -> np.ndarray:
        if not self.n_tokens:
            return np.empty(0, self.dtype)
        with os.fdopen(_open(self.path), "rb") as stream:
            return np.memmap(stream, self.dtype, "r", HEADER.size, (self.n_tokens,))

    def document(self, index: int) -> np.ndarray:
        """Return the tokens of document `index` with its end-of-text token.

        A read-only view, or a copy if the file has an escaped token.
        """
        if not 0 <= index < self.n_documents:
            raise IndexError(f"document {index}: {self.path.name} has {self.n_documents}")
        return unescaped(self.tokens[self.offsets[index] : self.offsets[index + 1]], self.header.escaped)

    def read(self, start: int, length: int, descriptors: Descriptors) -> np.ndarray:
        """Return tokens start..start + length as stored, read-only.

        They are read with `pread`, not through a memory map: if the file was truncated or the disk fails, a
        memory map would end the process instead of raising an error.

        Raises DataError: the file is gone, was replaced or cannot be read; a token outside the vocabulary.
        """
        if self.before_first_read is not None:
            self.before_first_read()
            self.before_first_read = None
        itemsize = self.dtype.itemsize
        descriptor = descriptors.of(self.path, self.identity)
        data = _pread(self.path, descriptor.number, HEADER.size + start * itemsize, length * itemsize)
        tokens = np.frombuffer(data, self.dtype)
        if not self._below_vocab and length and int(tokens.max()) >= self.vocab_size:  # type: ignore[operator]
            at = int(np.argmax(tokens >= self.vocab_size))
            raise self._outside(start + at, int(tokens[at]), self.vocab_size)  # type: ignore[arg-type]
        return tokens

    def verify(self, vocab_size: int) -> None:
        """Read the whole file. Raises DamagedStore: a wrong checksum, a token of `vocab_size` or above."""
        crc, at, end = 0, HEADER.size, HEADER.size + self.n_tokens * self.dtype.itemsize
        descriptor = _open(self.path)
        try:
            if not identity(descriptor).is_of(self.identity):
                raise DamagedStore(f"{str(self.path)!r}: was replaced while it was read; open it again")
            while size := min(CHUNK_BYTES, self.identity.size - at):
                chunk = _pread(self.path, descriptor, at, size)
                crc = zlib.crc32(chunk, crc)
                part = np.frombuffer(chunk[: max(end - at, 0)], self.dtype)
                if np.iinfo(self.dtype).max >= vocab_size and len(part) and int(part.max()) >= vocab_size:
                    index = int(np.argmax(part >= vocab_size))
                    first = (at - HEADER.size) // self.dtype.itemsize
                    raise self._outside(first + index, int(part[index]), vocab_size)
                at += size
        finally:
            os.close(descriptor)
        if crc != self.header.crc:
            rule = f"must equal the header's {self.header.crc:08x}"
            raise DamagedStore(f"{str(self.path)!r}: the content's crc32 {crc:08x} {rule}; {REMEDY}")

    def _outside(self, index: int, token: int, vocab_size: int) -> DamagedStore:
        rule = f"tokens must be below the vocabulary size {vocab_size}"
        return DamagedStore(f"{str(self.path)!r}: token {index} is {token}; {rule}; {REMEDY}")


class TokenStoreWriter:
    """Writes a token file from start to end. Needs 16 bytes of memory per document.

    A context manager: the header is written, and the file flushed to disk, only if the `with` block ends
    without an exception. tokenizer: the tokenizer's fingerprint, hex. escaped: the token that does not fit
    into one byte, if any.
    """

    def __init__(self, path: Path, dtype: np.dtype, tokenizer: str = "", escaped: int | None = None) -> None:
        self.dtype, self._escaped = DTYPES[dtype.itemsize], escaped
        self.n_tokens = self.text_bytes = 0
        self._tokenizer = bytes.fromhex(tokenizer)[:12]
        self._ends, self._hashes = array("q", [0]), array("Q")
        self.crc = 0  # of everything after the header; final when the `with` block has ended
        self._crc_at_end = 0
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._stream = os.fdopen(descriptor, "wb", buffering=1 << 20)
        self._stream.write(bytes(HEADER.size))  # the real header replaces this at the end

    @property
    def n_documents(self) -> int:
        return len(self._ends) - 1

    def append(self, tokens: np.ndarray) -> None:
        """Add tokens (1-D, any integer dtype whose values fit) to the current document."""
        self._write(np.ascontiguousarray(tokens, dtype=self.dtype).data.cast("B"))
        self.n_tokens += len(tokens)

    def append_special(self, token: int) -> None:
        """Add one token, which may be the escaped one. Raises OverflowError: any other that does not fit."""
        self.append(np.array([ESCAPE if token == self._escaped else token], dtype=self.dtype))

    def end_document(self, eos: int, text_hash: int = 0, text_bytes: int = 0) -> None:
        """End the current document with its end-of-text token. text_hash: a uint64."""
        self.append_special(eos)
        self._ends.append(self.n_tokens)
        self._hashes.append(text_hash)
        self._crc_at_end = self.crc
        self.text_bytes += text_bytes

    def discard_document(self) -> None:
        """Remove the tokens appended since the last `end_document`."""
        self._stream.flush()
        self.n_tokens, self.crc = self._ends[-1], self._crc_at_end
        self._stream.truncate(HEADER.size + self.n_tokens * self.dtype.itemsize)
        self._stream.seek(0, os.SEEK_END)

    def _write(self, data: bytes | memoryview) -> None:
        self.crc = zlib.crc32(data, self.crc)
        self._stream.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stream as stream:
            if kind is not None:
                return
            end = HEADER.size + self.n_tokens * self.dtype.itemsize
            self._write(bytes(_tables_at(self.n_tokens, self.dtype.itemsize) - end))
            self._write(np.asarray(self._hashes, dtype="<u8").tobytes())
            self._write(np.asarray(self._ends, dtype="<i8").tobytes())
            stream.seek(0)
            size, counts = self.dtype.itemsize, (self.n_tokens, self.n_documents, self.text_bytes)
            stream.write(Header(size, *counts, self.crc, self._tokenizer, self._escaped or 0).pack())
            stream.flush()
            os.fsync(stream.fileno())  # the content must be on disk before the caller renames the file


def unescaped(stored: np.ndarray, escaped: int) -> np.ndarray:
    """Convert stored tokens to tokens, in a type that can hold `escaped`; returns a view if that is 0."""
    if not escaped:
        return stored
    return np.where(stored == ESCAPE, np.array(escaped, np.min_scalar_type(escaped)), stored)


def _tables_at(n_tokens: int, itemsize: int) -> int:
    end = HEADER.size + n_tokens * itemsize
    return end + -end % ALIGNMENT


def read_header(path: Path) -> Header:
    """Return the header of a token file, after checking its checksum and the file's size.

    Raises FileNotFoundError: no file; DamagedStore: another kind of file, or one that cannot be read.
    """
    descriptor = _open(path)
    try:
        return _read_header(path, descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def _pread(path: Path, descriptor: int, at: int, size: int) -> bytes:
    """Return exactly `size` bytes from offset `at`. Raises DamagedStore: a shorter file, a failing disk."""
    parts: list[bytes] = []
    while size:
        try:
            part = os.pread(descriptor, min(size, 1 << 30), at)
        except OSError as error:
            raise unreadable(path, error) from error
        if not part:
            raise DamagedStore(f"{str(path)!r}: ends at byte {at}; it was truncated while it was in use")
        parts.append(part)
        at, size = at + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_offsets(path: Path, descriptor: int, tables: int, n_documents: int, n_tokens: int) -> np.ndarray:
    """Return the document offsets, (n_documents + 1,) int64.

    They are checked while they are read, because a sparse file may claim any number of documents.
    """
    offsets = np.empty(n_documents + 1, "<i8")
    before = -1
    for start in range(0, len(offsets), CHUNK_BYTES):
        part = offsets[start : start + CHUNK_BYTES]
        at = tables + 8 * (n_documents + start)
        part[:] = np.frombuffer(_pread(path, descriptor, at, part.nbytes), "<i8")
        if part[0] <= before or (start == 0 and part[0] != 0) or not (part[1:] > part[:-1]).all():
            break
        before = int(part[-1])
    else:
        if before == n_tokens:
            return offsets
    rule = f"document offsets must increase from 0 to {n_tokens} tokens"
    raise DamagedStore(f"{str(path)!r}: {rule}; {REMEDY}")


def _read_header(path: Path, descriptor: int) -> Header:
    size = os.fstat(descriptor).st_size
    data = _pread(path, descriptor, 0, min(size, HEADER.size))
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise DamagedStore(f"{str(path)!r}: must start with the header of a token file; {REMEDY}")
    _, version, *fields, _, escaped = HEADER.unpack(data)
    header = Header(*[*fields, escaped])
    if version != FORMAT_VERSION or header.itemsize not in DTYPES:
        rule = f"must be format {FORMAT_VERSION} with 1, 2 or 4 bytes per token"
        raise DamagedStore(
            f"{str(path)!r}: format {version}, {header.itemsize} bytes per token; {rule}; {REMEDY}"
        )
    if header.pack() != data:
        rule = "the header must match its checksum"
        raise DamagedStore(f"{str(path)!r}: {rule}; {REMEDY}")
    expected = _tables_at(header.n_tokens, header.itemsize) + 8 * (2 * header.n_documents + 1)
    if size != expected:
        rule = f"must have {expected} for its {header.n_tokens} tokens in {header.n_documents} documents"
        raise DamagedStore(f"{str(path)!r}: has {size} bytes, {rule}; {REMEDY}")
    return header
