"""Tokenizers: text to tokens and back. Bytes here; what merges them is in `bpe.py`."""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.sources.paths import expanded, is_file

END_OF_TEXT = "<|endoftext|>"
PREPARED = "prepared:"  # prepared:FOLDER is the tokenizer that the folder's shards were made with

# tiktoken's public encodings and their vocabulary sizes, so that a model's size needs no download.
ENCODINGS = {
    "gpt2": 50_257,
    "r50k_base": 50_257,
    "p50k_base": 50_281,
    "cl100k_base": 100_277,
    "o200k_base": 200_019,
}


class EncodeError(DataError):
    """A tokenizer fails on a text. The message says why, and not on which document: the caller knows it."""


class Tokenizer(ABC):
    """Maps UTF-8 text to tokens below `vocab_size`. `eos` ends every document; `bos`, if any, begins it."""

    name: str
    vocab_size: int
    eos: int
    bos: int | None
    fingerprint: str  # hex sha256 of what decides the mapping, and of eos and bos
    merges = True  # whether a token may span what two calls of `encode` get
    escaped: int | None = None  # the one token that does not fit `dtype`; `store.py` has another for it

    @property
    def dtype(self) -> np.dtype:
        """What a text's tokens are stored as: uint16 if every one fits, else uint32."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @abstractmethod
    def encode(self, text: bytes | str) -> np.ndarray:
        """Tokens of `text`, 1-D of `dtype`; bytes must be UTF-8. Never a special token: one that is spelt out
        in a text is ordinary text. Raises EncodeError: the tokenizer fails on this text."""

    @abstractmethod
    def decode(self, tokens: np.ndarray | list[int]) -> str:
        """Text of `tokens` (1-D); specials are written out, bytes that are not UTF-8 become U+FFFD.

        Raises DataError for a token outside the vocabulary.
        """

    def as_meta(self) -> dict[str, object]:
        """What is stored beside the shards."""
        policy = {"eos": self.eos, "bos": self.bos}
        return {"name": self.name, "vocab_size": self.vocab_size, **policy, "hash": self.fingerprint}

    def _checked(self, tokens: np.ndarray | list[int]) -> np.ndarray:
        ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
        outside = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if outside.size:
            rule = f"tokens must lie in 0..{self.vocab_size - 1}"
            raise DataError(f"tokens[{outside[0]}]={ids[outside[0]]}: {rule}")
        return ids


class ByteTokenizer(Tokenizer):
    """Token i < 256 is the byte i; token 256 ends a document. Needs no download and no training.

    Stored as the bytes themselves: half of what uint16 takes on the disk.
    """

    name = "bytes"
    vocab_size = 257
    eos = escaped = 256
    merges = False
    dtype = np.dtype("u1")

    def __init__(self, bos: bool = False) -> None:
        self.bos = self.eos if bos else None
        policy = " bos" if bos else ""
        told = f"{self.name} {self.vocab_size} {END_OF_TEXT}={self.eos}{policy}"
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()

    def encode(self, text: bytes | str) -> np.ndarray:
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, dtype=np.uint8)

    def decode(self, tokens: np.ndarray | list[int]) -> str:
        ids = self._checked(tokens)
        ends = np.flatnonzero(ids == self.eos)
        pieces = np.split(ids, np.stack([ends, ends + 1], axis=1).reshape(-1))  # text, EOS, ..., text
        return END_OF_TEXT.join(
            piece.astype(np.uint8).tobytes().decode("utf-8", "replace") for piece in pieces[::2]
        )


def open_tokenizer(name: str, bos: bool = False, eos: str | None = None) -> Tokenizer:
    """The tokenizer called `name`: "bytes", a tiktoken encoding, the path of a tokenizer.json, or
    "prepared:FOLDER". With `bos` every document begins with the beginning-of-text token (where a tokenizer
    has none of its own, the end-of-text token). `eos` names the end-of-text token of a tokenizer.json, by its
    text or its number; None takes the first of the names that published tokenizers use.

    Raises DataError: no such name or file; a file that is no tokenizer; no such end-of-text token; an
    encoding that cannot be fetched.
    """
    if problem := tokenizer_problem(name):
        raise DataError(f"data.tokenizer={name!r}: {problem}")
    if problem := eos_problem(name, eos):
        raise DataError(f"data.eos={eos!r}: {problem}")
    if name == ByteTokenizer.name:
        return ByteTokenizer(bos)
    if name.startswith(PREPARED):
        return _prepared(Path(name.removeprefix(PREPARED)))
    from lhtrain.data.tokenizers import bpe  # it loads libraries that bytes do without

    return bpe.TiktokenTokenizer(name, bos) if name in ENCODINGS else bpe.HuggingFaceTokenizer(name, bos, eos)


def tokenizer_problem(name: str) -> str | None:
    """The rule that `name` breaks, if any; a look at the file system at most."""
    if name == ByteTokenizer.name or name in ENCODINGS:
        return None
    if name.startswith(PREPARED):
        meta = Path(name.removeprefix(PREPARED)) / "meta.json"
        return None if is_file(meta) else f"{str(meta)!r} must exist; `lhtrain data prepare` writes it"
    if name.lower().endswith(".json"):
        try:
            found = is_file(expanded(name))
        except DataError:
            found = False
        return None if found else "must exist and be a file: a tokenizer.json of Hugging Face tokenizers"
    return f"must be one of {', '.join([ByteTokenizer.name, *ENCODINGS])}, or the path of a tokenizer.json"


def eos_problem(name: str, eos: str | None) -> str | None:
    """The rule that data.eos breaks beside data.tokenizer=name, if any; the file is not read."""
    if eos is None or name.lower().endswith(".json") or eos == END_OF_TEXT:
        return None
    return f"only goes with a tokenizer.json; data.tokenizer={name} has {END_OF_TEXT}"


def vocabulary_size(name: str) -> int:
    """Number of distinct tokens of `open_tokenizer(name)`, whatever its end-of-text. DataError as there."""
    if problem := tokenizer_problem(name):
        raise DataError(f"data.tokenizer={name!r}: {problem}")
    if name == ByteTokenizer.name:
        return ByteTokenizer.vocab_size
    if name in ENCODINGS:
        return ENCODINGS[name]
    if name.startswith(PREPARED):
        return int(prepared_meta(Path(name.removeprefix(PREPARED)))["vocab_size"])
    from lhtrain.data.tokenizers import bpe

    return bpe.TokenizerFile(name).vocab_size


def prepared_meta(folder: Path) -> dict:
    """The tokenizer's part of a prepared folder's meta.json. DataError: missing or not as written."""
    from lhtrain.data.store.manifest import Manifest

    try:
        return dict(Manifest.read(folder).tokenizer)
    except DataError as error:
        rule = "must be a folder that `lhtrain data prepare` completed"
        raise DataError(f"data.path={str(folder)!r}: {rule} ({error})") from error


def same_tokenizer(folder: Path, name: str) -> str | None:
    """None if the shards of a prepared folder are tokens of `name`, else the name of what they are tokens of.

    Raises DataError: a folder that is not complete.
    """
    meta = prepared_meta(folder)
    try:
        eos = str(meta["eos"]) if name.lower().endswith(".json") else None
        if open_tokenizer(name, meta["bos"] is not None, eos).fingerprint == meta["hash"]:
            return None
        return str(meta["name"])
    except DataError:  # `name` is not here, or is no tokenizer
        return str(meta["name"])


def _prepared(folder: Path) -> Tokenizer:
    """The tokenizer of a prepared folder, checked to be the one that made its shards. Of a tokenizer.json
    the folder has a copy; no other file is read, whatever meta.json names."""
    meta = prepared_meta(folder)
    name, eos = meta["name"], None
    if name != ByteTokenizer.name and name not in ENCODINGS:
        copy = folder / "tokenizer.json"
        if copy.is_symlink() or not copy.is_file():
            rule = "must be there, a regular file: the copy of the tokenizer.json that made the shards"
            raise DataError(f"data.path={str(folder)!r}: {str(copy)!r} {rule}; prepare the data again")
        name, eos = str(copy), str(meta["eos"])  # its number is known, whatever named it
    tokenizer = open_tokenizer(name, meta["bos"] is not None, eos)
    found = tokenizer.as_meta() | {"name": meta["name"]}
    if found != meta:
        key = next(key for key in ("hash", *found) if found[key] != meta.get(key))
        theirs, ours = (str(values.get(key))[:12] for values in (meta, found))
        rule = f"its shards were made with another ({key} {theirs}, here {ours})"
        raise DataError(f"data.tokenizer={meta['name']!r}: {str(folder)!r}: {rule}")
    return tokenizer
