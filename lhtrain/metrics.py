"""metrics.jsonl: one row a logged step, one for every validation, switch, recovery and fault."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from lhtrain.plain_text import from_json, to_json

Row = dict[str, Any]
KINDS = ("train", "validation", "switch", "recovered", "skipped", "spike", "rewound")


class MetricsFile:
    """Rows on disk, in order. `kind`: one of KINDS; `step`: the steps done.

    Rows that a full disk refuses wait, are told by `say`, and are written as soon as there is room.
    """

    def __init__(self, path: Path, say: Callable[[str], object] = print):
        self.path, self.say = path, say
        self.rows: list[Row] = []
        self._file: BinaryIO | None = None
        self._waiting = b""

    def open(self, keep_until: int) -> None:
        """Start writing after the rows of the first `keep_until` steps; later ones, and a torn last line, go.

        The kept rows are written aside and renamed, so that a kill here loses nothing.
        """
        self.close()
        rows = self.rows or (read(self.path) if keep_until else [])
        self.rows = [row for row in rows if row["step"] <= keep_until]
        aside = self.path.with_suffix(".tmp")
        aside.write_text("".join(to_json(row) + "\n" for row in self.rows))
        aside.replace(self.path)
        self._file, self._waiting = self.path.open("ab", buffering=0), b""

    def write(self, row: Row) -> None:
        assert self._file is not None, "open() first"
        self.rows.append(row)
        first = not self._waiting
        self._waiting += to_json(row).encode() + b"\n"
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if first:
                said = f"{self.path.name} was not written: {error}"
                self.say(f"warning   {said}; its rows wait until there is room")

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
            rows.append(from_json(line))
        except ValueError:
            break  # torn by a kill in mid-write; nothing after it is whole
    return rows
