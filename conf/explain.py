"""What is known about a key: its comment in schema.py, type, bounds, default, presets and rules."""

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lhtrain.conf.bounds import OneOf
from lhtrain.conf.keys import all_keys, copied_from, is_container, limit_of, owner_of, type_of
from lhtrain.conf.nearest import nearest
from lhtrain.conf.presets import Preset, presets, presets_named, setters
from lhtrain.conf.renamed import current
from lhtrain.conf.rules.relations import relations_of
from lhtrain.conf.rules.types import NAMES, PLURALS

OF_ANY = {
    "path": "text, or a list of texts",
    "val_path": "text, or a list of texts",
    "mix": "mapping",
    "rope_scaling": "mapping",
}
LABEL, LINE = 9, 110  # width of the labels, and of a line


@dataclass(frozen=True)
class Entry:
    """A key that has a value."""

    key: str
    meaning: str
    type: str
    bounds: str  # empty: none besides the type
    default: str  # empty: follows from other keys only
    default_source: str  # how the default follows from other keys; empty: it does not
    choices: dict[str, str]  # choice -> its meaning, which may be empty
    takes_plugins: bool  # whether a plugin can add choices
    presets: list[str]  # presets that set the key, each with its value
    rules: list[str]  # rules between this key and others

    @property
    def like(self) -> str:
        """The key that this one is a copy of, for one stage; empty: none."""
        match = re.match(r"like ([\w.]+)", self.meaning)
        return match[1] if match else ""


def entry(key: str, config: Any) -> Entry:
    """What is known about the existing `key`, which has no keys below it. config: the composed defaults."""
    choices: dict[str, str] = {}
    kind, limit = type_of(key), limit_of(key)
    if isinstance(kind, type) and issubclass(kind, Enum):
        choices = {member.name: _comment(kind, member.name) for member in kind}
    elif isinstance(limit, OneOf):
        choices = dict.fromkeys(limit.names(), "")
    default, source = _default(key, config)
    return Entry(
        key=key,
        meaning=_meaning(key),
        type=_type(key, bool(choices)),
        bounds="" if limit is None or choices else str(limit),
        default=default,
        default_source=source,
        choices=choices,
        takes_plugins=isinstance(limit, OneOf) and limit.is_open,
        presets=[_set_by(key, *found) for found in setters(key)],
        rules=relations_of(key),
    )


def explain(key: str, config: Any) -> str | None:
    """Lines on `key`, or on all keys below it; None if there is no such key. config: composed defaults."""
    key = current(key)
    kind = type_of(key)
    if kind is None:
        return None
    return _explain_group(key, kind) if is_container(kind) else "\n".join(_lines(entry(key, config)))


def _set_by(key: str, preset: Preset, own: str, value: str) -> str:
    value = "a value is needed" if value == "???" else value
    return f"{preset}: {value}" if own == key else f"{preset}: {own}={value}"


def _lines(found: Entry) -> Iterator[str]:
    yield _wrapped(f"{found.key}: {found.meaning}".rstrip(": "), "")
    if found.like:
        yield _row("see", f"{found.like}: {_meaning(found.like)}")
    yield _row("type", found.type)
    if found.bounds:
        yield _row("bounds", found.bounds)
    yield _row("default", ", ".join(filter(None, (found.default, found.default_source))))
    if any(found.choices.values()):
        yield "  choices"
        yield from _table(found.choices, "    ")
    elif found.choices:
        plugins = ["or a name that a plugin adds"] if found.takes_plugins else []
        yield _row("choices", ", ".join([*found.choices, *plugins]))
    yield from _rows("set by", found.presets)
    yield from _rows("rules", found.rules)


def _row(label: str, text: str) -> str:
    return _wrapped(text, f"  {label:{LABEL}}")


def _rows(label: str, texts: list[str]) -> Iterator[str]:
    """The label before the first text only."""
    return (_row(label if number == 0 else "", text) for number, text in enumerate(texts))


def _table(rows: dict[str, str], indent: str = "  ") -> list[str]:
    """A line for each name and its text."""
    width = max(map(len, rows), default=0)
    return [_wrapped(text, f"{indent}{name:{width}}  ") for name, text in rows.items()]


def _wrapped(text: str, head: str) -> str:
    """The text behind `head`; further lines are indented as far."""
    return (
        textwrap.fill(
            text, LINE, initial_indent=head, subsequent_indent=" " * max(len(head), 2), break_on_hyphens=False
        )
        or head.rstrip()
    )


