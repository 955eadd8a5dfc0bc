"""The program `lhtrain`: training by default, other commands by a first word without `=`."""

import importlib
import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import hydra
from omegaconf import DictConfig

import lhtrain
import lhtrain.conf  # registers the schema and the resolvers
from lhtrain import interrupt

# Further commands: name -> "module:function", called with the remaining arguments.
COMMANDS: dict[str, str] = {
    "train": "lhtrain.cli:train",
    "data": "lhtrain.data.command:main",
    "estimate": "lhtrain.estimate:main",
    "slurm": "lhtrain.slurm.command:main",
}

Arguments = list[str]


def main() -> None:
    """Entry point of the console script and of `python -m lhtrain`."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"lhtrain {lhtrain.__version__}")
        return
    command = "train"
    if arguments and not arguments[0].startswith(("-", "+", "~")) and "=" not in arguments[0]:
        command, *arguments = arguments
    if command not in COMMANDS:
        names = ", ".join(sorted(COMMANDS))
        fail(f"no command {command!r} (there is: {names}); settings are KEY=VALUE; try lhtrain --help")
    module, function = COMMANDS[command].split(":")
    try:
        getattr(importlib.import_module(module), function)(arguments)
    except KeyboardInterrupt:
        fail("interrupted", status=130)


def train(arguments: Arguments) -> None:
    """`lhtrain [train] GROUP=NAME KEY=VALUE …`: check everything, then hand over to Hydra."""
    interrupt.watch()  # before the seconds that imports take
    from lhtrain.conf.compose import check_overrides
    from lhtrain.conf.problems import ConfigError
    from lhtrain.errors import RunError
    from lhtrain.world import find_ranks

    # argparse takes flags before or after the overrides, not among them, where a sweep's -m often ends up
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))
    try:
        ranks = find_ranks()
        for overrides in _jobs(arguments):
            check_overrides(overrides, n_ranks=ranks.size)
    except (ConfigError, RunError) as error:
        fail(str(error))
    if ranks.rank > 0:  # the first rank's directory is everyone's; Hydra must make no other
        arguments += ["hydra.run.dir=.", "hydra.sweep.dir=.", "hydra.sweep.subdir=."]
    sys.argv[1:] = arguments
    _hydra_main()


def _jobs(arguments: Arguments) -> Iterator[list[str]]:
    """The overrides of every job the arguments ask for; none where no job would run (--help, --cfg …)."""
    from hydra._internal.utils import get_args_parser
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parsed = get_args_parser().parse_args(arguments)
    if parsed.help or parsed.hydra_help or parsed.info or parsed.shell_completion:
        return
    if parsed.config_name or parsed.config_path or parsed.config_dir:
        return  # the user's own files, which only Hydra's search path knows; `run` validates what comes out
    try:
        overrides = OverridesParser.create().parse_overrides(parsed.overrides)
    except HydraException as error:
        fail(str(error))
    choices: list[list[str]] = []
    for override in overrides:
        if override.get_key_element().lstrip("+~").split(".")[0].split("/")[0] == "hydra":
            continue  # Hydra's own
        if parsed.multirun and override.is_discrete_sweep():
            choices.append(list(_values(override)))
        elif override.is_sweep_override():
            if not parsed.multirun:
                fail(f"{override.input_line}: several values need a sweep; add -m")
            return  # a range for an optimizing sweeper: only it knows the values
        else:
            choices.append([str(override.input_line)])
    for job in itertools.product(*choices):
        yield list(job)


def _values(override: Any) -> Iterator[str]:
    for value in override.sweep_string_iterator():
        yield f"{override.get_key_element()}={value}"


@hydra.main(version_base="1.3", config_path="pkg://lhtrain.conf", config_name="config")
def _hydra_main(config: DictConfig) -> None:
    import torch

    from lhtrain.conf.problems import ConfigError
    from lhtrain.data import DataError
    from lhtrain.errors import RunError
    from lhtrain.train import run
    from lhtrain.world import lost_contact, record_failure

    try:
        run(config)
    except (ConfigError, DataError, RunError) as error:
        record_failure(error)
        fail(str(error), status=1)
    except torch.OutOfMemoryError as error:
        record_failure(error)
        fail(out_of_memory(error, config), status=1)
    except Exception as error:
        if lost_contact(error):
            fail("lost contact with another rank, whose error is the one to look at", status=1)
        record_failure(error)
        raise


def out_of_memory(error: Exception, composed: DictConfig) -> str:
    """What to say when the GPU's memory does not hold a run: the estimate, and what helps by how much."""
    import torch

    from lhtrain.advice import advice
    from lhtrain.conf.compose import build
    from lhtrain.conf.fill import filled

    capacity = torch.cuda.mem_get_info()[1] / 1e9
    lines = advice(filled(build(composed)), capacity)
    return "\n".join([f"{str(error).split('. ')[0]}.", *lines])


def fail(message: str, status: int = 2) -> NoReturn:
    """End the program with `message` on stderr; status 2 says that the arguments are at fault.

    Of several ranks all find the arguments at fault, and the first says so.
    """
    of_slurm = os.environ.get("SLURM_PROCID", "0") if "SLURM_STEP_ID" in os.environ else "0"
    rank = int(os.environ.get("RANK", of_slurm))
    if rank == 0 or status != 2:
        print(f"lhtrain: {f'rank {rank}: ' if rank else ''}{message}", file=sys.stderr)
    sys.exit(status)
