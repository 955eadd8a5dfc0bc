"""Tokens on disk: one memory-mapped file with document boundaries. data/README.md describes its bytes."""

import os
import struct
import zlib
from array import array
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from lhtrain.data.errors import DamagedStore

FORMAT_VERSION = 2
MAGIC = b"LHTOKENS"
# magic, format version, bytes a token, tokens, documents, bytes of text, crc32 of the rest of the file,
# the tokenizer's hash, crc32 of these fields, the escaped token
HEADER = struct.Struct("<8sIIQQQI12sII")
DTYPES: dict[int, np.dtype] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
ESCAPE = 255  # stored in one byte for a token that does not fit; UTF-8 has no such byte
ALIGNMENT = 8  # of the document hashes and offsets
CHUNK_BYTES = 1 << 22


class Header(NamedTuple):
    """What the first 64 bytes say. tokenizer: the first 12 bytes of its hash. escaped: the token that is
    stored as ESCAPE, 0 for none."""

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
    """The documents of one file, read through the page cache; maybe none.

    tokens: (n_tokens,) uint8, uint16 or uint32 as stored, memory-mapped, end-of-text after each document.
    offsets: (n_documents + 1,) int64; document i is tokens[offsets[i]:offsets[i + 1]].
    hashes: (n_documents,) uint64, the first 8 bytes of the SHA-256 of each document's text, big-endian.
    Raises DamagedStore if the file is missing parts, is no token file, or contradicts itself; what only
    reading all of it shows is `verify`'s part.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        self.n_tokens, self.n_documents = self.header.n_tokens, self.header.n_documents
        self.dtype = DTYPES[self.header.itemsize]
        self.tokens: np.ndarray = (
            np.memmap(path, self.dtype, "r", HEADER.size, (self.n_tokens,))
            if self.n_tokens
            else np.empty(0, self.dtype)
        )
        at = _tables_at(self.n_tokens, self.dtype.itemsize)
        self.hashes: np.ndarray = np.fromfile(path, "<u8", self.n_documents, offset=at)
        self.offsets: np.ndarray = np.fromfile(
            path, "<i8", self.n_documents + 1, offset=at + 8 * self.n_documents
        )
        if self.offsets[0] != 0 or self.offsets[-1] != self.n_tokens or (np.diff(self.offsets) < 1).any():
            raise DamagedStore(f"{str(path)!r}: document offsets must rise from 0 to {self.n_tokens} tokens")

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    def document(self, index: int) -> np.ndarray:
        """Tokens of document `index`, end-of-text included: a read-only view; a copy if any is escaped."""
        if not 0 <= index < self.n_documents:
            raise IndexError(f"document {index}: {self.path.name} has {self.n_documents}")
        return unescaped(self.tokens[self.offsets[index] : self.offsets[index + 1]], self.header.escaped)

    def verify(self, vocab_size: int) -> None:
        """Read every byte. Raises DamagedStore: a wrong checksum, a token of `vocab_size` or more."""
        crc = 0
        with self.path.open("rb") as stream:
            stream.seek(HEADER.size)
            while chunk := stream.read(CHUNK_BYTES):
                crc = zlib.crc32(chunk, crc)
        if crc != self.header.crc:
            rule = f"the content's crc32 must be the header's {self.header.crc:08x}"
            raise DamagedStore(f"{str(self.path)!r}: crc32 {crc:08x}; {rule}")
        for start in range(0, self.n_tokens, CHUNK_BYTES):
            part = self.tokens[start : start + CHUNK_BYTES]
            if int(part.max()) >= vocab_size:
                at = start + int(np.argmax(part >= vocab_size))
                rule = f"tokens must be below the vocabulary's {vocab_size}"
                raise DamagedStore(f"{str(self.path)!r}: token {at} is {self.tokens[at]}; {rule}")


class TokenStoreWriter:
    """Writes a TokenStore's file front to back; memory is 16 bytes a document.

    A context manager: the header is written, and the file flushed to disk, only when the block ends without
    an exception. tokenizer: the hash of what made the tokens, hex. escaped: the token that one byte does not
    hold, if any.
    """

    def __init__(self, path: Path, dtype: np.dtype, tokenizer: str = "", escaped: int | None = None) -> None:
        self.dtype, self._escaped = DTYPES[dtype.itemsize], escaped
        self.n_tokens = self.text_bytes = 0
        self._tokenizer = bytes.fromhex(tokenizer)[:12]
        self._ends, self._hashes = array("q", [0]), array("Q")
        self.crc = 0  # of all but the header, complete when the block has ended
        self._crc_at_end = 0
        self._stream = path.open("wb", buffering=1 << 20)
        self._stream.write(bytes(HEADER.size))  # not a token file until the real header replaces this

    @property
    def n_documents(self) -> int:
        return len(self._ends) - 1

    def append(self, tokens: np.ndarray) -> None:
        """Add tokens (1-D, any integer dtype whose values fit) to the current document."""
        self._write(np.ascontiguousarray(tokens, dtype=self.dtype).data.cast("B"))
        self.n_tokens += len(tokens)

    def append_special(self, token: int) -> None:
        """Add one token, which may be the escaped one. Raises OverflowError: another that does not fit."""
        self.append(np.array([ESCAPE if token == self._escaped else token], dtype=self.dtype))

    def end_document(self, eos: int, text_hash: int = 0, text_bytes: int = 0) -> None:
        """Close the current document with its end-of-text token; `text_hash` is a uint64."""
        self.append_special(eos)
        self._ends.append(self.n_tokens)
        self._hashes.append(text_hash)
        self._crc_at_end = self.crc
        self.text_bytes += text_bytes

    def discard_document(self) -> None:
        """Take back what was appended since the last `end_document`."""
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
            os.fsync(stream.fileno())  # a rename must not reach the disk before what it publishes


def unescaped(stored: np.ndarray, escaped: int) -> np.ndarray:
    """Tokens as stored -> tokens, in a type that holds `escaped`; a view where that is 0."""
    if not escaped:
        return stored
    return np.where(stored == ESCAPE, np.array(escaped, np.min_scalar_type(escaped)), stored)


def _tables_at(n_tokens: int, itemsize: int) -> int:
    end = HEADER.size + n_tokens * itemsize
    return end + -end % ALIGNMENT


def read_header(path: Path) -> Header:
    """The header of a token file, checked against its own checksum and the file's size."""
    with path.open("rb") as stream:
        data = stream.read(HEADER.size)
        size = stream.seek(0, os.SEEK_END)
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise DamagedStore(f"{str(path)!r}: must start with a token file's header")
    _, version, *fields, _, escaped = HEADER.unpack(data)
    header = Header(*[*fields, escaped])
    if version != FORMAT_VERSION or header.itemsize not in DTYPES:
        rule = f"must be format {FORMAT_VERSION} with 1, 2 or 4 bytes a token"
        raise DamagedStore(f"{str(path)!r}: format {version}, {header.itemsize} bytes a token; {rule}")
    if header.pack() != data:
        raise DamagedStore(f"{str(path)!r}: the header must have the checksum it was written with")
    expected = _tables_at(header.n_tokens, header.itemsize) + 8 * (2 * header.n_documents + 1)
    if size != expected:
        rule = f"must have {expected} for its {header.n_tokens} tokens in {header.n_documents} documents"
        raise DamagedStore(f"{str(path)!r}: has {size} bytes, {rule}")
    return header
