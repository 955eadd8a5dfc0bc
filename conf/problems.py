"""What is wrong with a configuration: every problem, in one error."""

from dataclasses import dataclass

from lhtrain.errors import ExplainedError


@dataclass(frozen=True)
class Problem:
    """`rule`: the values that `key` may have, and the remedy; `place`: the file and line that set it, if any.

    Without a key the problem is the file's own, such as broken YAML. `is_here`: the settings may be fine and
    the machine lacks what they name.
    """

    key: str
    value: object
    rule: str
    place: str = ""
    is_here: bool = False

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        return f"{where}{self.key}={shown(self.value)}: {self.rule}" if self.key else f"{where}{self.rule}"


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and not longer than that."""
    text = "null" if value is None else str(value)
    if not text.isprintable():
        text = repr(text)
    return text if len(text) <= 200 else f"{text[:150]}… ({len(text):,} characters)"


class ConfigError(ExplainedError, ValueError):
    """All problems of one configuration. `status`: the exit status, 2 if settings are wrong."""

    def __init__(self, problems: list[Problem]):
        # Two runs of a sweep, or two rules on one value, may find the same.
        self.problems = list({str(problem): problem for problem in problems}.values())
        self.status = 1 if all(problem.is_here for problem in self.problems) else 2
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"{count} in the configuration; nothing was started.{lines}")

    def __reduce__(self) -> tuple:
        """Other ranks get the problems, not the text."""
        return type(self), (self.problems,)
