"""Whether the launcher gives the ranks enough time to save after a signal."""

from collections.abc import Callable

from lhtrain.checkpoint.saver import SaveCost
from lhtrain.distributed.torchrun import too_short
from lhtrain.progress import StageRecord


class LauncherCheck:
    """Warns once if, after a signal, the launcher would kill the ranks before they have saved."""

    def __init__(self, say: Callable[[str], object]):
        self.say, self.done = say, False

    def look(self, record: StageRecord, saved: SaveCost) -> None:
        """Check with the time of a step in `record` and the time of the checkpoints `saved` so far."""
        if self.done or not saved.count or not record.steps:
            return
        if line := too_short(record.busy / record.steps + saved.write_seconds / saved.count):
            self.done = True
            self.say(f"warning   {line}")
