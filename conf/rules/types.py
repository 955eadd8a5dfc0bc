"""Checks whether a value has the type of its key, and describes the type if not."""

import re
from enum import Enum
from typing import Any, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lhtrain.conf.keys import is_container, owner_of, type_of

NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text"}
PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}
LITERALLY = "${NAME} is replaced by the value of another key; write \\${ for the characters ${"


def misfit(key: str, value: Any) -> str | None:
    """Return the rule that the unresolved `value` of the existing `key` breaks; None if it fits."""
    found = owner_of(key)
    if found is None or (isinstance(value, str) and "${" in value):
        return None  # a name in a dictionary, or an interpolation, whose value is checked later
    owner, name = found
    node = OmegaConf.structured(owner)
    try:
        OmegaConf.update(node, name, value, merge=True)
    except (OmegaConfBaseException, ValueError):
        return rule_of(key, value)
    return None


def rule_of(key: str, value: Any) -> str:
    """Return the rule for the type of `key`, given a `value` that breaks it."""
    kind = type_of(key)
    if kind is str and "${" in str(value):
        return LITERALLY
    if value is None:
        return f"{_must_be(kind)}, not null"
    if kind is int and _is_whole(value):
        return f"must be a whole number, written in digits: {int(float(value))}"
    return _must_be(kind)


def _must_be(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"must be one of {', '.join(member.name for member in kind)}"
    if kind is bool:
        return "must be true or false"
    if kind in NAMES:
        return f"must be {NAMES[kind] if kind is str else f'a {NAMES[kind]}'}"
    if get_origin(kind) is list:
        return f"must be a list [A,B] of {PLURALS[get_args(kind)[0]]}"
    if get_origin(kind) is tuple:
        return f"must be a list of {len(get_args(kind))} numbers"
    if get_origin(kind) is dict and not is_container(kind):
        return "must be a mapping {NAME: VALUE}"
    if is_container(kind):
        return "must contain keys"
    return "must be text, or a list of texts"


def _is_whole(value: Any) -> bool:
    if not re.fullmatch(r"[-+]?[0-9._]+([eE][-+]?[0-9]{1,2})?", str(value)):
        return False
    try:
        return float(value).is_integer()
    except (ValueError, OverflowError):
        return False
