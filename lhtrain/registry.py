"""Registries of attention kinds, scorers, optimizers and trackers, to which plugins can add.

A registry maps a name in a configuration to an object. Built-in entries are strings "module:object", which
are imported at their first use, so that checking a configuration does not import torch. A user's module adds
entries when it is imported, for example with `plugins=[my_module]`:

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
    """A table of one kind of object. noun: its name in messages. entries: name -> "module:object"."""

    def __init__(self, noun: str, entries: dict[str, str]):
        self.noun = noun
        self._entries: dict[str, Any] = dict(entries)
        self._ours = frozenset(entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def is_ours(self, name: str) -> bool:
        """Return whether `name` is built in, and not from a plugin."""
        return name in self._ours

    def names(self) -> list[str]:
        """Return all names, first the built-in ones, then those of plugins."""
        return list(self._entries)

    def __getitem__(self, name: str) -> Any:
        """Return the object with that name; import it if necessary. Raises KeyError."""
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self._entries[name] = getattr(importlib.import_module(module), attribute)
        return entry

    def add(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that registers an object under `name`.

        Raises ValueError if another object has that name. Importing the same module again is no error.
        """

        def register(entry: Entry) -> Entry:
            there = self._entries.get(name)
            if there is not None and _origin(there) != _origin(entry):
                raise ValueError(f"{self.noun} {name!r}: {_origin(there)} already has this name")
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
OPTIMIZERS = Registry(
    "optimizer",
    {"adamw": "lhtrain.model.optimizer:AdamW", "muon": "lhtrain.distributed.muon:Muon"},
)
TRACKERS = Registry(
    "tracker",
    {
        "wandb": "lhtrain.report.tracker_wandb:WandbTracker",
        "tensorboard": "lhtrain.report.tracker_tensorboard:TensorboardTracker",
        "jsonl": "lhtrain.report.tracker_lines:LinesTracker",
    },
)
BACKENDS = ("auto", "reference", "triton")  # for pooling and selection in Lighthouse layers


def load_plugins(modules: Iterable[str]) -> None:
    """Import each module, also from the current folder, so that it can add to the registries.

    Raises ImportError, or the error that the module raises.
    """
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    for module in modules:
        importlib.import_module(module)
