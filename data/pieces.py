"""Long texts in pieces that are tokenized one by one, cut where a tokenizer would not merge across."""

import re
from collections.abc import Iterable, Iterator

PIECE_BYTES = 1 << 20
LONGEST = 8 * PIECE_BYTES

# A line's first letter after a line that does not end in a space: every tiktoken encoding, and the byte-level
# tokenizers of the GPT and Llama 3 families, put a boundary before it.
_BREAK = re.compile(rb"[^\s]\n(?=[A-Za-z])")


def pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same UTF-8 text in pieces of about PIECE_BYTES, LONGEST at most; an empty text has none.

    Whatever the chunks, the pieces are the same. Each ends at a line break between two words, or, where
    LONGEST bytes hold none, between characters: then a token may differ from those of the text as a whole.
    """
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) > LONGEST + 4:  # so much that the cut does not depend on what follows
            cut = _cut(held)
            yield bytes(held[:cut])
            del held[:cut]
    while len(held) > PIECE_BYTES:
        cut = _cut(held)
        yield bytes(held[:cut])
        del held[:cut]
    if held:
        yield bytes(held)


def _cut(held: bytearray) -> int:
    """Where the first piece of `held` ends: at the first good place after PIECE_BYTES."""
    found = _BREAK.search(held, PIECE_BYTES, LONGEST)
    if found:
        return found.end()
    cut = min(len(held), LONGEST)
    while cut < len(held) and held[cut] & 0xC0 == 0x80:  # a continuation byte: the character began before it
        cut -= 1
    return cut
