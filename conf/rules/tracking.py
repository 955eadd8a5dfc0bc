"""Rules on names at Weights & Biases, which itself would refuse them only after everything else is built."""

import importlib.util
from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config

TAG, NAME = 64, 128  # most characters of a tag and of a name
RESERVED = "/\\#?%:"


def logger_problems(config: Config) -> Iterator[Problem]:
    """Yield the broken rules on `logger` if it is wandb."""
    logger = config.logger
    if logger.kind != "wandb":
        return
    if importlib.util.find_spec("wandb") is None:
        yield Problem("logger.kind", "wandb", "needs the package: pip install 'lhtrain[wandb]'")
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
