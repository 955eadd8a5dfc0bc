"""The keys of the schema: which there are, their types, and which of them hold text or paths."""

import re
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

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

    The names in a dictionary are free: stages.NAME.steps, data.mix.NAME.path, optim.options.NAME.
    """
    if key.startswith("data.mix."):
        return Any
    kind: Any = Config
    for name in key.split("."):
        if is_dataclass(kind):
            kind = _hints(kind).get(name)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
            if kind is Any:
                return Any
        else:
            return None
    return kind


def is_option(key: str) -> bool:
    """Whether `key` is a plugin's own setting, optim.options.NAME, or all of them, optim.options."""
    parent, found, _ = f"{key}.".partition(".options.")
    return bool(found) and type_of(f"{parent}.options") == dict[str, Any]


def limit_of(key: str) -> Any:
    """What bounds the value of `key`, an object of bounds.py; None where there is nothing but its type."""
    found = owner_of(key)
    return None if found is None else _limits(found[0]).get(found[1])


def limited(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each key of a typed `config` whose values are bounded, with its value and what bounds it."""
    kind: Any = type(config)
    for name, value in (config if isinstance(config, dict) else vars(config)).items():
        if is_dataclass(value) or (isinstance(value, dict) and name == "stages"):
            yield from limited(value, f"{prefix}{name}.")
        elif limit := _limits(kind).get(name):
            yield f"{prefix}{name}", value, limit


def copied_from(key: str) -> str | None:
    """The key whose value `key` has unless it is given one: lighthouse.scorer for stages.NAME.scorer."""
    if (found := owner_of(key)) is None:
        return None
    match = re.fullmatch(r"\$\{([\w.]+)\}", str(getattr(found[0], found[1], "")))
    if match is None:
        return None
    origin = match[1]
    return f"{key.rpartition('.')[0]}{origin}" if origin.startswith(".") else origin


def select(config: Any, key: str) -> Any:
    """The value of the dotted `key` in a typed `config`."""
    for name in key.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


def owner_of(key: str) -> tuple[type, str] | None:
    """The dataclass that has `key`, and its field's name there; None where there is no such key."""
    parent, _, name = key.rpartition(".")
    owner = type_of(parent) if parent else Config
    return (owner, name) if is_dataclass(owner) and name in _hints(owner) else None


def is_container(kind: Any) -> bool:
    """Whether a key of this type has keys of the schema below it."""
    return is_dataclass(kind) or (get_origin(kind) is dict and is_dataclass(get_args(kind)[1]))


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


def _hints(kind: Any) -> dict[str, Any]:
    return _cached_hints(kind)


@cache
def _limits(kind: Any) -> dict[str, Any]:
    """What bounds each field of a dataclass that is bounded."""
    hints = get_type_hints(kind, include_extras=True).items() if is_dataclass(kind) else ()
    return {name: hint.__metadata__[0] for name, hint in hints if get_origin(hint) is Annotated}


@cache
def _cached_hints(kind: type) -> dict[str, Any]:
    return {name: _without_none(hint) for name, hint in get_type_hints(kind).items()}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint
