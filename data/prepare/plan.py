"""The plan: a source cut into units, in an order that depends on the source alone. A unit becomes a shard."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources.local import SourceFile, find_files, is_prepared
from lhtrain.data.sources.paths import stamp

UNIT_BYTES = 1 << 26  # of source: so much a shard holds, unless one file or document is larger


@dataclass(frozen=True)
class Item:
    """A file, or its part start..stop in what `Unit.reader` counts; stamp: its size and time of change."""

    path: str
    name: str
    start: int = 0
    stop: int = 0
    stamp: str = ""
    origin: str = "found"


@dataclass(frozen=True)
class Unit:
    """reader: "text", "code", "rows" or "hub". size: bytes of source to be read, 0 where nobody knows."""

    reader: str
    items: tuple[Item, ...]
    size: int = 0
    options: dict[str, object] = field(default_factory=dict)


def make_plan(recipe: Recipe) -> list[Unit]:
    """The units of a recipe. Raises DataError: a source that is missing, unreadable or empty."""
    if recipe.source in ("stdlib", "text"):
        units = _text_units(find_files(recipe.source, recipe.path or None))
    elif recipe.source == "code":
        from lhtrain.data.sources.repositories import repositories

        units = [Unit("code", tuple(items), size) for items, size in repositories(recipe.paths)]
    elif recipe.source == "files":
        from lhtrain.data.sources.rows import row_units

        units = list(row_units(recipe.paths))
    else:
        from lhtrain.data.sources.hub import hub_units

        units = hub_units(recipe)
    if not units:
        kinds = " (JSON lines, plain or compressed, parquet or arrow)" if recipe.source == "files" else ""
        if any(is_prepared(path) for path in recipe.paths):
            kinds += "; it is a folder of prepared shards, for data=prepared"
        raise DataError(f"data.path={recipe.path!r}: must hold at least one file to read{kinds}")
    return units


def plan_fingerprint(recipe: Recipe, tokenizer: str, units: Iterable[Unit]) -> str:
    """32 hex digits of everything that decides the tokens; `tokenizer` is its fingerprint."""
    decided = [recipe.as_dict() | {"path": None, "tokenizer": None}, tokenizer, plan_hash(units)]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:32]


def plan_hash(units: Iterable[Unit]) -> str:
    """Hex digest of everything in the plan: another one is a plan of other data."""
    return hashlib.sha256(json.dumps([asdict(unit) for unit in units]).encode()).hexdigest()


def _text_units(files: list[SourceFile]) -> list[Unit]:
    return [
        Unit("text", tuple(items), sum(item.stop for item in items))
        for items in grouped(
            Item(os.path.abspath(file.path), file.name, 0, file.size, stamp(file.path), file.origin)
            for file in files
        )
    ]


def grouped(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Consecutive items of UNIT_BYTES together, more only if one alone has more."""
    group: list[Item] = []
    size = 0
    for item in items:
        n = item.stop - item.start
        if group and size + n > UNIT_BYTES:
            yield group
            group, size = [], 0
        group.append(item)
        size += n
    if group:
        yield group
