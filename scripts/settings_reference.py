"""Write docs/settings.md, the reference of all settings, from conf/schema.py and the presets.

python scripts/settings_reference.py
"""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from hydra import compose

from lhtrain.conf.compose import hydra
from lhtrain.conf.explain import Entry, entry, group_meaning
from lhtrain.conf.keys import is_container, type_of
from lhtrain.conf.presets import Preset, presets
from lhtrain.conf.rules.relations import RELATIONS
from lhtrain.conf.schema import Config
from lhtrain.conf.typed.own_files import PACKAGES

OR_NULL = ", or null"
FILE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """\
<!-- Written by scripts/settings_reference.py from conf/schema.py and conf/*/*.yaml. Do not edit it here. -->

# Settings

A setting is `KEY=VALUE` on the command line: `lhtrain optim.lr=1e-3 run.steps=400`. A *preset* is a file that
sets several keys, and `GROUP=NAME` picks it: `lhtrain model=gpt_350m`. A key on the command line overrides a
preset, in whatever order they are given. Quote a value that contains brackets, braces, spaces or stars:
`lhtrain 'model.dense_layers=[0,-1]'`.

`lhtrain help KEY` prints what this page says about a key, and the presets that set it. `lhtrain --cfg job`
prints all keys with their values, without training. Wrong settings are reported all at once, before anything
is started.

The defaults below are those of `lhtrain` without any settings."""

# What is shown as code: a.b, a_b, a=b, a.b/c.
CODE = re.compile(r"(?<![\w/*.'$])\$?[A-Za-z]\w*(?:[./=]\w+)+|(?<![\w$])\$?[A-Za-z]+_\w+")


def reference() -> str:
    """The text of docs/settings.md."""
    with hydra():
        config = compose("config")
    groups = [field.name for field in fields(Config) if is_container(type_of(field.name))]
    others = [field.name for field in fields(Config) if field.name not in groups]
    links = ", ".join(f"[{name}](#{name})" for name in [*groups, "experiment"])
    parts = [HEAD, f"Groups: {links}; [other keys](#other-keys).", *(_group(name, config) for name in groups)]
    parts += ["## Other keys", _table([entry(key, config) for key in others])]
    parts += [
        "## experiment",
        "Presets that set keys of several groups (`experiment=NAME`):",
        _presets("experiment"),
    ]
    return "\n\n".join(parts) + "\n"


def _group(name: str, config: Any) -> str:
    kind = type_of(name)
    below, prefix = (kind, name) if is_dataclass(kind) else (get_args(kind)[1], f"{name}.NAME")
    entries = [entry(key, config) for key in _keys(below, prefix)]
    rules = [rule.rule for rule in RELATIONS if any(rule.concerns(found.key) for found in entries)]
    meaning = _text(group_meaning(name)).removesuffix(".")
    parts = [f"## {name}", f"{meaning[:1].upper()}{meaning[1:]}.", _table(entries)]
    if rules:
        parts += ["Rules between keys:", "\n".join(f"- {_text(rule)}" for rule in rules)]
    group = next((group for group, package in PACKAGES.items() if package == name), name)
    if table := _presets(group):
        parts += [f"Presets (`{group}=NAME`):", table]
    return "\n\n".join(parts)


def _keys(kind: Any, prefix: str) -> Iterator[str]:
    """Yield the keys of a dataclass, and those of the dataclasses in it."""
    for field in fields(kind):
        key = f"{prefix}.{field.name}"
        below = type_of(key)
        yield from _keys(below, key) if is_dataclass(below) else [key]


def _table(entries: list[Entry]) -> str:
    rows = (f"| `{one.key}` | {_meaning(one)} | {_type(one)} | {_default(one)} |" for one in entries)
    return "\n".join(["| key | meaning | type | default |", "|---|---|---|---|", *rows])


def _meaning(found: Entry) -> str:
    if any(found.choices.values()):
        choices = [f"`{name}`: {_text(meaning)}" for name, meaning in found.choices.items()]
        return "<br>".join([_text(found.meaning), *choices])
    return _text(found.meaning)


def _type(found: Entry) -> str:
    if found.choices:
        names = [f"`{name}`" for name in found.choices]
        return ", ".join([*names, *(["or a name that a plugin adds"] if found.takes_plugins else [])])
    plain, null, _ = found.type.partition(OR_NULL)
    return ", ".join(filter(None, (plain, found.bounds.replace(OR_NULL, "")))) + null


def _default(found: Entry) -> str:
    value = "none" if found.default.startswith("none:") else f"`{found.default}`" if found.default else ""
    return ", ".join(filter(None, (value, _text(found.default_source))))


def _presets(group: str) -> str:
    rows = [_preset(preset) for preset in presets() if preset.group == group]
    return "\n".join(["| preset | what it is | what it sets |", "|---|---|---|", *rows]) if rows else ""


def _preset(preset: Preset) -> str:
    values = [f"`{key}={value}`" for key, value in preset.values.items() if value != "???"]
    sets = ", ".join([*(f"`{pick}`" for pick in preset.picks), *values])
    return f"| `{preset.name}` | {_text(preset.meaning)} | {sets} |"


def _text(text: str) -> str:
    """The text as Markdown, with names of keys and files as code."""
    parts = text.split("`")
    for number in range(0, len(parts), 2):  # those between backticks are code already
        marked = CODE.sub(lambda match: f"`{match[0]}`", parts[number]).split("`")
        marked[::2] = [re.sub(r"([\\*_|<])", r"\\\1", plain) for plain in marked[::2]]
        parts[number] = "`".join(marked)
    return "`".join(parts)


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(reference())
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
