"""meta.json: the description of a folder of shards. It is written last: a folder without it is incomplete."""

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
TOKENIZER = "tokenizer.json"  # a copy of the tokenizer, if it is such a file
SKIPPED = ".skipped.json"  # a file beside each shard: reason -> number of documents left out
MOST_BYTES = 1 << 28  # largest meta.json accepted: about two million shards
MOST_SKIPPED_BYTES = 1 << 20
MOST_TOKENS = 2**63 - 1
CHECKSUM = "sha256"  # key of the hash of the other keys of meta.json; absent in folders of earlier versions


@dataclass(frozen=True)
class Shard:
    """One token file. documents: the number of documents used, from the first one; tokens: their tokens."""

    file: str
    documents: int
    tokens: int
    crc: int


@dataclass(frozen=True)
class Manifest:
    """The content of meta.json.

    fingerprint: a hash of everything that decides the tokens. tokenizer: `Tokenizer.as_meta`. skipped: number
    of documents left out, by reason.
    """

    fingerprint: str
    recipe: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    shards: list[Shard]
    skipped: Mapping[str, int]

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Write meta.json atomically."""
        totals = {"documents": self.documents, "tokens": self.tokens}
        content = {"format": FORMAT_VERSION, **totals, **asdict(self)}
        content[CHECKSUM] = _checksum(content)
        write_atomic(folder / NAME, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read a folder's manifest and check every value: the folder is not trusted.

        Raises DamagedStore: no meta.json, or one that `write` would not have written.
        """
        path = folder / NAME
        content = read_json(path, MOST_BYTES, "preparing did not finish, or this is not a folder of shards")
        values = _Values(path, content)
        values.format()
        if CHECKSUM in content and content.pop(CHECKSUM) != _checksum(content):
            raise DamagedStore(f"{str(path)!r}: must match its checksum; {REMEDY}")
        tokenizer = _tokenizer(_Values(path, values.mapping("tokenizer"), "tokenizer."))
        shards = [_shard(path, number, shard) for number, shard in enumerate(values.list("shards"))]
        skipped = values.mapping("skipped")
        for reason in skipped:
            _Values(path, skipped, "skipped.").whole(reason, 0, MOST_TOKENS)
        fingerprint = values.hexadecimal("fingerprint", 32)
        recipe = _recipe(_Values(path, values.mapping("recipe"), "recipe."))
        manifest = cls(fingerprint, recipe, tokenizer, shards, skipped)
        for key, total in (("documents", manifest.documents), ("tokens", manifest.tokens)):
            if values.whole(key, 1, MOST_TOKENS) != total:
                raise values.wrong(key, f"must be the sum over the shards, {total}")
        return manifest

    def open_stores(self, folder: Path) -> list[TokenStore]:
        """Open all shards, in order. Raises DamagedStore: a shard is missing, damaged or a different one."""
        stores = [self.open_store(folder, shard) for shard in self.shards]
        for store in stores:
            if (store.dtype, store.header.escaped) != (stores[0].dtype, stores[0].header.escaped):
                rule = f"must store tokens in the same format as {stores[0].path.name}; {REMEDY}"
                raise DamagedStore(f"{str(store.path)!r}: {rule}")
        return stores

    def open_store(self, folder: Path, shard: Shard) -> TokenStore:
        """Open one shard. Raises DamagedStore as `open_stores` does."""
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
            rule = f"must be below the vocabulary size {vocab_size}"
            raise DamagedStore(f"{str(store.path)!r}: escaped token {store.header.escaped} {rule}")
        return store


def shard_name(number: int) -> str:
    """Return the file name of shard `number`. A file with any other name is never opened as a shard."""
    return f"{number:05}.bin"


