"""Filters that decide which rows of a data set become documents, written as 'COLUMN OPERATOR VALUE'."""

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
LENGTH = "chars"  # instead of a column name: the length of the text in characters
_SHAPE = re.compile(r"\s*([\w.]+)\s*(==|!=|>=|<=|>|<)\s*(?!=)(.+?)\s*", re.DOTALL)


class Filters:
    """Conditions; a row passes if it meets all of them.

    A value is a JSON number, true, false or null, or else a string. A column name with dots refers to nested
    objects, as in metadata.language == en (see `look_up`).
    Raises DataError: a condition without this form.
    """

    def __init__(self, conditions: Sequence[str]) -> None:
        self.conditions = [_parse(text) for text in conditions]

    @property
    def columns(self) -> set[str]:
        """The columns that the conditions use, as written in the conditions."""
        return {column for column, _, _ in self.conditions if column != LENGTH}

    def passes(self, row: Mapping[str, Any], text: str, place: object = "") -> bool:
        """Return whether a row with this text meets all conditions. null fails every <, <=, > and >=.

        place: identifies the row in an error. Raises DataError: no such column, or values of types that
        cannot be compared.
        """
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
    """Return the rule that a condition breaks, if any."""
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
    """Return the value of `column` in a row.

    A column with exactly this name is used if there is one; else a name with dots is followed through nested
    objects. The result is None if a value on the way is null.

    Raises DataError: no such column; the message lists the existing ones, similar names first. key, where:
    the setting that names the column, and the row, for the message.
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
    """Return the reason why names[depth] is not in `value`, the value at names[:depth]."""
    there = f"{where} has" if str(where) else "there is"
    if not isinstance(value, Mapping):
        path = ".".join(names[:depth])
        return f"{there} no such column; {path} must be an object, is a {type(value).__name__}"
    near = difflib.get_close_matches(names[depth], value, 3)
    columns = [*near, *sorted(set(value) - set(near))]
    shown = ", ".join(columns[:SHOWN]) + (f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else "")
    nested = [name for name in columns if isinstance(value[name], Mapping)]
    hint = f"; for a value inside {nested[0]} write {nested[0]}.NAME" if nested and len(names) == 1 else ""
    return f"{there} no such column; columns: {shown or 'none'}{hint}"
