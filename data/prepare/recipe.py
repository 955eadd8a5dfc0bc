"""A recipe: all settings that decide which tokens `prepare` writes."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lhtrain.data.sources.local import as_list
from lhtrain.data.sources.paths import expanded
from lhtrain.data.store.cache import cache_root
from lhtrain.quote import override

AUTOMATIC = ("stdlib", "text")  # training tokenizes these at its start; the other sources must be prepared
PREPARABLE = (*AUTOMATIC, "code", "files", "hf")
SOURCES = (*PREPARABLE, "prepared", "mix")
# Keys of a source of a mixture that is tokenized during training.
OF_PART = ("source", "path", "name", "subset", "split", "revision", "streaming", "column", "filters")


@dataclass(frozen=True)
class Recipe:
    """The settings of one source.

    source: one of PREPARABLE. The other fields are the keys of the same name in conf/schema.py.
    """

    source: str
    path: Any = None
    name: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = True
    column: str = "text"
    filters: list[str] = field(default_factory=list)
    max_documents: int | None = None
    max_tokens: int | None = None
    tokenizer: str = "bytes"
    bos: bool = False
    eos: str | None = None

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return as_list(self.path)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values with absolute paths; equal for equal recipes.

        `eos` is included only if it is set, because folders prepared before the key existed do not have it.
        """
        paths = [os.path.abspath(expanded(path)) for path in self.paths]
        values = asdict(self) | {"path": paths, "filters": list(self.filters)}
        return {key: value for key, value in values.items() if key != "eos" or value is not None}

    def command(self, out: str | os.PathLike | None, cache_dir: str | os.PathLike | None) -> str:
        """Return the shell command that prepares this recipe, without settings that have their default."""
        settings: dict[str, Any] = {"data": self.source}
        for part in fields(self):
            default = part.default_factory() if callable(part.default_factory) else part.default
            if part.name != "source" and getattr(self, part.name) != default:
                settings[f"data.{part.name}"] = getattr(self, part.name)
        settings |= {
            f"data.{key}": str(folder)
            for key, folder in (("out", out), ("cache_dir", cache_dir))
            if folder is not None
        }
        return " ".join(
            [
                "lhtrain data prepare",
                *(shlex.quote(f"{key}={_typed(value)}") for key, value in settings.items()),
            ]
        )

    def folder(self, out: str | os.PathLike | None, cache_dir: str | os.PathLike | None) -> Path:
        """Return the folder for the shards: `out`, else a folder of the cache named after the recipe."""
        if out is not None:
            return expanded(out, "data.out")
        key = hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:20]
        return cache_root(cache_dir) / f"{self.source}_{key}"


def streamed_parts(mix: Any) -> list[str]:
    """Return the names of the sources of a mixture that are tokenized during training."""
    parts = mix.items() if isinstance(mix, Mapping) else ()
    return [name for name, part in parts if isinstance(part, Mapping) and "source" in part]


def differences(saved: Any, wanted: dict[str, Any]) -> str:
    """Return the settings that differ between a folder's recipe and the requested one (see `as_dict`)."""
    saved = saved if isinstance(saved, dict) else {}
    keys = [key for key in {**wanted, **saved} if saved.get(key) != wanted.get(key)]
    return ", ".join(f"data.{key}={saved.get(key)} in the folder, {wanted.get(key)} now" for key in keys)


def _typed(value: Any) -> str:
    """Return a value as it is written in a Hydra override."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_./\-]*", value):
        return override(value)
    return str(value)
