"""Composes and checks a `Config` from command-line settings; one error names every problem."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lhtrain.conf.keys import all_keys, type_of
from lhtrain.conf.nearest import nearest
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.rules import plugins
from lhtrain.conf.rules.data import data_problems
from lhtrain.conf.rules.types import LITERALLY, misfit, rule_of
from lhtrain.conf.rules.validate import validate
from lhtrain.conf.rules.values import value_problems
from lhtrain.conf.schema import Config, DataConfig, StageDataConfig
from lhtrain.conf.stage_data import needs_other
from lhtrain.conf.start_weights import brought, contradictions
from lhtrain.conf.typed.overrides import Setting
from lhtrain.conf.typed.own_files import documents, number, recorded
from lhtrain.conf.typed.paths import exists, expanded
from lhtrain.quote import override

# Errors that Hydra raises for invalid overrides. ValueError: a group's choice that it reads as a number.
MISFITS = (HydraException, OmegaConfBaseException, ValueError)

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
        problems += [*misfits, *_hidden(settings)]
        if config is not None:
            preset = next((setting.value for setting in settings if setting.key == "model"), None)
            problems += _problems_of(config, n_ranks, here, preset)
        if problems or config is None:
            raise ConfigError([_placed(problem, settings) for problem in problems])
        given = OmegaConf.to_container(config.run, resolve=False)
        assert isinstance(given, dict)
        return Checked(_typed(config), "${now:" in str(given["dir"]), tuple(one.override for one in more))


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
            unresolved = [problem for problem in _unresolved(config) if problem.key.startswith("data.")]
            problems += unresolved
            if not unresolved:
                data = OmegaConf.to_object(config.data)
                _expand_data(data)
                problems += [*value_problems(data, "data."), *data_problems(data), *data_here(data)]
        if problems:
            raise ConfigError([_placed(problem, settings) for problem in problems])
    assert isinstance(data, DataConfig)
    return data


def build(config: DictConfig, n_ranks: int | None = None) -> Config:
    """Return the typed configuration. Raises ConfigError if a rule is broken."""
    if problems := _problems_of(config, n_ranks):
        raise ConfigError(problems)
    return _typed(config)


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
        elif not typed.isascii() and typed.encode(errors="replace").decode() != typed:
            problems.append(Problem("", None, f"{typed!a}: must be UTF-8 text"))
        elif "=" not in typed and not typed.startswith("~"):
            problems.append(Problem("", None, f"{typed!r}: must be a setting, KEY=VALUE"))
        else:
            settings.append(Setting.of(typed))
    if folders:
        settings.insert(0, Setting.of(f"{SEARCH}[{','.join(filter(None, folders))}]"))
    return settings, problems


def _hidden(settings: list[Setting]) -> Iterator[Problem]:
    """Yield a problem for each chosen file of the user that Hydra would ignore for a preset of that name."""
    if not settings or not settings[0].override.startswith(SEARCH):
        return
    folders: Any = OverridesParser.create().parse_override(settings[0].override).value()
    for setting in settings[1:]:
        name = f"{setting.key}/{setting.value}.yaml"
        for folder in folders if isinstance(folders, list) else ():
            own = Path(str(folder).removeprefix("file://"), name)
            if exists(str(own)) and resources.files("lhtrain.conf").joinpath(name).is_file():
                rule = f"{own} would not be read: a preset has this name; rename the file"
                yield Problem(setting.key, setting.value, rule)


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
        return [Problem("config", config_name, _first_line(error))], None
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
            problems.append(_explain(setting, error, groups, config or defaults))
    return problems, config or defaults


def _explain(setting: Setting, error: Exception, groups: set[str], config: DictConfig) -> Problem:
    key, value = setting.key, setting.value
    message = f"{error}\n{error.__cause__ or ''}"  # Hydra wraps OmegaConf's errors and drops their text
    own = next((one for one in documents() if one.config_path == f"{key}/{value}"), None)
    if own is not None:  # an error in the defaults list or hydra settings of the user's file
        place = own.at("hydra" if "Hydra" in message or "hydra" in message.lower().split() else "defaults")
        return Problem("", None, _main_line(message).replace(f"In '{key}/{value}': ", ""), place)
    if "submitit_slurm" in message and value == "lhtrain_slurm":
        return Problem(key, value, "needs the package: pip install 'lhtrain[slurm]'")
    if "Could not find" in message and (key in groups or "/" in key):  # no such preset of a group
        options = re.findall(r"^\t(\S+)$", message, re.MULTILINE)
        return Problem(key, value, f"must be one of {', '.join(options)}")
    if "Config group override must be" in message:
        options = GlobalHydra.instance().config_loader().get_group_options(key)
        return Problem(key, value, f"must be one of {', '.join(options)}")
    if "Ambiguous value" in message or "requires --multirun" in message:
        rule = f"several values need a sweep (add -m), a list is [A,B], and a text is '{key}=\"A,B\"'"
        return Problem(key, value, rule)
    if setting.prefix == "~":
        rule = f"{setting.typed}: a key cannot be removed; set it to null if it may be null"
        return Problem("", None, rule)
    if re.search(r"not in struct|Could not override|No match in the defaults|not in '", message):
        return _no_such_key(key, value, config)
    if type_of(key) is not None:
        given = None if value.strip().lower() == "null" else value
        return Problem(key, given, misfit(key, given) or rule_of(key, given))
    if isinstance(error, OverrideParseException):  # the parser's message does not name the key
        if key in groups:
            options = GlobalHydra.instance().config_loader().get_group_options(key)
            return Problem(key, value, f"must be one of {', '.join(options)}")
        if not key.startswith("hydra.") and OmegaConf.select(config, key) is None:
            return _no_such_key(key, value, config)
    return Problem(key, value, _main_line(message))


def _main_line(message: str) -> str:
    """Return the line of a message of Hydra that names the error."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and "full_key" not in line]
    skipped = ("Error merging", "See https", "Error parsing", "reference_type", "object_type")
    lines = [line for line in lines if not line.startswith(skipped) and "raised while composing" not in line]
    options = re.findall(r"^\t(\S+)$", message, re.MULTILINE)
    text = (lines or [message])[0].removeprefix("In 'config': ")
    return f"{text}; must be one of {', '.join(options)}" if options else text


