"""metrics.jsonl: one row a logged step, one for every validation, switch, recovery, fault and change."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lhtrain.files import numbered, open_regular, write_atomic
from lhtrain.runs.metrics_file import Row, read_rows
from lhtrain.text import to_json

KINDS = ("train", "validation", "switch", "recovered", "skipped", "spike", "rewound", "changed")


class MetricsFile:
    """Rows on disk, in order. `kind`: one of KINDS; `step`: the steps done.

    If the disk is full, rows are buffered, `say` is called once, and the next row tries again.
    """

    def __init__(self, path: Path, say: Callable[[str], object] = print):
        self.path, self.say = path, say
        self.rows: list[Row] = []
        self._file: BinaryIO | None = None
        self._waiting = b""

    def open(self, keep_until: int) -> None:
        """Start writing after the rows of the first `keep_until` steps. Later rows and a torn last line go.

        The kept rows are written to a new file that replaces the old one, so that a kill here loses nothing.
        Damaged lines in the middle are reported, and a copy of the old file is kept.
        """
        self.close()
        rows = self.rows
        if not rows and keep_until:
            rows, damaged = read_rows(self.path)
            if damaged:
                copy = numbered(self.path)
                shutil.copyfile(self.path, copy)
                lines = "line" if len(damaged) == 1 else "lines"
                self.say(
                    f"warning   {self.path.name}: {lines} {', '.join(map(str, damaged[:5]))}"
                    f"{' …' if len(damaged) > 5 else ''} are not JSON rows and are left out; "
                    f"the old file is kept as {copy.name}"
                )
        self.rows = [row for row in rows if row["step"] <= keep_until]
        write_atomic(self.path, "".join(_line(row) for row in self.rows))
        descriptor = open_regular(self.path, os.O_WRONLY | os.O_APPEND)
        self._file, self._waiting = os.fdopen(descriptor, "ab", buffering=0), b""

    def take(self, row: Row) -> None:
        """Add a row; numbers that are not finite become null, since JSON has no NaN."""
        assert self._file is not None, "open() first"
        line = _line(row).encode()
        self.rows.append(row)
        first = not self._waiting
        self._waiting += line
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if first:
                failed = f"{self.path} was not written: {error}"
                self.say(f"warning   {failed}; rows are kept in memory until there is room")

    def sync(self) -> None:
        """Force the rows to the disk, so that a checkpoint never outlives the rows of its steps.

        Rows that do not fit on a full disk stay buffered: they must not make a checkpoint fail.
        """
        if self._file is not None and not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self.say(f"warning   {self.path} was not forced to the disk: {error}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _line(row: Row) -> str:
    return to_json(row) + "\n"
