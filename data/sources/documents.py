"""Documents on their way to a shard: a name, and the text in chunks."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

CHUNK_CHARS = 1 << 20


@dataclass
class Text:
    """chunks: UTF-8 bytes, consumed once, front to back; they need not respect characters. size: characters,
    0 where nobody counted."""

    name: object  # str() of it names the document in an error
    chunks: Iterable[bytes]
    size: int = 0


@dataclass(frozen=True)
class Skip:
    """A document, or a file of one, that is left out. reason: "filtered", "empty", …"""

    name: object
    reason: str
    size: int = 0  # characters, as above


def encoded(text: str) -> Iterator[bytes]:
    """UTF-8 of a text, CHUNK_CHARS at a time. Half a surrogate pair, which JSON can hold and UTF-8 cannot,
    becomes U+FFFD."""
    for start in range(0, len(text), CHUNK_CHARS):
        part = text[start : start + CHUNK_CHARS]
        try:
            yield part.encode()
        except UnicodeEncodeError:
            yield re.sub("[\ud800-\udfff]", "\ufffd", part).encode()
