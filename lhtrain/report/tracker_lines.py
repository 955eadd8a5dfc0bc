"""JSON lines with the names that other trackers show: run.dir/scalars.jsonl."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from lhtrain.conf.schema import LoggerConfig
from lhtrain.files import write_atomic
from lhtrain.report.metrics import Row
from lhtrain.report.scalars import scalars
from lhtrain.report.trackers import Tracker
from lhtrain.text import to_json

FILE = "scalars.jsonl"


class LinesTracker(Tracker):
    """A line for each row that has numbers: {"step": 100, "train/loss": 2.5, "lr": 0.001, …}.

    metrics.jsonl, which is always written, has the same numbers and more. These names are those that scripts
    for other trackers expect. Steps that a resumed run repeats replace those before.
    """

    def __init__(self, config: LoggerConfig, name: str, run_dir: Path, settings: dict[str, Any]):
        self._path, self._begun = run_dir / FILE, False

    def log(self, row: Row) -> None:
        if not self._begun:
            self._begin(row["step"])
        if values := scalars(row):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(to_json({"step": row["step"], **values}) + "\n")

    def _begin(self, step: int) -> None:
        """Drop the lines that earlier processes wrote from `step` on, and an incomplete one."""
        self._begun = True
        kept = []
        for line in self._path.read_bytes().splitlines() if self._path.exists() else ():
            with suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] < step:
                    kept.append(line.decode() + "\n")
        write_atomic(self._path, "".join(kept))
