"""Trackers: services to which the rows of metrics.jsonl are also sent, such as Weights & Biases."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lhtrain.conf.schema import LoggerConfig, LoggerMode
from lhtrain.errors import reason
from lhtrain.files import write_atomic
from lhtrain.registry import TRACKERS
from lhtrain.report.metrics import KINDS, Row
from lhtrain.text import one_line

MAX_NAME = 128  # most characters in the name of a run at Weights & Biases


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

    def finish(self, summary: dict[str, Any] | None) -> None:
        """End the tracker's run. summary: the content of summary.json, or None if an error ended the run."""

    def abandon(self) -> None:
        """Free all resources; called after a method has raised. No other method is called afterwards."""

    @staticmethod
    def advice(config: LoggerConfig) -> str:
        """Return advice to add to the warning if the tracker fails; "" for none."""
        return ""


class WandbTracker(Tracker):
    """Weights & Biases. The id of its run is kept in run_dir, so that a resumed run continues that run."""

    def __init__(self, config: LoggerConfig, name: str, run_dir: Path, settings: dict[str, Any]):
        import wandb

        id_file = run_dir / "wandb_id.txt"
        known = (id_file.read_text().strip() or None) if id_file.exists() else None
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=config.tags,
            name=one_line(name, MAX_NAME),
            mode=config.mode.value,
            dir=run_dir,
            config=settings,
            id=known,
            resume="allow" if known and config.mode is LoggerMode.online else None,
        )
        write_atomic(id_file, self._run.id + "\n")
        # Plot over our own step, because wandb's counter starts again when an offline run is resumed.
        self._run.define_metric("step")
        for kind in KINDS:
            self._run.define_metric(f"{kind}/*", step_metric="step")

    def log(self, row: Row) -> None:
        kind = row["kind"]
        values = {
            f"{kind}/{key}": value
            for key, value in row.items()
            if key not in ("kind", "step") and value is not None
        }
        self._run.log({"step": row["step"], **values})

    def finish(self, summary: dict[str, Any] | None) -> None:
        if summary is not None:
            for stage in summary["stages"]:
                for key in ("tokens_per_second", "loss_mean", "val_loss"):
                    self._run.summary[f"{stage['name']}/{key}"] = stage[key]
        self._run.finish(exit_code=0 if summary is not None else 1)

    def abandon(self) -> None:
        import wandb

        # Otherwise wandb's hook at exit prints a traceback about its dead process.
        wandb.teardown(exit_code=1)

    @staticmethod
    def advice(config: LoggerConfig) -> str:
        return "" if config.mode is LoggerMode.offline else "logger.mode=offline needs no account"


class SafeTracker:
    """Passes rows to the tracker `logger.kind`, if it is not "none", until the tracker fails.

    The failure is reported once and training continues; metrics.jsonl has all rows anyway.
    """

    def __init__(
        self,
        config: LoggerConfig,
        name: str,
        run_dir: Path,
        settings: dict[str, Any],
        say: Callable[[str], object] = print,
    ):
        self.config, self.name, self.run_dir, self.settings = config, name, run_dir, settings
        self.say = say
        self._advice = ""
        self._tracker: Tracker | None = None

    def start(self) -> None:
        """Connect to the service."""
        if self.config.kind != "none":
            self._try("did not start", self._start)

    def take(self, row: Row) -> None:
        if (tracker := self._tracker) is not None:
            self._try("failed", lambda: tracker.log(row))

    def finish(self, summary: dict[str, Any] | None) -> None:
        if (tracker := self._tracker) is not None:
            self._try("failed at the end of the run", lambda: tracker.finish(summary))

    def _start(self) -> None:
        make = TRACKERS[self.config.kind]
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
                f"warning   logger={self.config.kind} {failure}: {one_line(reason(error), 300)}; "
                f"training continues, and metrics.jsonl has all rows{advice}"
            )
