"""A document between its source and a shard: its name, and its text in chunks."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

CHUNK_CHARS = 1 << 20


@dataclass
class Text:
    """A document to write.

    chunks: UTF-8 bytes, to be read once and in order; a chunk may end inside a character.
    size: length in characters, 0 if unknown.
    """

    name: object  # str(name) identifies the document in an error
    chunks: Iterable[bytes]
    size: int = 0


@dataclass(frozen=True)
class Skip:
    """A document, or a file of one, that is left out. size: length in characters, 0 if unknown."""

    name: object
    reason: str  # "filtered", "empty", …; counted in the shard's .skipped.json
    size: int = 0


def encoded(text: str) -> Iterator[bytes]:
    """Yield a text as UTF-8, CHUNK_CHARS characters at a time.

    Half a surrogate pair, which is valid in JSON but not in UTF-8, becomes U+FFFD.
    """
    for start in range(0, len(text), CHUNK_CHARS):
        part = text[start : start + CHUNK_CHARS]
        try:
            yield part.encode()
        except UnicodeEncodeError:
            yield re.sub("[\ud800-\udfff]", "\ufffd", part).encode()
