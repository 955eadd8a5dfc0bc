"""The keys of the schema: which there are, their types, and which of them hold text or paths."""

import difflib
import itertools
import types
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from lhtrain.conf.schema import Config

# Keys whose text names a file or a folder: `~` is expanded in them, and a path that exists is that path.
# data.tokenizer may also be a name, and cluster.python a command: neither begins with `~`.
PATHS = (
    "run.dir",
    "data.path",
    "data.out",
    "data.cache_dir",
    "data.tokenizer",
    "init_from",
    "cluster.python",
)


def type_of(key: str) -> Any:
    """The annotation of a dotted `key` without its `| None`; None where the schema has no such key.

    The names in a dictionary are free: stages.NAME.steps, data.mix.NAME.path.
    """
    if key.startswith("data.mix."):
        return Any
    kind: Any = Config
    for name in key.split("."):
        if is_dataclass(kind):
            kind = _hints(kind).get(name)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            return None
    return kind


def owner_of(key: str) -> tuple[type, str] | None:
    """The dataclass that has `key`, and its field's name there; None where there is no such key."""
    parent, _, name = key.rpartition(".")
    owner = type_of(parent) if parent else Config
    return (owner, name) if is_dataclass(owner) and name in _hints(owner) else None


def is_container(kind: Any) -> bool:
    """Whether a key of this type has keys below it."""
    return is_dataclass(kind) or get_origin(kind) is dict


def holds_text(key: str) -> bool:
    """Whether the value of `key` is text, or may hold text: lists, and groups of keys."""
    kind = type_of(key)
    return kind in (str, list[str]) or is_container(kind) or (kind is Any and key.startswith("data."))


def is_one_text(key: str) -> bool:
    """Whether the value of `key` is text and never a list or a dictionary."""
    return type_of(key) is str


def is_path(key: str) -> bool:
    """Whether the text of `key` names a file or a folder."""
    return key in PATHS or (key.startswith("data.mix.") and key.endswith(".path"))


def all_keys(kind: Any = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the schema; NAME stands for the names in a dictionary."""
    if get_origin(kind) is dict:
        yield from all_keys(get_args(kind)[1], f"{prefix}NAME.")
    elif is_dataclass(kind):
        for field in fields(kind):
            yield prefix + field.name
            yield from all_keys(_hints(kind)[field.name], f"{prefix}{field.name}.")


def nearest(key: str, known: Iterable[str]) -> str:
    """'; did you mean …?', or nothing where no known key is near. NAME in a known key stands for any name."""
    names = key.split(".")
    options = []
    for option in known:
        parts = [
            own if part == "NAME" else part
            for part, own in itertools.zip_longest(option.split("."), names[: option.count(".") + 1])
        ]
        options.append(".".join(part or "NAME" for part in parts))
    close = difflib.get_close_matches(key, [name for name in options if name != key], n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _hints(kind: Any) -> dict[str, Any]:
    return _cached_hints(kind)


@cache
def _cached_hints(kind: type) -> dict[str, Any]:
    return {name: _without_none(hint) for name, hint in get_type_hints(kind).items()}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint
