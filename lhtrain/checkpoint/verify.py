"""Verifying a checkpoint: every file against the manifest, on all ranks together."""

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
    """Why the checkpoint `path` is not valid, or None; an OtherFormat where another version may read it.

    Given a `world`, its ranks share the reading: a collective.

    Raises RunError: a file that is there cannot be read (EIO, EACCES, ESTALE …), which is not damage.
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
    """Raise Invalid if the manifest, state.json, or a piece of this rank's share is wrong."""
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
    """state.json of the checkpoint `path`, after every file was verified. A collective, given a `world`.

    Raises:
        RunError: not a checkpoint, of another format, truncated or altered (an older sound one is named); or
            it cannot be read.
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
    """Which checkpoint to use instead of `path`, in words."""
    if (step := step_of(path.name)) is not None:
        for other in reversed(complete(path.parent)):
            try:
                if int(other.name[5:]) < step and find_problem(other) is None:
                    return f"the newest sound one before it is {other}"
            except RunError:
                continue  # it cannot be read either
        return "there is no older sound one"
    if inside := complete(path / "checkpoints") or complete(path):
        return f"the newest checkpoint in this folder is {inside[-1]}"
    return "a checkpoint is a folder such as RUN/checkpoints/step_00000100"
