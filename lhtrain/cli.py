"""The program `lhtrain`: training by default, other commands by a first word without `=`."""

import errno
import importlib
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import lhtrain
import lhtrain.conf  # registers the schema, the resolvers and how YAML is read
from lhtrain.__main__ import begin_training
from lhtrain.conf.schema import Config
from lhtrain.distributed.ranks import Ranks, ready_ranks

# Further commands: name -> "module:function", called with the remaining arguments.
COMMANDS: dict[str, str] = {
    "train": "lhtrain.cli:train",
    "data": "lhtrain.commands.data:main",
    "estimate": "lhtrain.compute.memory:main",
    "export": "lhtrain.commands.export:main",
    "slurm": "lhtrain.commands.slurm:main",
    "resume": "lhtrain.commands.resume:resume",
    "extend": "lhtrain.commands.resume:extend",
}

Arguments = list[str]

# Full, read-only, forbidden, failing: faults of a disk or of its limits that are nobody's bug.
DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTDIR),
}
# Files that others have removed, or have put something else in place of.
REPLACED = {errno.ENOENT, errno.EISDIR, errno.EEXIST, errno.ELOOP}


def main() -> None:
    """Entry point of the console script and of `python -m lhtrain`."""
    arguments = sys.argv[1:]
    try:
        _main(arguments)
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    except BrokenPipeError:  # lhtrain … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        sys.exit(1)
    except OSError as error:  # a full disk behind stdout, a file that cannot be read
        if error.errno not in DISK:
            raise
        where = "" if error.filename is not None else "; probably the output's: give it another place"
        fail(f"{error}{where}", status=1)


def _main(arguments: Arguments) -> None:
    if arguments == ["--version"]:
        print(f"lhtrain {lhtrain.__version__}")
        return
    if arguments[:1] == ["-sc"] and arguments[1:2] and arguments[1].startswith("query="):
        from lhtrain.commands.completion import complete

        return complete(arguments[1])
    command = "train"
    if arguments and not arguments[0].startswith(("-", "+", "~")) and "=" not in arguments[0]:
        command, *arguments = arguments
    if command == "help":
        from lhtrain.commands.help import show

        return show(arguments)
    if command not in COMMANDS:
        from lhtrain.conf.keys import nearest

        names = ", ".join(sorted([*COMMANDS, "help"]))
        near = nearest(command, [*COMMANDS, "help"])
        fail(f"no command {command!r}{near} (there is: {names}); settings are KEY=VALUE; try lhtrain --help")
    module, function = COMMANDS[command].split(":")
    getattr(importlib.import_module(module), function)(arguments)


def train(arguments: Arguments) -> None:
    """`lhtrain [train] GROUP=NAME KEY=VALUE …`: check everything, then hand over to Hydra."""
    begin_training()
    if {"-h", "--help"} & set(arguments):
        from lhtrain.commands.help import show

        return show([])
    from lhtrain.conf.compose import search_path
    from lhtrain.conf.problems import ConfigError
    from lhtrain.errors import RunError

    parsed, flags = _parse(arguments)
    settings = list(parsed.overrides)
    if not flags and {text.partition("=")[0] for text in settings} == {"run.dir", "resume"}:
        from lhtrain.commands.resume import continues

        if continues(settings):
            return
    claimed = None
    try:
        ranks = ready_ranks()
    except RunError as error:
        fail(str(error), of_all=False)
    try:
        if parsed.config_dir:
            settings.insert(0, search_path(parsed.config_dir))
        if not (parsed.hydra_help or parsed.info or parsed.shell_completion or parsed.config_path):
            settings, claimed = _checked(parsed, settings, ranks)
    except ConfigError as error:
        fail_together(ranks, str(error), error.status)
    except RunError as error:
        fail_together(ranks, str(error))
    sys.argv[1:] = [*flags, *settings]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here instead of being printed by Hydra
    try:
        _hydra_main()
    except (HydraException, OmegaConfBaseException) as error:
        fail(" ".join(str(error).split()))
    except Exception as error:
        if not getattr(error, "was_reported", False):
            raise
        fail("the sweep is over; what ended some of its runs is above", status=1)
    finally:
        if claimed is not None and claimed.is_dir() and not any(claimed.iterdir()):
            claimed.rmdir()  # of a run that never began


