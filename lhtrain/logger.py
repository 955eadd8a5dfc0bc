"""Where metrics go besides the run directory."""

from pathlib import Path
from typing import Any

from lhtrain.conf.schema import LoggerConfig, LoggerKind, LoggerMode
from lhtrain.errors import RunError
from lhtrain.metrics import KINDS


class Logger:
    """The logger of `logger=none`: everything is in the run directory already."""

    def log(self, row: dict[str, Any]) -> None:
        """Take one row of metrics.jsonl."""

    def finish(self, summary: dict[str, Any] | None) -> None:
        """The run ended, with its summary if it came so far."""


class WandbLogger(Logger):
    """Weights & Biases. The id stays in the run directory: a resumed run goes on in the same place."""

    def __init__(self, config: LoggerConfig, name: str, run_dir: Path, settings: dict[str, Any]):
        import wandb

        id_file = run_dir / "wandb_id.txt"
        known = id_file.read_text().strip() if id_file.exists() else None
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group,
                tags=config.tags,
                name=name,
                mode=config.mode.value,
                dir=run_dir,
                config=settings,
                id=known,
                resume="allow" if known and config.mode is LoggerMode.online else None,
            )
        except wandb.Error as error:  # no account, no network
            what = f"logger.mode={config.mode.value}: {error}"
            raise RunError(f"{what} logger.mode=offline needs no account") from error
        id_file.write_text(self._run.id + "\n")
        # Our own step is the axis: wandb's counter starts anew when an offline run is resumed.
        self._run.define_metric("step")
        for kind in KINDS:
            self._run.define_metric(f"{kind}/*", step_metric="step")

    def log(self, row: dict[str, Any]) -> None:
        kind = row["kind"]
        values = {f"{kind}/{key}": value for key, value in row.items() if key not in ("kind", "step")}
        self._run.log({"step": row["step"], **values})

    def finish(self, summary: dict[str, Any] | None) -> None:
        if summary is not None:
            for stage in summary["stages"]:
                for key in ("tokens_per_second", "last_loss", "val_loss"):
                    self._run.summary[f"{stage['name']}/{key}"] = stage[key]
        self._run.finish(exit_code=0 if summary is not None else 1)


def open_logger(config: LoggerConfig, name: str, run_dir: Path, settings: dict[str, Any]) -> Logger:
    if config.kind is LoggerKind.wandb:
        return WandbLogger(config, name, run_dir, settings)
    return Logger()
