"""The runs of a command line: one, or with -m every combination of the values."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from lhtrain.conf.compose import checked, hydra
from lhtrain.conf.misfits import MISFITS
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.typed.overrides import spelled
from lhtrain.conf.typed.paths import expanded
from lhtrain.conf.typed.sweep_names import names_of

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"  # other sweepers choose values themselves


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep."""

    overrides: list[str]  # for Hydra
    jobs: list[list[str]]  # overrides of each run
    dirs: list[Path]  # directory of each run; empty if not known
    subdir: list[str] = field(default_factory=list)  # the override that names the directories, if one does


def sweep_of(overrides: list[str]) -> Sweep:
    """Return the runs of `lhtrain -m OVERRIDES`, including those from hydra.sweeper.params.

    Raises ConfigError: overrides cannot be parsed, or their values cannot be listed.
    """
    overrides = spelled(overrides, sweep=True)
    with hydra():
        parsed = _parsed(overrides)
        single = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
        try:
            own = compose("config", overrides=single, return_hydra_config=True).hydra
        except MISFITS:
            # Some overrides are invalid, in every run of the sweep, and this raises all problems; or they
            # change keys of what init_from brings.
            brought = checked(single).brought
            if not brought:
                raise
            return sweep_of([*brought, *overrides])
        if own.sweeper.get("_target_") != BASIC:
            return Sweep(overrides, [single], [])
        if own.sweeper.get("params"):
            params: Any = OmegaConf.to_container(own.sweeper.params, resolve=True)
            overrides = [
                *spelled([f"{key}={value}" for key, value in params.items()], sweep=True),
                *overrides,
            ]
            overrides = [text for text in overrides if not text.startswith("hydra.sweeper.params")]
            parsed = _parsed(overrides)
            overrides.append("hydra.sweeper.params=null")
        choices: dict[str, list[str]] = {}
        for override in parsed:
            key = override.get_key_element()
            choices[key] = (
                list(_values(override)) if override.is_sweep_override() else [str(override.input_line)]
            )
        jobs = [list(job) for job in itertools.product(*choices.values())]
        swept = [one.get_key_element() for one in parsed if one.is_sweep_override()]
        swept = [key for key in swept if not key.lstrip("+").startswith("hydra.")]
        return Sweep(overrides, jobs, *_dirs(own, jobs, swept))


def _parsed(overrides: list[str]) -> list[Override]:
    """Parse the overrides. Raises ConfigError, which names each override that cannot be parsed."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed, problems = [], []
    for text in overrides:
        try:
            parsed += parser.parse_overrides([text])
        except (HydraException, ValueError):
            rule = "cannot be read as KEY=VALUE or KEY=VALUE,VALUE; special characters need quotes"
            problems.append(Problem("", None, f"{text}: {rule}: 'KEY=\"VALUE\"'"))
    if problems:
        raise ConfigError(problems)
    return parsed


def _values(override: Override) -> list[str]:
    """Return KEY=VALUE for each value of an override of a sweep."""
    key = override.get_key_element()
    try:
        values = list(override.sweep_string_iterator())
    except (HydraException, ValueError, AssertionError, TypeError) as error:
        rule = f"its values cannot be listed ({' '.join(str(error).split())})"
        raise ConfigError([Problem(key, override.get_value_string(), rule)]) from error
    if not values:
        rule = "matches nothing, so the sweep would have no runs"
        raise ConfigError([Problem(key, override.get_value_string(), rule)])
    return [f"{key}={value}" for value in values]


def _dirs(own: DictConfig, jobs: list[list[str]], swept: list[str]) -> tuple[list[Path], list[str]]:
    """Return the directory of each run, and the override for Hydra that names them.

    The runs are named by the values that were swept; by their number if two of them would have the same name.
    If the user has set hydra.sweep.subdir, both are empty.
    """
    raw: Any = OmegaConf.to_container(own.sweep, resolve=False)
    if raw["subdir"] != "${hydra.job.num}":
        return [], []
    try:
        folder = Path(expanded(str(own.sweep.dir)))
    except MISFITS:
        return [], []
    if names := names_of(jobs, swept):
        keys = ",".join(key.lstrip("+") for key in swept)
        return [folder / name for name in names], [f"hydra.sweep.subdir='${{sweep_name:{keys}}}'"]
    return [folder / str(number) for number in range(len(jobs))], []