def _explain_group(key: str, kind: Any) -> str:
    below = kind if is_dataclass(kind) else get_args(kind)[1]
    prefix = key if is_dataclass(kind) else f"{key}.NAME"
    rows = {f"{prefix}.{field.name}": _comment(below, field.name) for field in fields(below)}
    return "\n".join([_wrapped(f"{key}: {group_meaning(key)}".rstrip(": "), ""), *_table(rows)])


def group_meaning(key: str) -> str:
    """What the keys below `key` are about."""
    kind = type_of(key)
    text = (kind.__doc__ or "") if is_dataclass(kind) else ""
    return " ".join(text.split()) if text and not text.startswith("Config(") else _meaning(key)


def explain_preset(preset: Preset) -> str:
    """Lines on a preset: what it is for and what it sets."""
    values = {**dict(pick.split("=", 1) for pick in preset.picks), **preset.values}
    return "\n".join([_wrapped(f"{preset}: {preset.meaning}".rstrip(": "), ""), *_table(values)])


def explain_choices(group: str) -> str | None:
    """The presets of a group, each with its meaning; None if there is no such group."""
    found = [preset for preset in presets() if preset.group == group]
    if not found:
        return None
    first_sentences = {preset.name: preset.meaning.split(". ")[0].rstrip(".") for preset in found}
    title = f"{group}=NAME picks one of these presets (lhtrain help {group}=NAME shows what it sets)"
    return "\n".join([title, *_table(first_sentences)])


def explain_topic(topic: str, config: Any) -> str | None:
    """Lines on a key, a group, KEY=VALUE, GROUP=NAME, or the name of a preset; None if there is none."""
    named = presets_named(topic)
    if named and "=" in topic:
        return explain_preset(named[0])
    key, is_setting, _ = topic.partition("=")
    choices = explain_choices(key)
    if choices and is_setting:
        return None  # the group has no preset of that name
    parts = [part for part in (choices, explain(key, config)) if part]
    return "\n\n".join(parts or map(explain_preset, named)) or None


def no_such_topic(topic: str, commands: Iterable[str] = ()) -> str:
    """The error for a topic that is no command, key, group or preset."""
    names = {str(preset) for preset in presets()} | {preset.name for preset in presets()}
    return f"no command, key or preset {topic!r}{nearest(topic, [*commands, *all_keys(), *sorted(names)])}"


def _default(key: str, config: Any) -> tuple[str, str]:
    """The default value of `key`, and how it follows from other keys; either may be empty."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    owner = owner_of(key)
    if node is None and owner:  # a stage that the default run does not have
        node = OmegaConf.structured(owner[0])
    unresolved: Any = OmegaConf.to_container(node, resolve=False)
    written = unresolved[name]
    if not isinstance(written, str) or "${" not in written or "${now:" in written:
        return _shown(written), ""
    origin = copied_from(key)
    source = f"the value of {origin}" if origin else "computed from other keys"
    try:
        return _shown(node[name]), source
    except OmegaConfBaseException:  # another value is missing
        return "", source


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, Enum):
        return value.name
    return "none: a value is needed" if value == "???" else str(value)


def _type(key: str, has_choices: bool) -> str:
    kind = type_of(key)
    or_null = ", or null" if _may_be_null(key) else ""
    if has_choices:
        return "one of the choices"
    if kind is Any:
        name = key.rpartition(".")[2]
        return OF_ANY.get(name, "whole number, or auto") + or_null * (name in OF_ANY)
    if get_origin(kind) is dict:
        return "mapping {NAME: VALUE}"
    if get_origin(kind) is list:
        return f"list of {PLURALS[get_args(kind)[0]]}"
    if get_origin(kind) is tuple:
        return f"list of {len(get_args(kind))} {PLURALS[get_args(kind)[0]]}"
    return NAMES[kind] + or_null


def _may_be_null(key: str) -> bool:
    found = owner_of(key)
    if found is None:
        return False
    hint = get_type_hints(found[0])[found[1]]
    return hint is Any or (get_origin(hint) in (Union, UnionType) and type(None) in get_args(hint))


def _meaning(key: str) -> str:
    found = owner_of(key)
    return _comment(*found) if found else ""


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
