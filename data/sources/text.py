"""Text files: checks that a file is text, hashes its content, and reads it in chunks, never as a whole."""

import codecs
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lhtrain.data.errors import DataError
from lhtrain.data.sources.local import SourceFile
from lhtrain.data.sources.paths import unreadable

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16  # read from a file that is not UTF-8, to find out its kind
BOM = codecs.BOM_UTF8  # some editors write it at the start of a file; it is not part of the text
MAGIC = {  # first bytes of common files that are not plain text -> kind
    b"\x1f\x8b": "compressed by gzip",
    b"(\xb5/\xfd": "compressed by zstd",
    b"\xfd7zXZ\0": "compressed by xz",
    b"BZh": "compressed by bzip2",
    b"PK\x03\x04": "a zip archive (perhaps .docx, .epub, .xlsx)",
    b"%PDF": "a PDF",
    b"PAR1": "a parquet file, which data=files reads",
    b"ARROW1": "an arrow file, which data=files reads",
    b"SQLite": "a database",
}


LFS = b"version https://git-lfs.github.com/spec/"  # start of the pointer file that stands for a large file


class NotText(Exception):
    """A file that must be skipped. The argument is the reason: "binary" or "empty"."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """A text file.

    size: in bytes. sha256: of the content, hex. Both leave out the first `skip` bytes, a byte order mark.
    """

    name: str
    path: Path
    size: int
    sha256: str
    skip: int = 0


@dataclass(frozen=True)
class _Scan:
    """The result of one pass over a file. Offsets are in bytes of the text, None if there is no such byte."""

    size: int
    sha256: str
    nul_at: int | None
    not_utf8_at: int | None
    skip: int


def read_documents(
    files: list[SourceFile], advance: Callable[[int], object] = lambda n_bytes: None
) -> list[Document]:
    """Return the text files in `files`, sorted by name, then hash. `advance` is called with the bytes read.

    Empty files and binary files (with a NUL byte) found in a folder are skipped; one warning counts the
    binary ones. Raises DataError: a file listed in data.path is empty or binary; text is not UTF-8 (the
    message has the line); an unreadable file.
    """
    documents, binary = [], []
    for file in files:
        scan = _scan(file.path, advance)
        broken = scan.nul_at is not None or scan.not_utf8_at is not None
        if file.origin == "bundled" and (broken or not scan.size):
            continue
        if _is_skipped(file, scan):
            binary += [file] if scan.size else []
            continue
        _check_text(file, scan)
        documents.append(Document(file.name, file.path, scan.size, scan.sha256, scan.skip))
    if binary:
        log.warning("data.path: skipped %d binary file(s), first %r%s", *_first_and_kinds(binary))
    return sorted(documents, key=lambda document: (document.name, document.sha256))


def read_chunks(document: Document, start: int, stop: int) -> Iterator[bytes]:
    """Yield bytes start..stop of a document, at most CHUNK_BYTES at a time. Raises DataError: unreadable."""
    try:
        with document.path.open("rb") as stream:
            stream.seek(document.skip + start)
            while start < stop and (chunk := stream.read(min(CHUNK_BYTES, stop - start))):
                start += len(chunk)
                yield chunk
    except OSError as error:
        raise unreadable(document.path, error) from error


def is_text(content: bytes) -> bool:
    """Return whether `content` is valid UTF-8 without NUL bytes."""
    if b"\0" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def checked_chunks(file: SourceFile, advance: Callable[[int], object]) -> Iterator[bytes]:
    """Yield the bytes of a text file, at most CHUNK_BYTES at a time, and check them on the way.

    `advance` is called with the number of bytes. Raises NotText where `read_documents` skips a file,
    DataError where it raises one. This can happen after some chunks, so the caller must be able to discard
    them.
    """
    size, decoder = 0, codecs.getincrementaldecoder("utf-8")()
    try:
        with file.path.open("rb") as stream:
            advance(_past_bom(stream))
            while chunk := stream.read(CHUNK_BYTES):
                _check_chunk(file, chunk, size, decoder)
                size += len(chunk)
                yield chunk
                advance(len(chunk))
            _check_chunk(file, b"", size, decoder)
    except OSError as error:
        raise unreadable(file.path, error) from error


def check_fetched(path: Path | str, head: bytes) -> None:
    """Raise DataError if a file is a Git LFS pointer. head: the first bytes of the file."""
    if head.startswith(LFS):
        rule = "is a Git LFS pointer, not the file itself; fetch the file: git lfs pull"
        raise DataError(f"data.path={str(path)!r}: {rule}")


def _check_chunk(file: SourceFile, chunk: bytes, size: int, decoder: codecs.IncrementalDecoder) -> None:
    """Check a chunk that begins at byte `size`; an empty chunk means the end of the file."""
    broken = False
    if not size:
        check_fetched(file.path, chunk)
    try:
        decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError:
        broken = True
    if broken or b"\0" in chunk or not (chunk or size):
        scan = _scan(file.path, lambda n_bytes: None)  # NUL bytes in the rest decide whether it is binary
        if file.origin == "bundled" or _is_skipped(file, scan):
            raise NotText("binary" if scan.size else "empty")
        _check_text(file, scan)


def _is_skipped(file: SourceFile, scan: _Scan) -> bool:
    """Return whether a file found in a folder is empty or binary. UTF-16 has NUL bytes but is not binary."""
    binary = scan.nul_at is not None and _wide_encoding(file.path) is None
    return file.origin == "found" and (binary or not scan.size)


def _scan(path: Path, advance: Callable[[int], object]) -> _Scan:
    size, nul_at, not_utf8_at = 0, None, None
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as stream:
            skip = _past_bom(stream)
            advance(skip)
            chunk = None
            while chunk != b"":
                chunk = stream.read(
                    CHUNK_BYTES
                )  # the last one is empty: for the decoder, the end of the file
                if not size:
                    check_fetched(path, chunk)
                digest.update(chunk)
                if nul_at is None and (found := chunk.find(0)) >= 0:
                    nul_at = size + found
                if not_utf8_at is None:
                    held = len(decoder.getstate()[0])  # bytes of a character that began in the previous chunk
                    try:
                        decoder.decode(chunk, final=not chunk)
                    except UnicodeDecodeError as error:
                        not_utf8_at = size - held + error.start
                size += len(chunk)
                advance(len(chunk))
    except OSError as error:
        raise unreadable(path, error) from error
    return _Scan(size, digest.hexdigest(), nul_at, not_utf8_at, skip)


def _past_bom(stream) -> int:  # type: ignore[no-untyped-def]
    """Move a stream from its beginning past a byte order mark; return the mark's length, 0 without a mark."""
    skip = len(BOM) if stream.read(len(BOM)) == BOM else 0
    stream.seek(skip)
    return skip


