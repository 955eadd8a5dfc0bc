"""The program `lhtrain`: training by default, other commands by a first word without `=`."""

import errno
import importlib
import itertools
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import lhtrain
import lhtrain.conf  # registers the schema and the resolvers
from lhtrain import interrupt
from lhtrain.conf.schema import Config

# Further commands: name -> "module:function", called with the remaining arguments.
COMMANDS: dict[str, str] = {
    "train": "lhtrain.cli:train",
    "data": "lhtrain.data.command:main",
    "estimate": "lhtrain.estimate:main",
    "export": "lhtrain.export:main",
    "slurm": "lhtrain.slurm.command:main",
    "resume": "lhtrain.commands.resume:resume",
    "extend": "lhtrain.commands.resume:extend",
}

Arguments = list[str]

# Full, read-only or forbidden: faults of a disk that are nobody's bug.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


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
    except BrokenPipeError:  # lhtrain … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        sys.exit(1)


def train(arguments: Arguments) -> None:
    """`lhtrain [train] GROUP=NAME KEY=VALUE …`: check everything, then hand over to Hydra."""
    interrupt.watch()  # before the seconds that imports take
    from hydra._internal.utils import get_args_parser

    from lhtrain.conf.compose import check_overrides
    from lhtrain.conf.problems import ConfigError, Problem
    from lhtrain.errors import RunError
    from lhtrain.run_dir import unwritable
    from lhtrain.world import find_ranks

    # argparse takes flags before or after the overrides, not among them, where a sweep's -m often ends up
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))
    try:
        ranks = find_ranks()
        parsed = get_args_parser().parse_args(arguments)
        for overrides in _jobs(parsed):
            config = check_overrides(overrides, n_ranks=ranks.size)
            if parsed.cfg is None and (problem := unwritable(Path(config.run.dir))):
                raise ConfigError([Problem("run.dir", config.run.dir, problem)])
    except (ConfigError, RunError) as error:
        fail(str(error))
    if ranks.rank > 0:  # the first rank's directory is everyone's; Hydra must make no other
        arguments += ["hydra.run.dir=.", "hydra.sweep.dir=.", "hydra.sweep.subdir=."]
    sys.argv[1:] = arguments
    _hydra_main()


def _jobs(parsed: Namespace) -> Iterator[list[str]]:
    """The overrides of every job the arguments ask for; none where there would be none (--help, --info …)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    from lhtrain.slurm.quote import search_path

    if parsed.help or parsed.hydra_help or parsed.info or parsed.shell_completion:
        return
    if parsed.config_name or parsed.config_path:
        return  # another program than ours; `run` validates what comes out
    try:
        overrides = OverridesParser.create().parse_overrides(parsed.overrides)
    except OverrideParseException as error:
        why = str(error).splitlines()[0]
        fail(f"{error.override}: {why}; special characters need quotes in quotes: 'KEY=\"VALUE\"'")
    choices: list[list[str]] = [[search_path(parsed.config_dir)]] if parsed.config_dir else []
    for override in overrides:
        key = override.get_key_element().lstrip("+~")
        if key.split(".")[0].split("/")[0] == "hydra" and key != "hydra.searchpath":
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
    from lhtrain.conf.compose import build
    from lhtrain.train import run

    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    where = HydraConfig.get().runtime.output_dir if sweep else None
    explained(lambda: run(config), lambda: build(config), where)


def explained(task: Callable[[], None], config: Callable[[], Config], of_sweep: str | None = None) -> None:
    """Run `task`; an error that is not the program's own fault becomes one sentence.

    config: what the task trains. of_sweep: the directory of this run of a sweep, which continues after it.
    """
    from lhtrain.world import lost_contact, record_failure

    try:
        task()
    except Exception as error:
        if not lost_contact(error):
            record_failure(error)
        message = in_words(error, config)
        if message is None:
            raise
        if of_sweep is not None:
            print(f"lhtrain: {of_sweep}: {message}", file=sys.stderr)
            raise error.with_traceback(None) from None  # which ends this run, not the sweep
        fail(message, status=1)


def in_words(error: Exception, config: Callable[[], Config]) -> str | None:
    """What to say of an error that is not the program's own fault; None of others: they need a traceback."""
    import torch

    from lhtrain.conf.problems import ConfigError
    from lhtrain.data import DataError
    from lhtrain.errors import RunError
    from lhtrain.world import lost_contact

    if isinstance(error, ConfigError | DataError | RunError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(error, config())
    if lost_contact(error):
        return "lost contact with another rank, whose error is the one to look at"
    if isinstance(error, torch.distributed.DistStoreError):
        return f"the ranks did not meet within parallel.timeout={config().parallel.timeout} s: {error}"
    if isinstance(error, OSError) and error.errno in DISK:
        return str(error)
    return None


def out_of_memory(error: Exception, given: Config) -> str:
    """What to say when the GPU's memory does not hold a run: the estimate, and what helps by how much."""
    import torch

    from lhtrain.advice import advice
    from lhtrain.conf.fill import filled
    from lhtrain.conf.parallel import mesh_sizes
    from lhtrain.world import find_ranks

    memory, n_ranks = torch.cuda.mem_get_info()[1], find_ranks().size
    config = filled(given, n_ranks, memory)
    # Of dp_shard=-1, all that are left, an estimate knows nothing; these ranks are there.
    config.parallel.dp_shard = mesh_sizes(config.parallel, n_ranks)[1]
    lines = advice(config, memory / 1e9)
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
