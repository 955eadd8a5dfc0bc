"""Bytes as tokens."""

import hashlib

import numpy as np

from lhtrain.data.tokenizers.base import END_OF_TEXT, Tokenizer


class ByteTokenizer(Tokenizer):
    """Token i < 256 is the byte i; token 256 ends a document. Needs no download and no training.

    Tokens are stored in one byte each, half the size of uint16; 256 is stored as ESCAPE.
    """

    name = "bytes"
    vocab_size = 257
    eos = escaped = 256
    merges = False
    dtype = np.dtype("u1")

    def __init__(self, bos: bool = False) -> None:
        self.bos = self.eos if bos else None
        policy = " bos" if bos else ""
        identity = f"{self.name} {self.vocab_size} {END_OF_TEXT}={self.eos}{policy}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

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
