"""Composes and checks a `Config` from command-line settings; one error names every problem."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lhtrain.conf.converted import converted, converted_data
from lhtrain.conf.misfits import MISFITS, explained, first_line, unknown_keys, unresolved_values
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.rules import plugins
from lhtrain.conf.rules.data import data_problems
from lhtrain.conf.rules.validate import validate
from lhtrain.conf.rules.values import value_problems
from lhtrain.conf.schema import Config, DataConfig
from lhtrain.conf.start_weights import brought, contradictions
from lhtrain.conf.typed.overrides import Setting
from lhtrain.conf.typed.own_files import documents, recorded
from lhtrain.conf.typed.paths import exists, expanded
from lhtrain.quote import override
from lhtrain.text import is_utf8

SEARCH = "hydra.searchpath="


@dataclass(frozen=True)
class Checked:
    """A valid configuration."""

    config: Config
    is_dated: bool  # whether run.dir contains the time of the start, so that every start has a new one
    # overrides for Hydra that init_from brings; to be put before the typed ones
    brought: tuple[str, ...] = ()


def check_overrides(
    overrides: list[str], config_name: str = "config", n_ranks: int | None = None, here: bool = False
) -> Config:
    """Compose and validate a configuration without running anything.

    Args:
        overrides: settings KEY=VALUE as typed on the command line.
        config_name: the YAML file to start from.
        n_ranks: number of ranks that would run it, if known.
        here: check also the files and GPUs of this machine.

    Raises:
        ConfigError: names every unknown key or group, wrong type and broken rule.
    """
    return checked(overrides, config_name, n_ranks, here).config


def checked(
    overrides: list[str], config_name: str = "config", n_ranks: int | None = None, here: bool = False
) -> Checked:
    """Like `check_overrides`; the result has also whether run.dir contains the time."""
    with hydra():
        settings, problems = _settings(overrides)
        config, misfits = _composed(settings, config_name)
        more = [] if config is None else brought(config, settings)
        if more:  # before the typed settings, which may change keys of what is brought
            config, misfits = _composed([*more, *settings], config_name)
        problems += [*misfits, *_hidden(settings, config_name)]
        if config is not None:
            preset = next((setting.value for setting in settings if setting.key == "model"), None)
            problems += _problems_of(config, n_ranks, here, preset)
        if problems or config is None:
            raise ConfigError([_placed(problem, settings) for problem in problems])
        given = OmegaConf.to_container(config.run, resolve=False)
        assert isinstance(given, dict)
        return Checked(converted(config), "${now:" in str(given["dir"]), tuple(one.override for one in more))


def data_config(overrides: list[str]) -> DataConfig:
    """Compose and check only the group `data`, for a command that uses nothing else.

    Raises:
        ConfigError: as `check_overrides`, but only the rules on `data` are checked.
    """
    from lhtrain.conf.rules.machine import data_here

    with hydra():
        settings, problems = _settings(overrides)
        config, misfits = _composed(settings, "config")
        problems += misfits
        data: Any = None
        if config is not None:
            unresolved = [one for one in unresolved_values(config) if one.key.startswith("data.")]
            problems += unresolved
            if not unresolved:
                data = converted_data(config.data)
                problems += [*value_problems(data, "data."), *data_problems(data), *data_here(data)]
        if problems:
            raise ConfigError([_placed(problem, settings) for problem in problems])
    assert isinstance(data, DataConfig)
    return data


def build(config: DictConfig, n_ranks: int | None = None) -> Config:
    """Return the typed configuration. Raises ConfigError if a rule is broken."""
    if problems := _problems_of(config, n_ranks):
        raise ConfigError(problems)
    return converted(config)


@contextmanager
def hydra() -> Iterator[None]:
    """A context in which Hydra is initialized with the YAML files of lhtrain."""
    GlobalHydra.instance().clear()
    with initialize_config_module("lhtrain.conf", version_base="1.3"), recorded():
        yield


def with_folders(folders: list[str], settings: list[str]) -> list[str]:
    """Return the settings, preceded by the override that adds `folders` to Hydra's search path.

    Raises ConfigError if a folder does not exist.
    """
    return [search_path(*folders), *settings] if folders else settings


def search_path(*folders: str) -> str:
    """Return the override that adds `folders` to Hydra's search path.

    Raises ConfigError if a folder does not exist.
    """
    if missing := [folder for folder in folders if not Path(expanded(folder)).is_dir()]:
        raise ConfigError([Problem("--config-dir", folder, "no such folder") for folder in missing])
    places = (override(f"file://{Path(expanded(folder)).absolute()}") for folder in folders)
    return f"{SEARCH}[{','.join(places)}]"


def _settings(overrides: list[str]) -> tuple[list[Setting], list[Problem]]:
    """Parse overrides into settings, and problems for those that cannot be parsed.

    All values of hydra.searchpath are joined into the first setting.
    """
    problems = []
    settings = []
    folders: list[str] = []
    for typed in overrides:
        if typed.startswith(SEARCH):
            folders.append(typed.removeprefix(SEARCH).strip().removeprefix("[").removesuffix("]"))
        elif not is_utf8(typed):
            problems.append(Problem("", None, f"{typed!a}: must be UTF-8 text"))
        elif "=" not in typed and not typed.startswith("~"):
            problems.append(Problem("", None, f"{typed!r}: must be a setting, KEY=VALUE"))
        else:
            settings.append(Setting.of(typed))
    if folders:
        settings.insert(0, Setting.of(f"{SEARCH}[{','.join(filter(None, folders))}]"))
    return settings, problems


def _hidden(settings: list[Setting], config_name: str) -> Iterator[Problem]:
    """Yield a problem for each file of the user that Hydra would ignore for one of lhtrain with its name."""
    if not settings or not settings[0].override.startswith(SEARCH):
        return
    folders: Any = OverridesParser.create().parse_override(settings[0].override).value()
    move = f"lhtrain's own has this name; move it to experiment/{config_name}.yaml, begin it with "
    move += f"'# @package _global_', and select it with experiment={config_name}"
    named = [("--config-name", config_name, f"{config_name}.yaml", move)]
    for setting in settings[1:]:
        name = f"{setting.key}/{setting.value}.yaml"
        named.append((setting.key, setting.value, name, "a preset has this name; rename the file"))
    for key, value, name, why in named:
        for folder in folders if isinstance(folders, list) else ():
            own = Path(str(folder).removeprefix("file://"), name)
            if exists(str(own)) and resources.files("lhtrain.conf").joinpath(name).is_file():
                yield Problem(key, value, f"{own} would not be read: {why}")


def _composed(settings: list[Setting], config_name: str) -> tuple[DictConfig | None, list[Problem]]:
    """Compose the settings; if some are invalid, compose the others and return the problems."""
    try:
        return compose(config_name, overrides=[setting.override for setting in settings]), []
    except (*MISFITS, RecursionError):
        problems, config = _one_by_one(settings, config_name)
        return config, problems


def _one_by_one(settings: list[Setting], config_name: str) -> tuple[list[Problem], DictConfig | None]:
    """Add the settings one at a time, groups first; return the problems, and the composition of the rest."""
    accepted: list[str] = []
    problems: list[Problem] = []
    config = None
    try:
        defaults = compose(config_name)
    except MISFITS as error:
        return [Problem("config", config_name, first_line(error))], None
    groups = set(GlobalHydra.instance().config_loader().list_groups(""))

    def order(setting: Setting) -> tuple[bool, bool]:
        """Sort the search path first, then groups, because they define keys that the others set."""
        return not setting.override.startswith(SEARCH), setting.key not in groups

    for setting in sorted(settings, key=order):
        try:
            config = compose(config_name, overrides=[*accepted, setting.override])
            accepted.append(setting.override)
            if setting.override.startswith(SEARCH):
                groups |= set(GlobalHydra.instance().config_loader().list_groups(""))
        except ConfigError as error:  # in a file of the user
            problems += error.problems
        except (*MISFITS, RecursionError) as error:
            problems.append(explained(error, setting, groups, config or defaults))
    return problems, config or defaults


def _problems_of(
    config: DictConfig, n_ranks: int | None, here: bool = False, preset: str | None = None
) -> list[Problem]:
    if misfits := list(unknown_keys(config)) or list(unresolved_values(config)):
        return misfits
    typed = converted(config)
    problems = [*plugins.load(typed.plugins), *validate(typed, n_ranks)]
    problems += contradictions(typed.model, typed.init_from, preset)
    if here:
        from lhtrain.conf.rules.machine import here_problems

        named = {problem.key for problem in problems}
        problems += [problem for problem in here_problems(typed) if problem.key not in named]
    return problems


def _placed(problem: Problem, settings: list[Setting]) -> Problem:
    """Return the problem with the file and line of its value, if a file of the user sets it."""
    if problem.place or any(setting.key == problem.key for setting in settings):
        return problem
    for document in reversed(documents()):
        if problem.key in document.lines:
            return replace(problem, place=document.at(problem.key))
    return problem
