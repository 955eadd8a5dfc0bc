"""TensorBoard: event files in run.dir/tensorboard, written by PyTorch's SummaryWriter."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lhtrain.conf.schema import LoggerConfig
from lhtrain.report.heat_map import Cells, pictures, tables
from lhtrain.report.metrics import Row
from lhtrain.report.scalars import scalars
from lhtrain.report.trackers import Tracker
from lhtrain.text import to_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
FLUSH_SECONDS = 30  # how long a value may wait until it is in the file


class TensorboardTracker(Tracker):
    """Scalars for each row; tables, heat maps and samples as texts and images.

    Steps that a resumed run repeats replace those before: TensorBoard drops older values of these steps.
    """

    def __init__(self, config: LoggerConfig, name: str, run_dir: Path, settings: dict[str, Any]):
        # Imported now, so that a missing package is reported at the start.
        from torch.utils.tensorboard import SummaryWriter

        self._make, self._folder, self._settings = SummaryWriter, run_dir / FOLDER, settings
        self._writer: SummaryWriter | None = None

    def log(self, row: Row) -> None:
        writer = self._from(row["step"])
        for name, value in scalars(row).items():
            writer.add_scalar(name, value, row["step"])
        if row["kind"] != "train":
            text = ", ".join(f"{key}: {value}" for key, value in row.items() if key not in ("kind", "step"))
            writer.add_text(f"events/{row['kind']}", text, row["step"])
            writer.flush()

    def evaluated(self, step: int, result: dict[str, Any]) -> None:
        writer = self._from(step)
        for table in tables(result):
            writer.add_text(f"evaluation/{table.name}", _markdown(table), step)
        for name, image in pictures(result):
            writer.add_image(f"evaluation/{name}", image, step, dataformats="HWC")
        writer.flush()

    def sampled(self, step: int, samples: list[dict[str, Any]]) -> None:
        for number, sample in enumerate(samples):
            text = _indented(f"{sample['prompt']}{sample['text'] or ''}")
            self._from(step).add_text(f"samples/{number}", text, step)

    def finish(self, summary: dict[str, Any] | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def abandon(self) -> None:
        self.finish(None)

    def _from(self, step: int) -> "SummaryWriter":
        """Return the writer. The first call makes one that replaces older values from `step` on."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=step, flush_secs=FLUSH_SECONDS)
            self._writer.add_text("settings", _indented(to_json(self._settings, indent=2)), step)
        return self._writer


def _indented(text: str) -> str:
    """Return a text that TensorBoard, which reads Markdown, shows as it is."""
    return "".join(f"    {line}\n" for line in text.split("\n"))


def _markdown(table: Cells) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
