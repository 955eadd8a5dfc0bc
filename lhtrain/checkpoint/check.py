"""What is wrong with a checkpoint, and its state.json."""

import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lhtrain.checkpoint import manifest
from lhtrain.checkpoint.blocks import BlockFile, Opened
from lhtrain.checkpoint.faults import Fault, OtherFormat
from lhtrain.checkpoint.manifest import Manifest
from lhtrain.checkpoint.names import complete, step_of
from lhtrain.checkpoint.together import in_parallel, on_all
from lhtrain.distributed.world import World
from lhtrain.errors import RunError

T = TypeVar("T")
TRIES, PAUSE = 4, 2.0  # reading again after an error that may pass; seconds in between


def fault(path: Path, world: World | None = None) -> str | None:
    """What is wrong with the checkpoint `path`, or None. Given a `world`, its ranks share the reading: a
    collective.

    Raises RunError: a file that is there cannot be read (EIO, EACCES, ESTALE …), which is not damage.
    """
    found = find_fault(path, world)
    return None if found is None else str(found)


def find_fault(path: Path, world: World | None = None) -> Fault | None:
    """As `fault`, and an OtherFormat where the checkpoint may be sound for another version."""
    rank, size = (world.rank, world.size) if world else (0, 1)

    def check() -> Fault | None:
        try:
            patiently(lambda: _verify(path, rank, size), path)
        except Fault as found:
            return found
        return None

    everyones = on_all(check, together=world is not None and world.together)
    return next((found for found in everyones if found is not None), None)


def patiently(read: Callable[[], T], path: Path) -> T:
    """What `read` returns; after errors that may pass it is called again. Raises Fault; RunError at last."""
    for attempt in range(1, TRIES + 1):
        try:
            return read()
        except OSError as error:
            if attempt == TRIES:
                raise unreadable(error, path) from error
            time.sleep(PAUSE)
    raise AssertionError


def unreadable(error: OSError, path: Path) -> RunError:
    """What to say where a checkpoint's file is there and cannot be read."""
    file = error.filename or path
    return RunError(
        f"checkpoint {path}: {file} cannot be read: [Errno {error.errno}] {error.strerror}. This is an error "
        "of the file system, not damage, and nothing was renamed: start again when the file can be read; if "
        f"it is lost for good, rename {path.name} to damaged-{path.name} to use an older checkpoint"
    )


def _verify(path: Path, rank: int, size: int) -> None:
    """Raise Fault if the manifest, state.json, or a block of this rank's share is wrong."""
    described = opened(path)
    blocks = described.blocks()
    share = blocks[len(blocks) * rank // size : len(blocks) * (rank + 1) // size]
    in_parallel(partial(_verify_blocks, path, described), share)
    _state(path, described)


def _verify_blocks(path: Path, described: Manifest, blocks: Sequence[tuple[str, int]]) -> None:
    with Opened(path, described.files) as files:
        for name, number in blocks:
            files.open(name).verify(number)


def opened(path: Path) -> Manifest:
    """The manifest of the checkpoint in the folder `path`. Raises Fault, OSError."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise Fault("no such folder") from None
    if not stat.S_ISDIR(mode):
        raise Fault("it is a file, not a folder")
    described = manifest.read(path)
    _same_step(path, described.step, manifest.NAME)
    return described


def _same_step(path: Path, step: Any, name: str) -> None:
    of_folder = step_of(path.name)
    if step is not None and of_folder is not None and of_folder != step:
        raise Fault(f"{name} is of step {step}, not of the step in the folder's name")


def _state(path: Path, described: Manifest) -> dict[str, Any]:
    entry = described.files[manifest.STATE]
    if entry.bytes > manifest.MOST:
        raise Fault(f"state.json has {entry.bytes} bytes, must have at most {manifest.MOST}")
    with BlockFile(path, manifest.STATE, entry) as file:
        content = bytes(file.read(0, entry.bytes)) if entry.bytes else b""
    try:
        state = json.loads(content)
    except (ValueError, RecursionError):
        raise Fault("state.json is not JSON") from None
    if not isinstance(state, dict):
        raise Fault("state.json is not a JSON object")
    if (version := state.get("format")) != described.format:
        raise OtherFormat(
            f"state.json is of format {version!r:.40}, this version reads 2 and {manifest.FORMAT}"
        )
    for key, kind in (("progress", dict), ("config", dict), ("data", str)):
        if not isinstance(state.get(key, kind()), kind):
            raise Fault(f"state.json: {key} must be {'an object' if kind is dict else 'text'}")
    for key in ("step", "position"):
        number = state.get("progress", {}).get(key, 0)
        if type(number) is not int or number < 0:
            raise Fault(f"state.json: progress.{key} must be a whole number, not {number!r:.40}")
    step = state.get("progress", {}).get("step", described.step)
    _same_step(path, step, manifest.STATE)
    if described.step is not None and step != described.step:
        raise Fault(f"state.json is of step {step!r:.40}, manifest.json of step {described.step}")
    return state


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Around code that takes values out of a checkpoint's state.json: where one is missing or of another
    kind, the error becomes a RunError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        rule = f"must be as lhtrain writes it ({type(error).__name__}: {error})"
        raise RunError(f"checkpoint {path}: state.json {rule}") from error


def read_state(path: Path, world: World | None = None) -> dict[str, Any]:
    """state.json of the checkpoint `path`, after every file was verified. A collective, given a `world`.

    Raises:
        RunError: not a checkpoint, of another format, truncated or altered (an older sound one is named); or
            it cannot be read.
    """
    if found := fault(path, world):
        instead = (
            (lambda: _instead_of(path))
            if world is None
            else (lambda: world.on_main(lambda: _instead_of(path)))
        )
        raise RunError(f"checkpoint {path}: {found}; {instead()}")
    return state_of(path)


def _instead_of(path: Path) -> str:
    """What to take where `path` is no sound checkpoint."""
    if (step := step_of(path.name)) is not None:
        for other in reversed(complete(path.parent)):
            try:
                if int(other.name[5:]) < step and fault(other) is None:
                    return f"the newest sound one before it is {other}"
            except RunError:
                continue  # it cannot be read either
        return "there is no older sound one"
    if inside := complete(path / "checkpoints") or complete(path):
        return f"the newest checkpoint in this folder is {inside[-1]}"
    return "a checkpoint is a folder such as RUN/checkpoints/step_00000100"


def state_of(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint known to be sound. Raises RunError: it is not."""
    try:
        return patiently(lambda: _state(path, opened(path)), path)
    except Fault as found:
        raise RunError(f"checkpoint {path}: {found}") from found
