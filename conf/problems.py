"""What is wrong with a configuration: every problem, in one error."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    key: str
    value: object
    rule: str

    def __str__(self) -> str:
        value = "null" if self.value is None else self.value
        return f"{self.key}={value}: {self.rule}"


class ConfigError(ValueError):
    """All problems of one configuration."""

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(f"{count} in the configuration; nothing was started.{lines}")
