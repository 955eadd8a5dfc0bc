"""A recipe: everything that decides which tokens `prepare` writes."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lhtrain.data.cache import cache_root
from lhtrain.data.source import as_list

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

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return as_list(self.path)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, paths absolute: equal for equal recipes."""
        paths = [os.path.abspath(os.path.expanduser(path)) for path in self.paths]
        return asdict(self) | {"path": paths, "filters": list(self.filters)}

    def folder(self, out: str | os.PathLike | None, cache_dir: str | os.PathLike | None) -> Path:
        """Where the shards go: `out`, else a folder of the cache named after the recipe."""
        if out is not None:
            return Path(out).expanduser()
        key = hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:20]
        return cache_root(cache_dir) / f"{self.source}_{key}"
