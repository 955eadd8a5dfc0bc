"""The plan: a source cut into units, in an order that depends on the source alone. A unit becomes a shard."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources.local import is_prepared
from lhtrain.data.sources.table import reader_of
from lhtrain.data.sources.units import Unit


def make_plan(recipe: Recipe) -> list[Unit]:
    """The units of a recipe. Raises DataError: a source that is missing, unreadable or empty."""
    reader = reader_of(recipe.source)
    units = list(reader.plan(recipe))
    if not units:
        kinds = reader.kinds
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
