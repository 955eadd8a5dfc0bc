"""meta.json: what a folder of shards holds. It is written last, so a folder without one is not complete."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lhtrain.data.errors import DamagedStore
from lhtrain.data.store import FORMAT_VERSION, TokenStore

NAME = "meta.json"


@dataclass(frozen=True)
class Shard:
    """One token file. documents: how many of it count, the first ones; tokens: theirs."""

    file: str
    documents: int
    tokens: int
    crc: int


@dataclass(frozen=True)
class Manifest:
    """fingerprint: hash of everything that decides the tokens. tokenizer: `Tokenizer.as_meta`."""

    fingerprint: str
    recipe: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    shards: list[Shard]
    skipped: Mapping[str, int]  # documents left out, by reason

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Aside, to the disk, and renamed."""
        totals = {"documents": self.documents, "tokens": self.tokens}
        content = {"format": FORMAT_VERSION, **totals, **asdict(self)}
        aside = folder / f".{NAME}"
        with aside.open("w") as stream:
            stream.write(json.dumps(content, indent=2) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(folder / NAME)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises DamagedStore: no meta.json, or none that `write` wrote."""
        try:
            content = json.loads((folder / NAME).read_text())
            if content["format"] != FORMAT_VERSION:
                rule = f"must be format {FORMAT_VERSION}; prepare the data again"
                raise DamagedStore(f"{str(folder)!r}: format {content['format']}; {rule}")
            shards = [Shard(**shard) for shard in content["shards"]]
            fingerprint, recipe = content["fingerprint"], content["recipe"]
            return cls(fingerprint, recipe, content["tokenizer"], shards, content["skipped"])
        except FileNotFoundError as error:
            rule = "must exist; preparing was not finished, or this is no folder of shards"
            raise DamagedStore(f"{str(folder / NAME)!r}: {rule}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            rule = f"meta.json must be as it was written ({error})"
            raise DamagedStore(f"{str(folder)!r}: {rule}") from error

    def open_stores(self, folder: Path) -> list[TokenStore]:
        """Every shard, in order. Raises DamagedStore: missing, damaged or another one."""
        return [self.open_store(folder, shard) for shard in self.shards]

    def open_store(self, folder: Path, shard: Shard) -> TokenStore:
        """One shard. Raises DamagedStore as `open_stores`."""
        try:
            store = TokenStore(folder / shard.file)
        except FileNotFoundError as error:
            raise DamagedStore(f"{error.filename!r}: must exist") from error
        theirs = bytes.fromhex(self.tokenizer["hash"])[:12]
        counted = shard.documents <= store.n_documents and store.offsets[shard.documents] == shard.tokens
        if store.header.crc != shard.crc or store.header.tokenizer != theirs or not counted:
            raise DamagedStore(f"{str(folder)!r}: meta.json must agree with {shard.file}")
        return store
