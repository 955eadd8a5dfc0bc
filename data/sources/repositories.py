"""Code repositories: a folder is one document, its text files in path order, each after a path header."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lhtrain.data.errors import DataError
from lhtrain.data.sources.documents import Skip, Text
from lhtrain.data.sources.local import find_files, is_prepared
from lhtrain.data.sources.paths import is_folder, matching, stamp, unreadable
from lhtrain.data.sources.text import BOM, is_text
from lhtrain.data.sources.units import Item

HEADER = "==> {} <==\n"
SKIPPED = {"__pycache__", "node_modules"}
MAX_FILE_BYTES = 1 << 22  # larger files are left out: they are usually data, not code


def repositories(paths: list[str]) -> Iterator[tuple[list[Item], int]]:
    """Yield for each folder of `paths` its files and their total size in bytes. Each real folder counts once.

    paths: folders, or patterns as in `matching`.
    Raises DataError: no such folder, a file instead of a folder, a pattern that matches no folder.
    """
    if not paths:
        raise DataError("data.path=null: data=code needs the path of a folder, or a list of them")
    seen: set[str] = set()
    for given in paths:
        folders = [path for path in matching(given) if is_folder(path) and not is_prepared(path)]
        if not folders:
            raise DataError(f"data.path={given!r}: must be a folder, or a pattern that matches folders")
        for folder in folders:
            if (real := os.path.realpath(folder)) not in seen:
                seen.add(real)
                yield _files(folder)


def _files(folder: Path) -> tuple[list[Item], int]:
    name = os.path.basename(os.path.realpath(folder))
    items = [
        Item(os.path.abspath(file.path), f"{name}/{file.name}", 0, file.size, stamp(file.path))
        for file in find_files("text", folder)
        if 0 < file.size <= MAX_FILE_BYTES and not SKIPPED & set(Path(file.name).parts)
    ]
    items.sort(key=lambda item: item.name)
    return items, sum(item.stop for item in items)


def read_repository(items: tuple[Item, ...], advance: Callable[[int], object]) -> Iterator[Text | Skip]:
    """Yield one document of all text files, or a Skip if there are none; and a Skip for each other file."""
    texts = [item for item in items if is_text(_content(item))]
    for item in items:
        if item not in texts:
            yield Skip(item.name, "file of a repository that is not text")
            advance(item.stop)
    if texts:
        yield Text(items[0].name.split("/")[0], _chunks(texts, advance))
    else:
        yield Skip(items[0].name if items else "", "empty")


def _content(item: Item) -> bytes:
    try:
        return Path(item.path).read_bytes().removeprefix(BOM)
    except OSError as error:
        raise unreadable(Path(item.path), error) from error


def _chunks(items: list[Item], advance: Callable[[int], object]) -> Iterator[bytes]:
    for item in items:
        content = _content(item)
        advance(len(content))
        yield HEADER.format(item.name).encode("utf-8", "replace")  # names need not be UTF-8
        yield content if content.endswith(b"\n") else content + b"\n"
        yield b"\n"
