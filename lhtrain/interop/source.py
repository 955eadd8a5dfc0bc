"""Finds and reads the checkpoint that a path names: the newest one of a run, or one given by its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lhtrain import checkpoint
from lhtrain.checkpoint.errors import Damaged
from lhtrain.checkpoint.verify import with_remedy
from lhtrain.conf.schema import ModelConfig
from lhtrain.errors import RunError
from lhtrain.runs.run_dir import RunDir

ATTEMPTS = 8  # how often another checkpoint is tried if the run deletes the one that is being read

State = dict[str, Any]
Content = TypeVar("Content")


def read_newest(source: Path, read: Callable[[Path, State], Content]) -> tuple[Path, State, Content]:
    """Return path and state of the checkpoint that `source` names, and what `read` returns for them.

    A run that is training may delete the checkpoint while it is read. Then the newest one is read again.

    Args:
        source: one checkpoint; or a run directory or its folder of checkpoints, for the newest one.
        read: reads the weights.

    Raises:
        RunError: there is no undamaged checkpoint.
    """
    for _ in range(ATTEMPTS):
        path = newest(source)
        try:
            state = checkpoint.read_state(path, contents=False)  # `read` verifies the weights
            return path, state, read(path, state)
        except Exception as error:
            if path != source and not (path / "manifest.json").exists():
                continue
            if isinstance(error, Damaged):
                raise with_remedy(path, error.found) from error
            if isinstance(error, OSError):
                raise RunError(f"checkpoint {path}: cannot be read ({error})") from error
            raise
    raise RunError(
        f"{source}: the run deleted its checkpoints {ATTEMPTS} times in a row while they were read; "
        "repeat the command when the run has ended, or train with a larger checkpoint.keep"
    )


def newest(source: Path) -> Path:
    """Return the newest complete checkpoint in a run directory or a folder of checkpoints; else `source`.

    Raises RunError: the run has no finished checkpoint yet.
    """
    for place in (source / "checkpoints", source):
        if found := checkpoint.complete(place):
            return found[-1]
    if (source / "checkpoints").is_dir():
        raise RunError(f"{source}: has no finished checkpoint yet; checkpoint.every sets when one is written")
    return source


def model_config(path: Path, state: State) -> ModelConfig:
    """Return the model's shape from the state of the checkpoint `path`. Raises RunError: it has none.

    The rotary embedding is that of the last stage that did a step.
    """
    try:
        model = ModelConfig(**state["config"]["model"])
        for record in state["progress"]["stages"]:
            settings = record.get("settings") or {}
            if record.get("steps") and "rope_theta" in settings:
                model.rope_theta, model.rope_scaling = settings["rope_theta"], settings.get("rope_scaling")
        return model
    except (AttributeError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> RunError:
    rule = "must have the content that this version of lhtrain writes"
    return RunError(f"checkpoint {path}: its state.json {rule} ({error!r})")


def own_tokenizer(path: Path) -> Path:
    """Return where a checkpoint of a run, or an import, has its copy of tokenizer.json; it may not exist."""
    return RunDir(path.parent.parent if path.parent.name == "checkpoints" else path).tokenizer
