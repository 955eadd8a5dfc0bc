"""Services that get the rows of metrics.jsonl too."""

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

MOST = 128  # characters of a run's name that Weights & Biases takes


class Tracker:
    """A service that a run reports to, and the base of all: an entry of registry.TRACKERS is called with the
    arguments below and returns an object with these methods. Each may raise anything: then the tracker is
    given up, with a warning, and training continues.

    config: the keys of `logger`; a plugin's own are in config.options. name: the run's. run_dir: its
    directory, where a tracker may keep files. settings: the run's configuration as plain values.
    """

    def __init__(self, config: LoggerConfig, name: str, run_dir: Path, settings: dict[str, Any]): ...

    def log(self, row: Row) -> None:
        """Take one row of metrics.jsonl: a dict with `kind`, `step` and values that JSON has."""

    def finish(self, summary: dict[str, Any] | None) -> None:
        """The run ended; with its summary, unless that was by an error."""

    def abandon(self) -> None:
        """A method has raised; no other will be called. Free all resources."""

    @staticmethod
    def advice(config: LoggerConfig) -> str:
        """Advice for the warning if the tracker fails; "" for none."""
        return ""


class WandbTracker(Tracker):
    """Weights & Biases. The id stays in the run directory: a resumed run continues in the same place."""

    def __init__(self, config: LoggerConfig, name: str, run_dir: Path, settings: dict[str, Any]):
        import wandb

        id_file = run_dir / "wandb_id.txt"
        known = (id_file.read_text().strip() or None) if id_file.exists() else None
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=config.tags,
            name=one_line(name, MOST),
            mode=config.mode.value,
            dir=run_dir,
            config=settings,
            id=known,
            resume="allow" if known and config.mode is LoggerMode.online else None,
        )
        write_atomic(id_file, self._run.id + "\n")
        # Our own step is the axis: wandb's counter restarts when an offline run is resumed.
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

        wandb.teardown(exit_code=1)  # else its hook at exit prints a traceback about its dead process

    @staticmethod
    def advice(config: LoggerConfig) -> str:
        return "" if config.mode is LoggerMode.offline else "logger.mode=offline needs no account"


class Harmless:
    """Hands rows to the tracker that `logger.kind` names, if any, until it fails. The failure is reported
    once, and training continues: every row is in metrics.jsonl."""

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
        except Exception as error:  # of many kinds: no network, no account, a service that died
            failed, self._tracker = self._tracker, None
            if failed is not None:
                with suppress(Exception):
                    failed.abandon()
            advice = f"; {self._advice}" if self._advice else ""
            self.say(
                f"warning   logger={self.config.kind} {failure}: {one_line(reason(error), 300)}; "
                f"training continues, with all rows in metrics.jsonl{advice}"
            )
