"""Units of a source: one process reads a unit at a time and writes it to one shard."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

UNIT_BYTES = 1 << 26  # of source in a unit, unless one file or document is larger


@dataclass(frozen=True)
class Item:
    """A file, or a part of it.

    start, stop: the part, in bytes, row groups or rows, depending on `Unit.reader`. stamp: the file's size
    and modification time.
    """

    path: str
    name: str
    start: int = 0
    stop: int = 0
    stamp: str = ""
    origin: str = "found"


@dataclass(frozen=True)
class Unit:
    """The part of a source that becomes one shard.

    reader: a key of `table.READERS`. size: bytes of source to read, 0 if unknown.
    """

    reader: str
    items: tuple[Item, ...]
    size: int = 0
    options: dict[str, object] = field(default_factory=dict)


def grouped(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield groups of consecutive items of at most UNIT_BYTES in total, or one larger item."""
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
