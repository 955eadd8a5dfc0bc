"""Trackers: services and files that also get the rows of metrics.jsonl, such as Weights & Biases."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lhtrain.conf.rules.tracking import tracker_names
from lhtrain.conf.schema import LoggerConfig
from lhtrain.errors import reason
from lhtrain.registry import TRACKERS
from lhtrain.report.metrics import Row
from lhtrain.text import one_line


class Tracker:
    """Base class of trackers.

    An entry of registry.TRACKERS is called with the arguments below and returns an object with these methods.
    Any method may raise any exception: a warning is printed, the tracker is not used again, and training
    continues.

    Args:
        config: the keys of `logger`; a plugin's own settings are in config.options.
        name: name of the run.
        run_dir: directory of the run, where a tracker may keep files.
        settings: the configuration of the run as plain values.
    """

    def __init__(self, config: LoggerConfig, name: str, run_dir: Path, settings: dict[str, Any]): ...

    def log(self, row: Row) -> None:
        """Log one row of metrics.jsonl: a dict with `kind`, `step` and JSON values."""

    def evaluated(self, step: int, result: dict[str, Any]) -> None:
        """Log the tables of an evaluation, whose main numbers come as rows. result: content of eval.json."""

    def sampled(self, step: int, samples: list[dict[str, Any]]) -> None:
        """Log texts that the model wrote: rows of samples.jsonl."""

    def finish(self, summary: dict[str, Any] | None) -> None:
        """End the tracker's run. summary: the content of summary.json, or None if an error ended the run."""

    def abandon(self) -> None:
        """Free all resources; called after a method has raised. No other method is called afterwards."""

    @staticmethod
    def advice(config: LoggerConfig) -> str:
        """Return advice to add to the warning if the tracker fails; "" for none."""
        return ""


class Trackers:
    """All trackers that the settings name. One that fails does not stop the others, nor the run."""

    def __init__(
        self,
        config: LoggerConfig,
        name: str,
        run_dir: Path,
        settings: dict[str, Any],
        say: Callable[[str], object] = print,
    ):
        self.all = [SafeTracker(kind, config, name, run_dir, settings, say) for kind in tracker_names(config)]

    def start(self) -> None:
        """Connect to the services."""
        for tracker in self.all:
            tracker.start()

    def take(self, row: Row) -> None:
        for tracker in self.all:
            tracker.call("log", row)

    def evaluated(self, step: int, result: dict[str, Any]) -> None:
        for tracker in self.all:
            tracker.call("evaluated", step, result)

    def sampled(self, step: int, samples: list[dict[str, Any]]) -> None:
        for tracker in self.all:
            tracker.call("sampled", step, samples)

    def finish(self, summary: dict[str, Any] | None) -> None:
        for tracker in self.all:
            tracker.call("finish", summary, failure="failed at the end of the run")


class SafeTracker:
    """Calls the tracker `kind` until it fails.

    The failure is reported once and training continues; metrics.jsonl has all rows anyway.
    """

    def __init__(
        self,
        kind: str,
        config: LoggerConfig,
        name: str,
        run_dir: Path,
        settings: dict[str, Any],
        say: Callable[[str], object] = print,
    ):
        self.kind, self.config, self.name, self.run_dir, self.settings = kind, config, name, run_dir, settings
        self.say = say
        self._advice = ""
        self._tracker: Tracker | None = None

    def start(self) -> None:
        """Connect to the service."""
        self._try("did not start", self._start)

    def call(self, method: str, *arguments: Any, failure: str = "failed") -> None:
        """Call a method of the tracker, if it has not failed; a plugin may lack some methods."""
        if (function := getattr(self._tracker, method, None)) is not None:
            self._try(failure, lambda: function(*arguments))

    def _start(self) -> None:
        make = TRACKERS[self.kind]
        self._advice = make.advice(self.config) if hasattr(make, "advice") else ""
        self._tracker = make(self.config, self.name, self.run_dir, self.settings)

    def _try(self, failure: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # such as no network, no account, a crashed service
            failed, self._tracker = self._tracker, None
            if failed is not None:
                with suppress(Exception):
                    failed.abandon()
            advice = f"; {self._advice}" if self._advice else ""
            self.say(
                f"warning   logger={self.kind} {failure}: {one_line(reason(error), 300)}; "
                f"training continues, and metrics.jsonl has all rows{advice}"
            )
