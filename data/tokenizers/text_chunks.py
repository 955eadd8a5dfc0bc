"""Long texts in overlapping windows: memory stays small, and the tokens are those of the text as a whole."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

# Texts up to this size are encoded at once. It is half of the 1,000,000 steps that tiktoken's regex engine
# may go back over within one match, such as a run of spaces, before it fails.
WINDOW_BYTES = 1 << 19
OVERLAP_BYTES = 1 << 11  # of two windows; what decides a token is much nearer than this
STARTS = 256  # places that are tried for the beginning of an overlap

Encode = Callable[[bytes], np.ndarray]  # UTF-8 text -> tokens, 1-D


def encode_windows(chunks: Iterable[bytes], encode: Encode) -> Iterator[np.ndarray]:
    """The tokens of a UTF-8 text, part after part; an empty text has none.

    Whatever the chunks, the windows are the same. Two windows are joined inside their overlap, between tokens
    that both have: nothing shows where a window begins, whether the tokenizer adds a prefix to a text or
    merges across that place. Where two windows have no token in common (a word of an unknown script that is
    longer than the overlap, for example) the text is cut between two characters, and the tokens there may
    differ from those of the whole text.
    """
    held, overlap = bytearray(), b""
    tokens = np.empty(0, np.int64)  # of the last window, as far as they are not given out
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
    """`before` are tokens of a text that ends with `overlap`, with which `text` begins. Returns tokens of the
    first up to a place within the overlap, and of `text` from there."""
    tokens = encode(text)
    if not overlap:
        return before, tokens
    alone = encode(overlap)
    # From token `first` on the overlap alone has the tokens of the text before, up to `last` those of `text`.
    first, last = len(alone) - _in_common(before[::-1], alone[::-1]), _in_common(alone, tokens)
    if first > last:
        return before, encode(text[len(overlap) :])
    middle = (first + last) // 2
    return before[: len(before) - len(alone) + middle], tokens[middle:]


def _overlap(text: bytes, tokens: np.ndarray, encode: Encode) -> bytes:
    """The end of `text` with which the next window begins: alone, it ends with the same tokens. A line break
    will do, except within a run of one character or another very long word, whose tokens lie in a pattern
    that must not be shifted."""
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
    """How many tokens two arrays have in common at their beginning."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if differ.size else size


def _character(text: bytes | bytearray, at: int) -> int:
    """The place at or before byte `at` of UTF-8 text where a character begins."""
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at
