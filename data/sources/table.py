"""The table of sources: how each kind of source is planned and read."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources.documents import Skip, Text
from lhtrain.data.sources.filters import Filters
from lhtrain.data.sources.hub import hub_units, read_hub
from lhtrain.data.sources.local import SourceFile, find_files
from lhtrain.data.sources.paths import stamp
from lhtrain.data.sources.repositories import read_repository, repositories
from lhtrain.data.sources.rows import read_rows, row_units
from lhtrain.data.sources.text import checked_chunks
from lhtrain.data.sources.units import Item, Unit, grouped

Advance = Callable[[int], object]  # called with the number of bytes read from the source


@dataclass(frozen=True)
class Reader:
    """A kind of source.

    plan: returns the units of a recipe; their `Unit.reader` is the key in READERS. read: yields the documents
    of a unit in order. kinds: the kinds of files it reads, for the error that there are none.
    """

    sources: tuple[str, ...]  # values of data.source
    plan: Callable[[Recipe], Iterable[Unit]]
    read: Callable[[Unit, Recipe, Advance], Iterator[Text | Skip]]
    kinds: str = ""


def reader_of(source: str) -> Reader:
    """Return the reader for a value of data.source, which must be one of PREPARABLE."""
    return next(reader for reader in READERS.values() if source in reader.sources)


def _text_units(recipe: Recipe) -> Iterator[Unit]:
    files = find_files(recipe.source, recipe.path or None)
    for items in grouped(
        Item(os.path.abspath(file.path), file.name, 0, file.size, stamp(file.path), file.origin)
        for file in files
    ):
        yield Unit("text", tuple(items), sum(item.stop for item in items))


def _read_texts(unit: Unit, recipe: Recipe, advance: Advance) -> Iterator[Text | Skip]:
    for item in unit.items:
        file = SourceFile(item.name, Path(item.path), item.stop, item.origin)  # type: ignore[arg-type]
        yield Text(item.path, checked_chunks(file, advance))


def _code_units(recipe: Recipe) -> Iterator[Unit]:
    for items, size in repositories(recipe.paths):
        yield Unit("code", tuple(items), size)


def _read_code(unit: Unit, recipe: Recipe, advance: Advance) -> Iterator[Text | Skip]:
    return read_repository(unit.items, advance)


def _row_units(recipe: Recipe) -> Iterator[Unit]:
    return row_units(recipe.paths)


def _read_rows(unit: Unit, recipe: Recipe, advance: Advance) -> Iterator[Text | Skip]:
    filters = Filters(recipe.filters)
    for item in unit.items:
        yield from read_rows(item, recipe.column, filters, advance)


def _read_hub(unit: Unit, recipe: Recipe, advance: Advance) -> Iterator[Text | Skip]:
    return read_hub(unit, recipe.column, Filters(recipe.filters), advance)


READERS = {
    "text": Reader(("stdlib", "text"), _text_units, _read_texts),
    "code": Reader(("code",), _code_units, _read_code),
    "rows": Reader(
        ("files",), _row_units, _read_rows, " (JSON lines, plain or compressed, parquet or arrow)"
    ),
    "hub": Reader(("hf",), hub_units, _read_hub),
}
