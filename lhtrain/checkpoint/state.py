"""state.json of a checkpoint: progress, configuration, and the state of other parts of the run."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lhtrain.checkpoint import manifest
from lhtrain.checkpoint.errors import Invalid, OtherFormat
from lhtrain.checkpoint.hashed import HashedFile
from lhtrain.checkpoint.manifest import Manifest
from lhtrain.checkpoint.names import step_of
from lhtrain.checkpoint.retry import patiently
from lhtrain.errors import RunError


def opened(path: Path) -> Manifest:
    """Read the manifest of the checkpoint in the folder `path`. Raises Invalid, OSError."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise Invalid("no such folder") from None
    if not stat.S_ISDIR(mode):
        raise Invalid("this is a file, not a folder")
    described = manifest.read(path)
    _same_step(path, described.step, manifest.NAME)
    return described


def _same_step(path: Path, step: Any, name: str) -> None:
    of_folder = step_of(path.name)
    if step is not None and of_folder is not None and of_folder != step:
        raise Invalid(f"{name} is of step {step}, but the folder's name is of step {of_folder}")


def parse_state(path: Path, described: Manifest) -> dict[str, Any]:
    """Return the content of state.json of the checkpoint `path`. Raises Invalid, OSError."""
    entry = described.files[manifest.STATE]
    if entry.bytes > manifest.MOST:
        raise Invalid(f"state.json has {entry.bytes} bytes; it must have at most {manifest.MOST}")
    with HashedFile(path, manifest.STATE, entry) as file:
        content = bytes(file.read(0, entry.bytes)) if entry.bytes else b""
    try:
        state = json.loads(content)
    except (ValueError, RecursionError):
        raise Invalid("state.json is not JSON") from None
    if not isinstance(state, dict):
        raise Invalid("state.json is not a JSON object")
    if (version := state.get("format")) != described.format:
        raise OtherFormat(
            f"state.json has format {version!r:.40}; this version of lhtrain reads 2 and {manifest.FORMAT}"
        )
    for key, kind in (("progress", dict), ("config", dict), ("data", str)):
        value = state.get(key, kind())
        if not isinstance(value, kind) and not (key == "data" and value is None):  # None: imported weights
            raise Invalid(f"state.json: {key} must be {'an object' if kind is dict else 'text'}")
    for key in ("step", "position"):
        number = state.get("progress", {}).get(key, 0)
        if type(number) is not int or number < 0:
            raise Invalid(f"state.json: progress.{key} must be a whole number, not {number!r:.40}")
    step = state.get("progress", {}).get("step", described.step)
    _same_step(path, step, manifest.STATE)
    if described.step is not None and step != described.step:
        raise Invalid(f"state.json is of step {step!r:.40}, but manifest.json is of step {described.step}")
    return state


def state_of(path: Path) -> dict[str, Any]:
    """Return state.json of a checkpoint that was verified before. Raises RunError: it is not valid."""
    try:
        return patiently(lambda: parse_state(path, opened(path)), path)
    except Invalid as found:
        raise RunError(f"checkpoint {path}: {found}") from found


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Around code that reads values of state.json: raise RunError if one is missing or of the wrong type."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        rule = f"must be as lhtrain writes it ({type(error).__name__}: {error})"
        raise RunError(f"checkpoint {path}: state.json {rule}") from error
