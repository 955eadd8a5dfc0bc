"""The presets: the YAML files that GROUP=NAME picks, what each is for, and which keys it sets."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lhtrain.conf.typed.own_files import PACKAGES


@dataclass(frozen=True)
class Preset:
    """One file, conf/GROUP/NAME.yaml."""

    group: str
    name: str
    meaning: str  # the comment at the top of the file, on one line
    picks: tuple[str, ...]  # other presets that it picks, each GROUP=NAME
    values: dict[str, str]  # key -> value, as the file has it

    def __str__(self) -> str:
        return f"{self.group}={self.name}"


@cache
def presets() -> tuple[Preset, ...]:
    """Every preset of lhtrain, by group and name."""
    return tuple(_read(path) for path in sorted(Path(__file__).parent.glob("*/*.yaml")))


def presets_named(text: str) -> list[Preset]:
    """The presets that GROUP=NAME, or NAME alone, may mean."""
    return [preset for preset in presets() if text in (preset.name, str(preset))]


def setters(key: str) -> list[tuple[Preset, str, str]]:
    """The presets that set `key`, each with the key and the value in it. stages.NAME.x: in any stage."""
    found = []
    for preset in presets():
        for own, value in preset.values.items():
            stage = own.split(".")[1] if own.startswith("stages.") else ""
            if own == key or (stage and own.replace(f".{stage}.", ".NAME.", 1) == key):
                found.append((preset, own, value))
    return found


def _read(path: Path) -> Preset:
    text = path.read_text()
    group, name = path.parent.name, path.stem
    tree: dict[str, Any] = yaml.load(text, yaml.BaseLoader) or {}  # BaseLoader: values as they are written
    rows = [row for row in tree.pop("defaults", ()) if isinstance(row, dict)]
    picks = [f"{key.removeprefix('override /')}={value}" for row in rows for key, value in row.items()]
    package = PACKAGES.get(group, group)
    values = dict(_leaves(tree, "" if package == "_global_" else f"{package}."))
    return Preset(group, name, _head(text), tuple(picks), values)


def _head(text: str) -> str:
    """The comment that a file begins with, on one line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"[{', '.join(value)}]" if isinstance(value, list) else value
