"""Units of a source: what one process reads at a time, and a shard holds."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

UNIT_BYTES = 1 << 26  # of source: so much a shard holds, unless one file or document is larger


@dataclass(frozen=True)
class Item:
    """A file, or its part start..stop in what `Unit.reader` counts; stamp: its size and time of change."""

    path: str
    name: str
    start: int = 0
    stop: int = 0
    stamp: str = ""
    origin: str = "found"


@dataclass(frozen=True)
class Unit:
    """reader: "text", "code", "rows" or "hub". size: bytes of source to be read, 0 where nobody knows."""

    reader: str
    items: tuple[Item, ...]
    size: int = 0
    options: dict[str, object] = field(default_factory=dict)


def grouped(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Consecutive items of UNIT_BYTES together, more only if one alone has more."""
    group: list[Item] = []
    size = 0
    for item in items:
        n = item.stop - item.start
        if group and size + n > UNIT_BYTES:
            yield group
            group, size = [], 0
        group.append(item)
        size += n
    if group:
        yield group
