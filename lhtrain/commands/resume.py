"""`lhtrain resume DIR` and `lhtrain extend DIR steps=+N`: continue a run with its own configuration."""

import os
from argparse import Namespace
from pathlib import Path

from lhtrain.commands.failure import explained, refuse_together
from lhtrain.compute.fill import filled
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.rules.machine import data_here
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
    # torchrun starts the same command again after a failure, and the plan may be longer by then: on one
    # machine a note says by how much. On several, where no note can be found, +N counts once.
    again = attempt() > 0 and steps.startswith("+") and on_several_machines()
    if not again:
        config, main = _loaded(path, overrides)

        def lengthen_plan() -> None:
            """Every rank has read the plan; the first one writes it, before the others read it again."""
            from lhtrain.runs.launch import launch  # torch

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
    """The value of steps=. Raises UsageError: it is not given."""
    if arguments.steps is None:
        raise UsageError("extend: needs DIR steps=+N, so many more, or steps=N, so many in all")
    return arguments.steps


def continues(settings: list[str]) -> bool:
    """`lhtrain run.dir=DIR resume=…` and nothing else: continue the run in DIR with its own configuration.

    False, and nothing is done, where DIR has none yet: the settings then are those of a new run.
    """
    given = {text.partition("=")[0]: text for text in settings}
    try:
        path = Path(str(value_of(given["run.dir"]))).expanduser()
        if value_of(given["resume"]) == "never" or not os.path.exists(path / "config.yaml"):
            return False
    except (ValueError, RuntimeError):  # no value, several, no such home: the checks of a new run report it
        return False
    _train(path, [given["resume"]])
    return True


def _train(path: Path, overrides: list[str]) -> None:
    config, _ = _loaded(path, overrides)
    from lhtrain.session import train_config  # torch: 2 s that no error in the settings waits for

    explained(lambda: train_config(config), lambda: config)


def _loaded(path: Path, overrides: list[str]) -> tuple[Config, bool]:
    """The configuration of the run at `path`, and whether this is rank 0. Raises Ended."""
    try:
        ranks = ready_ranks()
    except RunError as error:
        raise Ended(str(error), status=2, of_all=False) from None
    try:
        config = load(path, overrides, n_ranks=ranks.size)
        if problems := list(data_here(config.data)):
            raise ConfigError(problems)
        return config, ranks.rank == 0
    except ConfigError as error:
        refuse_together(ranks, str(error), error.status)
    except (RunError, OSError) as error:
        refuse_together(ranks, str(error), status=1)
