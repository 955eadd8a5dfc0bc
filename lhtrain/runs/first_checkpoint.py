"""The record that a run has a checkpoint."""

from collections.abc import Callable
from pathlib import Path

from lhtrain.distributed.world import World
from lhtrain.runs.history import History
from lhtrain.runs.start import Start


class FirstCheckpoint:
    """Records once that the run has a checkpoint, so that it is not taken for a new run if all are deleted.

    history: file of the run's history. start: a resumed run has the record already.
    """

    def __init__(self, history: Path, start: Start, world: World, say: Callable[[str], object]):
        self.history, self.world, self.say = history, world, say
        self.known = start.path is not None

    def note(self, count: int) -> None:
        """Write the record when the first of `count` checkpoints is complete."""
        if self.world.is_main and not self.known and count:
            try:
                History(self.history).add("checkpoint")
            except OSError as error:
                self.say(f"warning   {error}")
            self.known = True
