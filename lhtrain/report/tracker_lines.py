"""JSON lines with the names that other trackers show: run.dir/scalars.jsonl."""

from pathlib import Path
from typing import Any

from lhtrain.conf.schema import LoggerConfig
from lhtrain.report.json_lines import JsonLines
from lhtrain.report.metrics import Row
from lhtrain.report.scalars import scalars
from lhtrain.report.trackers import Tracker

FILE = "scalars.jsonl"


class LinesTracker(Tracker):
    """A line for each row that has numbers: {"step": 100, "train/loss": 2.5, "lr": 0.001, …}.

    metrics.jsonl, which is always written, has the same numbers and more. These names are those that scripts
    for other trackers expect. Steps that a resumed run repeats replace those before.
    """

    def __init__(self, config: LoggerConfig, name: str, run_dir: Path, settings: dict[str, Any]):
        self._file, self._begun = JsonLines(run_dir / FILE), False

    def log(self, row: Row) -> None:
        if not self._begun:
            self._file.keep_until(row["step"] - 1)
            self._begun = True
        if values := scalars(row):
            self._file.add([{"step": row["step"], **values}])
