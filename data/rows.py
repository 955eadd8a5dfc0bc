"""Rows of files: JSON lines, plain or compressed, parquet and arrow; each row with a text is a document."""

import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lhtrain.data.documents import Skip, Text, encoded
from lhtrain.data.errors import DataError
from lhtrain.data.filters import Filters
from lhtrain.data.plan import UNIT_BYTES, Item, Unit, stamp
from lhtrain.data.source import find_files

JSON_LINES = (".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".xz", ".zst", ".zstd")
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".feather", ".ipc")
BATCH_ROWS = 64  # of a parquet or arrow file in memory at a time

Row = Mapping[str, Any]


def row_units(paths: list[str]) -> Iterator[Unit]:
    """Units of files and of what folders hold: parts of plain JSON lines, row groups of parquet, else whole
    files. Raises DataError: a missing path, a file given by name of another kind."""
    if not paths:
        raise DataError("data.path=null: data=files needs the path of a file or a folder, or a list of them")
    for file in find_files("text", paths):
        ending = _ending(file.path)
        whole = Item(os.path.abspath(file.path), file.name, 0, file.size, stamp(file.path))
        if not file.size:
            continue
        if ending in JSON_LINES:
            for start in range(0, file.size, UNIT_BYTES):
                stop = min(start + UNIT_BYTES, file.size)
                yield Unit("rows", (Item(whole.path, whole.name, start, stop, whole.stamp),), stop - start)
        elif ending in PARQUET:
            yield from _parquet_units(whole)
        elif ending in ARROW or _is_compressed(file.path):
            yield Unit("rows", (whole,), file.size)
        elif file.origin == "named":
            kinds = ", ".join([*JSON_LINES, *(f".jsonl{end}" for end in COMPRESSED), *PARQUET, *ARROW])
            raise DataError(f"data.path={whole.path!r}: must be one of {kinds}")


def read_rows(
    item: Item, column: str, filters: Filters, advance: Callable[[int], object]
) -> Iterator[Text | Skip]:
    """The documents of a file, or of its part. `advance` is called with the bytes of the source done.

    Raises DataError: not what its name says, no such column, a text that is no string.
    """
    ending = _ending(Path(item.path))
    try:
        if ending in PARQUET:
            rows = _parquet_rows(item, column, filters, advance)
        elif ending in ARROW:
            rows = _arrow_rows(item, advance)
        else:
            rows = _json_rows(item, advance)
        for name, row in rows:
            yield document_of(name, row, column, filters)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"data.path={item.path!r}: must be readable and whole ({error})") from error


def document_of(name: str, row: Row, column: str, filters: Filters) -> Text | Skip:
    """A row's document, unless it is empty or a filter keeps it out. Raises DataError: no text in it."""
    if column not in row:
        there = ", ".join(sorted(row)) or "none"
        raise DataError(f"data.column={column!r}: {name} has no such column; there is {there}")
    text = row[column]
    if not text:
        return Skip(name, "empty")
    if not isinstance(text, str):
        raise DataError(f"data.column={column!r}: {name} must hold a text, not {type(text).__name__}")
    return Text(name, encoded(text)) if filters.passes(row, text) else Skip(name, "filtered")


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _is_compressed(path: Path) -> bool:
    return _ending(path) in COMPRESSED and Path(path.stem).suffix.lower() in JSON_LINES


def _json_rows(item: Item, advance: Callable[[int], object]) -> Iterator[tuple[str, Row]]:
    """Lines that begin in start..stop. Compressed files are read whole."""
    with Path(item.path).open("rb", buffering=1 << 20) as raw:
        stream = _decompressed(raw, _ending(Path(item.path)))
        plain, at = stream is raw, 0
        if plain and item.start:
            raw.seek(item.start - 1)  # the line that holds the byte before belongs to the part before
            at = item.start - 1 + len(raw.readline())
        number, told = 0, item.start
        while not plain or at < item.stop:
            line = stream.readline()
            if not line:
                break
            where = f"{item.path!r} byte {at}" if plain else f"{item.path!r} line {number + 1}"
            at, number = at + len(line), number + 1
            done = min(at, item.stop) if plain else raw.tell()
            advance(max(done - told, 0))
            told = max(done, told)
            if line.strip():
                yield where, _parsed(line, where)


