"""Weights & Biases."""

from pathlib import Path
from typing import Any

from lhtrain.conf.schema import LoggerConfig, LoggerMode
from lhtrain.files import write_atomic
from lhtrain.report.heat_map import pictures, tables
from lhtrain.report.metrics import KINDS, Row
from lhtrain.report.scalars import scalars
from lhtrain.report.trackers import Tracker
from lhtrain.text import one_line

MAX_NAME = 128  # most characters in the name of a run


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
        for name in ("*", *(f"{group}/*" for group in (*KINDS, "val"))):
            self._run.define_metric(name, step_metric="step")

    def log(self, row: Row) -> None:
        kind = row["kind"]
        values = {
            f"{kind}/{key}": value
            for key, value in row.items()
            if key not in ("kind", "step") and value is not None and kind != "evaluation"
        }
        self._run.log({"step": row["step"], **values, **scalars(row)})

    def evaluated(self, step: int, result: dict[str, Any]) -> None:
        import wandb

        out: dict[str, Any] = {}
        for table in tables(result):
            out[f"evaluation/{table.name}"] = wandb.Table(columns=[*table.columns], data=table.rows)
        for name, image in pictures(result):
            out[f"evaluation/{name}_map"] = wandb.Image(image)
        self._run.log({"step": step, **out})

    def sampled(self, step: int, samples: list[dict[str, Any]]) -> None:
        import wandb

        rows = [[sample["prompt"], sample["text"]] for sample in samples]
        self._run.log({"step": step, "samples": wandb.Table(columns=["prompt", "text"], data=rows)})

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
