"""Appends rows to the CSV files in results/."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def append(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Append rows, after a line with the columns if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)
