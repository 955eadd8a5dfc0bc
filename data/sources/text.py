"""Documents: files checked to be text, with the hash of their content. Read in pieces, never whole."""

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
HEAD_BYTES = 1 << 16  # of a file that is no UTF-8, to say what it is instead
BOM = codecs.BOM_UTF8  # some editors begin a file with it; it says nothing and is no part of the text
MAGIC = {  # how files begin that people take for text, or that hold text in another form
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


LFS = b"version https://git-lfs.github.com/spec/"  # what a clone has in place of a large file


class NotText(Exception):
    """A file that is to be skipped; its argument says why."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """One text. size in bytes; sha256 of the content, hex; neither counts a byte order mark, which takes the
    first `skip` bytes of the file."""

    name: str
    path: Path
    size: int
    sha256: str
    skip: int = 0


@dataclass(frozen=True)
class _Scan:
    """What one pass over a file shows; offsets in bytes of the text, None where there is no such byte."""

    size: int
    sha256: str
    nul_at: int | None
    not_utf8_at: int | None
    skip: int


def read_documents(
    files: list[SourceFile], advance: Callable[[int], object] = lambda n_bytes: None
) -> list[Document]:
    """The text files among `files`, maybe none, by name, then hash; `advance` is called with the bytes read.

    Empty files and binary files (with NUL bytes) met in a folder are skipped, the binary ones with one
    counted warning. Raises DataError: a file the user named that is empty or binary, text that is not
    UTF-8 (with the line), an unreadable file.
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
        log.warning("data.path: skipped %d binary file(s), the first %r%s", *_first_and_kinds(binary))
    return sorted(documents, key=lambda document: (document.name, document.sha256))


def read_chunks(document: Document, start: int, stop: int) -> Iterator[bytes]:
    """Bytes start..stop of a document, CHUNK_BYTES at most at a time. DataError: unreadable."""
    try:
        with document.path.open("rb") as stream:
            stream.seek(document.skip + start)
            while start < stop and (chunk := stream.read(min(CHUNK_BYTES, stop - start))):
                start += len(chunk)
                yield chunk
    except OSError as error:
        raise unreadable(document.path, error) from error


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
    """The bytes of a text file, CHUNK_BYTES at most at a time, checked as they pass; `advance` is called with
    their number.

    Raises NotText where `read_documents` skips a file, DataError where it refuses one; so what was taken from
    a file may have to be given back.
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
    """Raises DataError: `head`, how a file begins, is that of a pointer of Git LFS."""
    if head.startswith(LFS):
        rule = "is a pointer of Git LFS, not the file itself; fetch it: git lfs pull"
        raise DataError(f"data.path={str(path)!r}: {rule}")


def _check_chunk(file: SourceFile, chunk: bytes, size: int, decoder: codecs.IncrementalDecoder) -> None:
    """`chunk` begins at byte `size`; an empty one ends the file."""
    broken = False
    if not size:
        check_fetched(file.path, chunk)
    try:
        decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError:
        broken = True
    if broken or b"\0" in chunk or not (chunk or size):
        scan = _scan(file.path, lambda n_bytes: None)  # whether the rest has NUL bytes decides
        if file.origin == "bundled" or _is_skipped(file, scan):
            raise NotText("binary" if scan.size else "empty")
        _check_text(file, scan)


def _is_skipped(file: SourceFile, scan: _Scan) -> bool:
    """Whether it is a file of a folder that is empty or binary. UTF-16 has NUL bytes too, but is text."""
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
                chunk = stream.read(CHUNK_BYTES)  # the last, empty one tells the decoder that the file ends
                if not size:
                    check_fetched(path, chunk)
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
        raise unreadable(path, error) from error
    return _Scan(size, digest.hexdigest(), nul_at, not_utf8_at, skip)


def _past_bom(stream) -> int:  # type: ignore[no-untyped-def]
    """Move a stream from its beginning past a byte order mark; returns its length, 0 for none."""
    skip = len(BOM) if stream.read(len(BOM)) == BOM else 0
    stream.seek(skip)
    return skip


def _check_text(file: SourceFile, scan: _Scan) -> None:
    key = f"data.path={str(file.path)!r}"
    if not scan.size:
        raise DataError(f"{key}: has 0 bytes; a file given by name must not be empty")
    bad = [offset for offset in (scan.nul_at, scan.not_utf8_at) if offset is not None]
    if not bad:
        return
    if encoding := _wide_encoding(file.path):
        raise DataError(f"{key}: is {encoding}, must be UTF-8; convert it: iconv -f {encoding} -t UTF-8")
    at = min(bad) + scan.skip
    where = f"line {_line_of(file.path, at)} (byte {at})"
    kind = f"; it is {what}" if (what := _kind(file.path)) else ""
    if scan.nul_at == min(bad):
        raise DataError(f"{key}: NUL in {where}{kind}; a file given by name must be text, not binary")
    remedy = "unpack, convert, move or hide the file (Latin-1: iconv -f LATIN1 -t UTF-8)"
    raise DataError(f"{key}: {where} is not valid UTF-8{kind}; {remedy}")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error


def _wide_encoding(path: Path) -> str | None:
    """UTF-16 or UTF-32 if the file begins with that byte order mark and is text in it."""
    head = _head(path)
    marks = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"}
    marks |= {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
    for mark, encoding in marks.items():  # UTF-32 first: its mark begins with that of UTF-16
        if head.startswith(mark):
            try:
                codecs.getincrementaldecoder(encoding)().decode(head, final=len(head) < HEAD_BYTES)
            except UnicodeDecodeError:
                continue
            return encoding
    return None


def _kind(path: Path) -> str | None:
    """What a file is that is no text, where its first bytes tell."""
    head = _head(path)
    return next((what for magic, what in MAGIC.items() if head.startswith(magic)), None)


def _line_of(path: Path, at: int) -> int:
    """The line that byte `at` is in, from 1."""
    return 1 + line_breaks(path, at)


def line_breaks(path: Path | str, stop: int) -> int:
    """Line breaks in the first `stop` bytes of a file."""
    count, path = 0, Path(path)
    try:
        with path.open("rb") as stream:
            while stop > 0 and (chunk := stream.read(min(CHUNK_BYTES, stop))):
                count, stop = count + chunk.count(b"\n"), stop - len(chunk)
    except OSError as error:
        raise unreadable(path, error) from error
    return count


def _first_and_kinds(files: list[SourceFile]) -> tuple[int, str, str]:
    """For the warning: how many, the first, and how many of each kind where their first bytes tell."""
    kinds = Counter(what for file in files if (what := _kind(file.path)))
    told = "".join(f"; {count} {what}" for what, count in kinds.most_common())
    return len(files), str(files[0].path), told
