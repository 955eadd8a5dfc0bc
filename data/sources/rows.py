"""Rows of data files: JSON lines (plain or compressed), parquet, arrow. A row with a text is a document."""

import codecs
import gzip
import io
import json
import logging
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lhtrain.data.errors import DataError
from lhtrain.data.sources.documents import Skip, Text, encoded
from lhtrain.data.sources.filters import Filters, look_up
from lhtrain.data.sources.local import find_files
from lhtrain.data.sources.paths import stamp
from lhtrain.data.sources.text import BOM, LFS, check_fetched, line_breaks
from lhtrain.data.sources.units import UNIT_BYTES, Item, Unit

JSON_LINES = (".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".xz", ".zst", ".zstd")
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".feather", ".ipc")
# Descriptions that `datasets` writes beside its arrow files; they are not data.
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
BATCH_ROWS = 64  # rows of a parquet or arrow file in memory at a time

Row = Mapping[str, Any]

log = logging.getLogger(__name__)


def row_units(paths: list[str]) -> Iterator[Unit]:
    """Yield the units of files and folders: parts of plain JSON lines, row groups of parquet, or whole files.

    Raises DataError: a missing path, or a file of another kind listed in data.path.
    """
    if not paths:
        raise DataError("data.path=null: data=files needs the path of a file or a folder, or a list of them")
    kinds = ", ".join([*JSON_LINES, *(f".jsonl{end}" for end in COMPRESSED), *PARQUET, *ARROW])
    others, n_others = "", 0
    for file in find_files("text", paths):
        ending = _ending(file.path)
        whole = Item(os.path.abspath(file.path), file.name, 0, file.size, stamp(file.path))
        if file.origin == "found" and file.path.name in DESCRIPTIONS:
            continue
        if not is_rows(file.path):
            if file.origin == "named":
                raise DataError(f"data.path={whole.path!r}: must end in one of {kinds}")
            others, n_others = others or whole.path, n_others + 1
        elif not file.size:
            if file.origin == "named":
                rule = "a file listed in data.path must not be empty"
                raise DataError(f"data.path={whole.path!r}: has 0 bytes; {rule}")
        elif ending in JSON_LINES:
            for start in range(0, file.size, UNIT_BYTES):
                stop = min(start + UNIT_BYTES, file.size)
                yield Unit("rows", (Item(whole.path, whole.name, start, stop, whole.stamp),), stop - start)
        elif ending in PARQUET:
            yield from _parquet_units(whole)
        else:
            yield Unit("rows", (whole,), file.size)
    if n_others:
        rule = f"data=files reads {kinds}"
        log.warning("data.path: skipped %d file(s) of other kinds, first %r; %s", n_others, others, rule)


def read_rows(
    item: Item, column: str, filters: Filters, advance: Callable[[int], object]
) -> Iterator[Text | Skip]:
    """Yield the documents of a file, or of a part of it. `advance` is called with the bytes of source read.

    Raises DataError: the content does not match the file name's ending, no such column, a text that is not a
    string.
    """
    ending = _ending(Path(item.path))
    rows: Iterator[tuple[object, Row]]
    try:
        if ending in PARQUET:
            rows = _parquet_rows(item, {column, *filters.columns}, advance)
        elif ending in ARROW:
            rows = _arrow_rows(item, advance)
        else:
            rows = _json_rows(item, advance)
        for place, row in rows:
            yield document_of(place, row, column, filters)
    except _damage() as error:
        _check_pointer(item.path)
        raise DataError(f"data.path={item.path!r}: must be readable and complete ({error})") from error


def document_of(place: object, row: Row, column: str, filters: Filters) -> Text | Skip:
    """Return the document of a row, or a Skip if the text is empty or null or a filter rejects the row.

    place: identifies the row in messages; converted to a string only when needed.
    Raises DataError: no such column, or a value that is not a string.
    """
    text = row[column] if column in row else look_up(row, column, "data.column", place)
    if isinstance(text, str):
        if not text:
            return Skip(place, "empty")
        if filters.passes(row, text, place):
            return Text(place, encoded(text), len(text))
        return Skip(place, "filtered", len(text))
    if text is None:
        return Skip(place, "empty")
    shown = repr(text) if len(repr(text)) < 80 else f"{repr(text)[:76]} …"
    rule = "must be a string or null; choose another column, or convert the file"
    raise DataError(f"data.column={column!r}: {place} has {shown} ({type(text).__name__}); {rule}")


def is_rows(path: Path) -> bool:
    """Return whether data=files reads a file with this name."""
    return _ending(path) in (*JSON_LINES, *PARQUET, *ARROW) or _is_compressed(path)


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _is_compressed(path: Path) -> bool:
    return _ending(path) in COMPRESSED and Path(path.stem).suffix.lower() in JSON_LINES


