"""metrics.jsonl: one row a logged step, one for every validation, switch, recovery and fault."""

import json
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]


class MetricsFile:
    """Rows on disk, in order. `kind`: train, validation, switch, recovered, skipped, spike or rewound;
    `step`: the steps done."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Row] = []
        self._file: TextIO | None = None

    def open(self, keep_until: int) -> None:
        """Start writing after the rows of the first `keep_until` steps; later ones, and a torn last line, go.

        The kept rows are written aside and renamed, so that a kill here loses nothing.
        """
        self.close()
        self.rows = [row for row in read(self.path) if row["step"] <= keep_until] if keep_until else []
        aside = self.path.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        aside.replace(self.path)
        self._file = self.path.open("a", buffering=1)

    def write(self, row: Row) -> None:
        assert self._file is not None, "open() first"
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read(path: Path) -> list[Row]:
    """All whole rows of a metrics file; [] if there is none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # torn by a kill in mid-write; nothing after it is whole
    return rows
