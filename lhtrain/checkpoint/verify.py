"""Verification of checkpoints: all ranks together compare every file with the manifest."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lhtrain.checkpoint.all_ranks import in_parallel, on_all
from lhtrain.checkpoint.errors import Invalid
from lhtrain.checkpoint.hashed import OpenFiles
from lhtrain.checkpoint.manifest import Manifest
from lhtrain.checkpoint.names import complete, step_of
from lhtrain.checkpoint.retry import patiently
from lhtrain.checkpoint.state import opened, parse_state, state_of
from lhtrain.distributed.world import World
from lhtrain.errors import RunError


def find_problem(path: Path, world: World | None = None, contents: bool = True) -> Invalid | None:
    """Return why the checkpoint `path` is not valid; None if it is valid.

    contents: compare the content of all files with their hashes. False: only manifest.json, state.json and
    the sizes of the others, which is enough before `load`, because that verifies what it reads.

    Returns an OtherFormat if another version of lhtrain may read it. With a `world`, its ranks share the
    reading, and this is a collective.

    Raises RunError: a file exists but cannot be read (EIO, EACCES, ESTALE, …); this does not count as damage.
    """
    rank, size = (world.rank, world.size) if world else (0, 1)

    def check() -> Invalid | None:
        try:
            patiently(lambda: _verify(path, rank, size, contents), path)
        except Invalid as found:
            return found
        return None

    everyones = on_all(check, is_distributed=world is not None and world.is_distributed)
    return next((found for found in everyones if found is not None), None)


def _verify(path: Path, rank: int, size: int, contents: bool) -> None:
    """Raise Invalid if the manifest, state.json, a size or, of `contents`, this rank's share is not valid."""
    described = opened(path)
    if not contents:
        with OpenFiles(path, described.files) as files:
            for name in list(described.files)[rank::size]:
                files.open(name)  # checks its size
    pieces = described.pieces() if contents else []
    share = pieces[len(pieces) * rank // size : len(pieces) * (rank + 1) // size]
    in_parallel(partial(_verify_pieces, path, described), share)
    parse_state(path, described)


def _verify_pieces(path: Path, described: Manifest, pieces: Sequence[tuple[str, int]]) -> None:
    with OpenFiles(path, described.files) as files:
        for name, number in pieces:
            files.open(name).verify(number)


def read_state(path: Path, world: World | None = None, contents: bool = True) -> dict[str, Any]:
    """Verify the checkpoint `path` and return its state.json. With a `world`, a collective.

    contents: as in `find_problem`.

    Raises:
        RunError: it is not a checkpoint, has an unknown format, is truncated or altered, or cannot be read.
            The message names an older undamaged checkpoint, if there is one.
    """
    if found := find_problem(path, world, contents):
        raise with_remedy(path, found, world)
    return state_of(path)


def with_remedy(path: Path, found: Invalid, world: World | None = None) -> RunError:
    """Return the error for a damaged checkpoint, which names another one. With a `world`, a collective."""
    instead = _instead_of(path) if world is None else world.on_main(partial(_instead_of, path))
    return RunError(f"checkpoint {path}: {found}; {instead}")


def _instead_of(path: Path) -> str:
    """Return a sentence that names the checkpoint to use instead of `path`."""
    if (step := step_of(path.name)) is not None:
        for other in reversed(complete(path.parent)):
            try:
                if int(other.name[5:]) < step and find_problem(other) is None:
                    return f"the newest undamaged one before it is {other}"
            except RunError:
                continue  # this one cannot be read either
        return "there is no older undamaged one"
    if inside := complete(path / "checkpoints") or complete(path):
        return f"the newest checkpoint in this folder is {inside[-1]}"
    if (path / "imported").is_dir():
        return "write it again with `lhtrain import`"
    if (path / "config.json").is_file() and not (path / "manifest.json").exists():
        command = shlex.join(["lhtrain", "import", str(path), "DIR"])
        return f"it looks like a published model: `{command}` turns it into a checkpoint"
    return "a checkpoint is a folder such as RUN/checkpoints/step_00000100"
