"""Renamed keys. The old name works for one more release, with a hint."""

import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

# Old key -> new key. A renamed group renames all keys below it. NAME stands for any name: stages.NAME.steps.
RENAMED: dict[str, str] = {}


def current(key: str) -> str:
    """Return the current name of the dotted `key`."""
    names = key.split(".")
    for old, new in RENAMED.items():
        parts = old.split(".")
        if len(parts) <= len(names) and all(p in ("NAME", n) for p, n in zip(parts, names, strict=False)):
            free = iter([name for part, name in zip(parts, names, strict=False) if part == "NAME"])
            renamed = [next(free) if part == "NAME" else part for part in new.split(".")]
            return ".".join([*renamed, *names[len(parts) :]])
    return key


def current_tree(tree: dict[str, Any], package: str = "", place: str = "") -> dict[str, Any]:
    """Return nested dictionaries with the current names of their keys.

    If both the old and the new name are present, the value of the new name is used.

    Args:
        tree: the nested dictionaries.
        package: the key below which they are; a key that was moved out of it keeps its old name.
        place: the file that they come from, for hints; "" for no hints.
    """
    if not RENAMED:
        return tree
    prefix = f"{package}." if package else ""
    out: dict[str, Any] = {}
    for path, value in _leaves(tree):
        key = prefix + ".".join(path)
        if (new := current(key)) == key or not new.startswith(prefix):
            _put(out, path, value)
        else:
            _put(out, tuple(new.removeprefix(prefix).split(".")), value, keep=True)
            if place:
                hint(key, new, place)
    return out


@cache
def hint(old: str, new: str, place: str = "") -> None:
    """Print once, on the first rank, that a key has a new name. place: the file with the old name."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    if rank == "0":
        where = f"{place}: " if place else ""
        print(f"lhtrain: {where}{old} is now {new}; the old name works in this release", file=sys.stderr)


def _leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path to each value, and the value; an empty dictionary counts as a value."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, str(name)))
        else:
            yield (*above, str(name)), value


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any, keep: bool = False) -> None:
    *parents, last = path
    for name in parents:
        tree = tree.setdefault(name, {})
    if not (keep and last in tree):
        tree[last] = value
