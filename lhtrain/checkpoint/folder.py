"""The checkpoints folder of a run: order, the newest undamaged checkpoint, and cleaning up after a kill.

Only names that lhtrain itself writes are read, renamed or deleted: step_ and the step with at least eight
digits. Other names, such as step_best, step_00000002.bak or step_2, are copies that a user made.
"""

import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lhtrain.checkpoint.errors import Damaged, OtherFormat
from lhtrain.checkpoint.names import complete, present
from lhtrain.checkpoint.verify import find_problem
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from lhtrain.files import sync_folder

WRITING, DELETING, REPLACED, DAMAGED = ".writing-", ".deleting-", ".replaced-", "damaged-"
_HIDDEN = re.compile(r"\.(writing|deleting|replaced)-(step_[0-9]{8,})(\.[0-9]+)?")


def tidy(folder: Path) -> list[str]:
    """Remove checkpoints that a killed run was writing or deleting; return a note for each one that remains.

    A checkpoint that was about to be replaced by a new one of the same step gets its name back.
    """
    notes = []
    try:
        names = os.listdir(folder)
    except OSError:
        return []  # no folder yet, or the first save reports the error
    for name in names:
        if (found := _HIDDEN.fullmatch(name)) is None:
            continue
        try:
            if found[1] == "replaced" and not os.path.lexists(folder / found[2]):
                (folder / name).rename(folder / found[2])
            else:
                remove(folder / name)
        except OSError as error:
            notes.append(f"{folder / name}, left by an earlier run, could not be removed: {in_words(error)}")
    return notes


def remove(path: Path) -> None:
    """Remove the file, folder or link at `path`, if it exists; links are not followed. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def delete(path: Path) -> str | None:
    """Delete a checkpoint; return an error message, or None.

    It is renamed first, so that a kill never leaves half a checkpoint under its name.
    """
    try:
        doomed = free_name(path.parent, DELETING + path.name)
        path.rename(doomed)
        remove(doomed)
    except OSError as error:
        return f"checkpoint {path.name} could not be deleted: {in_words(error)}"
    return None


def rotate(newest: Path, keep: int) -> list[Path]:
    """Return the checkpoints to delete so that `keep` remain.

    newest: the checkpoint just written; it is never deleted, even if an earlier run left later steps.
    """
    return [path for path in complete(newest.parent)[:-keep] if path != newest]


def newest_sound(
    folder: Path, world: World, load: Callable[[Path], object] | None = None
) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint of `folder` and a note for each damaged one. A collective.

    If there are no checkpoints, returns None. Newer damaged checkpoints are renamed once an undamaged one is
    found, so that they no longer count towards the number to keep. If all are damaged, none is renamed, so
    that the next start raises the same error.

    load: called with a checkpoint whose manifest, state and sizes are sound. It loads the tensors with
    `reader.load`; if that finds damage, an older checkpoint is tried. So all bytes are read and hashed once.
    None: the contents of all files are compared with their hashes here, and nothing is loaded.

    Raises RunError: all checkpoints are damaged, one cannot be read, or one has an unknown format; or an
    error of `load`.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(world.on_main(partial(_listed, folder))):
        found = find_problem(path, world, contents=load is None)
        if found is None:
            try:
                if load is not None:
                    load(path)
                return path, world.on_main(partial(_rename_all, damaged))
            except Damaged as error:
                found = error.found
        if isinstance(found, OtherFormat):
            raise RunError(
                f"checkpoint {path}: {found}. Use the version of lhtrain that wrote it, or rename the folder "
                "to use an older checkpoint"
            )
        damaged.append((path, str(found)))
    if damaged:
        lines = "".join(f"\n  {path.name}: {found}" for path, found in damaged)
        raise RunError(
            f"{folder}: no undamaged checkpoint is left; nothing was renamed or deleted:{lines}\n"
            "Copy an undamaged checkpoint into this folder; resume=restart moves the run's files aside "
            "and starts over"
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
    """Return the path of `name` in `folder`, with a number appended if that name exists."""
    path, number = folder / name, 0
    while os.path.lexists(path):
        number += 1
        path = folder / f"{name}.{number}"
    return path


def in_words(error: BaseException) -> str:
    """Return an error as one line; for an OSError with its number and path."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"[Errno {error.errno}] {error.strerror}" + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}".splitlines()[0]
