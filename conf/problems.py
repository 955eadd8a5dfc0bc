"""Problems in a configuration, and the one error that lists all of them."""

from dataclasses import dataclass

from lhtrain.errors import ExplainedError


@dataclass(frozen=True)
class Problem:
    """A value that is not allowed, or a fault of a file."""

    key: str  # "" for a fault of the file itself, such as invalid YAML
    value: object
    rule: str  # the values that `key` may have, and a remedy
    place: str = ""  # FILE:LINE that sets the value, if it is set in a file of the user
    is_here: bool = False  # whether the settings may be valid, but this machine lacks a file or device

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        return f"{where}{self.key}={shown(self.value)}: {self.rule}" if self.key else f"{where}{self.rule}"


def shown(value: object) -> str:
    """Return a value as text for a message: on one line, and shortened if it is long."""
    text = "null" if value is None else str(value)
    if not text.isprintable():
        text = repr(text)
    return text if len(text) <= 200 else f"{text[:150]}… ({len(text):,} characters)"


class ConfigError(ExplainedError, ValueError):
    """All problems of one configuration. `status`: the exit status, 2 if a setting is wrong, else 1."""

    def __init__(self, problems: list[Problem]):
        # Two runs of a sweep, or two rules, may find the same problem; it is listed once.
        self.problems = list({str(problem): problem for problem in problems}.values())
        self.status = 1 if all(problem.is_here for problem in self.problems) else 2
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"{count} in the configuration; nothing was started.{lines}")

    def __reduce__(self) -> tuple:
        """Pickle the problems instead of the text, to send them to other ranks."""
        return type(self), (self.problems,)
