"""Long passages of text, and words as tokens of the model's tokenizer."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lhtrain.data import Split, Tokenizer
from lhtrain.data.store.tokens import unescaped


class Passages(NamedTuple):
    """Passages of equal length.

    n: number of passages. joined: whether they consist of several documents, because none is long enough.
    """

    n: int
    build: Callable[[int], np.ndarray]  # number of a passage -> its tokens, int64
    joined: bool


class Texts:
    """The texts that a model is measured on.

    Args:
        tokenizer: of the model and of the texts.
        splits: the documents.
        seed: of the order in which documents are taken, and of `generator`.
        name: what the texts are, for the reader of the results.
    """

    def __init__(self, tokenizer: Tokenizer, splits: Sequence[Split], seed: int, name: str) -> None:
        self.tokenizer, self.seed, self.name = tokenizer, seed, name
        self._owners = [(split, i) for split in splits for i in range(split.n_documents)]
        self.lengths = np.concatenate([split.lengths for split in splits])
        self._order = np.random.default_rng(seed).permutation(len(self.lengths))
        self.n_tokens = int(self.lengths.sum())

    def generator(self, *of: int) -> np.random.Generator:
        """Return the random numbers of one purpose, which does not depend on any other."""
        return np.random.default_rng([self.seed, *of])

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of `text`, int64."""
        return self.tokenizer.encode(text).astype(np.int64)

    def passages(self, length: int, count: int) -> Passages | None:
        """Return up to `count` passages of `length` tokens, each the beginning of another document.

        If no document is that long, passages of joined documents; None if all of them together are shorter.
        """
        long = [number for number in self._order if self.lengths[number] >= length][:count]
        if long:
            return Passages(len(long), lambda i: self._read(long[i], length), joined=False)
        count = min(count, self.n_tokens // length)
        return Passages(count, lambda i: self._joined(i, length), joined=True) if count else None

    def filler(self, length: int, number: int) -> np.ndarray:
        """Return `length` tokens of text, another for each number; short texts repeat."""
        if passages := self.passages(length, number + 1):
            return passages.build(number % passages.n)
        return np.resize(self._joined(0, self.n_tokens), length)

    def _read(self, number: int, length: int) -> np.ndarray:
        split, index = self._owners[number]
        tokens = split.tokens(int(split.starts[index]), min(length, int(split.lengths[index])))
        return unescaped(tokens, split.escaped).astype(np.int64)

    def _joined(self, number: int, length: int) -> np.ndarray:
        """Return the passage `number` of all documents one after the other."""
        ends = np.cumsum(self.lengths[self._order])
        first, begin = int(np.searchsorted(ends, number * length, side="right")), number * length
        parts, have = [], 0
        skip = begin - (int(ends[first - 1]) if first else 0)
        for document in self._order[first:]:
            parts.append(self._read(document, skip + length - have)[skip:])
            have, skip = have + len(parts[-1]), 0
            if have >= length:
                break
        return np.concatenate(parts)[:length]
