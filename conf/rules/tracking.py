"""Rules on trackers: their names and packages, and names at Weights & Biases.

Weights & Biases itself would refuse wrong names only after everything else is built.
"""

import importlib.util
from collections.abc import Iterator

from lhtrain.conf.nearest import nearest
from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config, LoggerConfig
from lhtrain.registry import TRACKERS

TAG, NAME = 64, 128  # most characters of a tag and of a name
RESERVED = "/\\#?%:"


def tracker_names(logger: LoggerConfig) -> list[str]:
    """Return the names of the trackers of a run: of `logger.kind`, and those in `logger.kinds`."""
    names = [] if logger.kind == "none" else [logger.kind]
    return list(dict.fromkeys([*names, *(name for name, on in logger.kinds.items() if on)]))


def logger_problems(config: Config) -> Iterator[Problem]:
    """Yield the broken rules on `logger`."""
    logger = config.logger
    chosen = tracker_names(logger)
    for name in logger.kinds:
        if name not in TRACKERS:
            known = TRACKERS.names()
            rule = f"no such tracker; must be one of {', '.join(known)}{nearest(str(name), known)}"
            yield Problem(f"logger.kinds.{name}", logger.kinds[name], rule)
    for name in ("wandb", "tensorboard"):
        if name in chosen and importlib.util.find_spec(name) is None:
            key = "logger.kind" if name == logger.kind else f"logger.kinds.{name}"
            value = name if name == logger.kind else True
            yield Problem(key, value, f"needs the package: pip install 'lhtrain[{name}]'")
    if "wandb" in chosen:
        yield from _names(logger)


def _names(logger: LoggerConfig) -> Iterator[Problem]:
    """Yield the broken rules on names at Weights & Biases."""
    for key in ("project", "entity", "group"):
        name = getattr(logger, key)
        if name is not None and (rule := _broken_rule(name, NAME)):
            yield Problem(f"logger.{key}", name, f"{rule}, or null" if key != "project" else rule)
    for key in ("project", "entity"):
        name = getattr(logger, key) or ""
        if any(letter in RESERVED for letter in name):
            yield Problem(f"logger.{key}", name, f"must not contain any of {' '.join(RESERVED)}")
    for tag in logger.tags:
        if rule := _broken_rule(tag, TAG):
            yield Problem("logger.tags", repr(tag), f"each {rule}")


def _broken_rule(text: str, most: int) -> str | None:
    rule = f"must have 1 to {most} characters"
    if not text.strip():
        return f"{rule}, not only spaces"
    if len(text) > most:
        return f"{rule}, but has {len(text)}"
    if not text.isprintable():
        return "must be printable, on one line"
    return None
