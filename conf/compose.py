"""From command-line overrides to one checked `Config`, or to one error that names every problem."""

import difflib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lhtrain.conf.fill import filled
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.schema import Config, DataConfig
from lhtrain.conf.validate import data_problems, validate

# What Hydra raises where overrides do not fit; ValueError: a group's choice that it reads as a number.
MISFITS = (HydraException, OmegaConfBaseException, ValueError)


def check_overrides(overrides: list[str], config_name: str = "config", n_ranks: int | None = None) -> Config:
    """Compose and validate without running anything; n_ranks: those that would run it, if that is known.

    Raises:
        ConfigError: with every unknown key or group, wrong type and broken rule among `overrides`.
    """
    with _hydra():
        config, problems = _composed(overrides, config_name)
        if config is not None:
            problems += _problems_of(config, n_ranks)
        if problems or config is None:
            raise ConfigError(problems)
        return _typed(config)


def data_config(overrides: list[str]) -> DataConfig:
    """The `data` part of what `overrides` compose, for a command that reads nothing else.

    Raises:
        ConfigError: as `check_overrides`, but of the rules only those on `data`.
    """
    with _hydra():
        config, problems = _composed(overrides, "config")
        data: Any = None
        if config is not None:
            missing = sorted(OmegaConf.missing_keys(config.data))
            problems += [Problem(f"data.{key}", "???", "needs a value") for key in missing]
            if not missing:
                data = OmegaConf.to_object(config.data)
                problems += data_problems(data)
    if problems:
        raise ConfigError(problems)
    assert isinstance(data, DataConfig)
    return data


def _composed(overrides: list[str], config_name: str) -> tuple[DictConfig | None, list[Problem]]:
    """What the overrides make, without those that are problems."""
    try:
        return compose(config_name, overrides=overrides), []
    except MISFITS:
        problems, config = _one_by_one(overrides, config_name)
        return config, problems


def compose_config(overrides: list[str], n_ranks: int | None = None, memory: int | None = None) -> Config:
    """The filled configuration of `overrides`, for commands that do not train. Raises ConfigError.

    n_ranks, memory: as `filled` has them.
    """
    return filled(check_overrides(overrides, n_ranks=n_ranks), n_ranks, memory)


def build(config: DictConfig, n_ranks: int | None = None) -> Config:
    """The typed configuration. Raises ConfigError if a rule is broken."""
    if problems := _problems_of(config, n_ranks):
        raise ConfigError(problems)
    return _typed(config)


def _typed(config: DictConfig) -> Config:
    out = OmegaConf.to_object(config)
    assert isinstance(out, Config)
    return out


def _problems_of(config: DictConfig, n_ranks: int | None) -> list[Problem]:
    if unknown := list(_unknown(config)):
        return [_no_such_key(key, value, config) for key, value in unknown]
    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            return [Problem(key, "???", "needs a value") for key in missing]
        return validate(_typed(config), n_ranks)
    except OmegaConfBaseException as error:  # an interpolation that does not resolve, or to a wrong type
        return [Problem(str(getattr(error, "full_key", "?")), "?", _first_line(error))]


def _one_by_one(overrides: list[str], config_name: str) -> tuple[list[Problem], DictConfig | None]:
    """Add the overrides one at a time, groups first: those that do not fit are problems, the rest compose."""
    groups = set(GlobalHydra.instance().config_loader().list_groups(""))
    accepted: list[str] = []
    problems: list[Problem] = []
    config = None
    try:
        defaults = compose(config_name)
    except MISFITS as error:
        return [Problem("config", config_name, _first_line(error))], None

    def order(override: str) -> tuple[bool, bool]:
        """First where else to look for files, then groups, which bring the keys."""
        return not override.startswith("hydra.searchpath="), override.split("=")[0] not in groups

    for override in sorted(overrides, key=order):
        try:
            config = compose(config_name, overrides=[*accepted, override])
            accepted.append(override)
        except MISFITS as error:
            problems.append(_explain(override, error, config or defaults))
    return problems, config or defaults


def _explain(override: str, error: Exception, config: DictConfig) -> Problem:
    key, _, value = override.partition("=")
    key = key.lstrip("+~")
    said = f"{error}\n{error.__cause__ or ''}"  # Hydra wraps OmegaConf's errors and drops what they say
    if "Could not find" in said:  # a group's option
        options = re.findall(r"^\t(\S+)$", said, re.MULTILINE)
        return Problem(key, value, f"must be one of {', '.join(options)}")
    if "Config group override must be" in said:
        options = GlobalHydra.instance().config_loader().get_group_options(key)
        return Problem(key, value, f"must be one of {', '.join(options)}")
    if re.search(r"not in struct|Could not override|No match in the defaults|not in '", said):
        return _no_such_key(key, value, config)
    return Problem(key, value or "", _type_rule(said))


def _no_such_key(key: str, value: object, config: DictConfig) -> Problem:
    keys = [known for known in _keys(OmegaConf.to_container(config)) if known != key]
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return Problem(key, value, "no such key" + (f"; did you mean {close[0]}?" if close else ""))


def _unknown(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Keys that the schema does not have: Hydra lets + and files of one's own add them."""
    kind = OmegaConf.get_type(config)
    known = {field.name for field in fields(kind)} if is_dataclass(kind) else set(config)
    for key, child in config.items_ex(resolve=False):
        name = f"{prefix}{key!s}"
        if key not in known:
            yield name, child
        elif isinstance(child, DictConfig):
            yield from _unknown(child, f"{name}.")


def _type_rule(said: str) -> str:
    wanted = re.search(r"could not be converted to (\w+)", said)
    if wanted:
        return f"must be of type {wanted[1].lower()}"
    choices = re.search(r"Invalid value '.*', expected one of \[(.*)\]", said)
    if choices:
        return f"must be one of {choices[1]}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("Error merging override")), said)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _keys(tree: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of nested dicts."""
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield f"{prefix}{key}"
            yield from _keys(child, f"{prefix}{key}.")


def _hydra() -> AbstractContextManager[None]:
    GlobalHydra.instance().clear()
    return initialize_config_module("lhtrain.conf", version_base="1.3")