def _check_text(file: SourceFile, scan: _Scan) -> None:
    key = f"data.path={str(file.path)!r}"
    if not scan.size:
        raise DataError(f"{key}: has 0 bytes; a file listed in data.path must not be empty")
    bad = [offset for offset in (scan.nul_at, scan.not_utf8_at) if offset is not None]
    if not bad:
        return
    if encoding := _wide_encoding(file.path):
        raise DataError(f"{key}: is {encoding}, must be UTF-8; convert it: iconv -f {encoding} -t UTF-8")
    at = min(bad) + scan.skip
    where = f"line {_line_of(file.path, at)} (byte {at})"
    kind = f"; the file is {found}" if (found := _kind(file.path)) else ""
    if scan.nul_at == min(bad):
        raise DataError(f"{key}: NUL in {where}{kind}; a file listed in data.path must be text, not binary")
    remedy = "unpack, convert, move or hide the file (Latin-1: iconv -f LATIN1 -t UTF-8)"
    raise DataError(f"{key}: {where} is not valid UTF-8{kind}; {remedy}")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error


def _wide_encoding(path: Path) -> str | None:
    """Return "UTF-16" or "UTF-32" if the file begins with that byte order mark and decodes, else None."""
    head = _head(path)
    marks = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"}
    marks |= {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
    for mark, encoding in marks.items():  # UTF-32 first: its mark begins with the mark of UTF-16
        if head.startswith(mark):
            try:
                codecs.getincrementaldecoder(encoding)().decode(head, final=len(head) < HEAD_BYTES)
            except UnicodeDecodeError:
                continue
            return encoding
    return None


def _kind(path: Path) -> str | None:
    """Return the kind of a file that is not text, if its first bytes show it."""
    head = _head(path)
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)


def _line_of(path: Path, at: int) -> int:
    """Return the number of the line that contains byte `at`, from 1."""
    return 1 + line_breaks(path, at)


def line_breaks(path: Path | str, stop: int) -> int:
    """Return the number of line breaks in the first `stop` bytes of a file."""
    count, path = 0, Path(path)
    try:
        with path.open("rb") as stream:
            while stop > 0 and (chunk := stream.read(min(CHUNK_BYTES, stop))):
                count, stop = count + chunk.count(b"\n"), stop - len(chunk)
    except OSError as error:
        raise unreadable(path, error) from error
    return count


def _first_and_kinds(files: list[SourceFile]) -> tuple[int, str, str]:
    """Return for the warning: the number of files, the first path, and a list of known kinds with counts."""
    kinds = Counter(kind for file in files if (kind := _kind(file.path)))
    listed = "".join(f"; {count} {kind}" for kind, count in kinds.most_common())
    return len(files), str(files[0].path), listed
