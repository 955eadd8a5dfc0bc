"""The interface of all tokenizers, and the names of those that need no file."""

from abc import ABC, abstractmethod

import numpy as np

from lhtrain.data.errors import DataError

END_OF_TEXT = "<|endoftext|>"
PREPARED = "prepared:"  # prepared:FOLDER names the tokenizer that made the shards in FOLDER

# tiktoken's public encodings and their vocabulary sizes: a model's size is known without a download.
ENCODINGS = {
    "gpt2": 50_257,
    "r50k_base": 50_257,
    "p50k_base": 50_281,
    "cl100k_base": 100_277,
    "o200k_base": 200_019,
}


class EncodeError(DataError):
    """A tokenizer failed on a text. The message gives the reason; the caller adds the document's name."""


class Tokenizer(ABC):
    """Maps UTF-8 text to token ids below `vocab_size`.

    Every document ends with the token `eos`, and begins with `bos` unless that is None.
    """

    name: str
    vocab_size: int
    eos: int
    bos: int | None
    fingerprint: str  # hex SHA-256 of everything that decides the mapping, and of eos and bos
    merges = True  # whether a token may span the texts of two calls of `encode`
    escaped: int | None = None  # the one token that does not fit `dtype`; stored as `store.tokens.ESCAPE`

    @property
    def dtype(self) -> np.dtype:
        """The type in which tokens are stored: uint16 if all token ids fit, else uint32."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @abstractmethod
    def encode(self, text: bytes | str) -> np.ndarray:
        """Return the tokens of `text`, 1-D of `dtype`; bytes must be UTF-8.

        Never returns a special token: its spelling in a text is ordinary text.
        Raises EncodeError: the tokenizer failed on this text.
        """

    @abstractmethod
    def decode(self, tokens: np.ndarray | list[int]) -> str:
        """Return the text of `tokens` (1-D). Special tokens are spelled out; invalid UTF-8 becomes U+FFFD.

        Raises DataError: a token outside the vocabulary.
        """

    @property
    def described(self) -> str:
        """The name and the added tokens, for messages."""
        return f"{self.name} (eos {self.eos}, bos {self.bos})"

    def as_meta(self) -> dict[str, object]:
        """Return the description that meta.json stores."""
        policy = {"eos": self.eos, "bos": self.bos}
        return {"name": self.name, "vocab_size": self.vocab_size, **policy, "hash": self.fingerprint}

    def _checked(self, tokens: np.ndarray | list[int]) -> np.ndarray:
        ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
        outside = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if outside.size:
            rule = f"tokens must be in 0..{self.vocab_size - 1}"
            raise DataError(f"tokens[{outside[0]}]={ids[outside[0]]}: {rule}")
        return ids
