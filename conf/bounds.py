"""Bounds of values, written beside the type of a key in schema.py: `Annotated[int, at_least(1)]`."""

import math
from dataclasses import dataclass

from lhtrain.conf.nearest import nearest
from lhtrain.registry import Registry

INT32, FLOAT = 2**31 - 1, 1e30  # a larger value is a typing error


@dataclass(frozen=True)
class OneOf:
    """One of several names, or of the names in a registry."""

    options: tuple[str | Registry, ...]

    @property
    def is_open(self) -> bool:
        """Whether plugins can add names."""
        return any(isinstance(option, Registry) for option in self.options)

    def names(self) -> list[str]:
        """Return all names, with those that loaded plugins have added."""
        names: list[str] = []
        for option in self.options:
            names += option.names() if isinstance(option, Registry) else [option]
        return names

    def broken_rule(self, value: object) -> str | None:
        """Return the rule that `value` breaks, or None."""
        names = self.names()
        if value in names:
            return None
        return f"must be one of {', '.join(names)}{nearest(str(value), names)}"


@dataclass(frozen=True)
class Within:
    """A finite number from `low` to `high`."""

    low: float
    high: float
    if_lower: str  # the rule that a lower value breaks
    if_higher: str  # the rule that a higher value breaks
    if_infinite: str  # the rule that infinity breaks
    excludes_low: bool = False
    excludes_high: bool = False

    def __str__(self) -> str:
        """The bounds as text, without an upper bound that only a typing error exceeds."""
        rules = [self.if_lower]
        if self.high < INT32:
            rules.append(self.if_higher)
        return ", ".join(rule.removeprefix("must be ") for rule in dict.fromkeys(rules) if rule)

    def broken_rule(self, value: object) -> str | None:
        """Return the rule that `value`, or an element of a list, breaks, or None.

        Values that are not numbers break no rule here; their type is checked elsewhere.
        """
        if isinstance(value, list | tuple):
            rule = next(filter(None, map(self.broken_rule, value)), None)
            return f"each {rule}" if rule else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if value == math.inf:
            return self.if_infinite
        if not (value > self.low or (value == self.low and not self.excludes_low)):  # true for nan too
            return self.if_lower
        if value > self.high or (value == self.high and self.excludes_high):
            return self.if_higher
        return None


def one_of(*options: str | Registry) -> OneOf:
    """One of the names, or a name in one of the registries."""
    return OneOf(options)


def at_least(least: int, most: int = INT32, remedy: str = "") -> Within:
    """A whole number from `least` to `most`. remedy: text to add to the rule, such as ', or null'."""
    lower, higher = f"must be at least {least}{remedy}", f"must be at most {most:,}"
    return Within(least, most, lower, higher, higher)


def at_most(most: int) -> Within:
    """A whole number up to `most`; its lower bound is checked elsewhere."""
    rule = f"must be at most {most:,}"
    return Within(-math.inf, most, "", rule, rule)


def positive(least: float = 0.0, why: str = "", remedy: str = "") -> Within:
    """A finite number above 0.

    least: the smallest allowed value, if not 0; why: the reason, for the rule.
    remedy: text to add to the rule, such as ', or null'.
    """
    rule, most = f"must be greater than 0 and finite{remedy}", f"must be at most {FLOAT:g}"
    if least:
        return Within(least, FLOAT, f"must be at least {least:g}: {why}", most, rule)
    return Within(0, FLOAT, rule, most, rule, excludes_low=True)


def not_negative(if_infinite: str = "") -> Within:
    """A finite number that is at least 0. if_infinite: the rule that infinity breaks."""
    rule = "must be at least 0" if if_infinite else "must be at least 0 and finite"
    return Within(0, FLOAT, rule, f"must be at most {FLOAT:g}", if_infinite or rule)


def seconds_or_null() -> Within:
    """A time limit in seconds, above 0; null for none."""
    infinite = "must be finite, or null for no limit"
    rule = "must be greater than 0, or null"
    return Within(0, FLOAT, rule, f"must be at most {FLOAT:g}", infinite, excludes_low=True)


def between(low: float, high: float, remedy: str = "") -> Within:
    """A number from `low` to `high`, both included. remedy: text to add to the rule."""
    rule = f"must be between {low:g} and {high:g}{remedy}"
    return Within(low, high, rule, rule, rule)


def above(low: float, at_most: float) -> Within:
    """A number above `low` and at most `at_most`."""
    rule = f"must be above {low:g} and at most {at_most:g}"
    return Within(low, at_most, rule, rule, rule, excludes_low=True)


def below(high: float, at_least: float | None = None, above: float | None = None) -> Within:
    """A number below `high`, and either at least `at_least` or above `above`."""
    least = f"at least {at_least:g}" if above is None else f"above {above:g}"
    rule = f"must be {least} and below {high:g}"
    low = at_least if above is None else above
    assert low is not None
    return Within(low, high, rule, rule, rule, excludes_low=above is not None, excludes_high=True)