def _parse(arguments: Arguments) -> tuple[Namespace, Arguments]:
    """The arguments, and those that are Hydra's own flags; settings may stand before and after them."""
    from hydra._internal.utils import get_args_parser

    parser: ArgumentParser = get_args_parser()
    setattr(parser, "error", lambda message: fail(f"{message}; try lhtrain --help"))  # noqa: B010
    parsed = parser.parse_intermixed_args(arguments)
    flags = []
    for action in parser._actions:
        value = getattr(parsed, action.dest, None)
        if action.option_strings and value not in (None, False) and action.dest != "config_dir":
            flags += [action.option_strings[0], *([] if value is True else [value])]
    if parsed.cfg and parsed.multirun:
        fail("--cfg shows one configuration, -m makes several runs: leave one of them out")
    if (parsed.resolve or parsed.package) and not parsed.cfg:
        fail("--resolve and --package go with --cfg job")
    return parsed, flags


def _checked(parsed: Namespace, settings: Arguments, ranks: Ranks) -> tuple[Arguments, Path | None]:
    """The settings as Hydra is to get them, once every run that they make is found to be right; and the
    folder that was made for a run without a run.dir of its own.

    Raises ConfigError, RunError.
    """
    from lhtrain.conf.compose import checked
    from lhtrain.conf.problems import ConfigError, Problem
    from lhtrain.conf.schema import Resume
    from lhtrain.conf.typed.overrides import spelled
    from lhtrain.conf.typed.quote import override
    from lhtrain.conf.typed.sweep import Sweep, sweep_of
    from lhtrain.distributed.torchrun import of_this_launch
    from lhtrain.runs.run_dir import claim, holds_run, unwritable

    is_sweep, starts = parsed.multirun or "hydra.mode=MULTIRUN" in settings, parsed.cfg is None
    sweep = sweep_of(settings) if is_sweep else Sweep(spelled(settings), [settings], [])
    problems: list[Problem] = []
    runs = []
    for job in sweep.jobs:
        try:
            runs.append(checked(job, parsed.config_name or "config", ranks.size, here=starts))
        except ConfigError as error:
            problems += error.problems
    if starts and runs and runs[0].is_dated and runs[0].config.resume is not Resume.never:
        rule = "needs run.dir=DIR: the default is a new folder at every start, with nothing to resume"
        problems.append(Problem("resume", runs[0].config.resume.name, rule))
    for run_dir in [Path(run.config.run.dir) for run in runs] if starts else []:
        if problem := unwritable(run_dir):
            problems.append(Problem("run.dir", run_dir, problem))
    if not problems and runs[0].config.resume is Resume.never:
        for folder in filter(holds_run, sweep.dirs if starts else []):
            rule = f"a run of this sweep would go to {folder}, which holds one already: resume=auto continues"
            problems.append(Problem("run.dir", runs[0].config.run.dir, f"{rule} it, or take another folder"))
    if problems:
        raise ConfigError(problems)
    settings = sweep.overrides
    config = runs[0].config
    earlier = of_this_launch(config, runs[0].is_dated) if starts and not is_sweep else None
    if earlier is not None and config.resume is Resume.never:
        settings = [*settings, "resume=auto"]  # torchrun has restarted the ranks of this run
    if ranks.rank > 0:  # the first rank's directory is everyone's; Hydra must make no other
        return [*settings, "hydra.run.dir=.", "hydra.sweep.dir=.", "hydra.sweep.subdir=."], None
    if not starts or not runs[0].is_dated or (is_sweep and not sweep.dirs):
        return settings, None
    if earlier is not None:
        return [*settings, f"run.dir={override(str(earlier))}"], None
    # Two runs that start in the same second would have the same folder.
    suffix = "_sweep" if is_sweep else ""
    folder = sweep.dirs[0].parent if is_sweep else Path(runs[0].config.run.dir)
    name = claim(folder.with_name(folder.name.removesuffix(suffix)), suffix)
    return [*settings, f"run.dir={override(str(name))}"], Path(f"{name}{suffix}")


