"""meta.json: what a folder of shards holds. It is written last, so a folder without one is not complete."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lhtrain.data.errors import REMEDY, DamagedStore
from lhtrain.data.store.tokens import FORMAT_VERSION, TokenStore
from lhtrain.files import read_regular, write_atomic

NAME = "meta.json"
TOKENIZER = "tokenizer.json"  # a copy, where the tokenizer is such a file
SKIPPED = ".skipped.json"  # beside each shard: documents left out of it, by reason
MOST_BYTES = 1 << 28  # of meta.json: about two million shards
MOST_SKIPPED_BYTES = 1 << 20
MOST_TOKENS = 2**63 - 1
CHECKSUM = "sha256"  # of everything else in meta.json; folders of earlier versions have none


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
        content[CHECKSUM] = _checksum(content)
        write_atomic(folder / NAME, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The folder's manifest, every value of it checked: whoever wrote the folder is not trusted.

        Raises DamagedStore: no meta.json, or one that `write` would not have written.
        """
        path = folder / NAME
        content = read_json(path, MOST_BYTES, "preparing was not finished, or this is no folder of shards")
        there = _Values(path, content)
        there.format()
        if CHECKSUM in content and content.pop(CHECKSUM) != _checksum(content):
            raise DamagedStore(f"{str(path)!r}: must have the checksum it was written with; {REMEDY}")
        tokenizer = _tokenizer(_Values(path, there.mapping("tokenizer"), "tokenizer."))
        shards = [_shard(path, number, shard) for number, shard in enumerate(there.list("shards"))]
        skipped = there.mapping("skipped")
        for reason in skipped:
            _Values(path, skipped, "skipped.").whole(reason, 0, MOST_TOKENS)
        fingerprint = there.hexadecimal("fingerprint", 32)
        recipe = _recipe(_Values(path, there.mapping("recipe"), "recipe."))
        manifest = cls(fingerprint, recipe, tokenizer, shards, skipped)
        for key, total in (("documents", manifest.documents), ("tokens", manifest.tokens)):
            if there.whole(key, 1, MOST_TOKENS) != total:
                raise there.wrong(key, f"must be the sum over the shards, {total}")
        return manifest

    def open_stores(self, folder: Path) -> list[TokenStore]:
        """Every shard, in order. Raises DamagedStore: missing, damaged or another one."""
        stores = [self.open_store(folder, shard) for shard in self.shards]
        for store in stores:
            if (store.dtype, store.header.escaped) != (stores[0].dtype, stores[0].header.escaped):
                rule = f"must store its tokens as {stores[0].path.name} does; {REMEDY}"
                raise DamagedStore(f"{str(store.path)!r}: {rule}")
        return stores

    def open_store(self, folder: Path, shard: Shard) -> TokenStore:
        """One shard. Raises DamagedStore as `open_stores`."""
        vocab_size = self.tokenizer["vocab_size"]
        try:
            store = TokenStore(folder / shard.file, vocab_size)
        except FileNotFoundError as error:
            raise DamagedStore(f"{str(folder / shard.file)!r}: must exist; {REMEDY}") from error
        theirs = bytes.fromhex(self.tokenizer["hash"])[:12]
        counted = shard.documents <= store.n_documents and store.offsets[shard.documents] == shard.tokens
        if store.header.crc != shard.crc or store.header.tokenizer != theirs or not counted:
            raise DamagedStore(f"{str(folder)!r}: meta.json must agree with {shard.file}; {REMEDY}")
        if store.header.escaped >= vocab_size:
            rule = f"must be below the vocabulary's {vocab_size}"
            raise DamagedStore(f"{str(store.path)!r}: escaped token {store.header.escaped} {rule}")
        return store


def shard_name(number: int) -> str:
    """The file name of shard `number` of a folder; no other name is ever opened as a shard."""
    return f"{number:05}.bin"


def skipped_documents(folder: Path, stop: int, start: int = 0) -> Counter[str]:
    """Documents that were left out of the shards start..stop, by reason.

    Raises DamagedStore: a shard's file of them is missing or not as it was written."""
    total: Counter[str] = Counter()
    for number in range(start, stop):
        path = (folder / shard_name(number)).with_suffix(SKIPPED)
        content = read_json(path, MOST_SKIPPED_BYTES, REMEDY)
        for reason in content:
            total[reason] += _Values(path, content).whole(reason, 0, MOST_TOKENS)
    return total


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """A copy of its tokenizer.json, if it has one: the folder is read without the original."""
    path = getattr(tokenizer, "path", None)
    if path is None:
        return
    content = path.read_bytes()
    try:
        if read_regular(folder / TOKENIZER) == content:
            return
    except OSError:
        pass  # missing, or no regular file: written below
    write_atomic(folder / TOKENIZER, content)