def _typed(config: DictConfig) -> Config:
    out = OmegaConf.to_object(config)
    assert isinstance(out, Config)
    out.run.dir = expanded(out.run.dir)
    out.init_from = None if out.init_from is None else expanded(out.init_from)
    out.cluster.python = None if out.cluster.python is None else expanded(out.cluster.python)
    _expand_data(out.data)
    for stage in out.stages.values():
        _expand_sources(stage.data)
    out.eval.data = _expanded_path(out.eval.data)
    counts: list[Any] = [out.run, *out.stages.values()]
    for owner in counts:
        owner.batch_tokens, owner.grad_accum = number(owner.batch_tokens), number(owner.grad_accum)
    return out


def _expand_data(data: DataConfig) -> None:
    """Expand `~` in the paths of `data` and convert the weights to numbers; both are text as typed before."""
    _expand_sources(data)
    data.val_path = _expanded_path(data.val_path)
    data.tokenizer = expanded(data.tokenizer)
    data.out = None if data.out is None else expanded(data.out)
    data.cache_dir = None if data.cache_dir is None else expanded(data.cache_dir)


def _expand_sources(data: DataConfig | StageDataConfig) -> None:
    data.path = _expanded_path(data.path)
    if isinstance(data.mix, dict):
        data.mix = {str(name): _part(part) for name, part in data.mix.items()}


def _expanded_path(path: Any) -> Any:
    """Expand `~` in a path, or in each path of a list."""
    if isinstance(path, list):
        return [_expanded_path(one) for one in path]
    return expanded(path) if isinstance(path, str) else path


def _part(part: Any) -> Any:
    """Expand the path and convert the weight of one source of a mixture; `validate` checks them later."""
    if not isinstance(part, dict):
        return part
    part = dict(part)
    if "path" in part:
        part["path"] = _expanded_path(part["path"])
    if "weight" in part:
        part["weight"] = number(part["weight"])
    return part


