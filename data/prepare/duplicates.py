"""Shares of documents that are copies of others, exactly or nearly.

Near copies are found by MinHash (Broder, 1997) over shingles, with the numbers of FineWeb (Penedo et al.,
2024, arXiv 2406.17557): 112 hash functions in 14 bands of 8. The result is the same on every machine.
"""

from collections.abc import Iterable

import numpy as np

from lhtrain.data.order.permutation import hashed, uniform

BANDS, ROWS = 14, 8
ALIKE = 0.8  # share of common shingles (Jaccard index) from which two documents are near copies
READ_BYTES = 16_384  # of each document, its beginning
SHINGLE_BYTES = 24  # length of a shingle, about five words
BYTES_PER_TOKEN = 4  # of a tokenizer with merges, roughly


def copies(hashes: np.ndarray) -> np.ndarray:
    """Return for each hash of a text whether an earlier text has the same: bool (n,)."""
    again = np.ones(len(hashes), dtype=bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    return again


def chosen(n_documents: int, sample: int) -> np.ndarray:
    """Return the numbers of at most `sample` documents, evenly random and always the same, rising."""
    order = np.argsort(uniform(n_documents, seed=0, stream=0), kind="stable")
    return np.sort(order[:sample])


def near_copies(documents: Iterable[np.ndarray], is_bytes: bool) -> np.ndarray:
    """Return for each document, given as tokens, whether it is like an earlier one: bool (n,).

    is_bytes: each token is a byte. Pairs that share ALIKE of their shingles are found with a probability of
    0.92, and those that share 0.9 of them with more than 0.999. The share itself is estimated to about 0.04.
    A document that is shorter than a shingle is like no other.
    """
    signatures = np.stack([_signature(tokens, is_bytes) for tokens in documents])
    empty = (signatures == np.iinfo(np.uint64).max).all(axis=1)
    like = np.zeros(len(signatures), dtype=bool)
    for band in np.split(signatures, BANDS, axis=1):
        key = _key(band)
        order = np.argsort(key, kind="stable")
        group_begins = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]]))
        first = np.repeat(order[group_begins], np.diff(group_begins, append=len(order)))
        for other in (first, np.roll(order, 1)):  # of its group, the first document and the one before
            pairs = (key[other] == key[order]) & (other < order) & ~empty[order]
            one, two = other[pairs], order[pairs]
            like[two] |= (signatures[one] == signatures[two]).mean(axis=1) >= ALIKE
    return like


def _key(band: np.ndarray) -> np.ndarray:
    """Return one hash for each row of a band, uint64 (n,)."""
    key = np.zeros(len(band), np.uint64)
    for column in band.T:
        key = hashed(key ^ column)
    return key


def _signature(tokens: np.ndarray, is_bytes: bool) -> np.ndarray:
    """Return the smallest hash of the document's shingles under each hash function: uint64 (112,)."""
    per_token = 1 if is_bytes else BYTES_PER_TOKEN
    size, most = SHINGLE_BYTES // per_token, READ_BYTES // per_token
    tokens = tokens[:most].astype(np.uint64)
    shingles = np.zeros(max(len(tokens) - size + 1, 0), np.uint64)
    for offset in range(size):
        shingles = hashed(shingles ^ tokens[offset : offset + len(shingles)])
    if is_bytes:  # a fourth of the shingles, the same in every document, is enough
        shingles = shingles[shingles % np.uint64(4) == 0]
    shingles = np.unique(shingles)
    if not len(shingles):
        return np.full(BANDS * ROWS, np.iinfo(np.uint64).max)
    return np.array([(shingles * factor).min() for factor in _FACTORS])


_FACTORS = hashed(np.arange(BANDS * ROWS, dtype=np.uint64)) | np.uint64(1)  # odd, so that products differ
