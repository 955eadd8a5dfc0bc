"""Filters: which rows of a data set become documents, as 'COLUMN OPERATOR VALUE'."""

import difflib
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
SHOWN = 20  # columns that an error lists
LENGTH = "chars"  # in place of a column: the number of characters of the text
_SHAPE = re.compile(r"\s*([\w.]+)\s*(==|!=|>=|<=|>|<)\s*(?!=)(.+?)\s*", re.DOTALL)


class Filters:
    """Rows pass that meet every condition. A value is a JSON number, true, false or null, or else a string.

    A column name with dots looks into nested objects: metadata.language == en; `look_up` has the rule.
    Raises DataError: a condition not of this shape.
    """

    def __init__(self, conditions: Sequence[str]) -> None:
        self.conditions = [_parse(text) for text in conditions]

    @property
    def columns(self) -> set[str]:
        """Columns that the conditions look at, as they are written."""
        return {column for column, _, _ in self.conditions if column != LENGTH}

    def passes(self, row: Mapping[str, Any], text: str, place: object = "") -> bool:
        """Raises DataError: no such column, or a value that cannot be compared. null passes no order."""
        for column, sign, wanted in self.conditions:
            found = len(text) if column == LENGTH else look_up(row, column, "data.filters", place)
            if found is None and sign not in ("==", "!="):
                return False
            try:
                if not OPERATORS[sign](found, wanted):
                    return False
            except TypeError as error:
                rule = f"{type(found).__name__} and {type(wanted).__name__} cannot be compared"
                where = f"{place}: " if str(place) else ""
                raise DataError(
                    f"data.filters: {where}{column}={found!r} {sign} {wanted!r}: {rule}"
                ) from error
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


def look_up(row: Mapping[str, Any], column: str, key: str, where: object = "") -> Any:
    """The value of `column` in a row: of the column of exactly this name, else, where the name has dots, of
    what it leads to in nested objects. Null within the way is null.

    Raises DataError: no such column; with those that are there, names like it first. `key` is the setting
    that named it, `where` the row.
    """
    if column in row:
        return row[column]
    value: Any = row
    names = column.split(".")
    for depth, name in enumerate(names):
        if value is None and depth:
            return None
        if not isinstance(value, Mapping) or name not in value:
            raise DataError(f"{key}={column!r}: {_missing(value, names, depth, where)}")
        value = value[name]
    return value


def _missing(value: Any, names: list[str], depth: int, where: object) -> str:
    """Why names[depth] is not in `value`, which names[:depth] led to."""
    there = f"{where} has" if str(where) else "there is"
    if not isinstance(value, Mapping):
        path = ".".join(names[:depth])
        return (
            f"{there} no such column; {path} is a {type(value).__name__}, and must be an object to look into"
        )
    near = difflib.get_close_matches(names[depth], value, 3)
    columns = [*near, *sorted(set(value) - set(near))]
    shown = ", ".join(columns[:SHOWN]) + (f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else "")
    nested = [name for name in columns if isinstance(value[name], Mapping)]
    hint = f"; look into {nested[0]} by {nested[0]}.NAME" if nested and len(names) == 1 else ""
    return f"{there} no such column; there is {shown or 'none'}{hint}"