def read_json(path: Path, most: int, absent: str) -> dict[str, Any]:
    """The JSON object in a file that nobody vouches for. absent: why the file may be missing.

    Raises DamagedStore: missing, no regular file, more than `most` bytes, not UTF-8, not a JSON object.
    """
    try:
        content = json.loads(read_regular(path, most).decode(), parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise DamagedStore(f"{str(path)!r}: must exist; {absent}") from error
    except NotADirectoryError as error:
        raise DamagedStore(f"{str(path.parent)!r}: must be a folder of prepared shards") from error
    except OSError as error:
        raise DamagedStore(f"{str(path)!r}: must be readable ({error.strerror or error})") from error
    except RecursionError as error:
        raise DamagedStore(f"{str(path)!r}: must be JSON that is not nested so deeply; {REMEDY}") from error
    except ValueError as error:  # UnicodeDecodeError too
        raise DamagedStore(f"{str(path)!r}: must be JSON as it was written ({error}); {REMEDY}") from error
    if not isinstance(content, dict):
        raise DamagedStore(f"{str(path)!r}: must be a JSON object, is {_shown(content)}; {REMEDY}")
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


class _Values:
    """Values of a JSON object, taken by key, type and range."""

    def __init__(self, path: Path, content: Mapping[str, Any], prefix: str = "") -> None:
        self.path, self.content, self.prefix = path, content, prefix

    def wrong(self, key: str, rule: str) -> DamagedStore:
        """The error of a value that breaks `rule`."""
        value = _shown(self.content[key]) if key in self.content else "(missing)"
        return DamagedStore(f"{str(self.path)!r}: {self.prefix}{key}={value}: {rule}; {REMEDY}")

    def format(self) -> None:
        version = self.whole("format", 0, MOST_TOKENS)
        if version > FORMAT_VERSION:
            rule = f"was written by a newer lhtrain, this one reads {FORMAT_VERSION}; update it, or"
            raise DamagedStore(f"{str(self.path)!r}: format={version}: {rule} {REMEDY}")
        if version < FORMAT_VERSION:
            raise self.wrong("format", f"must be {FORMAT_VERSION}")

    def whole(self, key: str, least: int, most: int) -> int:
        value = self.content.get(key)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"must be a whole number from {least} to {most}")
        return value

    def text(self, key: str) -> str:
        value = self.content.get(key)
        if not isinstance(value, str) or not _encodable(value):
            raise self.wrong(key, "must be a text")
        return value

    def hexadecimal(self, key: str, digits: int) -> str:
        value = self.text(key)
        if len(value) != digits or not set(value) <= set("0123456789abcdef"):
            raise self.wrong(key, f"must be {digits} hexadecimal digits")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.content.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, "must be a JSON object")
        return value

    def list(self, key: str) -> list[Any]:
        value = self.content.get(key)
        if not isinstance(value, list) or not value:
            raise self.wrong(key, "must be a list that is not empty")
        return value


def _tokenizer(there: _Values) -> Mapping[str, Any]:
    vocab_size = there.whole("vocab_size", 1, 2**32)
    there.whole("eos", 0, vocab_size - 1)
    if there.content.get("bos") is not None:
        there.whole("bos", 0, vocab_size - 1)
    there.hexadecimal("hash", 64)
    there.text("name")
    return {key: there.content.get(key) for key in ("name", "vocab_size", "eos", "bos", "hash")}


def _recipe(there: _Values) -> Mapping[str, Any]:
    there.text("source")
    paths = there.content.get("path")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise there.wrong("path", "must be a list of paths")
    if there.content.get("name") is not None:
        there.text("name")
    return there.content


def _shard(path: Path, number: int, content: Any) -> Shard:
    if not isinstance(content, dict):
        rule = f"must be a JSON object; {REMEDY}"
        raise DamagedStore(f"{str(path)!r}: shards[{number}]={_shown(content)}: {rule}")
    there = _Values(path, content, f"shards[{number}].")
    if content.get("file") != shard_name(number):  # so none is outside the folder, and none is there twice
        raise there.wrong("file", f"must be {shard_name(number)!r}")
    documents = there.whole("documents", 0, MOST_TOKENS)
    tokens = there.whole("tokens", documents, MOST_TOKENS)
    return Shard(content["file"], documents, tokens, there.whole("crc", 0, 2**32 - 1))


def _checksum(content: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def _shown(value: Any) -> str:
    """A value for a message: short, however long or deep it is."""
    if isinstance(value, dict | list):
        return f"a {'list' if isinstance(value, list) else 'JSON object'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a number of about {int(value.bit_length() * math.log10(2))} digits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
