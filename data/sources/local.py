"""Finding the files of a corpus: the standard library of the running Python, or local files and folders."""

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
LOCK, PLAN = "prepare.lock", "plan.json"  # every folder that `prepare` writes has both

STDLIB_SUFFIXES = {".py", ".txt", ".rst", ".md"}
# Installed packages, compiled files, and tests: tests have odd encodings and generated tables.
STDLIB_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class SourceFile:
    """A file that becomes one document if it is text.

    origin decides what happens to other files: "named", listed in data.path: an error; "found" in a folder:
    binary files are skipped, invalid text is an error; "bundled" with Python: skipped.
    """

    name: str  # relative path with "/", the same wherever the folder is
    path: Path
    size: int  # in bytes, when the file was found
    origin: Literal["named", "found", "bundled"]


def find_files(source: str, path: Any) -> list[SourceFile]:
    """Return the files of a source, sorted by name, each real file once.

    A path that exists is used as it is, even if it contains pattern characters. Another path may be a
    pattern: *, ? and [ ] match characters of a name, ** matches folders.

    Raises DataError: an unknown source; a path that is missing or unreadable; a loop of links; no path.
    """
    if source not in SOURCES:
        raise DataError(f"data.source={source!r}: must be one of {', '.join(SOURCES)}")
    if source == "stdlib":
        if path is not None:
            raise DataError(f"data.path={path!r}: applies only to data=text; data=stdlib has no path")
        return _stdlib_files(Path(sysconfig.get_path("stdlib")))
    given = as_list(path)
    if not given or not all(given):
        rule = "data=text needs the path of a file or a folder, or a list of them"
        raise DataError(f"data.path={path!r}: {rule}")
    files = [file for item in given for path in matching(item) for file in _text_files(path)]
    return _each_once(files)


def as_list(path: Any) -> list[str]:
    """Return data.path as a list of strings. It may be None, one path or several; Hydra makes 2024 an int."""
    given = [path] if isinstance(path, str | os.PathLike | int) else list(path or [])
    return [str(item) for item in given]


def _stdlib_files(root: Path) -> list[SourceFile]:
    """Return the Python sources and documentation texts of the standard library at `root`."""
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
    """Yield the file at `path`, or every file below it that is not hidden."""
    found = state(path)
    if stat.S_ISDIR(found.st_mode):
        yield from _walk(path)
    elif stat.S_ISREG(found.st_mode):
        yield SourceFile(path.name, path, found.st_size, "named")
    else:
        rule = f"is {kind(found.st_mode)}; must be a regular file or a folder"
        raise DataError(f"data.path={str(path)!r}: {rule}")


def _walk(root: Path) -> Iterator[SourceFile]:
    """Yield the regular files below `root`, following links; a link to a folder above it is an error.

    Folders that `prepare` writes to are skipped: data.out may be inside the source. Pipes, sockets and
    devices are skipped too, because reading them may never end; one warning counts them.
    """
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
            if name.startswith(".") or name == LOCK:  # a `prepare` that was refused may leave a lock file
                continue
            path = folder / name
            found = state(path)
            if stat.S_ISDIR(found.st_mode):
                real = os.path.realpath(path)
                if real in above:
                    rule = "a link must not point to a folder above it; remove it, or list the subfolders"
                    raise DataError(f"data.path: {str(path)!r} points to {real!r}: {rule}")
                todo.append((path, f"{prefix}{name}/", above | {real}))
            elif stat.S_ISREG(found.st_mode):
                yield SourceFile(prefix + name, path, found.st_size, "found")
            else:
                special[kind(found.st_mode)] += 1
    if special:
        kinds = ", ".join(f"{count} x {name}" for name, count in sorted(special.items()))
        log.warning("data.path=%r: skipped special files: %s", str(root), kinds)


def is_prepared(folder: str | os.PathLike) -> bool:
    """Return whether `prepare` writes to this folder, or did."""
    try:
        return _holds_shards(os.listdir(folder))
    except OSError:
        return False


def _holds_shards(names: list[str]) -> bool:
    """Return whether the files of these names are those of a prepared folder.

    A lock beside other files, but without a plan, is not enough: a `prepare` that was refused may have left
    it in a folder of texts.
    """
    others = [name for name in names if name != LOCK and not name.startswith(".")]
    return LOCK in names and (PLAN in others or not others)


def _each_once(files: list[SourceFile]) -> list[SourceFile]:
    """Return the files sorted by name, without duplicates.

    If several paths lead to one real file (links, overlapping paths), only the first is kept; a path listed
    in data.path comes before one found in a folder, so that the rules for named files apply.
    """
    kept: dict[str, SourceFile] = {}
    for file in sorted(files, key=lambda file: (file.origin != "named", file)):
        kept.setdefault(os.path.realpath(file.path), file)
    return sorted(kept.values())
