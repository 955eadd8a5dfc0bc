"""Encoding long texts in overlapping windows: little memory, and the same tokens as the whole text has."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

# Texts up to this size are encoded at once. tiktoken's regex engine fails after 1,000,000 backtracking steps
# within one match, such as a run of spaces; this is about half of that.
WINDOW_BYTES = 1 << 19
OVERLAP_BYTES = 1 << 11  # of two windows; a token depends only on text much nearer than this
STARTS = 256  # positions to try as the start of an overlap

Encode = Callable[[bytes], np.ndarray]  # UTF-8 text -> tokens, 1-D


def encode_windows(chunks: Iterable[bytes], encode: Encode) -> Iterator[np.ndarray]:
    """Yield the tokens of a UTF-8 text in parts; nothing for an empty text.

    The windows do not depend on how the text is divided into chunks. Two windows are joined inside their
    overlap, between tokens that both have. So the tokens do not depend on where a window begins, even if the
    tokenizer adds a prefix to each text or merges across that position. If two windows have no common token
    (for example a word of an unknown script that is longer than the overlap), the text is cut between two
    characters, and the tokens near the cut may differ from those of the whole text.
    """
    held, overlap = bytearray(), b""
    tokens = np.empty(0, np.int64)  # of the last window, not yet yielded
    for chunk in chunks:
        held += chunk
        while len(held) > WINDOW_BYTES:
            text = bytes(held[: _character(held, WINDOW_BYTES)])
            done, tokens = _join(tokens, overlap, text, encode)
            yield done
            overlap = _overlap(text, tokens, encode)
            del held[: len(text) - len(overlap)]
    if held:
        yield from _join(tokens, overlap, bytes(held), encode)


def _join(before: np.ndarray, overlap: bytes, text: bytes, encode: Encode) -> tuple[np.ndarray, np.ndarray]:
    """Join two windows: `before` are the tokens of one that ends with `overlap`; `text` begins with it.

    Returns the tokens of the first window up to a position inside the overlap, and of `text` from there.
    """
    tokens = encode(text)
    if not overlap:
        return before, tokens
    alone = encode(overlap)
    # `alone` equals the tokens of the previous window from `first` on, and those of `text` up to `last`.
    first, last = len(alone) - _in_common(before[::-1], alone[::-1]), _in_common(alone, tokens)
    if first > last:
        return before, encode(text[len(overlap) :])
    middle = (first + last) // 2
    return before[: len(before) - len(alone) + middle], tokens[middle:]


def _overlap(text: bytes, tokens: np.ndarray, encode: Encode) -> bytes:
    """Return the end of `text` with which the next window begins.

    Encoded alone, it must end with the same tokens as `text`. Starting after a line break is usually enough.
    Inside a run of one character or another very long word it is not: a shift changes the pattern of tokens.
    """
    start = _character(text, len(text) - OVERLAP_BYTES)
    if (line := text.find(b"\n", start, len(text) - OVERLAP_BYTES // 2)) >= 0:
        start = line + 1
    for _ in range(STARTS):
        alone = encode(text[start:])
        if 2 * _in_common(tokens[::-1], alone[::-1]) >= len(alone):
            return text[start:]
        start += 1
        while start < len(text) and text[start] & 0xC0 == 0x80:
            start += 1
    return b""


def _in_common(one: np.ndarray, other: np.ndarray) -> int:
    """Return the length of the common prefix of two arrays."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if differ.size else size


def _character(text: bytes | bytearray, at: int) -> int:
    """Return the last position at or before byte `at` of UTF-8 text where a character begins."""
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at
