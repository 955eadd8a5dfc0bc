"""The checkpoints of a run: their names and order, the newest sound one, what a killed run left.

Only names that the program writes itself are read, renamed or deleted: step_ and the step with eight digits
or more. Copies such as step_best, step_00000002.bak or step_2 belong to whoever made them.
"""

import os
import re
import shutil
from functools import partial
from pathlib import Path

from lhtrain.checkpoint.errors import OtherFormat
from lhtrain.checkpoint.names import complete, present
from lhtrain.checkpoint.verify import find_problem
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from lhtrain.files import sync_folder

WRITING, DELETING, REPLACED, DAMAGED = ".writing-", ".deleting-", ".replaced-", "damaged-"
_HIDDEN = re.compile(r"\.(writing|deleting|replaced)-(step_[0-9]{8,})(\.[0-9]+)?")


def tidy(folder: Path) -> list[str]:
    """Remove what a killed run had not finished writing or deleting; returns what could not be removed.

    A checkpoint that was about to be replaced by another of its step gets its name back.
    """
    notes = []
    try:
        names = os.listdir(folder)
    except OSError:
        return []  # there is none yet, or the first save will say what is wrong
    for name in names:
        if (found := _HIDDEN.fullmatch(name)) is None:
            continue
        try:
            if found[1] == "replaced" and not os.path.lexists(folder / found[2]):
                (folder / name).rename(folder / found[2])
            else:
                remove(folder / name)
        except OSError as error:
            notes.append(
                f"{folder / name}, which an earlier run left, could not be removed: {in_words(error)}"
            )
    return notes


def remove(path: Path) -> None:
    """Remove whatever is at `path`, if anything; of a link only the link. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def delete(path: Path) -> str | None:
    """Delete a checkpoint; returns what went wrong. It loses its name first, so that a kill leaves no half of
    one."""
    try:
        doomed = free_name(path.parent, DELETING + path.name)
        path.rename(doomed)
        remove(doomed)
    except OSError as error:
        return f"checkpoint {path.name} could not be deleted: {in_words(error)}"
    return None


def rotate(newest: Path, keep: int) -> list[Path]:
    """The checkpoints beside `newest` that are to be deleted, so that `keep` stay. `newest`, which was just
    written, stays even where an earlier run left later steps."""
    return [path for path in complete(newest.parent)[:-keep] if path != newest]


def newest_sound(folder: Path, world: World) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint of `folder`, if there is any at all, and a note for each damaged one.

    Damaged ones are renamed when a sound one is found, so that they neither count among those to keep nor are
    met again. Where none is sound, nothing is renamed: the next start will find the same.

    Raises RunError: there are checkpoints, and none is sound; one cannot be read; one is of another version.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(world.on_main(partial(_listed, folder))):
        found = find_problem(path, world)
        if found is None:
            return path, world.on_main(partial(_rename_all, damaged))
        if isinstance(found, OtherFormat):
            raise RunError(
                f"checkpoint {path}: {found}. Use the version of lhtrain that wrote it, or rename the folder "
                "to use an older checkpoint"
            )
        damaged.append((path, str(found)))
    if damaged:
        lines = "".join(f"\n  {path.name}: {found}" for path, found in damaged)
        raise RunError(
            f"{folder}: no sound checkpoint is left, and nothing was renamed or deleted:{lines}\n"
            "Copy a sound checkpoint back; resume=restart keeps all of it aside and starts over"
        )
    return None, []


def _listed(folder: Path) -> list[Path]:
    try:
        return present(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be read: [Errno {error.errno}] {error.strerror}") from error


def _rename_all(damaged: list[tuple[Path, str]]) -> list[str]:
    notes = []
    for path, found in damaged:
        try:
            renamed = path.rename(free_name(path.parent, DAMAGED + path.name))
            notes.append(f"checkpoint {path.name} is damaged and was renamed to {renamed.name}: {found}")
        except OSError as error:
            why = f"could not be renamed: {in_words(error)}"
            notes.append(f"checkpoint {path.name} is damaged ({found}) and {why}")
    if damaged:
        sync_folder(damaged[0][0].parent)
    return notes


def free_name(folder: Path, name: str) -> Path:
    """`name` in `folder`, with a number behind it if it is taken."""
    path, number = folder / name, 0
    while os.path.lexists(path):
        number += 1
        path = folder / f"{name}.{number}"
    return path


def in_words(error: BaseException) -> str:
    """An error in one line; an OSError with its number and path."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"[Errno {error.errno}] {error.strerror}" + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}".splitlines()[0]
