"""The train/validation split. A document's content decides its split, so added documents move no others."""

from collections.abc import Sequence

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.store.descriptors import SHARED, Descriptors
from lhtrain.data.store.tokens import TokenStore, unescaped

SPLITS = ("train", "val")


class Split:
    """Documents selected from token stores, in the stores' order.

    starts: (n_documents,) int64, where each begins in the concatenated tokens of the stores.
    lengths: (n_documents,) int64, the number of tokens of each.
    descriptors: the cache of open files through which the stores are read.
    """

    def __init__(
        self,
        name: str,
        stores: Sequence[TokenStore],
        starts: np.ndarray,
        lengths: np.ndarray,
        descriptors: Descriptors = SHARED,
    ) -> None:
        self.name, self.stores, self.starts, self.lengths = name, list(stores), starts, lengths
        self.bases = np.cumsum([0, *(store.n_tokens for store in self.stores)])
        self.n_documents, self.n_tokens = len(lengths), int(lengths.sum())
        self.escaped = self.stores[0].header.escaped if self.stores else 0  # all stores have one tokenizer
        self._descriptors = descriptors
        for store in self.stores[: descriptors.most]:  # open files stay readable if the folder is moved
            descriptors.of(store.path, store.identity)

    @classmethod
    def whole(cls, *stores: TokenStore, name: str = "train") -> "Split":
        """Return a split with every document of `stores`."""
        return cls(name, stores, *_documents(stores))

    def only(self, chosen: np.ndarray) -> "Split":
        """Return the split with the documents that are `chosen`, bool (n_documents,)."""
        starts, lengths = self.starts[chosen], self.lengths[chosen]
        return Split(self.name, self.stores, starts, lengths, self._descriptors)

    def document(self, index: int) -> np.ndarray:
        """Return the tokens of document `index`, read-only unless the tokenizer has an escaped token."""
        if not 0 <= index < self.n_documents:
            raise IndexError(f"document {index}: the {self.name} split has {self.n_documents}")
        return unescaped(self.tokens(int(self.starts[index]), int(self.lengths[index])), self.escaped)

    def tokens(self, start: int, length: int) -> np.ndarray:
        """Return `length` tokens of one document, from position `start` in the stores' concatenated tokens.

        The tokens are read-only and as stored: ESCAPE stands for the token `escaped`, unless that is 0.
        Raises DataError: the shard is damaged, gone, or has a token outside the vocabulary.
        """
        number = 0 if len(self.stores) == 1 else int(np.searchsorted(self.bases, start, side="right")) - 1
        return self.stores[number].read(start - int(self.bases[number]), length, self._descriptors)


def split_documents(
    stores: Sequence[TokenStore], val_fraction: float | None, counts: Sequence[int] | None = None
) -> dict[str, Split]:
    """Assign every document to "train" or "val"; neither is empty.

    val_fraction: the share for val; None: both have all documents.
    counts: how many documents of each store to use, from the first one; None: all.

    A document goes to val if its hash, as a number in [0, 1), is below `val_fraction`. So copies of a text
    are in the same split, and added documents move no others. Exceptions: a document with more than half of
    all tokens goes to train. If val would be empty, the document with the lowest hash goes to val; if train
    would be empty, the longest document goes to train; copies go with them. If there is only one text (and
    copies of it), it is cut: its last `val_fraction` goes to val.

    Raises DataError: `val_fraction` is not between 0 and 1; no document; a single document with one token.
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise DataError(f"data.val_fraction={val_fraction}: must be above 0 and below 1")
    starts, lengths = _documents(stores, counts)
    if not len(lengths):
        raise DataError("data: must contain at least one document that is not empty")
    if val_fraction is None:
        return {name: Split(name, stores, starts, lengths) for name in SPLITS}
    used = counts or [store.n_documents for store in stores]
    hashes = np.concatenate([store.hashes[:count] for store, count in zip(stores, used, strict=True)])
    if (hashes == hashes[0]).all():
        return _cut(stores, starts, int(lengths[0]), val_fraction)
    validates = _validates(lengths, hashes, val_fraction)
    return {
        name: Split(name, stores, starts[chosen], lengths[chosen])
        for name, chosen in (("train", ~validates), ("val", validates))
    }


def _validates(lengths: np.ndarray, hashes: np.ndarray, val_fraction: float) -> np.ndarray:
    """Return (n_documents,) bool: which documents go to val. Needs at least two different documents.

    Copies have the same hash, so they are treated alike.
    """
    may = 2 * lengths <= lengths.sum()
    fractions = (hashes >> np.uint64(12)) / 2.0**52  # 52 bits are exact in a float64
    chosen = may & (fractions < val_fraction)
    if not chosen.any():
        chosen = may & (hashes == hashes[may].min())
    if chosen.all():
        chosen = hashes != hashes[np.argmax(lengths)]
    return chosen


def _documents(
    stores: Sequence[TokenStore], counts: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and lengths, int64, of the first `counts` documents of every store."""
    starts, lengths, base = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for number, store in enumerate(stores):
        stop = store.n_documents if counts is None else counts[number]
        starts.append(store.offsets[:stop] + base)
        lengths.append(np.diff(store.offsets[: stop + 1]))
        base += store.n_tokens
    return np.concatenate(starts), np.concatenate(lengths)


def _cut(
    stores: Sequence[TokenStore], starts: np.ndarray, length: int, val_fraction: float
) -> dict[str, Split]:
    """Split each copy of a text, `length` tokens from `starts`, into its head (train) and its tail (val)."""
    text = length - 1  # without the end-of-text token
    tail = max(1, round(text * val_fraction))
    if text - tail < 1:
        rule = "a single document needs at least 2, one to train on and one to validate on"
        raise DataError(f"data: the only document has {text} tokens; {rule}")
    parts = {"train": (starts, text - tail), "val": (starts + text - tail, tail + 1)}
    return {
        name: Split(name, stores, begin, np.full_like(begin, count)) for name, (begin, count) in parts.items()
    }
