"""What a setting may name: attention kinds, scorers, optimizers, trackers, and how to add one.

A registry is a table from the name in a configuration to the object that it stands for. Our own entries
are written as "module:object" and imported when they are used: checking a configuration imports no torch. A
module of a user's adds to them when it is imported, which `plugins=[my_module]` asks for:

    from lhtrain.registry import SCORERS

    @SCORERS.add("mine")
    class Mine: ...
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Entry = TypeVar("Entry")


class Registry:
    """Names of one kind of thing. `noun` is what messages call it; entries: name -> "module:object"."""

    def __init__(self, noun: str, entries: dict[str, str]):
        self.noun = noun
        self._entries: dict[str, Any] = dict(entries)
        self._ours = frozenset(entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def is_ours(self, name: str) -> bool:
        """Whether `name` comes with lhtrain, and not from a plugin."""
        return name in self._ours

    def names(self) -> list[str]:
        """All names, ours first, then those that plugins added."""
        return list(self._entries)

    def __getitem__(self, name: str) -> Any:
        """The object of that name, imported if need be. Raises KeyError."""
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self._entries[name] = getattr(importlib.import_module(module), attribute)
        return entry

    def add(self, name: str) -> Callable[[Entry], Entry]:
        """A decorator that registers what it decorates under `name`.

        Raises ValueError: another object has that name. The same module may be imported again.
        """

        def register(entry: Entry) -> Entry:
            there = self._entries.get(name)
            if there is not None and _origin(there) != _origin(entry):
                raise ValueError(f"{self.noun} {name!r}: {_origin(there)} has that name already")
            self._entries[name] = entry
            return entry

        return register


def _origin(entry: Any) -> str:
    return entry if isinstance(entry, str) else f"{entry.__module__}:{entry.__qualname__}"


ATTENTIONS = Registry(
    "attention",
    {
        "dense": "lhtrain.attention.dense:DenseAttention",
        "lighthouse": "lhtrain.attention.lighthouse:LighthouseAttention",
    },
)
SCORERS = Registry(
    "scorer",
    {
        "norm": "lhtrain.kernels.scores.norm:Norm",
        "dilated": "lhtrain.kernels.scores.dilated:Dilated",
        "gla": "lhtrain.kernels.scores.gla:Gla",
        "position": "lhtrain.kernels.scores.positional:Position",
        "recent": "lhtrain.kernels.scores.positional:Recent",
    },
)
OPTIMIZERS = Registry("optimizer", {"adamw": "lhtrain.model.optimizer:AdamW"})
TRACKERS = Registry("tracker", {"wandb": "lhtrain.report.trackers:WandbTracker"})
BACKENDS = ("auto", "reference", "triton")  # of the Lighthouse layer's pooling and selection


def load_plugins(modules: Iterable[str]) -> None:
    """Import each module, from the current folder too, so that it can add to the registries.

    Raises ImportError, or whatever the module raises.
    """
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    for module in modules:
        importlib.import_module(module)