def _parsed(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"data.path: {where}: must be a JSON object a line ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"data.path: {where}: must be a JSON object a line, not {type(row).__name__}")
    return row


def _decompressed(raw: IO[bytes], ending: str) -> Any:
    if ending == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 20)  # type: ignore[arg-type]
    if ending == ".xz":
        return io.BufferedReader(lzma.LZMAFile(raw), 1 << 20)  # type: ignore[arg-type, type-var]
    if ending in (".zst", ".zstd"):
        return io.BufferedReader(_Zstd(raw), 1 << 20)
    return raw


class _Zstd(io.RawIOBase):
    """The text of zstandard frames, one after another. A missing end is an error, which the library's own
    reader does not tell from the end of the file."""

    def __init__(self, raw: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise DataError("data.path: .zst needs the package: pip install 'lhtrain[hf]'") from error
        self.raw, self.zstandard = raw, zstandard
        self.frame: Any = None
        self.packed, self.text = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.text:
            packed = self.packed or self.raw.read(1 << 14)  # a little can hold very much
            if not packed:
                if self.frame is not None and not self.frame.eof:
                    raise OSError("the compressed data end within a frame")
                return 0
            if self.frame is None or self.frame.eof:
                self.frame = self.zstandard.ZstdDecompressor().decompressobj()
            try:
                self.text = memoryview(self.frame.decompress(packed))
            except self.zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            self.packed = self.frame.unused_data if self.frame.eof else b""
        count = min(len(buffer), len(self.text))
        buffer[:count], self.text = self.text[:count], self.text[count:]
        return count


def _parquet_units(whole: Item) -> Iterator[Unit]:
    """Row groups together, up to UNIT_BYTES."""
    file = _parquet_file(whole.path)
    groups = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    first, size = 0, 0
    for number, n_bytes in enumerate([*groups, None]):
        if number > first and (n_bytes is None or size + n_bytes > UNIT_BYTES):
            yield Unit("rows", (Item(whole.path, whole.name, first, number, whole.stamp),), size)
            first, size = number, 0
        size += n_bytes or 0


def _parquet_file(path: str) -> Any:
    pyarrow, parquet = _pyarrow("parquet")
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"data.path={path!r}: must be a parquet file ({error})") from error


def _parquet_rows(
    item: Item, column: str, filters: Filters, advance: Callable[[int], object]
) -> Iterator[tuple[str, Row]]:
    file = _parquet_file(item.path)
    there = set(file.schema_arrow.names)
    columns = sorted({column, *filters.columns} & there) if column in there else None
    for group in range(item.start, item.stop):
        number, about = 0, file.metadata.row_group(group)
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
            for row in batch.to_pylist():
                yield f"{item.path!r} row group {group} row {number}", row
                number += 1
            advance(about.total_byte_size * batch.num_rows // about.num_rows)


def _arrow_rows(item: Item, advance: Callable[[int], object]) -> Iterator[tuple[str, Row]]:
    pyarrow, ipc = _pyarrow("ipc")
    number = 0
    with pyarrow.memory_map(item.path) as source:
        for table in _arrow_batches(pyarrow, ipc, source, item.path):
            for start in range(0, table.num_rows, BATCH_ROWS):
                part = table.slice(start, BATCH_ROWS)
                for row in part.to_pylist():
                    yield f"{item.path!r} row {number}", row
                    number += 1
                advance(part.nbytes)  # near enough to those of the file, unless it is compressed


def _arrow_batches(pyarrow: Any, ipc: Any, source: Any, path: str) -> Iterator[Any]:
    """Record batches of an arrow file, or of a stream, which is what `datasets` writes."""
    try:
        try:
            file = ipc.open_file(source)
            yield from (file.get_batch(i) for i in range(file.num_record_batches))
        except pyarrow.ArrowInvalid:
            source.seek(0)
            yield from ipc.open_stream(source)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"data.path={path!r}: must be an arrow file ({error})") from error


def _pyarrow(part: str) -> tuple[Any, Any]:
    try:
        import importlib

        return importlib.import_module("pyarrow"), importlib.import_module(f"pyarrow.{part}")
    except ImportError as error:
        rule = "parquet and arrow files need the package: pip install 'lhtrain[hf]'"
        raise DataError(f"data.path: {rule}") from error
