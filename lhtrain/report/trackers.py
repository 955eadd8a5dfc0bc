"""Where metrics go besides the run directory."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lhtrain.conf.schema import LoggerConfig, LoggerMode
from lhtrain.errors import reason
from lhtrain.files import write_atomic
from lhtrain.report.metrics import KINDS
from lhtrain.report.plain_text import one_line

MOST = 128  # characters of a run's name that Weights & Biases takes


class Logger:
    """The logger of `logger=none`: everything is in the run directory already."""

    def log(self, row: dict[str, Any]) -> None:
        """Take one row of metrics.jsonl."""

    def finish(self, summary: dict[str, Any] | None) -> None:
        """The run ended; with its summary, unless that was by an error."""

    def abandon(self) -> None:
        """It failed and gets no more rows: free what it holds. May raise anything."""


class WandbLogger(Logger):
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
        # Our own step is the axis: wandb's counter starts anew when an offline run is resumed.
        self._run.define_metric("step")
        for kind in KINDS:
            self._run.define_metric(f"{kind}/*", step_metric="step")

    def log(self, row: dict[str, Any]) -> None:
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


class Harmless(Logger):
    """Hands rows to the configured logger until that fails. Then it says so, once, and training continues:
    every row is in metrics.jsonl."""

    def __init__(self, say: Callable[[str], object]):
        self.say = say
        self._logger: Logger | None = None

    def open(self, config: LoggerConfig, name: str, run_dir: Path, settings: dict[str, Any]) -> None:
        if config.kind == "none":
            return
        self._mode = config.mode
        self._try("did not start", lambda: self._start(config, name, run_dir, settings))

    def _start(self, config: LoggerConfig, name: str, run_dir: Path, settings: dict[str, Any]) -> None:
        self._logger = WandbLogger(config, name, run_dir, settings)

    def log(self, row: dict[str, Any]) -> None:
        if (logger := self._logger) is not None:
            self._try("failed", lambda: logger.log(row))

    def finish(self, summary: dict[str, Any] | None) -> None:
        if (logger := self._logger) is not None:
            self._try("failed at the end of the run", lambda: logger.finish(summary))

    def _try(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # of many kinds: no network, no account, a service that died
            failed, self._logger = self._logger, None
            if failed is not None:
                with suppress(Exception):
                    failed.abandon()
            advice = "" if self._mode is LoggerMode.offline else "; logger.mode=offline needs no account"
            self.say(
                f"warning   logger=wandb {what}: {one_line(reason(error), 300)}; "
                f"training continues, with all rows in metrics.jsonl{advice}"
            )


def open_logger(
    config: LoggerConfig,
    name: str,
    run_dir: Path,
    settings: dict[str, Any],
    say: Callable[[str], object] = print,
) -> Logger:
    """The configured logger. Raises nothing: failures, here or later, are reported through `say`."""
    logger = Harmless(say)
    logger.open(config, name, run_dir, settings)
    return logger
