"""Verification of checkpoints: all ranks together compare every file with the manifest."""

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


def find_problem(path: Path, world: World | None = None) -> Invalid | None:
    """Return why the checkpoint `path` is not valid; None if it is valid.

    Returns an OtherFormat if another version of lhtrain may read it. With a `world`, its ranks share the
    reading, and this is a collective.

    Raises RunError: a file exists but cannot be read (EIO, EACCES, ESTALE, …); this does not count as damage.
    """
    rank, size = (world.rank, world.size) if world else (0, 1)

    def check() -> Invalid | None:
        try:
            patiently(lambda: _verify(path, rank, size), path)
        except Invalid as found:
            return found
        return None

    everyones = on_all(check, is_distributed=world is not None and world.is_distributed)
    return next((found for found in everyones if found is not None), None)


def _verify(path: Path, rank: int, size: int) -> None:
    """Raise Invalid if the manifest, state.json or one of this rank's pieces is not valid."""
    described = opened(path)
    pieces = described.pieces()
    share = pieces[len(pieces) * rank // size : len(pieces) * (rank + 1) // size]
    in_parallel(partial(_verify_pieces, path, described), share)
    parse_state(path, described)


def _verify_pieces(path: Path, described: Manifest, pieces: Sequence[tuple[str, int]]) -> None:
    with OpenFiles(path, described.files) as files:
        for name, number in pieces:
            files.open(name).verify(number)


def read_state(path: Path, world: World | None = None) -> dict[str, Any]:
    """Verify all files of the checkpoint `path` and return its state.json. With a `world`, a collective.

    Raises:
        RunError: it is not a checkpoint, has an unknown format, is truncated or altered, or cannot be read.
            The message names an older undamaged checkpoint, if there is one.
    """
    if found := find_problem(path, world):
        instead = (
            (lambda: _instead_of(path))
            if world is None
            else (lambda: world.on_main(lambda: _instead_of(path)))
        )
        raise RunError(f"checkpoint {path}: {found}; {instead()}")
    return state_of(path)


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
    return "a checkpoint is a folder such as RUN/checkpoints/step_00000100"
