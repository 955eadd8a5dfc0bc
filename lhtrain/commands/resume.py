"""`lhtrain resume DIR` and `lhtrain extend DIR steps=+N`: continue a run with its own configuration."""

import os
from argparse import Namespace
from pathlib import Path

from lhtrain.commands.failure import explained, refuse_together
from lhtrain.compute.fill import filled
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.rules.machine import all_data_here
from lhtrain.conf.schema import Config
from lhtrain.distributed.ranks import attempt, ready_ranks
from lhtrain.distributed.torchrun import on_several_machines
from lhtrain.errors import Ended, RunError, UsageError
from lhtrain.runs.extend import lengthen
from lhtrain.runs.own_config import load, value_of


def resume(arguments: Namespace) -> None:
    """Continue the run in DIR. Raises Ended."""
    _train(Path(arguments.DIR), arguments.settings)


def extend(arguments: Namespace) -> None:
    """Lengthen the run in DIR and continue it. Raises UsageError, Ended."""
    path, overrides, steps = Path(arguments.DIR), arguments.settings, steps_of(arguments)
    # After a failure torchrun starts the same command again, and the run may be longer already. On one
    # machine a file records by how much. On several it may not be found: +N counts on the first attempt only.
    again = attempt() > 0 and steps.startswith("+") and on_several_machines()
    if not again:
        config, main = _loaded(path, overrides)

        def lengthen_plan() -> None:
            """All ranks have read the plan. Rank 0 writes the longer one before the others read it again."""
            from lhtrain.runs.launch import launch  # imports torch

            world = launch(config)
            try:
                lines = world.on_main(lambda: lengthen(path, steps, filled(config, world.size)))
            except OSError as error:
                raise RunError(str(error)) from error
            if main:
                print(*lines, sep="\n", flush=True)

        explained(lengthen_plan, lambda: config)
    _train(path, overrides)


def steps_of(arguments: Namespace) -> str:
    """The value of steps=. Raises UsageError if it is not given."""
    if arguments.steps is None:
        raise UsageError("extend: needs steps=+N for N more steps, or steps=N for N steps in total")
    return arguments.steps


def continues(settings: list[str]) -> bool:
    """Continue the run in DIR with its own configuration, if `run.dir=DIR resume=...` are the only settings.

    Return False, and do nothing, if DIR has no configuration yet: then the settings are those of a new run.
    """
    given = {text.partition("=")[0]: text for text in settings}
    try:
        path = Path(str(value_of(given["run.dir"]))).expanduser()
        if value_of(given["resume"]) == "never" or not os.path.exists(path / "config.yaml"):
            return False
    except (
        ValueError,
        RuntimeError,
    ):  # no value, several values or no such home: the checks of a new run report it
        return False
    _train(path, [given["resume"]])
    return True


def _train(path: Path, overrides: list[str]) -> None:
    config, _ = _loaded(path, overrides)
    from lhtrain.session import train_config  # imports torch, 2 s: errors in the settings are reported before

    explained(lambda: train_config(config), lambda: config)


def _loaded(path: Path, overrides: list[str]) -> tuple[Config, bool]:
    """The configuration of the run at `path`, and whether this is rank 0. Raises Ended."""
    try:
        ranks = ready_ranks()
    except RunError as error:
        raise Ended(str(error), status=2, of_all=False) from None
    try:
        config = load(path, overrides, n_ranks=ranks.size)
        if problems := list(all_data_here(config)):
            raise ConfigError(problems)
        return config, ranks.rank == 0
    except ConfigError as error:
        refuse_together(ranks, str(error), error.status)
    except (RunError, OSError) as error:
        refuse_together(ranks, str(error), status=1)