def skipped_documents(folder: Path, stop: int, start: int = 0) -> Counter[str]:
    """Return how many documents were left out of the shards start..stop, by reason.

    Raises DamagedStore: a .skipped.json file is missing or damaged.
    """
    total: Counter[str] = Counter()
    for number in range(start, stop):
        path = (folder / shard_name(number)).with_suffix(SKIPPED)
        content = read_json(path, MOST_SKIPPED_BYTES, REMEDY)
        for reason in content:
            total[reason] += _Values(path, content).whole(reason, 0, MOST_TOKENS)
    return total


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Copy the tokenizer's file into the folder, if it has one, so that the original is no longer needed."""
    path = getattr(tokenizer, "path", None)
    if path is None:
        return
    content = path.read_bytes()
    try:
        if read_regular(folder / TOKENIZER) == content:
            return
    except OSError:
        pass  # missing or not a regular file: written below
    write_atomic(folder / TOKENIZER, content)


def read_json(path: Path, most: int, absent: str) -> dict[str, Any]:
    """Return the JSON object in a file that is not trusted. absent: a likely reason if the file is missing.

    Raises DamagedStore: missing, not a regular file, more than `most` bytes, not UTF-8, not a JSON object.
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
        raise DamagedStore(f"{str(path)!r}: must be JSON with less nesting; {REMEDY}") from error
    except ValueError as error:  # includes UnicodeDecodeError
        raise DamagedStore(f"{str(path)!r}: must be valid JSON ({error}); {REMEDY}") from error
    if not isinstance(content, dict):
        raise DamagedStore(f"{str(path)!r}: must be a JSON object, is {_shown(content)}; {REMEDY}")
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


class _Values:
    """Reads values of a JSON object and checks their type and range. Each method raises DamagedStore."""

    def __init__(self, path: Path, content: Mapping[str, Any], prefix: str = "") -> None:
        self.path, self.content, self.prefix = path, content, prefix

    def wrong(self, key: str, rule: str) -> DamagedStore:
        """Return the error for a value that breaks `rule`."""
        value = _shown(self.content[key]) if key in self.content else "(missing)"
        return DamagedStore(f"{str(self.path)!r}: {self.prefix}{key}={value}: {rule}; {REMEDY}")

    def format(self) -> None:
        version = self.whole("format", 0, MOST_TOKENS)
        if version > FORMAT_VERSION:
            rule = f"was written by a newer lhtrain; this version reads {FORMAT_VERSION}; update lhtrain, or"
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
            raise self.wrong(key, "must be a string")
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
            raise self.wrong(key, "must be a non-empty list")
        return value


def _tokenizer(values: _Values) -> Mapping[str, Any]:
    vocab_size = values.whole("vocab_size", 1, 2**32)
    values.whole("eos", 0, vocab_size - 1)
    if values.content.get("bos") is not None:
        values.whole("bos", 0, vocab_size - 1)
    values.hexadecimal("hash", 64)
    values.text("name")
    return {key: values.content.get(key) for key in ("name", "vocab_size", "eos", "bos", "hash")}


def _recipe(values: _Values) -> Mapping[str, Any]:
    values.text("source")
    paths = values.content.get("path")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise values.wrong("path", "must be a list of paths")
    if values.content.get("name") is not None:
        values.text("name")
    return values.content


def _shard(path: Path, number: int, content: Any) -> Shard:
    if not isinstance(content, dict):
        rule = f"must be a JSON object; {REMEDY}"
        raise DamagedStore(f"{str(path)!r}: shards[{number}]={_shown(content)}: {rule}")
    values = _Values(path, content, f"shards[{number}].")
    if content.get("file") != shard_name(number):  # no file outside the folder, and no file twice
        raise values.wrong("file", f"must be {shard_name(number)!r}")
    documents = values.whole("documents", 0, MOST_TOKENS)
    tokens = values.whole("tokens", documents, MOST_TOKENS)
    return Shard(content["file"], documents, tokens, values.whole("crc", 0, 2**32 - 1))


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
    """Return a value for a message, shortened if it is long or deeply nested."""
    if isinstance(value, dict | list):
        return f"a {'list' if isinstance(value, list) else 'JSON object'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a number of about {int(value.bit_length() * math.log10(2))} digits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