@dataclass(slots=True)
class _Line:
    """A line of a file, by its number or its first byte; line breaks are counted only when it is printed."""

    path: str
    number: int = 0
    byte: int = 0

    def __str__(self) -> str:
        number = self.number or 1 + line_breaks(self.path, self.byte)
        return f"{self.path!r} line {number}"


def _json_rows(item: Item, advance: Callable[[int], object]) -> Iterator[tuple[object, Row]]:
    """Yield the lines that begin in bytes start..stop of a file; all lines of a compressed file."""
    with Path(item.path).open("rb", buffering=1 << 20) as raw:
        stream = _decompressed(raw, _ending(Path(item.path)))
        plain, at = stream is raw, 0
        if plain and item.start:
            at = _next_line(raw, item.start, item.stop)
        number, reported = 0, item.start
        while not plain or at < item.stop:
            line = stream.readline()
            if not line:
                break
            number += 1
            place = _Line(item.path, byte=at) if plain else _Line(item.path, number)
            if not at:
                check_fetched(item.path, line)
                _check_encoding(line, place)
                line, at = line.removeprefix(BOM), len(line) - len(line.removeprefix(BOM))
            at += len(line)
            done = min(at, item.stop) if plain else raw.tell()
            advance(max(done - reported, 0))
            reported = max(done, reported)
            if line.strip():
                yield place, _parsed(line, place)


def _next_line(raw: IO[bytes], start: int, stop: int) -> int:
    """Move to the first line that begins at or after `start` and return its position.

    A line that extends beyond `stop` is not read to its end.
    """
    at = start - 1  # the line that contains byte start - 1 belongs to the previous part
    raw.seek(at)
    while at < stop:
        line = raw.readline(1 << 20)
        at += len(line)
        if line.endswith(b"\n") or not line:
            break
    return at


