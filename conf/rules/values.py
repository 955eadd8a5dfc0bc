"""Checks each value against the bounds and names beside its key in schema.py."""

from collections.abc import Iterator

from lhtrain.conf.keys import copied_from, limited, select
from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config, DataConfig


def value_problems(config: Config | DataConfig, prefix: str = "") -> Iterator[Problem]:
    """Yield a problem for each value outside its bounds and each unknown name. prefix: for all keys."""
    for key, value, limit in limited(config, prefix):
        origin = copied_from(key)
        if origin and value == select(config, origin):
            continue  # reported for the key that it is copied from
        if rule := limit.broken_rule(value):
            yield Problem(key, value, rule)
