"""Documents: files checked to be text, with the hash of their content. Read in pieces, never whole."""

import codecs
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lhtrain.data.errors import DataError
from lhtrain.data.source import SourceFile

CHUNK_BYTES = 1 << 20


class NotText(Exception):
    """A file that is to be skipped; its argument says why."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """One text. size in bytes; sha256 of the content, hex."""

    name: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class _Scan:
    """What one pass over a file shows; offsets in bytes, None where there is no such byte."""

    size: int
    sha256: str
    nul_at: int | None
    not_utf8_at: int | None


def read_documents(
    files: list[SourceFile], advance: Callable[[int], object] = lambda n_bytes: None
) -> list[Document]:
    """The text files among `files`, maybe none, by name, then hash; `advance` is called with the bytes read.

    Empty files and binary files (with NUL bytes) met in a folder are skipped, the binary ones with one
    counted warning. Raises DataError: a file the user named that is empty or binary, text that is not
    UTF-8 (with the byte offset), an unreadable file.
    """
    documents, binary = [], []
    for file in files:
        scan = _scan(file.path, advance)
        broken = scan.nul_at is not None or scan.not_utf8_at is not None
        if file.origin == "bundled" and (broken or not scan.size):
            continue
        if file.origin == "found" and (scan.nul_at is not None or not scan.size):
            binary += [file] if scan.size else []
            continue
        _check_text(file, scan)
        documents.append(Document(file.name, file.path, scan.size, scan.sha256))
    if binary:
        log.warning("data.path: skipped %d binary file(s), the first %r", len(binary), str(binary[0].path))
    return sorted(documents, key=lambda document: (document.name, document.sha256))


def read_chunks(document: Document, start: int, stop: int) -> Iterator[bytes]:
    """Bytes start..stop of a document, CHUNK_BYTES at most at a time. DataError: unreadable."""
    try:
        with document.path.open("rb") as stream:
            stream.seek(start)
            while start < stop and (chunk := stream.read(min(CHUNK_BYTES, stop - start))):
                start += len(chunk)
                yield chunk
    except OSError as error:
        raise _unreadable(document.path, error) from error


def is_text(content: bytes) -> bool:
    """Valid UTF-8 without NUL bytes."""
    if b"\0" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def checked_chunks(file: SourceFile, advance: Callable[[int], object]) -> Iterator[bytes]:
    """The bytes of a text file, CHUNK_BYTES at most at a time, checked as they pass; `advance` is told.

    Raises NotText where `read_documents` skips a file, DataError where it refuses one; so what was taken
    from a file may have to be given back.
    """
    size, decoder = 0, codecs.getincrementaldecoder("utf-8")()
    try:
        with file.path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                _check_chunk(file, chunk, size, decoder)
                size += len(chunk)
                yield chunk
                advance(len(chunk))
            _check_chunk(file, b"", size, decoder)
    except OSError as error:
        raise _unreadable(file.path, error) from error


def _check_chunk(file: SourceFile, chunk: bytes, size: int, decoder: codecs.IncrementalDecoder) -> None:
    """`chunk` begins at byte `size`; an empty one ends the file."""
    broken = False
    try:
        decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError:
        broken = True
    if broken or b"\0" in chunk or not (chunk or size):
        scan = _scan(file.path, lambda n_bytes: None)  # whether the rest has NUL bytes decides
        if file.origin == "bundled" or (file.origin == "found" and (scan.nul_at is not None or not size)):
            raise NotText("binary" if scan.size else "empty")
        _check_text(file, scan)


def _scan(path: Path, advance: Callable[[int], object]) -> _Scan:
    size, nul_at, not_utf8_at = 0, None, None
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as stream:
            chunk = None
            while chunk != b"":
                chunk = stream.read(CHUNK_BYTES)  # the last, empty one tells the decoder that the file ends
                digest.update(chunk)
                if nul_at is None and (found := chunk.find(0)) >= 0:
                    nul_at = size + found
                if not_utf8_at is None:
                    held = len(decoder.getstate()[0])  # a character cut by the end of the chunk before
                    try:
                        decoder.decode(chunk, final=not chunk)
                    except UnicodeDecodeError as error:
                        not_utf8_at = size - held + error.start
                size += len(chunk)
                advance(len(chunk))
    except OSError as error:
        raise _unreadable(path, error) from error
    return _Scan(size, digest.hexdigest(), nul_at, not_utf8_at)


def _check_text(file: SourceFile, scan: _Scan) -> None:
    key = f"data.path={str(file.path)!r}"
    if not scan.size:
        raise DataError(f"{key}: has 0 bytes; a file given by name must not be empty")
    bad = [offset for offset in (scan.nul_at, scan.not_utf8_at) if offset is not None]
    if not bad:
        return
    if scan.nul_at == min(bad):
        raise DataError(f"{key}: NUL at byte {scan.nul_at}; a file given by name must be text, not binary")
    raise DataError(f"{key}: byte {scan.not_utf8_at} is not valid UTF-8; convert, move or hide the file")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"data.path={str(path)!r}: must be readable ({error.strerror})")
