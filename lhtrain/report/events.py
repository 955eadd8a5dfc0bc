"""The events of a run, as the training loop reports them."""

from typing import Any, Self

from lhtrain.health.nonfinite import Skip
from lhtrain.progress import Progress


class Events:
    """A context manager around the loop, with a method for each event. Here they do nothing: ranks other than
    the first use this class itself; `reporter.Reporter` is that of the first rank."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None: ...

    def say(self, text: str) -> None:
        """Print a line."""

    def compiled(self, seconds: float) -> None:
        """All stages still to come are compiled; 0 if nothing had to be."""

    def changed(self, changes: list[str]) -> None:
        """The run continues with settings that differ from those of its checkpoint."""

    def train_step(self, lr: float, grad_norm: float, tokens: int, flops: int, seconds: float) -> None:
        """A logged step; its loss is the current stage's last. flops: of one rank."""

    def validation(self) -> None:
        """The current stage has a new validation loss."""

    def switch(self, val_loss: float) -> None:
        """A new stage begins; val_loss: the old stage's weights with the new stage's attention."""

    def skipped(self, skip: Skip) -> None:
        """A step updated nothing: its loss or its gradient was not finite."""

    def spike(self, loss: float, deviations: float) -> None:
        """The loss is this many standard deviations above the losses before it."""

    def behind(self, text: str) -> None:
        """A rank is slower than the others."""

    def rewound(self, progress: Progress, left: int, skipped_to: int) -> None:
        """The run returned from step `left` to an older `progress`, and reads its data from `skipped_to`."""

    def flush(self) -> None:
        """Force all rows to the disk: a checkpoint must not outlive the rows of its steps. Any thread."""

    def saved(self, totals: dict[str, Any]) -> None:
        """No more checkpoints will be written; totals: `saver.Saved.as_summary`."""

    def finish(self, signal: int) -> dict[str, Any]:
        """The loop ended, by `signal` if that is not 0. Returns the content of summary.json, where one is
        written."""
        return {}