def fail_together(ranks: Ranks, message: str, status: int = 2) -> NoReturn:
    """End all ranks, of which this one cannot start, with one error."""
    if ranks.size > 1:
        from lhtrain.distributed.agreement import Disagreement
        from lhtrain.distributed.launch import refuse
        from lhtrain.distributed.world import leave

        try:
            refuse(ranks, message)
        except Disagreement as everyones:
            leave()
            fail(str(everyones), status, of_all=True)
    fail(message, status, of_all=ranks.size == 1)


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
    from lhtrain.distributed.agreement import Disagreement
    from lhtrain.distributed.meeting import PeerFailed
    from lhtrain.distributed.world import announce, leave, lost_contact, record_failure

    try:
        task()
    except Exception as error:
        message = in_words(error, config)
        if not lost_contact(error):
            record_failure(error, message)
        if message is not None and of_sweep is not None:
            print(f"lhtrain: {of_sweep}: {message}", file=sys.stderr)
            setattr(error, "was_reported", True)  # noqa: B010
            raise error.with_traceback(None) from None  # which ends this run, not the sweep
        of_all = isinstance(error, Disagreement | PeerFailed) or hasattr(error, "of_rank_0")
        if not of_all:
            is_new = announce(message or f"{type(error).__name__}: {error}")
            of_all = not is_new
        leave()
        if message is None:
            raise
        # Disagreement has the one, ConfigError the other.
        of_settings = getattr(error, "of_settings", False) or getattr(error, "status", 1) == 2
        fail(message, status=2 if of_settings else 1, of_all=of_all)


def in_words(error: Exception, config: Callable[[], Config]) -> str | None:
    """What to say of an error that is not the program's own fault; None of others: they need a traceback."""
    import torch

    from lhtrain.conf.problems import ConfigError
    from lhtrain.data import DataError
    from lhtrain.distributed.world import lost_contact
    from lhtrain.errors import LOST_CONTACT, RunError
    from lhtrain.files import NotRegular

    if isinstance(error, ConfigError | DataError | RunError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(error, config())
    if lost_contact(error):
        return LOST_CONTACT
    if isinstance(error, torch.distributed.DistStoreError):
        return f"the ranks did not meet within parallel.timeout={config().parallel.timeout} s: {error}"
    if isinstance(error, NotRegular) or (isinstance(error, OSError) and error.errno in DISK):
        return str(error)
    if isinstance(error, OSError) and error.errno in REPLACED and error.filename is not None:
        return str(error)
    return None


def out_of_memory(error: Exception, given: Config) -> str:
    """What to say when the GPU's memory does not hold a run: the estimate, and what helps by how much."""
    import torch

    from lhtrain.compute.advice import advice
    from lhtrain.conf.fill import filled
    from lhtrain.conf.rules.parallel import mesh_sizes
    from lhtrain.distributed.ranks import find_ranks

    memory, n_ranks = torch.cuda.mem_get_info()[1], find_ranks().size
    config = filled(given, n_ranks, memory)
    # Of dp_shard=-1, all that are left, an estimate knows nothing; these ranks are there.
    config.parallel.dp_shard = mesh_sizes(config.parallel, n_ranks)[1]
    lines = advice(config, memory / 1e9)
    return "\n".join([f"{str(error).split('. ')[0]}.", *lines])


def fail(message: str, status: int = 2, of_all: bool | None = None) -> NoReturn:
    """End the program with `message` on stderr; status 2 says that the arguments are at fault.

    of_all: whether all ranks end with this message, and the first prints it for all; by default that is so
    of arguments.
    """
    of_slurm = os.environ if "SLURM_STEP_ID" in os.environ else {}
    rank = os.environ.get("RANK") or of_slurm.get("SLURM_PROCID", "0")
    size = os.environ.get("WORLD_SIZE") or of_slurm.get("SLURM_NTASKS", "1")
    # Where the variables of a launcher are half set or unreadable, there may be no first rank.
    is_first = rank == "0" or not rank.isdecimal() or not size.isdecimal() or int(rank) >= int(size)
    if is_first or not (status == 2 if of_all is None else of_all):
        print(f"lhtrain: {f'rank {rank}: ' if rank != '0' else ''}{message}", file=sys.stderr)
    sys.exit(status)
