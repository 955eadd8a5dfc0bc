"""What a key means: its comment in schema.py, with type, default and choices."""

import ast
import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_args, get_origin

from omegaconf import OmegaConf

from lhtrain.conf.bounds import OneOf
from lhtrain.conf.keys import all_keys, is_container, limit_of, owner_of, type_of
from lhtrain.conf.nearest import nearest
from lhtrain.conf.renamed import current


def explain(key: str, default: object) -> str | None:
    """Lines on `key`, or on all keys below it; None where there is no such key. default: as composed."""
    key = current(key)
    kind = type_of(key)
    if kind is None:
        return None
    found = owner_of(key)
    meaning = _comment(*found) if found else ""
    if is_container(kind):
        lines = [f"{key}: {_head(kind) or meaning}".rstrip(": ")]
        below = kind if is_dataclass(kind) else get_args(kind)[1]
        prefix = key if is_dataclass(kind) else f"{key}.NAME"
        rows = [(f"{prefix}.{field.name}", _comment(below, field.name)) for field in fields(below)]
        width = max(len(name) for name, _ in rows)
        return "\n".join([*lines, *(f"  {name:{width}}  {text}".rstrip() for name, text in rows)])
    text = "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
    lines = [f"{key}: {meaning}".rstrip(": "), f"  type     {_type(kind, key)}", f"  default  {text}"]
    if isinstance(kind, type) and issubclass(kind, Enum):
        lines.append("  choices")
        width = max(len(member.name) for member in kind)
        lines += [f"    {member.name:{width}}  {_comment(kind, member.name)}".rstrip() for member in kind]
    elif isinstance(limit := limit_of(key), OneOf):
        more = ", or a name that a plugin adds" if limit.is_open else ""
        lines.append(f"  choices  {', '.join(limit.names())}{more}")
    elif limit is not None:
        lines.insert(2, f"  bounds   {limit}")
    return "\n".join(lines)


def no_such_key(key: str) -> str:
    """What to say where `key` is neither a key nor a command."""
    return f"no key or command {key!r}{nearest(key, all_keys())}"


def default_of(config: Any, key: str) -> object:
    """The value of `key` in a composed configuration, with interpolations resolved if possible."""
    try:
        value = OmegaConf.select(config, key)
    except Exception as error:  # such as one that needs a file
        return f"follows from other keys ({str(error).splitlines()[0]})"
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value)
    return value.name if isinstance(value, Enum) else value


def _type(kind: Any, key: str) -> str:
    if kind is Any:
        several = {"data.path": "text, or a list of texts", "data.mix": "a mapping"}
        return several.get(key, "a number, or auto")
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of the choices"
    if isinstance(limit_of(key), OneOf):
        return "one of the choices"
    if get_origin(kind) is dict:
        return "a mapping {NAME: VALUE}"
    if get_origin(kind) is list:
        return f"list of {get_args(kind)[0].__name__}"
    if get_origin(kind) is tuple:
        return f"list of {len(get_args(kind))} {get_args(kind)[0].__name__}"
    return kind.__name__


def _head(kind: Any) -> str:
    """The first line of a dataclass's own docstring."""
    text = (getattr(kind, "__doc__", None) or "") if is_dataclass(kind) else ""
    return "" if text.startswith(f"{getattr(kind, '__name__', '')}(") else text.strip().split("\n")[0]


@cache
def _comments(kind: type) -> dict[str, str]:
    """The comment above and behind each field of a dataclass, or member of an Enum."""
    source = inspect.getsource(kind)
    lines = source.splitlines()
    return {
        name: " ".join([*_above(lines[: begin - 1]), *_behind(lines[begin - 1 : end])])
        for name, begin, end in _assignments(ast.parse(source).body[0])
    }


def _above(lines: list[str]) -> list[str]:
    """The comment that `lines` end with."""
    comments = itertools.takewhile(lambda line: line.startswith("# "), map(str.strip, reversed(lines)))
    return [line.removeprefix("# ") for line in comments][::-1]


def _assignments(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    for node in getattr(tree, "body", ()):
        targets: list[ast.expr] = []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id, node.lineno, node.end_lineno or node.lineno


def _behind(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if match := re.search(r"\s#\s(.*)$", line):
            yield match[1]


def _comment(kind: Any, name: str) -> str:
    return _comments(kind).get(name, "")
