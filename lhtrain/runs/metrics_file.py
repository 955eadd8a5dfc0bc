"""Reading metrics.jsonl: one JSON object a line, each with its kind and step."""

from pathlib import Path
from typing import Any

from lhtrain.files import read_regular
from lhtrain.text import from_json

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """All whole rows of a metrics file; [] if there is none."""
    return read_rows(path)[0]


def read_rows(path: Path) -> tuple[list[Row], list[int]]:
    """All whole rows of a metrics file, and the numbers, from 1, of damaged lines before the last one.

    The last line may be torn by a kill in mid-write, which is no damage.

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
    """The row that a line holds; None if it is none."""
    try:
        row = from_json(line.decode())
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return None
    whole = isinstance(row, dict) and isinstance(row.get("kind"), str) and type(row.get("step")) is int
    return row if whole else None
