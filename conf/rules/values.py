"""Each value by itself: the bounds and names that schema.py has beside the keys."""

from collections.abc import Iterator

from lhtrain.conf.keys import copied_from, limited, select
from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config, DataConfig


def value_problems(config: Config | DataConfig, prefix: str = "") -> Iterator[Problem]:
    """Values outside of their bounds, and names that do not exist. prefix: of the keys of a part."""
    for key, value, limit in limited(config, prefix):
        origin = copied_from(key)
        if origin and value == select(config, origin):
            continue  # reported as the origin's
        if rule := limit.broken_rule(value):
            yield Problem(key, value, rule)
