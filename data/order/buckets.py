"""Buckets: the documents of each source by their length. Each bucket is packed and read on its own."""

from collections.abc import Sequence

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.order.part import MOST_REPEATS, Part


def in_buckets(
    parts: Sequence[Part], bounds: Sequence[int], weights: Sequence[float], block_len: int, key: str = "data"
) -> tuple[list[Part], list[str]]:
    """Divide the documents of each part by length; return a part for each bucket of each source, and notes.

    Sequences of a bucket have documents of similar length. Where a source has too few documents in a bucket
    for one sequence, they join its next lower bucket that has enough, or else its lowest one that has.

    Args:
        parts: the sources, with different keys.
        bounds: lengths in tokens, rising. Bucket i has documents from bounds[i - 1] to bounds[i] - 1 tokens.
        weights: one for each bucket, relative to each other; 0: not read. Within a bucket, the weights of the
            sources hold. Empty: each source reads its buckets as often as their tokens occur. A bucket that
            would be read more than MOST_REPEATS times as often as another is reduced to that, with a note.
        block_len: the longest sequence length.
        key: the group of settings that messages name.

    Raises DataError: there are too few documents in a bucket that has a weight.
    """
    shares = np.array(weights, dtype=np.float64)
    divided = [_buckets(part.split.lengths, bounds, block_len) for part in parts]
    tokens = np.stack(
        [
            np.bincount(bucket, part.split.lengths, len(bounds) + 1)
            for part, bucket in zip(parts, divided, strict=True)
        ]
    )
    notes: list[str] = []
    if len(shares):
        shares, notes = _allowed(shares / shares.sum(), tokens.sum(axis=0), bounds, block_len, key)
        given = np.array([part.weight for part in parts])[:, None] * (tokens > 0)
        weight_of = given / np.maximum(given.sum(axis=0), np.finfo(np.float64).tiny) * shares
    else:
        weight_of = np.array([part.weight for part in parts])[:, None] * tokens
        weight_of /= tokens.sum(axis=1, keepdims=True)
    out = []
    for part, bucket, row in zip(parts, divided, weight_of, strict=True):
        for number in np.flatnonzero(row).tolist():
            split = part.split.only(bucket == number)
            out.append(part._replace(split=split, weight=row[number], key=f"{part.key}/{number}"))
    return out, notes


def _buckets(lengths: np.ndarray, bounds: Sequence[int], block_len: int) -> np.ndarray:
    """Return the bucket of each document of a source, int64 (n,); none has too few tokens for a sequence."""
    bucket = np.searchsorted(bounds, lengths, side="right")
    for number in range(len(bounds), 0, -1):
        if lengths[bucket == number].sum() <= block_len:
            bucket[bucket == number] -= 1
    if lengths[bucket == 0].sum() <= block_len and bucket.any():
        bucket[bucket == 0] = bucket[bucket > 0].min()
    return bucket


def _allowed(
    shares: np.ndarray, tokens: np.ndarray, bounds: Sequence[int], block_len: int, key: str
) -> tuple[np.ndarray, list[str]]:
    """Return the shares, limited so that no bucket is read MOST_REPEATS times as often as another; and notes.

    Raises DataError: a bucket that has a share has no tokens.
    """
    for number in np.flatnonzero((shares > 0) & (tokens == 0)).tolist():
        rule = f"needs documents {_in_words(number, bounds)} with more than {block_len:,} tokens in total"
        remedy = "set its weight to 0, leave out a length of data.buckets, or add such documents"
        raise DataError(f"{key}.bucket_weights: weight {number + 1} {rule}; {remedy}")
    rates = np.divide(shares, tokens, out=np.zeros_like(shares), where=shares > 0)
    most = MOST_REPEATS * rates[rates > 0].min() * (1 + 1e-9)  # rounding is no reason for a note
    used = np.minimum(rates, most) * tokens
    used /= used.sum()
    notes = []
    for number in np.flatnonzero(rates > most).tolist():
        occurs = tokens[number] / tokens.sum()
        notes.append(
            f"{key}.bucket_weights: documents {_in_words(number, bounds)} get {used[number]:.1%} of"
            f" the sequences instead of {shares[number]:.1%}, because they are {occurs:.1%} of the tokens,"
            f" and may be read at most {MOST_REPEATS} times as often as others"
        )
    return used, notes


def _in_words(number: int, bounds: Sequence[int]) -> str:
    """Return the lengths of the documents of a bucket."""
    if number == 0:
        return f"of fewer than {bounds[0]:,} tokens"
    if number == len(bounds):
        return f"of {bounds[-1]:,} tokens or more"
    return f"of {bounds[number - 1]:,} to {bounds[number] - 1:,} tokens"