def _check_encoding(line: bytes, place: object) -> None:
    """Raise DataError if the first line of a file is UTF-16 or UTF-32."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"{\0", b"\0{", b"\0\0\0{")):
        rule = "must be UTF-8, looks like UTF-16 or UTF-32; convert the file: iconv -f UTF-16 -t UTF-8"
        raise DataError(f"data.path: {place}: {rule}")


def _parsed(line: bytes, place: object) -> Row:
    rule = "must be one JSON object per line, in UTF-8"
    try:
        row = _DECODER.decode(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        if line.startswith(BOM):  # several files, each with a mark, were joined into one
            return _parsed(line.removeprefix(BOM), place)
        hint = _ARRAY if line.strip() in (b"[", b"{") else ""
        raise DataError(f"data.path: {place}: {rule}{hint} ({error})") from error
    if not isinstance(row, dict):
        hint = _ARRAY if isinstance(row, list) else ""
        raise DataError(f"data.path: {place}: {rule}, not {type(row).__name__}{hint}")
    if isinstance(row, _Doubled):
        rule = "each key must appear only once; otherwise its value is ambiguous"
        raise DataError(f"data.path: {place}: has the key {row.twice!r} more than once; {rule}")
    return row


_ARRAY = ". To convert the file: jq -c '.[]' for an array of objects, jq -c '.' for objects on several lines"


class _Doubled(dict[str, Any]):
    """A JSON object with a key that appears twice."""

    twice = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    doubled, names = _Doubled(found), [name for name, _ in pairs]
    doubled.twice = next(name for name in names if names.count(name) > 1)
    return doubled


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _decompressed(raw: IO[bytes], ending: str) -> Any:
    if ending == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 20)  # type: ignore[arg-type]
    if ending == ".xz":
        return io.BufferedReader(_Frames(raw, lzma.LZMADecompressor, padding=b"\0"), 1 << 20)
    if ending in (".zst", ".zstd"):
        try:
            import zstandard
        except ImportError as error:
            rule = ".zst files need the package `zstandard`: pip install 'lhtrain[hf]'"
            raise DataError(f"data.path: {rule}") from error
        start = zstandard.ZstdDecompressor().decompressobj
        return io.BufferedReader(_Frames(raw, start, zstandard.ZstdError), 1 << 20)
    return raw


class _Frames(io.RawIOBase):
    """Reads the text of compressed frames that follow each other, with optional `padding` between them.

    A truncated frame, or other bytes after a frame, are errors; the libraries' own readers take them for the
    end of the file.
    start: makes a decompressor for one frame. failed: the exception that it raises.
    """

    def __init__(
        self,
        raw: IO[bytes],
        start: Callable[[], Any],
        failed: type[Exception] = lzma.LZMAError,
        padding: bytes = b"",
    ) -> None:
        self.raw, self.start, self.failed, self.padding = raw, start, failed, padding
        self.frame: Any = None
        self.packed, self.text = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.text:
            packed = self.packed or self.raw.read(1 << 14)  # little: it may decompress to very much
            if not packed:
                if self.frame is not None:
                    raise OSError("the compressed data end in the middle of a frame")
                return 0
            if self.frame is None:
                packed = packed.lstrip(self.padding)
                self.packed = packed
                if not packed:
                    continue
                self.frame = self.start()
            try:
                self.text = memoryview(self.frame.decompress(packed))
            except self.failed as error:
                raise OSError(str(error)) from error
            self.packed = b""
            if self.frame.eof:
                self.packed, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.text))
        buffer[:count], self.text = self.text[:count], self.text[count:]
        return count


def _parquet_units(whole: Item) -> Iterator[Unit]:
    """Yield units of consecutive row groups of at most UNIT_BYTES in total, or one larger row group."""
    with _parquet_file(whole.path) as file:
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    first, size = 0, 0
    for number, n_bytes in enumerate([*groups, None]):
        if number > first and (n_bytes is None or size + n_bytes > UNIT_BYTES):
            yield Unit("rows", (Item(whole.path, whole.name, first, number, whole.stamp),), size)
            first, size = number, 0
        size += n_bytes or 0


def _parquet_file(path: str) -> Any:
    _, parquet = _pyarrow("parquet")
    try:
        return parquet.ParquetFile(path)
    except _damage() as error:
        _check_pointer(path)
        raise DataError(f"data.path={path!r}: must be a complete parquet file ({error})") from error


@dataclass(slots=True)
class _Row:
    """The position of a row in a parquet or arrow file, from 0."""

    path: str
    number: int
    group: int | None = None

    def __str__(self) -> str:
        group = "" if self.group is None else f" row group {self.group}"
        return f"{self.path!r}{group} row {self.number}"


def _parquet_rows(
    item: Item, wanted: set[str], advance: Callable[[int], object]
) -> Iterator[tuple[object, Row]]:
    with _parquet_file(item.path) as file:
        columns = _top_level(wanted, file.schema_arrow.names)
        for group in range(item.start, item.stop):
            number, metadata = 0, file.metadata.row_group(group)
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                for row in batch.to_pylist():
                    yield _Row(item.path, number, group), row
                    number += 1
                advance(metadata.total_byte_size * batch.num_rows // max(metadata.num_rows, 1))


def _top_level(wanted: set[str], there: list[str]) -> list[str] | None:
    """Return the columns to read; None (all) if one is missing, so that the error can list all of them."""
    top = {name if name in there else name.split(".")[0] for name in wanted}
    return sorted(top) if top <= set(there) else None


def _arrow_rows(item: Item, advance: Callable[[int], object]) -> Iterator[tuple[object, Row]]:
    pyarrow, ipc = _pyarrow("ipc")
    number = 0
    with pyarrow.memory_map(item.path) as source:
        for table in _arrow_batches(pyarrow, ipc, source, item.path):
            for start in range(0, table.num_rows, BATCH_ROWS):
                part = table.slice(start, BATCH_ROWS)
                for row in part.to_pylist():
                    yield _Row(item.path, number), row
                    number += 1
                advance(part.nbytes)  # about the same as in the file, unless the file is compressed


_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def _arrow_batches(pyarrow: Any, ipc: Any, source: Any, path: str) -> Iterator[Any]:
    """Yield the record batches of an arrow file, or of an arrow stream, which `datasets` writes.

    Each is validated: a damaged batch may have offsets beyond its buffers.
    """
    try:
        try:
            file = ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        except pyarrow.ArrowInvalid:
            source.seek(max(source.size() - len(_END_OF_STREAM), 0))
            if source.read() != _END_OF_STREAM:  # pyarrow does not notice a cut between two batches
                raise
            source.seek(0)
            batches = ipc.open_stream(source)
        for batch in batches:
            batch.validate(full=True)
            yield batch
    except _damage() as error:
        _check_pointer(path)
        raise DataError(f"data.path={path!r}: must be a complete arrow file ({error})") from error


def _check_pointer(path: str) -> None:
    """Raise DataError if a file that could not be read is a Git LFS pointer."""
    with suppress(OSError), Path(path).open("rb") as stream:
        check_fetched(path, stream.read(len(LFS)))


def _damage() -> tuple[type[Exception], ...]:
    """Return the exceptions that the libraries raise for truncated, damaged or unexpected files.

    ValueError: text that is not UTF-8, and some errors of pyarrow. ArrowException: its other errors.
    """
    errors = (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError)
    pyarrow = sys.modules.get("pyarrow")
    return errors if pyarrow is None else (*errors, pyarrow.ArrowException)


def _pyarrow(part: str) -> tuple[Any, Any]:
    try:
        import importlib

        return importlib.import_module("pyarrow"), importlib.import_module(f"pyarrow.{part}")
    except ImportError as error:
        rule = "parquet and arrow files need the package `pyarrow`: pip install 'lhtrain[hf]'"
        raise DataError(f"data.path: {rule}") from error
