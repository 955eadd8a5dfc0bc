"""The keys of the schema: their names and types, and which of them are texts or paths."""

import re
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from lhtrain.conf.schema import Config

# Keys whose text names a file or a folder. `~` is expanded in them, and the text of an existing path is not
# parsed further. data.tokenizer may also be a name and cluster.python a command, which do not begin with `~`.
PATHS = (
    "run.dir",
    "data.path",
    "data.val_path",
    "data.out",
    "data.cache_dir",
    "data.tokenizer",
    "init_from",
    "cluster.python",
    "eval.data",
)

# Of these, the keys that hold one text or a list of texts.
ONE_OR_MORE = ("data.path", "data.val_path", "eval.data")


def like_run(key: str) -> str:
    """Return the key of the run that a key of a stage's data is like: data.path for stages.NAME.data.path.

    Other keys are returned as they are.
    """
    match = re.fullmatch(r"stages\.[^.]+\.(data\..+)", key)
    return match[1] if match else key


def type_of(key: str) -> Any:
    """Return the annotation of a dotted `key` without `| None`; None if the schema has no such key.

    Names in a dictionary may be any: stages.NAME.steps, data.mix.NAME.path, optim.options.NAME,
    model.rope_scaling.NAME.
    """
    if like_run(key).startswith("data.mix.") or ".rope_scaling." in key:
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
    """Return whether `key` is a dictionary with any names, such as logger.kinds, or is in one."""
    names = key.split(".")
    kinds = (type_of(".".join(names[: n + 1])) for n in range(len(names)))
    return any(kind in (dict[str, Any], dict[str, bool]) for kind in kinds)


def has_no_type(key: str) -> bool:
    """Return whether the schema knows no type of `key`: options of plugins, and keys of a rope_scaling."""
    return is_option(key) or ".rope_scaling." in key


def limit_of(key: str) -> Any:
    """Return the bounds of `key`, an object of bounds.py; None if it has none besides its type."""
    found = owner_of(key)
    return None if found is None else _limits(found[0]).get(found[1])


def limited(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each key of a typed `config` that has bounds, with its value and its bounds."""
    kind: Any = type(config)
    for name, value in (config if isinstance(config, dict) else vars(config)).items():
        if is_dataclass(value) or (isinstance(value, dict) and name == "stages"):
            yield from limited(value, f"{prefix}{name}.")
        elif limit := _limits(kind).get(name):
            yield f"{prefix}{name}", value, limit


def copied_from(key: str) -> str | None:
    """Return the key whose value `key` copies by default: lighthouse.scorer for stages.NAME.scorer."""
    if (found := owner_of(key)) is None:
        return None
    match = re.fullmatch(r"\$\{([\w.]+)\}", str(getattr(found[0], found[1], "")))
    if match is None:
        return None
    origin = match[1]
    return f"{key.rpartition('.')[0]}{origin}" if origin.startswith(".") else origin


def select(config: Any, key: str) -> Any:
    """Return the value of the dotted `key` in a typed `config`."""
    for name in key.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


def owner_of(key: str) -> tuple[type, str] | None:
    """Return the dataclass that has `key`, and the name of its field; None if there is no such key."""
    parent, _, name = key.rpartition(".")
    owner = type_of(parent) if parent else Config
    return (owner, name) if is_dataclass(owner) and name in _hints(owner) else None


def is_container(kind: Any) -> bool:
    """Return whether a key of this type has keys of the schema below it."""
    return is_dataclass(kind) or (get_origin(kind) is dict and is_dataclass(get_args(kind)[1]))


def holds_text(key: str) -> bool:
    """Return whether the value of `key` is text, or may contain text: lists, and groups of keys."""
    kind, key = type_of(key), like_run(key)
    return (
        kind in (str, list[str])
        or is_container(kind)
        or (kind is Any and (key.startswith("data.") or key in ONE_OR_MORE))
    )


def is_one_text(key: str) -> bool:
    """Return whether the value of `key` is always text, never a list or a dictionary."""
    return type_of(key) is str


def is_path(key: str) -> bool:
    """Return whether the text of `key` names a file or a folder."""
    key = like_run(key)
    return key in PATHS or (key.startswith("data.mix.") and key.endswith(".path"))


def all_keys(kind: Any = Config, prefix: str = "") -> Iterator[str]:
    """Yield every key of the schema; NAME stands for any name in a dictionary."""
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
    """Return the bounds of the fields of a dataclass that have bounds, by name."""
    hints = get_type_hints(kind, include_extras=True).items() if is_dataclass(kind) else ()
    return {name: hint.__metadata__[0] for name, hint in hints if get_origin(hint) is Annotated}


@cache
def _cached_hints(kind: type) -> dict[str, Any]:
    return {name: _without_none(hint) for name, hint in get_type_hints(kind).items()}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint
