"""`lhtrain [train] GROUP=NAME KEY=VALUE ...`: check all settings, then start the run or sweep."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lhtrain.commands.failure import explained, refuse_together
from lhtrain.commands.resume import continues
from lhtrain.conf.compose import Checked, build, checked, with_folders
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.schema import Resume
from lhtrain.conf.typed.overrides import spelled
from lhtrain.conf.typed.sweep import Sweep, sweep_of
from lhtrain.distributed.ranks import Ranks, ready_ranks
from lhtrain.distributed.torchrun import earlier_run
from lhtrain.errors import Ended, RunError, UsageError
from lhtrain.quote import override
from lhtrain.runs.run_dir import claim, holds_run, unwritable

# Options that are passed to Hydra; --config-dir reaches it as a setting.
HYDRAS = ("multirun", "cfg", "resolve", "package", "config_name", "config_path", "info", "hydra_help")


def train(arguments: Namespace) -> None:
    """Train with the settings. Raises UsageError, Ended."""
    flags, settings = _flags(arguments), list(arguments.settings)
    keys = {text.partition("=")[0] for text in settings}
    names_a_run = keys == {"run.dir", "resume"} and not flags and not arguments.config_dir
    if names_a_run and continues(settings):
        return
    claimed: Path | None = None
    dirs: list[Path] = []
    try:
        ranks = ready_ranks()
    except RunError as error:
        raise Ended(str(error), status=2, of_all=False) from None
    try:
        settings = with_folders(arguments.config_dir, settings)
        if not (arguments.hydra_help or arguments.info or arguments.config_path):
            settings, claimed, dirs = _checked(arguments, settings, ranks)
    except ConfigError as error:
        refuse_together(ranks, str(error), error.status)
    except RunError as error:
        refuse_together(ranks, str(error))
    sys.argv[1:] = [*flags, *settings]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here instead of being printed by Hydra
    try:
        hydra_main()
    except (HydraException, OmegaConfBaseException) as error:
        raise Ended(" ".join(str(error).split()), status=2) from error
    except Exception as error:
        if not getattr(error, "was_reported", False):
            raise
        _print_sweep(dirs)
        raise Ended("the sweep has ended; some of its runs failed, see the errors above", status=1) from None
    finally:
        if claimed is not None and claimed.is_dir() and not any(claimed.iterdir()):
            claimed.rmdir()  # the run never started
    _print_sweep(dirs)


def _print_sweep(dirs: list[Path]) -> None:
    """Print a table of the runs of a sweep that have started, those with the lowest validation loss first."""
    started = [folder for folder in dirs if holds_run(folder)]
    if started:
        from lhtrain.commands.compare import print_sweep

        print_sweep(started)


@hydra.main(version_base="1.3", config_path="pkg://lhtrain.conf", config_name="config")
def hydra_main(config: DictConfig) -> None:
    """Train one composed configuration. Hydra calls this."""
    from lhtrain.session import run  # imports torch, 2 s: errors in the settings are reported before

    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    where = HydraConfig.get().runtime.output_dir if sweep else None
    explained(lambda: run(config), lambda: build(config), where)


def _flags(arguments: Namespace) -> list[str]:
    """The options to pass to Hydra. Raises UsageError if some exclude each other."""
    flags = []
    for name in HYDRAS:
        if (value := getattr(arguments, name)) not in (None, False):
            flags += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    if arguments.cfg and arguments.multirun:
        raise UsageError("--cfg prints one configuration, -m starts several runs: leave one of them out")
    if (arguments.resolve or arguments.package) and not arguments.cfg:
        raise UsageError("--resolve and --package need --cfg job")
    return flags


def _checked(
    arguments: Namespace, settings: list[str], ranks: Ranks
) -> tuple[list[str], Path | None, list[Path]]:
    """Check the settings of all runs that they start, and choose the directories of the runs.

    Returns the settings to pass to Hydra; the folder that was created for a run without run.dir=, if any; and
    the directories of the runs of a sweep that this rank starts.
    Raises ConfigError, RunError.
    """
    is_sweep, starts = arguments.multirun or "hydra.mode=MULTIRUN" in settings, arguments.cfg is None
    sweep = sweep_of(settings) if is_sweep else Sweep(spelled(settings), [settings], [])
    first = _valid_runs(sweep, arguments.config_name or "config", ranks.size, starts)[0]
    settings = [*first.brought, *sweep.overrides]
    is_new, earlier = first.config.resume is Resume.never, None
    if starts and not is_sweep:
        earlier = earlier_run(Path(first.config.run.dir), is_new, first.is_dated)
    if earlier is not None and is_new:
        settings = [*settings, "resume=auto"]  # torchrun has restarted the ranks of this run
    if ranks.rank > 0:  # all ranks use the directory of rank 0; Hydra must not create another
        return [*settings, "hydra.run.dir=.", "hydra.sweep.dir=.", "hydra.sweep.subdir=."], None, []
    settings = [*settings, *sweep.subdir]
    dirs = sweep.dirs if starts else []
    if not starts or not first.is_dated or (is_sweep and not sweep.dirs):
        return settings, None, dirs
    if earlier is not None:
        return [*settings, f"run.dir={override(str(earlier))}"], None, dirs
    # Two runs that start in the same second would have the same folder.
    suffix = "_sweep" if is_sweep else ""
    folder = sweep.dirs[0].parent if is_sweep else Path(first.config.run.dir)
    name = claim(folder.with_name(folder.name.removesuffix(suffix)), suffix)
    folder = Path(f"{name}{suffix}")
    settings = [*settings, f"run.dir={override(str(name))}"]
    return settings, folder, [folder / one.name for one in dirs]


def _valid_runs(sweep: Sweep, config_name: str, n_ranks: int, starts: bool) -> list[Checked]:
    """Return the configurations of all runs. starts: whether they are to start, not only to be printed.

    Raises ConfigError with the problems of all runs.
    """
    problems: list[Problem] = []
    runs = []
    for job in sweep.jobs:
        try:
            runs.append(checked(job, config_name, n_ranks, here=starts))
        except ConfigError as error:
            problems += error.problems
    if starts:
        problems += _directory_problems(runs)
    if starts and not problems and runs[0].config.resume is Resume.never:
        for folder in filter(holds_run, sweep.dirs):
            rule = f"a run of this sweep would write to {folder}, which already contains a run"
            remedy = "continue it with resume=auto, or choose another folder"
            problems.append(Problem("run.dir", runs[0].config.run.dir, f"{rule}: {remedy}"))
    if others := [run for run in runs if run.brought != runs[0].brought]:
        rule = f"brings other settings than {runs[0].config.init_from}, with which the sweep begins"
        remedy = "start a sweep for each of them"
        problems.append(Problem("init_from", others[0].config.init_from, f"{rule}; {remedy}"))
    if problems:
        raise ConfigError(problems)
    return runs


def _directory_problems(runs: list[Checked]) -> Iterator[Problem]:
    """Yield problems of the directories of runs that are to start."""
    if runs and runs[0].is_dated and runs[0].config.resume is not Resume.never:
        rule = "needs run.dir=DIR: without it each start uses a new folder, which has nothing to resume"
        yield Problem("resume", runs[0].config.resume.name, rule)
    for run in runs:
        if problem := unwritable(Path(run.config.run.dir)):
            yield Problem("run.dir", run.config.run.dir, problem)