def _problems_of(
    config: DictConfig, n_ranks: int | None, here: bool = False, preset: str | None = None
) -> list[Problem]:
    if unknown := list(_unknown(config)):
        return [_no_such_key(key, value, config) for key, value in unknown]
    if unresolved := list(_unresolved(config)):
        return unresolved
    typed = _typed(config)
    problems = [*plugins.load(typed.plugins), *validate(typed, n_ranks)]
    problems += contradictions(typed.model, typed.init_from, preset)
    if here:
        from lhtrain.conf.rules.machine import here_problems

        named = {problem.key for problem in problems}
        problems += [problem for problem in here_problems(typed) if problem.key not in named]
    return problems


def _unknown(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield keys that the schema does not have, which `+KEY=VALUE` and the user's files can add."""
    for key, child in _items(config):
        name = f"{prefix}{key!s}"
        if (kind := type_of(name)) is None:
            yield name, child
        elif isinstance(child, DictConfig) and kind is not Any:  # Any: rules know its keys
            yield from _unknown(child, f"{name}.")


def _unresolved(config: DictConfig) -> Iterator[Problem]:
    """Yield problems for keys without a value, and for invalid interpolations."""
    if missing := sorted(_missing(OmegaConf.to_container(config, resolve=False))):
        yield from (Problem(key, "???", "needs a value") for key in missing)
        return
    seen = set()
    for parent, key in _interpolations(config):
        try:
            parent[key]
        except (OmegaConfBaseException, RecursionError) as error:
            rule = _first_line(error)
            if rule not in seen:  # otherwise it follows from a value that is already reported
                yield Problem(parent._get_full_key(key), _as_written(parent, key), f"{rule}; {LITERALLY}")
            seen.add(rule)


def _missing(tree: Any, prefix: str = "") -> Iterator[str]:
    for key, child in tree.items() if isinstance(tree, dict) else ():
        if child == "???":
            yield f"{prefix}{key}"
        yield from _missing(child, f"{prefix}{key}.")


def _interpolations(config: DictConfig | ListConfig) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of each value that contains ${…}."""
    for key, child in _items(config):
        if OmegaConf.is_interpolation(config, key):
            yield config, key
        elif isinstance(child, DictConfig | ListConfig):
            yield from _interpolations(child)


def _as_written(parent: DictConfig | ListConfig, key: Any) -> object:
    raw: Any = OmegaConf.to_container(parent, resolve=False)
    return raw[key]


def _items(config: DictConfig | ListConfig) -> list[tuple[Any, Any]]:
    """Return keys and values, with unresolved interpolations; [] if `config` is null or an interpolation."""
    if config._is_none() or config._is_missing() or config._is_interpolation():
        return []
    if isinstance(config, ListConfig):
        return [(number, config._get_node(number)) for number in range(len(config))]
    return list(config.items_ex(resolve=False))


def _no_such_key(key: str, value: object, config: DictConfig) -> Problem:
    group, _, rest = key.partition(".")
    stage = rest.partition(".")[0]
    if group == "stages" and "." in rest and type_of(key) is not None and stage not in config.stages:
        names = ", ".join(str(name) for name in config.stages)
        return Problem(key, value, f"this run has no stage {stage!r}; its stages are {names}")
    if ".rope_scaling." in key:
        parent, _, name = key.rpartition(".")
        rule = (
            f"{parent} is not set, so it has no {name} to change; set all of it: {parent}={{rope_type: …, …}}"
        )
        return Problem(key, value, rule)
    if (reason := needs_other(key)) is not None:
        return Problem(key, value, reason)
    known = [*_keys(OmegaConf.to_container(config)), *all_keys()]
    return Problem(key, value, f"no such key{nearest(key, known)}")


def _keys(tree: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of nested dicts."""
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield f"{prefix}{key}"
            yield from _keys(child, f"{prefix}{key}.")


def _placed(problem: Problem, settings: list[Setting]) -> Problem:
    """Return the problem with the file and line of its value, if a file of the user sets it."""
    if problem.place or any(setting.key == problem.key for setting in settings):
        return problem
    for document in reversed(documents()):
        if problem.key in document.lines:
            return replace(problem, place=document.at(problem.key))
    return problem


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
