"""Which files make up a corpus: the running Python's standard library, or local files and folders."""

import logging
import os
import stat
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lhtrain.data.errors import DataError
from lhtrain.data.sources.paths import kind, matching, state, unreadable

SOURCES = ("stdlib", "text")
LOCK, PLAN = "prepare.lock", "plan.json"  # both are in every folder of shards, and hardly elsewhere

STDLIB_SUFFIXES = {".py", ".txt", ".rst", ".md"}
# Other people's packages, compiled files, and tests, whose odd encodings and generated tables are not text.
STDLIB_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class SourceFile:
    """One file that becomes one document, if it turns out to be text.

    origin says what happens if it does not: "named" by the user, an error; "found" in a folder, binary files
    are skipped and broken text is an error; "bundled" with Python, skipped.
    """

    name: str  # relative and with "/": the same wherever the folder lies
    path: Path
    size: int  # bytes, when it was found
    origin: Literal["named", "found", "bundled"]


def find_files(source: str, path: Any) -> list[SourceFile]:
    """The files of a source, sorted by name, each real file once. A path that exists is that path, whatever
    characters it has; another one may be a pattern, in which *, ? and [ ] match names and ** folders.

    Raises DataError: unknown source, a missing, unreadable or looping path, nothing there.
    """
    if source not in SOURCES:
        raise DataError(f"data.source={source!r}: must be one of {', '.join(SOURCES)}")
    if source == "stdlib":
        if path is not None:
            raise DataError(f"data.path={path!r}: only goes with data=text; data=stdlib has no path")
        return _stdlib_files(Path(sysconfig.get_path("stdlib")))
    given = as_list(path)
    if not given or not all(given):
        rule = "data=text needs the path of a file or a folder, or a list of them"
        raise DataError(f"data.path={path!r}: {rule}")
    files = [file for item in given for path in matching(item) for file in _text_files(path)]
    return _each_once(files)


def as_list(path: Any) -> list[str]:
    """data.path, which is None, one path or several, as a list. A folder called 2024 comes as a number."""
    given = [path] if isinstance(path, str | os.PathLike | int) else list(path or [])
    return [str(item) for item in given]


def _stdlib_files(root: Path) -> list[SourceFile]:
    """Python sources and documentation texts of the standard library at `root`."""
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in STDLIB_SKIPPED and not name.startswith(".")]
        for path in (Path(folder, name) for name in names):
            if path.suffix in STDLIB_SUFFIXES and path.is_file():
                size = path.stat().st_size
                files.append(SourceFile(path.relative_to(root).as_posix(), path, size, "bundled"))
    if not files:
        raise DataError(f"data=stdlib: no .py or .txt file under {str(root)!r}; use data=text data.path=…")
    return sorted(files)


def _text_files(path: Path) -> Iterator[SourceFile]:
    """The file at `path`, or every file below it that is not hidden."""
    found = state(path)
    if stat.S_ISDIR(found.st_mode):
        yield from _walk(path)
    elif stat.S_ISREG(found.st_mode):
        yield SourceFile(path.name, path, found.st_size, "named")
    else:
        rule = f"is {kind(found.st_mode)}; it must be a regular file or a folder"
        raise DataError(f"data.path={str(path)!r}: {rule}")


def _walk(root: Path) -> Iterator[SourceFile]:
    """Regular files below `root`; links are followed, a link back to a folder above itself is an error.
    Folders that `prepare` writes to are left out: they may lie in what it reads. So are pipes, sockets and
    devices, which have no end; one warning counts them."""
    todo = [(root, "", frozenset([os.path.realpath(root)]))]
    special: Counter[str] = Counter()
    while todo:
        folder, prefix, above = todo.pop()
        try:
            names = os.listdir(folder)
        except OSError as error:
            raise unreadable(folder, error) from error
        if _holds_shards(names):
            continue
        for name in names:
            if name.startswith(".") or name == LOCK:  # a lock may be left alone, by a refused prepare
                continue
            path = folder / name
            found = state(path)
            if stat.S_ISDIR(found.st_mode):
                real = os.path.realpath(path)
                if real in above:
                    rule = "a link must not lead back to a folder above it; remove it or name subfolders"
                    raise DataError(f"data.path: {str(path)!r} leads to {real!r}: {rule}")
                todo.append((path, f"{prefix}{name}/", above | {real}))
            elif stat.S_ISREG(found.st_mode):
                yield SourceFile(prefix + name, path, found.st_size, "found")
            else:
                special[kind(found.st_mode)] += 1
    if special:
        kinds = ", ".join(f"{count} x {what}" for what, count in sorted(special.items()))
        log.warning("data.path=%r: skipped what is neither a file nor a folder: %s", str(root), kinds)


def is_prepared(folder: str | os.PathLike) -> bool:
    """Whether `prepare` writes to this folder, or did."""
    try:
        return _holds_shards(os.listdir(folder))
    except OSError:
        return False


def _holds_shards(names: list[str]) -> bool:
    """A lock alone, beside other files, is what a refused prepare left in a folder of somebody's texts."""
    others = [name for name in names if name != LOCK and not name.startswith(".")]
    return LOCK in names and (PLAN in others or not others)


def _each_once(files: list[SourceFile]) -> list[SourceFile]:
    """Sorted by name; of the routes to one real file (links, overlapping paths) only the first is kept, and
    what is named explicitly stays under the rules for named files."""
    kept: dict[str, SourceFile] = {}
    for file in sorted(files, key=lambda file: (file.origin != "named", file)):
        kept.setdefault(os.path.realpath(file.path), file)
    return sorted(kept.values())
