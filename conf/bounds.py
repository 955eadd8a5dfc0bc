"""Which values a key takes, beside its type in schema.py: `Annotated[int, at_least(1)]`."""

import math
from dataclasses import dataclass

from lhtrain.conf.nearest import nearest
from lhtrain.registry import Registry

INT32, FLOAT = 2**31 - 1, 1e30  # more than these is a slip of the keyboard


@dataclass(frozen=True)
class OneOf:
    """One of several names, or of the names in a registry."""

    options: tuple[str | Registry, ...]

    @property
    def is_open(self) -> bool:
        """Whether a plugin may add names."""
        return any(isinstance(option, Registry) for option in self.options)

    def names(self) -> list[str]:
        """All names, those of plugins that are loaded among them."""
        names: list[str] = []
        for option in self.options:
            names += option.names() if isinstance(option, Registry) else [option]
        return names

    def broken_rule(self, value: object) -> str | None:
        """What `value` must be, if it is not."""
        names = self.names()
        if value in names:
            return None
        return f"must be one of {', '.join(names)}{nearest(str(value), names)}"


@dataclass(frozen=True)
class Within:
    """A finite number from `low` to `high`; the rule that a lower, a higher or an infinite one breaks."""

    low: float
    high: float
    if_lower: str
    if_higher: str
    if_infinite: str
    excludes_low: bool = False
    excludes_high: bool = False

    def __str__(self) -> str:
        """The bounds as text, without an upper bound that only a typing error exceeds."""
        rules = [self.if_lower]
        if self.high < INT32:
            rules.append(self.if_higher)
        return ", ".join(rule.removeprefix("must be ") for rule in dict.fromkeys(rules) if rule)

    def broken_rule(self, value: object) -> str | None:
        """What `value` must be, if it is not; values that are no numbers are not looked at."""
        if isinstance(value, list | tuple):
            rule = next(filter(None, map(self.broken_rule, value)), None)
            return f"each {rule}" if rule else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if value == math.inf:
            return self.if_infinite
        if not (value > self.low or (value == self.low and not self.excludes_low)):  # nan, too
            return self.if_lower
        if value > self.high or (value == self.high and self.excludes_high):
            return self.if_higher
        return None


def one_of(*options: str | Registry) -> OneOf:
    """The value is one of the names, or a name in one of the registries."""
    return OneOf(options)


def at_least(least: int, most: int = INT32, remedy: str = "") -> Within:
    """A whole number; remedy: added to the rule, such as ', or null'."""
    lower, higher = f"must be at least {least}{remedy}", f"must be at most {most:,}"
    return Within(least, most, lower, higher, higher)


def at_most(most: int) -> Within:
    """A whole number whose lower bound is a rule of its own."""
    rule = f"must be at most {most:,}"
    return Within(-math.inf, most, "", rule, rule)


def positive(least: float = 0.0, why: str = "") -> Within:
    """A finite number above 0; least: the smallest that works, `why` explains it."""
    rule, most = "must be greater than 0 and finite", f"must be at most {FLOAT:g}"
    if least:
        return Within(least, FLOAT, f"must be at least {least:g}: {why}", most, rule)
    return Within(0, FLOAT, rule, most, rule, excludes_low=True)


def not_negative(if_infinite: str = "") -> Within:
    """A finite number, at least 0."""
    rule = "must be at least 0" if if_infinite else "must be at least 0 and finite"
    return Within(0, FLOAT, rule, f"must be at most {FLOAT:g}", if_infinite or rule)


def seconds_or_null() -> Within:
    """A time limit above 0."""
    infinite = "must be finite, or null for no limit"
    rule = "must be greater than 0, or null"
    return Within(0, FLOAT, rule, f"must be at most {FLOAT:g}", infinite, excludes_low=True)


def between(low: float, high: float, remedy: str = "") -> Within:
    """A number from `low` to `high`, both included."""
    rule = f"must be between {low:g} and {high:g}{remedy}"
    return Within(low, high, rule, rule, rule)


def above(low: float, at_most: float) -> Within:
    """A number above `low` and at most `at_most`."""
    rule = f"must be above {low:g} and at most {at_most:g}"
    return Within(low, at_most, rule, rule, rule, excludes_low=True)


def below(high: float, at_least: float | None = None, above: float | None = None) -> Within:
    """A number below `high`, from `at_least` on or above `above`."""
    least = f"at least {at_least:g}" if above is None else f"above {above:g}"
    rule = f"must be {least} and below {high:g}"
    low = at_least if above is None else above
    assert low is not None
    return Within(low, high, rule, rule, rule, excludes_low=above is not None, excludes_high=True)
