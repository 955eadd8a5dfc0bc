"""`lhtrain resume DIR` and `lhtrain extend DIR steps=+N`: continue a run with its own configuration."""

import os
from pathlib import Path

from lhtrain.conf.problems import ConfigError
from lhtrain.conf.schema import Config
from lhtrain.errors import RunError

RESUME_HELP = """lhtrain resume: continue a run from its newest sound checkpoint, with its own configuration.

Usage: lhtrain resume DIR [KEY=VALUE ...]

DIR is the directory of a run; DIR/config.yaml has its settings. KEY=VALUE replaces one of them. Settings that
change what is learnt need resume=force too, whether they are given here or were edited in config.yaml.

Examples
  lhtrain resume runs/mine
  lhtrain resume runs/mine checkpoint.every=50
  lhtrain resume runs/mine optim.lr=1e-4 resume=force
  torchrun --nproc-per-node=8 -m lhtrain resume runs/mine"""

EXTEND_HELP = """lhtrain extend: lengthen a run, finished or not, and continue it.

Usage: lhtrain extend DIR steps=+N|N [KEY=VALUE ...]

The steps are added to the run's last stage. The learning rates that follow are printed before training
starts: with the default schedule the rate rises to its constant value again and decays over the last fifth of
the longer run. steps=N, so many in all, may be repeated: it changes nothing the second time. KEY=VALUE is as
for `lhtrain resume`.

Examples
  lhtrain extend runs/mine steps=+2000
  lhtrain extend runs/mine steps=12000"""


def resume(arguments: list[str]) -> None:
    """`lhtrain resume ARGUMENTS`. Ends the program: status 2 for wrong arguments, 1 for what is there."""
    path, overrides = _parsed(arguments, "resume", RESUME_HELP)
    _train(path, overrides)


def extend(arguments: list[str]) -> None:
    """`lhtrain extend ARGUMENTS`. Ends the program: status 2 for wrong arguments, 1 for what is there."""
    from lhtrain.cli import explained, fail
    from lhtrain.conf.fill import filled
    from lhtrain.distributed.launch import launch
    from lhtrain.runs.saved import extend as lengthen

    path, overrides = _parsed(arguments, "extend", EXTEND_HELP)
    steps = [text.partition("=")[2] for text in overrides if text.startswith("steps=")]
    overrides = [text for text in overrides if not text.startswith("steps=")]
    if len(steps) != 1:
        fail("extend: needs steps=+N, so many more, or steps=N, so many in all; try lhtrain extend --help")
    # torchrun starts the same command again after a failure: the plan is longer by then. steps=N may be
    # repeated, and the failure may have come before the plan was written.
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 and steps[0].startswith("+")
    if not again:
        config, main = _loaded(path, overrides)

        def lengthen_plan() -> None:
            """Every rank has read the plan; the first one writes it, before the others read it again."""
            world = launch(config)
            try:
                lines = world.on_main(lambda: lengthen(path, steps[0], filled(config, world.size)))
            except OSError as error:
                raise RunError(str(error)) from error
            if main:
                print(*lines, sep="\n", flush=True)

        explained(lengthen_plan, lambda: config)
    _train(path, overrides)


def continues(settings: list[str]) -> bool:
    """`lhtrain run.dir=DIR resume=…` and nothing else: continue the run in DIR with its own configuration.

    False, and nothing is done, where DIR has none yet: the settings then are those of a new run.
    """
    from lhtrain.runs.saved import value_of

    given = {text.partition("=")[0]: text for text in settings}
    try:
        path = Path(str(value_of(given["run.dir"]))).expanduser()
        if value_of(given["resume"]) == "never" or not os.path.exists(path / "config.yaml"):
            return False
    except (ValueError, RuntimeError):  # no value, several, no such home: the checks of a new run say it
        return False
    _train(path, [given["resume"]])
    return True


def _parsed(arguments: list[str], command: str, words: str) -> tuple[Path, list[str]]:
    """The run directory and the settings."""
    from lhtrain.cli import fail

    if not arguments or {"-h", "--help"} & set(arguments):
        print(words)
        raise SystemExit(0)
    place, *overrides = arguments
    if not place.strip():
        fail(f"{command}: DIR is empty; give the directory of a run, . for the current folder")
    if place.startswith("-") or any(text.startswith("-") or "=" not in text for text in overrides):
        fail(f"{command} {' '.join(arguments)}: needs DIR and then KEY=VALUE; try lhtrain {command} --help")
    return Path(place).expanduser(), overrides


def _train(path: Path, overrides: list[str]) -> None:
    from lhtrain.__main__ import begin_training
    from lhtrain.cli import explained

    begin_training()
    config, _ = _loaded(path, overrides)
    from lhtrain.train import train_config

    explained(lambda: train_config(config), lambda: config)


def _loaded(path: Path, overrides: list[str]) -> tuple[Config, bool]:
    """The configuration of the run at `path`, and whether this is rank 0."""
    from lhtrain.cli import fail, fail_together
    from lhtrain.conf.rules.machine import data_here
    from lhtrain.distributed.ranks import ready_ranks
    from lhtrain.runs.saved import load

    try:
        ranks = ready_ranks()
    except RunError as error:
        fail(str(error), of_all=False)
    try:
        config = load(path, overrides, n_ranks=ranks.size)
        if problems := list(data_here(config.data)):
            raise ConfigError(problems)
        return config, ranks.rank == 0
    except ConfigError as error:
        fail_together(ranks, str(error), error.status)
    except (RunError, OSError) as error:
        fail_together(ranks, str(error), status=1)
