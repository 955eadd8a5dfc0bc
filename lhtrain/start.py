"""How a run starts: afresh, from its own newest checkpoint, or from another run's."""

from pathlib import Path
from typing import Any

from torch import Tensor

from lhtrain import checkpoint
from lhtrain.conf.schema import Config, Resume
from lhtrain.data import Corpus
from lhtrain.errors import RunError
from lhtrain.progress import Progress
from lhtrain.run_dir import RunDir, as_container, differing
from lhtrain.world import World

Tensors = dict[str, Tensor]


def find_resume(run_dir: RunDir, resume: Resume, world: World) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, or None for a fresh start; and notes on what was found damaged.

    Raises:
        RunError: the directory holds a run and nobody said to resume it; all its checkpoints are damaged.
    """
    if resume is not Resume.never:
        return checkpoint.newest_sound(run_dir.checkpoints, world)
    if world.on_main(lambda: bool(checkpoint.complete(run_dir.checkpoints)) or run_dir.metrics.exists()):
        raise RunError(
            f"run.dir={run_dir.path} holds a run already: resume=auto goes on with it; "
            "a new run needs another directory"
        )
    return None, []


def resume_run(path: Path, tensors: Tensors, config: Config, corpus: Corpus) -> Progress:
    """Restore everything from this run's sound checkpoint `path`.

    Raises:
        RunError: settings or data that differ from the saved run's, each named.
    """
    state = checkpoint.state_of(path)
    changed = differing(state["config"], as_container(config))
    if state["data"] != corpus.fingerprint:
        changed.append(f"data: content {state['data']} -> {corpus.fingerprint}")
    if changed and config.resume is not Resume.force:
        lines = "".join(f"\n  {line}" for line in changed)
        raise RunError(
            f"resume=auto: {path} was saved with other settings (saved -> now):{lines}\n"
            f"Give the saved values, or resume=force to go on with the new ones, "
            f"or start a new run with init_from={path}"
        )
    checkpoint.load(path, tensors)
    return Progress.from_dict(state["progress"])


def start_from(
    path: Path, tensors: Tensors, config: Config, corpus: Corpus, world: World
) -> tuple[Progress, str]:
    """Begin a new run with another run's weights, optimizer state and, on the same data, position.

    Returns the new run's progress, at step 0, and a note on what was taken over.

    Raises:
        RunError: a faulty checkpoint, or one of another model.
    """
    state = checkpoint.read_state(path, world)
    checkpoint.load(path, tensors)
    note = f"weights and optimizer of {path}, step {state['progress']['step']}"
    if state["data"] != corpus.fingerprint:
        return Progress(), f"{note}; other data, read from its start"
    position = state["progress"]["position"]
    note += f"; data from token {position:,} on"
    if _order(state["config"]) != _order(as_container(config)):
        note += ", in another order (run.seed, sequence lengths or data.long_fraction differ): some of it is"
        note += " read a second time"
    return Progress(position=position), note


def _order(config: dict[str, Any]) -> tuple:
    """What decides which data a position stands for."""
    lengths = {stage["seq_len"] for stage in config["stages"].values()}
    return lengths, config["run"]["seed"], config["data"]["long_fraction"]
