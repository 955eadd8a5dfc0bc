"""What every tokenizer does, and the names of those that need no file."""

from abc import ABC, abstractmethod

import numpy as np

from lhtrain.data.errors import DataError

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
