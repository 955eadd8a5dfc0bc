"""The plan: a source cut into units, in an order that depends on the source alone. A unit becomes a shard."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources.hub import hub_units
from lhtrain.data.sources.local import SourceFile, find_files, is_prepared
from lhtrain.data.sources.paths import stamp
from lhtrain.data.sources.repositories import repositories
from lhtrain.data.sources.rows import row_units
from lhtrain.data.sources.units import Item, Unit, grouped


def make_plan(recipe: Recipe) -> list[Unit]:
    """The units of a recipe. Raises DataError: a source that is missing, unreadable or empty."""
    if recipe.source in ("stdlib", "text"):
        units = _text_units(find_files(recipe.source, recipe.path or None))
    elif recipe.source == "code":
        units = [Unit("code", tuple(items), size) for items, size in repositories(recipe.paths)]
    elif recipe.source == "files":
        units = list(row_units(recipe.paths))
    else:
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
