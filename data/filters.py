"""Filters: which rows of a data set become documents, as 'COLUMN OPERATOR VALUE'."""

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lhtrain.data.errors import DataError

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
LENGTH = "chars"  # in place of a column: the number of characters of the text
_SHAPE = re.compile(r"\s*([\w.]+)\s*(==|!=|>=|<=|>|<)\s*(?!=)(.+?)\s*", re.DOTALL)


class Filters:
    """Rows pass that meet every condition. A value is a JSON number, true, false or null, or else a string.

    A column name with dots looks into nested objects: metadata.language == en.
    Raises DataError: a condition not of this shape.
    """

    def __init__(self, conditions: Sequence[str]) -> None:
        self.conditions = [_parse(text) for text in conditions]

    @property
    def columns(self) -> set[str]:
        """Top-level columns that the conditions look at."""
        return {column.split(".")[0] for column, _, _ in self.conditions if column != LENGTH}

    def passes(self, row: Mapping[str, Any], text: str) -> bool:
        """Raises DataError: no such column, or a value that cannot be compared. null passes no order."""
        for column, sign, wanted in self.conditions:
            found = len(text) if column == LENGTH else _look_up(row, column)
            if found is None and sign not in ("==", "!="):
                return False
            try:
                if not OPERATORS[sign](found, wanted):
                    return False
            except TypeError as error:
                rule = f"{type(found).__name__} and {type(wanted).__name__} cannot be compared"
                raise DataError(f"data.filters: {column}={found!r} {sign} {wanted!r}: {rule}") from error
        return True


def filter_problem(text: str) -> str | None:
    """The rule that a condition breaks, if any."""
    if _SHAPE.fullmatch(text):
        return None
    return f"must be 'COLUMN OPERATOR VALUE' with one of {' '.join(OPERATORS)}"


def _parse(text: str) -> tuple[str, str, Any]:
    found = _SHAPE.fullmatch(text)
    if not found:
        raise DataError(f"data.filters={text!r}: {filter_problem(text)}")
    column, sign, value = found.groups()
    try:
        return column, sign, json.loads(value)
    except ValueError:
        return column, sign, value.strip("'\"")


def _look_up(row: Mapping[str, Any], column: str) -> Any:
    value: Any = row
    for key in column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise DataError(f"data.filters: no column {column!r}; there is {', '.join(sorted(row))}")
        value = value[key]
    return value
