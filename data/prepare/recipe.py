"""A recipe: everything that decides which tokens `prepare` writes."""

import hashlib
import json
import os
import re
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lhtrain.data.sources.local import as_list
from lhtrain.data.sources.paths import expanded
from lhtrain.data.store.cache import cache_root
from lhtrain.quote import override

AUTOMATIC = ("stdlib", "text")  # training tokenizes these by itself
PREPARABLE = (*AUTOMATIC, "code", "files", "hf")
SOURCES = (*PREPARABLE, "prepared", "mix")


@dataclass(frozen=True)
class Recipe:
    """source: one of PREPARABLE. The other fields are the keys of the same name in conf/schema.py."""

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
        """Plain values, paths absolute: equal for equal recipes. `eos` is there only where it is set, because
        folders that were prepared before the key existed have none."""
        paths = [os.path.abspath(expanded(path)) for path in self.paths]
        values = asdict(self) | {"path": paths, "filters": list(self.filters)}
        return {key: value for key, value in values.items() if key != "eos" or value is not None}

    def command(self, out: str | os.PathLike | None, cache_dir: str | os.PathLike | None) -> str:
        """The command that prepares this recipe, as typed in a shell: all that differs from the defaults."""
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
        """Where the shards go: `out`, else a folder of the cache named after the recipe."""
        if out is not None:
            return expanded(out, "data.out")
        key = hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:20]
        return cache_root(cache_dir) / f"{self.source}_{key}"


def differences(there: Any, here: dict[str, Any]) -> str:
    """The settings in which a folder's recipe, as `as_dict` has it, differs from the one asked for."""
    saved = there if isinstance(there, dict) else {}
    keys = [key for key in {**here, **saved} if saved.get(key) != here.get(key)]
    return ", ".join(f"data.{key}={saved.get(key)} there, {here.get(key)} here" for key in keys)


def _typed(value: Any) -> str:
    """A value as Hydra reads it on a command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_./\-]*", value):
        return override(value)
    return str(value)
