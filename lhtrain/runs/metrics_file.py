"""Reading metrics.jsonl: a JSON object per line, each with its kind and step."""

from pathlib import Path
from typing import Any

from lhtrain.files import read_regular
from lhtrain.text import from_json

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """Return all complete rows of a metrics file; [] if the file does not exist."""
    return read_rows(path)[0]


def read_rows(path: Path) -> tuple[list[Row], list[int]]:
    """Return all complete rows of a metrics file, and the line numbers (from 1) of damaged lines.

    An incomplete last line does not count as damaged, because a kill during a write leaves one.

    Raises OSError: the file is not a regular file, or cannot be read.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return [], []
    lines = content.split(b"\n")
    rows, damaged = [], []
    for number, line in enumerate(lines, 1):
        row = row_of(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and number < len(lines):
            damaged.append(number)
    return rows, damaged


def row_of(line: bytes) -> Row | None:
    """Return the row in a line; None if the line is not a valid row."""
    try:
        row = from_json(line.decode())
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return None
    whole = isinstance(row, dict) and isinstance(row.get("kind"), str) and type(row.get("step")) is int
    return row if whole else None
