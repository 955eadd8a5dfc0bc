"""The plan: the units of a source, in an order that depends on the source alone. Each becomes one shard."""

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
    """Return the units of a recipe. Raises DataError: the source is missing, unreadable or empty."""
    reader = reader_of(recipe.source)
    units = list(reader.plan(recipe))
    if not units:
        kinds = reader.kinds
        if any(is_prepared(path) for path in recipe.paths):
            kinds += "; this is a folder of prepared shards: use data=prepared"
        raise DataError(f"data.path={recipe.path!r}: must contain at least one file to read{kinds}")
    return units


def plan_fingerprint(recipe: Recipe, tokenizer: str, units: Iterable[Unit]) -> str:
    """Return 32 hex digits that depend on everything that decides the tokens. tokenizer: its fingerprint."""
    decided = [recipe.as_dict() | {"path": None, "tokenizer": None}, tokenizer, plan_hash(units)]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:32]


def plan_hash(units: Iterable[Unit]) -> str:
    """Return a hex digest of the plan, which differs if the source has changed."""
    return hashlib.sha256(json.dumps([asdict(unit) for unit in units]).encode()).hexdigest()
