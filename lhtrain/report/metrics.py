"""metrics.jsonl: a row for each logged step, validation, switch, recovery, fault and changed setting."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lhtrain.files import numbered, open_regular, write_atomic
from lhtrain.runs.metrics_file import Row, read_rows
from lhtrain.text import to_json

KINDS = ("train", "validation", "evaluation", "switch", "recovered", "skipped", "spike", "rewound", "changed")


class MetricsFile:
    """The rows of a run, in memory and on disk, in order.

    Each row has at least `kind`, one of KINDS, and `step`, the number of steps done. If the disk is full,
    rows are buffered, `say` is called once, and writing is tried again with the next row.
    """

    def __init__(self, path: Path, say: Callable[[str], object] = print):
        self.path, self.say = path, say
        self.rows: list[Row] = []
        self._file: BinaryIO | None = None
        self._waiting = b""

    def open(self, keep_until: int) -> None:
        """Open the file to append to the rows of the first `keep_until` steps; drop all later rows.

        The kept rows are written to a new file that then replaces the old one, so that no row is lost if the
        process is killed here. An incomplete last line is dropped. Damaged lines in the middle are dropped
        and reported, and a copy of the old file is kept.
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
                    f"{' …' if len(damaged) > 5 else ''} are not JSON rows and are dropped; "
                    f"the old file is kept as {copy.name}"
                )
        self.rows = [row for row in rows if row["step"] <= keep_until]
        write_atomic(self.path, "".join(_line(row) for row in self.rows))
        descriptor = open_regular(self.path, os.O_WRONLY | os.O_APPEND)
        self._file, self._waiting = os.fdopen(descriptor, "ab", buffering=0), b""

    def take(self, row: Row) -> None:
        """Append a row; numbers that are not finite become null, because JSON has no NaN."""
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
                self.say(f"warning   {failed}; rows are kept in memory until they can be written")

    def sync(self) -> None:
        """Sync the rows to disk, so that no checkpoint is on disk without the rows of its steps.

        If the disk is full, rows stay buffered, because a full disk must not make a checkpoint fail here.
        """
        if self._file is not None and not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self.say(f"warning   {self.path} was not synced to disk: {error}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _line(row: Row) -> str:
    return to_json(row) + "\n"
