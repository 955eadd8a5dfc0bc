"""Settings that do not fit the schema, each explained as a problem: keys, values and interpolations."""

import re
from collections.abc import Iterator
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lhtrain.conf.keys import all_keys, type_of
from lhtrain.conf.nearest import nearest
from lhtrain.conf.problems import Problem
from lhtrain.conf.rules.types import LITERALLY, misfit, rule_of
from lhtrain.conf.stage_data import needs_other
from lhtrain.conf.typed.overrides import Setting
from lhtrain.conf.typed.own_files import documents

# Errors that Hydra raises for invalid overrides. ValueError: a group's choice that it reads as a number.
MISFITS = (HydraException, OmegaConfBaseException, ValueError)


def explained(error: Exception, setting: Setting, groups: set[str], config: DictConfig) -> Problem:
    """Return the problem of a setting with which Hydra raises `error`.

    groups: names of all groups of presets. config: the configuration without the setting.
    """
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


def unknown_keys(config: DictConfig) -> Iterator[Problem]:
    """Yield a problem for each key that the schema lacks, which `+KEY=VALUE` and the user's files can add."""
    return (_no_such_key(key, value, config) for key, value in _unknown(config))


def _unknown(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, child in _items(config):
        name = f"{prefix}{key!s}"
        if (kind := type_of(name)) is None:
            yield name, child
        elif isinstance(child, DictConfig) and kind is not Any:  # Any: rules know its keys
            yield from _unknown(child, f"{name}.")


def unresolved_values(config: DictConfig) -> Iterator[Problem]:
    """Yield problems for keys without a value, and for invalid interpolations."""
    if missing := sorted(_missing(OmegaConf.to_container(config, resolve=False))):
        yield from (Problem(key, "???", "needs a value") for key in missing)
        return
    seen = set()
    for parent, key in _interpolations(config):
        try:
            parent[key]
        except (OmegaConfBaseException, RecursionError) as error:
            rule = first_line(error)
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


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
